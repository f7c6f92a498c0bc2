"""The part of the checker about conversations: threads, what tools did, and the ledger, turn by turn.

A turn's outcome brings its messages, its row and its ledger. An answer of a model is recorded once, and its call is on
the ledger once, even if the attempt that got it said too that it had paid for it; other calls are there only if an
attempt that failed said that it had made them, or one whose step was another's by then wrote them there. Tools are
keyed: one that was called again because its process died says so under the same key, and that is one effect.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from convergio.benchmarks import reference, talks
from convergio.benchmarks.effects import Note
from convergio.benchmarks.evidence import Kept, Outcome, Paid, Said, Taken, Talked
from convergio.benchmarks.graphs import Graph, Node
from convergio.benchmarks.talks import Line, Talk
from convergio.benchmarks.violations import Fault, Violation

Row = TypeVar("Row", Said, Taken, Paid, Kept)

ANSWER = "model."
"""Begins the keys of recorded answers."""

SPENT = "spent."
"""Begins the keys under which attempts that failed say what they had paid for."""

LEDGER = "model_calls"


class Case(Protocol):
    """What is asked of one run: see `checker.Case`."""

    @property
    def run(self) -> str: ...
    @property
    def graph(self) -> Graph: ...
    @property
    def outcomes(self) -> Mapping[str, Outcome]: ...
    def says(self, fault: Fault, step: str, said: str) -> Violation: ...


class Threads:
    """What the journal and the tools say about all conversations, by run and turn."""

    def __init__(self, found: Talked, notes: Iterable[Note]) -> None:
        self.said, self.taken = _by_turn(found.said), _by_turn(found.taken)
        self.paid, self.kept = _by_turn(found.paid), _by_turn(found.kept)
        self.notes: defaultdict[str, list[Note]] = defaultdict(list)
        for note in notes:
            self.notes[note.key.rpartition(":")[0]].append(note)


def _by_turn(rows: Iterable[Row]) -> defaultdict[tuple[str, str], list[Row]]:
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.run, row.step].append(row)
    return groups


def violations(case: Case, threads: Threads) -> Iterator[Violation]:
    """What is wrong with the conversations of a run."""
    for node in case.graph.nodes.values():
        if node.talk is None:
            continue
        for turn in range(len(node.talk.turns)):
            yield from _turn(case, threads, node, node.talk, turn)


def _turn(case: Case, threads: Threads, node: Node, talk: Talk, turn: int) -> Iterator[Violation]:
    name = reference.instance(node.name, turn)
    here, outcome = (case.run, name), case.outcomes.get(name)
    yield from _effects(case, threads, name, f"{case.run}:{node.name}:{turn}")
    if outcome is None or outcome.state != "SUCCEEDED":
        if threads.said[here] or threads.taken[here]:
            yield case.says(Fault.THREAD, name, "is in the thread, and has not succeeded")
        return
    wanted = talk.lines(turn, talks.prompt(node.name, case.graph.value))
    found = [_line(one) for one in threads.said[here]]
    if found != wanted:
        yield case.says(Fault.THREAD, name, f"has {found}, should be {wanted}")
    if [one.seq for one in threads.said[here]] != list(range(len(found))):
        yield case.says(Fault.THREAD, name, "its messages are not numbered one by one")
    speakers = [one.speaker for one in threads.taken[here]]
    if speakers != [talk.speaker(turn)]:
        yield case.says(Fault.THREAD, name, f"was taken by {speakers}, should be {talk.speaker(turn)}")
    yield from _ledger(case, threads, name, talk.turns[turn].answers)


def _line(one: Said) -> Line:
    """A message as the reference has it."""
    match one.kind:
        case "calls":
            return one.kind, one.source, [_argument(call) for call in one.body["calls"]]
        case "results":
            return one.kind, one.source, [result["text"] for result in one.body["results"]]
        case _:
            return one.kind, one.source, one.body["text"]


def _argument(call: Mapping[str, Any]) -> str:
    """What the tool was asked to note, out of the arguments as the model wrote them."""
    return str(call["arguments"]).removeprefix('{"text": "').removesuffix('"}')


def _effects(case: Case, threads: Threads, name: str, prefix: str) -> Iterator[Violation]:
    """Each note was made under one key: that of the call in the thread, if the turn succeeded."""
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for note in threads.notes[prefix]:
        keys[note.text].add(note.key)
    for text, some in keys.items():
        if len(some) > 1:
            yield case.says(Fault.EFFECT, name, f"noted '{text}' under {len(some)} keys: {sorted(some)}")
    calls = [call for one in threads.said[case.run, name] if one.kind == "calls" for call in one.body["calls"]]
    for call in calls:
        if keys.pop(_argument(call), set[str]()) != {f"{prefix}:{call['id']}"}:
            yield case.says(Fault.EFFECT, name, f"called its tool as {call['id']}, which did not note it so")
    if keys and calls:
        yield case.says(Fault.EFFECT, name, f"noted what no call of the thread asked for: {sorted(keys)}")


def _ledger(case: Case, threads: Threads, name: str, answers: int) -> Iterator[Violation]:
    """What was recorded, what the turn says, and what is on the ledger are the same calls."""
    kept, paid = threads.kept[case.run, name], Counter(one.call for one in threads.paid[case.run, name])
    recorded = {one.key: str(one.value["row"]["call_id"]) for one in kept if one.key.startswith(ANSWER)}
    spent = [row["call_id"] for one in kept if one.key.startswith(SPENT) for row in _rows(one)]
    if recorded.keys() != {f"{ANSWER}{place + 1}" for place in range(answers)}:
        yield case.says(Fault.LEDGER, name, f"recorded {sorted(recorded)}, should be {answers} answers")
    if [one.calls for one in threads.taken[case.run, name]] != [answers]:
        yield case.says(Fault.LEDGER, name, f"says that it took other than {answers} calls of a model")
    wanted = Counter({*recorded.values(), *spent})
    last = _claim_of(recorded.get(f"{ANSWER}{answers}", ""))
    odd = [
        call for call in (paid - wanted).elements() if not call.startswith(f"{case.run}:") or _claim_of(call) == last
    ]
    if wanted - paid or odd:
        yield case.says(Fault.LEDGER, name, f"has {dict(paid)} on the ledger, should be {dict(wanted)}")


def _claim_of(call: str) -> str:
    """A call is named `run:claim:number`. One that is neither recorded nor owned up to may be of a claim that was lost
    before the last answer was recorded: it wrote what its call had cost straight into the ledger."""
    return call.rpartition(":")[0]


def _rows(kept: Kept) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = kept.value.get(LEDGER, ())
    return rows
