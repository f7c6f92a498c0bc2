"""Whether imported teams say here what they say in AutoGen: generated ones, both ways, with the same models.

`convergio bench conformance [--seed S] [--cases N] [--json]`. Every case is ComponentModel JSON whose models replay
their answers. It runs in AutoGen 0.7.5's own runtime, in this process, and through our import on two worker processes
with a Valkey and a journal of their own. Two plays are equal if every turn has the same messages, calls of tools and
results, in the same order, and the reason to stop is the same. Agents of a graph that AutoGen runs at once have no
order of their own: there the turns are compared, and ours have to be in the order of `benchmarks/supersteps.py`.

A difference is documented only if that model comes to AutoGen's turns and stop with one or more of its known defects
(a to d), and to ours without any. Every other difference is unexplained, and then the exit code is 1.

The last line on stdout is one JSON object: `cases`, `equal`, `documented_differences`, `unexplained`, and how many of
each kind of team and of each combination of defects.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from convergio.benchmarks import casts, lookups, rig
from convergio.benchmarks.casts import Case
from convergio.benchmarks.scripts import COMPLETE, Play, line_of, stop_of
from convergio.benchmarks.supersteps import Lines, Outcome, Steps, explained
from convergio.graphflow.flow import component_team, document, teamfile
from convergio.graphflow.flow.team import HUMAN
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.conversation.archive import Archive

TOOLS: Final = {one.__name__: one.__name__ for one in lookups.ALL}
TALK: Final = "talk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a case. `defects`: of AutoGen, that explain the difference; None: nothing does. `said`: how the two
    differ, for people."""

    case: Case
    equal: bool
    defects: str | None
    said: str = ""


def imported(case: Case) -> Workflow:
    """The case as a workflow of ours. Raises errors.ProblemsError: everything that is generated can be imported."""
    made = component_team.read(case.document, tools=TOOLS, source=case.name)
    if made.kind == "workflow":
        return document.parse_document(made.document, source=case.name)
    talk = {"conversation": teamfile.parse(made.document, source=case.name).talk, "prompt": "{{ input.said }}"}
    return document.parse_document({"workflow": "chat", "version": 1, "steps": {TALK: talk}}, source=case.name)


def heard(archive: Archive, tenant: str, run: str, flow: Workflow) -> Play:
    """What was said in a run that has ended."""
    steps = list(flow.steps)
    messages = [message for step in steps for message in archive.whole(tenant, run, step)]
    if steps != [TALK]:
        first = next(message for message in messages if message.source == HUMAN)
        lines = [line_of(first), *(line_of(message) for message in messages if message.source != HUMAN)]
        return Play(lines=tuple(lines), stop=COMPLETE)
    stop = json.loads(archive.turns(tenant, run, TALK)[-1]["stop"])
    return Play(lines=tuple(map(line_of, messages)), stop=stop_of(stop))


def judged(case: Case, theirs: Play, ours: Play) -> Verdict:
    """Whether the two are equal and, if not, why."""
    if case.kind != "graph":
        equal = theirs == ours
        return Verdict(
            case=case, equal=equal, defects="" if equal else None, said="" if equal else _differ(theirs, ours)
        )
    lines: Lines = {**theirs.turns(), **ours.turns()}
    same = all(theirs.turns().get(turn, said) == ours.turns().get(turn, said) for turn, said in lines.items())
    run = partial(_modelled, case, lines, list(theirs.turns()))
    right = run("")
    expected = right.stop == ours.stop and (
        sorted(right.turns) == sorted(ours.turns())
        if case.form == "graph/steps"
        else list(right.turns) == list(ours.turns())
    )
    defects = explained(run, list(theirs.turns()), theirs.stop) if same and expected else None
    equal = same and theirs.stop == ours.stop and theirs.turns().keys() == ours.turns().keys() and defects == ""
    said = "" if defects is not None else _differ(theirs, ours) + f"\nwithout defects: {right}"
    return Verdict(case=case, equal=equal, defects=defects, said=said)


def _modelled(case: Case, lines: Lines, order: Sequence[tuple[str, int]], defects: str) -> Outcome:
    return Steps(case.document, case.task, lines, defects, order if "d" in defects else ()).run()


def _differ(theirs: Play, ours: Play) -> str:
    place = next(
        (n for n, (one, other) in enumerate(zip(theirs.lines, ours.lines, strict=False)) if one != other),
        min(len(theirs.lines), len(ours.lines)),
    )
    return (
        f"line {place}: AutoGen {theirs.lines[place : place + 2]}, ours {ours.lines[place : place + 2]}; "
        f"stops: AutoGen {theirs.stop!r}, ours {ours.stop!r}; "
        f"turns: AutoGen {list(theirs.turns())}, ours {list(ours.turns())}"
    )


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The figures."""
    differing = [one for one in verdicts if not one.equal]
    documented = [one for one in differing if one.defects]
    return {
        "cases": len(verdicts),
        "equal": sum(one.equal for one in verdicts),
        "documented_differences": len(documented),
        "unexplained": len(differing) - len(documented),
        "kinds": dict(Counter(one.case.form for one in verdicts)),
        "defects": dict(Counter(str(one.defects) for one in documented)),
    }


def played(cases: Sequence[Case]) -> list[Play]:
    """The cases on our engine: a server, a journal, a service process and two workers."""
    from convergio.benchmarks import ours

    flows = [imported(case) for case in cases]
    with rig.folder() as place, rig.server(place) as url:
        included = {"CONVERGIO_INCLUDE": f"convergio.benchmarks.bodies,{lookups.__name__}"}
        journal_url = f"sqlite:///{place.path / 'journal.db'}"
        with ours.stack(place, url, journal_url=journal_url, env=included) as stack:
            runs = [stack.submit(flow, {"said": case.task}) for flow, case in zip(flows, cases, strict=True)]
            stack.wait_journaled(runs)
            archive = Archive(stack.history.database, stack.entrance.blobs)
            return [heard(archive, run.tenant, run.run_id, flow) for run, flow in zip(runs, flows, strict=True)]


def compared(cases: Sequence[Case], play: Callable[[Sequence[Case]], Sequence[Play]]) -> list[Verdict]:
    """The verdicts of these cases. `play`: runs them on ours."""
    from convergio.benchmarks import originals

    theirs = originals.play(cases)
    return [judged(*each) for each in zip(cases, theirs, play(cases), strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Plays, prints, and says whether everything is explained."""
    arguments = parser().parse_args(argv)
    began = time.monotonic()
    verdicts = compared(casts.cases(arguments.seed, arguments.cases), played)
    for one in verdicts:
        if not one.equal and not one.defects:
            rig.say(f"unexplained: {one.case.name} (--seed {arguments.seed}): {one.said}")
    result: Mapping[str, Any] = summary(verdicts)
    print(json.dumps({"seed": arguments.seed, **result, "seconds": round(time.monotonic() - began, 1)}))
    return 1 if result["unexplained"] else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="convergio bench conformance", description=__doc__)
    made.add_argument("--seed", type=int, default=1, help="of the generated cases; default 1")
    made.add_argument("--cases", type=int, default=240, help="how many; default 240")
    made.add_argument("--json", action="store_true", help="the result is JSON in any case")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
