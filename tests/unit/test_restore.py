"""A run's place on a new board, from what SQL knows of it: verdicts are replayed, what follows is derived again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from convergio.graphflow.board.fields import Word
from convergio.graphflow.engine.restore import Restored, restore
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.property.ledger import Ledger
from tests.unit.deciding import plan_of

NOW = 1_790_000_000_000
CHAIN = plan_of(a={}, b={"needs": ["a"]}, c={"needs": ["b"]})
SIGNED = plan_of(sign={"approval": {"title": "Sign"}}, after={"needs": ["sign"]})


class Story:
    """What was told to SQL before the board was lost."""

    def __init__(self, plan: Plan, *, started: bool = True) -> None:
        self.plan = plan
        ref = RunRef(tenant="default", run="r1")
        self.ledger = Ledger(ref, plan.workflow.document, plan.digest, {"n": 1})
        self.sequence = 0
        if started:
            self.tell("run.started")

    def tell(self, kind: str, step: str = "", data: Mapping[str, Any] | None = None, *, ago_ms: int = 60_000) -> Story:
        """An event of the board's stream."""
        self.sequence += 1
        entry = {"t": kind, "s": step, "q": str(self.sequence), "a": str(NOW - ago_ms), "d": json.dumps(data or {})}
        self.ledger.take(entry, 1, self.sequence)
        return self

    def outcome(self, step: str, state: str = "SUCCEEDED", output: Any = None, error: Any = None) -> Story:
        """A step's end."""
        facts = {"state": state, "output": output, "error": error, "attempt": 1, "started_ms": None}
        return self.tell(f"step.{state.lower()}", step, facts)

    def restored(self) -> Restored:
        return restore(self.ledger.facts(), self.plan, epoch=2, now_ms=NOW)


def words(made: Restored) -> dict[str, str]:
    """Steps that are not WAITING."""
    return {name[2:]: Word.parse(value).state.value for name, value in made.values.items() if name.startswith("s:")}


def test_a_run_that_had_just_begun_has_its_roots_held_and_rings_in_the_new_epoch() -> None:
    made = Story(CHAIN).restored()
    assert made.values["s:a"] == "READY|2.1"
    assert (made.held, made.inbox, made.events) == (["a"], [], [])
    assert (made.values["@state"], made.values["@open"], made.values["@input"]) == ("RUNNING", "3", '{"n": 1}')


def test_a_run_whose_start_sql_had_not_heard_of_is_told_to_have_started() -> None:
    made = Story(CHAIN, started=False).restored()
    assert [event.kind for event in made.events] == ["run.started"]
    assert made.held == ["a"]


def test_a_journaled_outcome_is_not_run_again_and_its_successors_go_on() -> None:
    made = Story(CHAIN).outcome("a", output={"n": 7}).restored()
    assert words(made) == {"a": "SUCCEEDED", "b": "READY"}
    assert (made.held, made.values["o:a"], made.values["@open"]) == (["b"], '{"n":7}', "2")


def test_what_follows_from_journaled_outcomes_is_told_if_sql_does_not_have_it() -> None:
    plan = plan_of(a={}, b={"needs": [{"step": "a", "when": "a.ok"}]}, c={"needs": ["b", "d"]}, d={"needs": ["a"]})
    story = Story(plan).outcome("a", output={"ok": False})
    assert [(event.kind, event.step) for event in story.restored().events] == [("step.skipped", "b")]
    assert words(story.outcome("b", "SKIPPED").restored()) == {"a": "SUCCEEDED", "b": "SKIPPED", "d": "READY"}
    assert story.restored().events == []


def test_what_would_end_the_run_is_decided_on_the_live_board() -> None:
    made = Story(CHAIN).outcome("a", "FAILED", error={"code": "E"}).restored()
    assert made.inbox == [{"t": "arrived", "step": "a"}]
    assert made.values["@state"] == "RUNNING"
    assert json.loads(made.values["o:a"]) == {"code": "E"}


def test_what_comes_after_the_end_was_decided_is_not_lost() -> None:
    plan = plan_of(a={}, b={})
    made = Story(plan).outcome("a", "FAILED", error={"code": "E"}).outcome("b").restored()
    assert [entry["step"] for entry in made.inbox] == ["a", "b"]
    assert words(made) == {"a": "FAILED", "b": "SUCCEEDED"}


def test_a_step_that_was_withdrawn_ends_nothing_by_itself() -> None:
    made = Story(CHAIN).outcome("a", "CANCELLED").restored()
    assert (words(made), made.inbox, made.held) == ({"a": "CANCELLED"}, [], [])


@pytest.mark.parametrize(("kind", "on"), [("step.retry", BlockedOn.RETRY), ("step.deferred", BlockedOn.HOOK)])
def test_a_wait_goes_on_with_its_attempt_until_its_time(kind: str, on: BlockedOn) -> None:
    story = Story(CHAIN).tell(kind, "a", {"seconds": 90, "attempt": 3})
    made = story.restored()
    word = Word.parse(made.values["s:a"])
    assert (word.blocked_on, word.since_ms, made.values["a:a"]) == (on, NOW - 60_000, "3")
    assert (made.timers, made.held) == ({f"a/{on}": NOW + 30_000}, [])


def test_a_wait_that_is_over_may_be_running_again_and_is_held() -> None:
    made = Story(CHAIN).tell("step.retry", "a", {"seconds": 5, "attempt": 2}).restored()
    assert (made.values["s:a"], made.values["a:a"]) == ("READY|2.1", "2")
    assert (made.timers, made.held) == ({}, ["a"])


@pytest.mark.parametrize("kind", ["step.rung", "step.given_back"])
def test_a_wait_that_was_rung_is_held_and_has_no_timer(kind: str) -> None:
    made = Story(CHAIN).tell("step.retry", "a", {"seconds": 90, "attempt": 2}).tell(kind, "a").restored()
    assert (words(made), made.timers, made.held) == ({"a": "READY"}, {}, ["a"])


def test_an_approval_that_waited_waits_on_without_being_asked_again() -> None:
    made = Story(SIGNED).tell("step.blocked", "sign").restored()
    word = Word.parse(made.values["s:sign"])
    assert (word.state, word.blocked_on, word.since_ms) == (StepState.BLOCKED, BlockedOn.SIGNAL, NOW - 60_000)
    assert made.held == []


def test_signals_of_open_steps_are_given_again_and_those_of_ended_ones_are_not() -> None:
    story = Story(SIGNED).tell("step.blocked", "sign")
    story.ledger.signal("sign", {"decision": "approve"}, NOW)
    assert [(entry["t"], entry["name"]) for entry in story.restored().inbox] == [("signal", "sign")]
    assert story.outcome("sign").restored().inbox == []


@pytest.mark.parametrize(("how", "given"), [("applied", []), ("kept", ["paid"])])
def test_a_signal_that_ended_a_wait_is_not_given_to_the_next_one(how: str, given: list[str]) -> None:
    waits = {"wait": {"signal": "paid"}}
    story = Story(plan_of(first=waits, second={**waits, "needs": ["first"]})).outcome("first", output={"n": 1})
    row = story.ledger.signal("paid", {"n": 1}, NOW)
    story.tell("signal.applied", "first", {"id": row.signal_id, "name": "paid", "how": how})
    assert [entry["name"] for entry in story.restored().inbox] == given


def test_lost_deliveries_are_counted_on_until_a_worker_answers() -> None:
    story = Story(CHAIN).tell("step.expired", "a", {"deliveries": 3})
    assert story.restored().values["d:a"] == "3"
    assert "d:a" not in story.tell("step.given_back", "a").restored().values


def test_recorded_facts_come_back_to_the_steps_next_claim() -> None:
    story = Story(CHAIN).tell("step.recorded", "a", {"key": "answer", "value": {"paid": True}})
    story.tell("step.recorded", "a", {"key": "other", "value": 2})
    assert story.restored().values["x:a"] == 'answer\t{"paid":true}\nother\t2\n'


def test_events_of_steps_that_ended_change_nothing() -> None:
    story = Story(CHAIN).tell("step.retry", "a", {"seconds": 90, "attempt": 2}).outcome("a")
    made = story.tell("step.rung", "a").restored()
    assert (words(made), made.timers) == ({"a": "SUCCEEDED", "b": "READY"}, {})


def test_a_restored_run_has_no_empty_fields() -> None:
    made = Story(CHAIN).outcome("a").restored()
    assert "" not in made.values.values()
    assert RunState(made.values["@state"]) is RunState.RUNNING


def test_what_is_derived_again_has_the_time_of_that_from_which_it_follows() -> None:
    """A skipped step must not seem to have ended after those that went on from it."""
    plan = plan_of(a={}, b={"needs": [{"step": "a", "when": "a.n == 0"}]}, c={"needs": ["a", "b"]})
    made = Story(plan).outcome("a", output={"n": 7}).restored()
    assert [(event.kind, event.step, event.at_ms) for event in made.events] == [("step.skipped", "b", NOW - 60_000)]


# --- maps and loops ---------------------------------------------------------------------------------------------------

EACH = {"over": "[7, 8, 9]", "max_concurrency": 2, "each": {"task": "m.g"}}


def test_a_map_at_work_goes_on_with_the_items_that_sql_does_not_have() -> None:
    plan = plan_of(m={"map": EACH}, end={"needs": ["m"]})
    made = Story(plan).outcome("m#1000", output="a").restored()
    assert words(made) == {"m": "BLOCKED", "m#1000": "SUCCEEDED", "m#2000": "READY", "m#3000": "READY"}
    assert made.held == ["m#2000", "m#3000"]
    assert made.values["o:m#3000@"] == "9"


def test_how_a_map_ended_is_not_worked_out_again_from_its_items() -> None:
    """The second item had ended when the first one decided: the result, as it was told, has both."""
    plan = plan_of(m={"map": {**EACH, "join": "any"}}, end={"needs": ["m"]})
    story = Story(plan).outcome("m#1000", output="a").outcome("m#2000", output="b")
    made = story.outcome("m", output=["a", "b", None]).restored()
    assert made.values["o:m"] == '["a","b",null]'
    assert (made.held, made.events) == (["end"], [])


def test_a_map_that_had_its_verdict_ends_on_the_new_board() -> None:
    plan = plan_of(m={"map": EACH, "on_failure": "continue"}, end={"needs": ["m"]})
    made = Story(plan).outcome("m#2000", "FAILED", error={"code": "E", "message": "no"}).restored()
    assert words(made) == {"m": "FAILED", "m#1000": "CANCELLED", "m#2000": "FAILED", "end": "READY"}
    assert [(event.kind, event.step) for event in made.events if event.kind != "step.mapped"] == [
        ("step.cancelled", "m#1000"),
        ("step.failed", "m"),
    ]


def test_facts_of_an_item_are_kept_for_it_alone() -> None:
    plan = plan_of(m={"map": EACH})
    made = Story(plan).tell("step.recorded", "m#2000", {"key": "k", "value": 5}).restored()
    assert [made.values.get(f"x:{name}") for name in ("m", "m#1000", "m#2000")] == [None, None, "k\t5\n"]


def test_a_loop_goes_on_in_the_round_that_sql_knows() -> None:
    plan = plan_of(a={}, b={"needs": ["a"], "loop": {"back_to": "a", "max": 3}}, c={"needs": ["b"]})
    made = Story(plan).outcome("a").outcome("b").outcome("a#1").restored()
    assert words(made) == {"a": "SUCCEEDED", "b": "SUCCEEDED", "a#1": "SUCCEEDED", "b#1": "READY"}
    assert (made.values["l:b"], made.values["@open"]) == ("1", "2")


def test_an_undo_on_a_new_board_reads_the_last_round_of_a_loop() -> None:
    back = {"task": "m.undo", "with": {"x": "a.y"}}
    plan = plan_of(a={"loop": {"back_to": "a", "max": 3}}, b={"needs": ["a"], "compensate": back}, c={"needs": ["b"]})
    told = Story(plan).outcome("a").outcome("a#1").outcome("a#2").outcome("b").outcome("c", "FAILED", error={})
    made = told.tell("run.compensating", "undo:", {"state": "FAILED", "error": {}}).restored()
    assert (made.values["s:undo:b"], made.values["r:undo:b"]) == ("READY|2.1", "a#2")


def test_a_child_of_a_later_round_is_waited_for_with_its_attempt() -> None:
    steps = {"a": {}, "b": {"workflow": "leaf", "needs": ["a"], "loop": {"back_to": "a", "max": 3}, "retry": 1}}
    told = Story(plan_of(**steps)).outcome("a").outcome("b").outcome("a#1")
    wanted = {"workflow": "leaf", "due_ms": None}
    made = told.tell("child.wanted", "b#1", {**wanted, "attempt": 1}).tell(
        "child.wanted", "b#1", {**wanted, "attempt": 2}
    )
    assert made.restored().values["s:b#1"].split("|")[:2] == ["BLOCKED", "CHILD"]
    assert (made.restored().values["a:b#1"], made.restored().events) == ("2", [])


def test_items_that_wait_for_a_key_are_held_and_keep_their_turn() -> None:
    each = {"over": "[1, 2]", "each": {"task": "m.f", "concurrency_key": "k-{{ item }}"}}
    made = Story(plan_of(m={"map": each})).restored()
    assert (made.held, sorted(made.limited)) == (["m#1000", "m#2000"], ["m#1000", "m#2000"])
    assert [made.values[f"y:{name}"] for name in ("m#1000", "m#2000")] == ["k-1", "k-2"]
