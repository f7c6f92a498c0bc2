"""Imported teams say here what they say in AutoGen, and where they do not, one of AutoGen's known defects is why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import sqlalchemy as sa

from convergio.benchmarks import casts, conformance, originals
from convergio.benchmarks.casts import Case
from convergio.benchmarks.scripts import Line, Play
from convergio.graphflow.model.states import RunState
from convergio.tasks.agents.tables import model_calls
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.test_turns import run

pytestmark = QUIET
CASES = 24


def played(stage: Stage, cases: Sequence[Case]) -> list[Play]:
    """The cases on the real engine, all at once, answered by one worker."""
    flows = [conformance.imported(case) for case in cases]
    refs = [stage.submit(flow, {"said": case.task}) for flow, case in zip(flows, cases, strict=True)]
    run(stage, *refs)
    assert all(stage.row(ref).state is RunState.SUCCEEDED for ref in refs)
    archive = stage.worker.process.archive
    return [conformance.heard(archive, ref.tenant, ref.run, flow) for ref, flow in zip(refs, flows, strict=True)]


def test_generated_teams_say_the_same_in_autogens_runtime_and_here(stage: Stage) -> None:
    cases = casts.cases(seed=11, count=CASES)
    verdicts = conformance.compared(cases, lambda given: played(stage, given))
    assert [one.said for one in verdicts if not one.equal and not one.defects] == []
    result = conformance.summary(verdicts)
    assert result["cases"] == CASES == result["equal"] + result["documented_differences"]
    assert set(result["kinds"]) == set(casts.FORMS)
    assert result["equal"] >= CASES / 2


# --- a difference that is ours is found -------------------------------------------------------------------------------


def other(play: Play) -> Play:
    """The same play, with one word changed."""
    *lines, last = play.lines
    return replace(play, lines=(*lines, Line(source=last.source, kind=last.kind, said="something else")))


def shorter(play: Play) -> Play:
    return replace(play, lines=play.lines[:-1])


def elsewhere(play: Play) -> Play:
    return replace(play, stop="for no reason")


@pytest.mark.parametrize("form", ["round_robin", "graph/loop", "graph/ended"])
@pytest.mark.parametrize("change", [other, shorter, elsewhere])
def test_a_difference_that_no_defect_explains_is_unexplained(form: str, change: Callable[[Play], Play]) -> None:
    case = next(one for one in casts.cases(seed=1, count=60) if one.form == form and len(_theirs(one).turns()) > 3)
    theirs = _theirs(case)
    assert conformance.judged(case, theirs, change(theirs)).defects is None


def _theirs(case: Case) -> Play:
    return originals.play([case])[0]


def test_a_task_that_meets_the_condition_is_answered_by_nobody_and_paid_for_by_nobody(stage: Stage) -> None:
    made = casts.team(
        "SelectorGroupChat",
        [casts.assistant("ann", ["a"]), casts.assistant("bob", ["b"])],
        model_client=casts.replaying(["ann"]),
        selector_prompt="Who?",
        allow_repeated_speaker=False,
        termination_condition=casts.condition("TextMentionTermination", text="ENOUGH"),
    )
    case = Case(number=0, kind="selector", form="selector", document=made, task="It is ENOUGH")
    assert played(stage, [case]) == [_theirs(case)]
    assert conformance.judged(case, _theirs(case), _theirs(case)).equal
    with stage.store.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(model_calls)).scalar() == 0
