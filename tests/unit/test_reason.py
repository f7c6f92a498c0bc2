"""Why a step is not running: every sentence is made from a view, and says what is true of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from convergio.graphflow.engine import reason
from convergio.graphflow.engine.reason import JOURNAL, RunView, StepView, Tally, Turn
from convergio.graphflow.flow import document
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import StepKind

NOW = 1_000_000_000_000
WORKFLOW = document.parse_document(
    {"workflow": "refund", "version": 1, "steps": {"load": {"task": "a.b"}, "pay": {"task": "a.c", "needs": ["load"]}}}
)


def step(name: str = "pay", state: StepState = StepState.WAITING, **facts: Any) -> StepView:
    needs = ("load",) if name == "pay" else ()
    made: dict[str, Any] = {"kind": StepKind.TASK, "does": "a.b", "queue": "steps", "state": state, "needs": needs}
    return StepView(name=name, **{**made, **facts})


def view(*steps: StepView, **facts: Any) -> RunView:
    made = {one.name: one for one in (step("load", StepState.SUCCEEDED), step(), *steps)}
    known: dict[str, Any] = {"state": RunState.RUNNING, "board": "live", "created_ms": NOW - 60_000}
    return RunView(
        id="r1", tenant="default", submitter="ann", workflow=WORKFLOW, now_ms=NOW, steps=made, **{**known, **facts}
    )


ERROR = {"code": "TRANSIENT", "message": "503"}
RUNNING_LOAD = step("load", StepState.RUNNING)
WAITING_LOAD = step("load", StepState.BLOCKED, on=BlockedOn.SIGNAL)

SENTENCES: list[tuple[StepView, dict[str, Any], str]] = [
    (step(), {}, "has all it needs: the decision to start it is in the run's inbox"),
    (step(), {"stopping": RunState.CANCELLED}, "will not start: the run is being ended as CANCELLED"),
    (step(), {"state": RunState.FAILED}, "never started: the run ended as FAILED before"),
    (step(), {"board": "absent"}, "waits until its run is on the board"),
    (
        step(state=StepState.READY, held_ms=NOW + 3_000),
        {},
        "is held for 3.0 s after a rebuild: the worker that ran it may still have it, else it is rung again",
    ),
    (
        step(state=StepState.READY, held_ms=NOW + 3_000, missing="worker w1 cannot do it: no function is x"),
        {},
        "is ready: NO_WORKER, worker w1 cannot do it: no function is x; asked again in 3.0 s."
        " Start one that knows it: convergio worker -Q steps --include MODULE",
    ),
    (
        step(state=StepState.BLOCKED, on=BlockedOn.HOOK, due_ms=NOW + 2_000, awaits="the result of a task"),
        {},
        "waits for the result of a task, and looks again in 2.0 s",
    ),
    (step(state=StepState.RUNNING, worker="w1", since_ms=NOW - 12_000), {}, "runs on w1 for 12 s"),
    (
        step(state=StepState.BLOCKED, on=BlockedOn.ITEMS, since_ms=NOW - 3_000, tally=Tally(10, 4, 3, 2)),
        {},
        "works on its list since 3.0 s: 4 of 10 items done, 1 failed, 2 at work",
    ),
    (
        step(state=StepState.RUNNING, worker="w1", since_ms=NOW - 500, attempt=2, attempts=3, deliveries=1),
        {},
        "runs on w1 for 0.5 s (attempt 2 of 3); 1 workers lost it before",
    ),
    (
        step(
            state=StepState.BLOCKED, on=BlockedOn.SIGNAL, since_ms=NOW - 125_000, error={"code": "E", "message": "no"}
        ),
        {},
        "has failed, and asks what to do since 2 min 5 s: E no. "
        "Say it: convergio runs signal r1 pay --answer retry (or skip, fail)",
    ),
    (
        step(state=StepState.BLOCKED, on=BlockedOn.CHILD, since_ms=NOW - 5_000, kind=StepKind.WORKFLOW),
        {},
        "is about to start a run of 'a.b', as soon as SQL knows that it is wanted",
    ),
    (
        step(state=StepState.BLOCKED, on=BlockedOn.CHILD, since_ms=NOW - 5_000, kind=StepKind.WORKFLOW),
        {"state": RunState.PAUSED},
        "is about to start a run of 'a.b' when this run goes on: convergio runs resume r1",
    ),
    (
        step(
            state=StepState.BLOCKED,
            on=BlockedOn.CHILD,
            since_ms=NOW - 5_000,
            kind=StepKind.WORKFLOW,
            child="child-1",
            child_state=RunState.RUNNING,
        ),
        {},
        "waits since 5.0 s for run child-1 of 'a.b' (running; convergio runs why child-1)",
    ),
    (
        step(),
        {"state": RunState.COMPENSATING},
        "will not start: the run undoes what it did",
    ),
    (
        step(state=StepState.BLOCKED, on=BlockedOn.SIGNAL, since_ms=NOW - 125_000, kind=StepKind.APPROVAL),
        {},
        "waits for a decision since 2 min 5 s. Give it: convergio runs signal r1 pay --approve (or --reject)",
    ),
    (
        step(
            state=StepState.BLOCKED,
            on=BlockedOn.RETRY,
            since_ms=NOW,
            due_ms=NOW + 4_000,
            error=ERROR,
            attempt=2,
            attempts=4,
        ),
        {},
        "is tried again in 4.0 s (attempt 2 of 4): TRANSIENT 503",
    ),
    (
        step(
            state=StepState.BLOCKED,
            on=BlockedOn.HOOK,
            since_ms=NOW,
            due_ms=NOW + 7_200_000,
            note="outside office hours",
        ),
        {},
        "is asked again in 2 h 0 min: a pre-run hook deferred it (outside office hours)",
    ),
    (
        step(state=StepState.BLOCKED, on=BlockedOn.JOURNAL, parked=StepState.SUCCEEDED, since_ms=NOW - 30_000),
        {"lag": 7},
        "has ended as SUCCEEDED 30 s ago and waits until the journal (SQL) has that; 7 events are ahead of it or with"
        " it",
    ),
    (
        step(
            state=StepState.BLOCKED,
            on=BlockedOn.LIMIT,
            since_ms=NOW - 5_000,
            turn=Turn(key="k", limit=4, holders=("r2/a", "r3/a", "r4/a"), held=4, before=7),
        ),
        {},
        "waits since 5.0 s: LIMIT, 4 at once may have concurrency key 'k'; held by r2/a, r3/a, r4/a and 1 more;"
        " 7 are before it",
    ),
    (
        step(
            state=StepState.BLOCKED,
            on=BlockedOn.LIMIT,
            since_ms=NOW - 5_000,
            turn=Turn(key="k", limit=1, holders=(), held=0, before=None),
        ),
        {},
        "waits since 5.0 s: LIMIT, 1 at once may have concurrency key 'k'; held by nobody",
    ),
    (
        step(state=StepState.BLOCKED, on=BlockedOn.LIMIT, since_ms=NOW - 500),
        {},
        "waits for its turn since 0.5 s: LIMIT",
    ),
    (
        step(state=StepState.BLOCKED, on=BlockedOn.LIMIT, since_ms=NOW),
        {"state": RunState.PAUSED},
        "waits for its turn, and asks for it when its run goes on: convergio runs resume r1",
    ),
    (
        step(state=StepState.READY, held_ms=NOW + 900, missing=f"{JOURNAL}it is 7 events behind"),
        {},
        "is ready: JOURNAL, it is 7 events behind; it starts when that has caught up",
    ),
    (
        step(state=StepState.SUCCEEDED, cached_from="r0/pay"),
        {},
        "ended as SUCCEEDED (cached: the outcome of r0/pay)",
    ),
    (step(state=StepState.SKIPPED), {}, "was skipped: its condition did not hold"),
    (
        step(state=StepState.QUARANTINED, error={"code": "QUARANTINED", "message": "5 workers died"}),
        {},
        "is in quarantine: QUARANTINED 5 workers died",
    ),
    (
        step(state=StepState.QUARANTINED, error={"code": "QUARANTINED", "message": "5 workers died"}),
        {"state": RunState.FAILED},
        "is in quarantine: QUARANTINED 5 workers died. Try again: convergio runs retry r1",
    ),
    (
        step(state=StepState.SUCCEEDED, started_ms=NOW - 9_000, finished_ms=NOW - 5_000, reused_from="r0"),
        {},
        "ended as SUCCEEDED after 4.0 s in run r0, and is not run again",
    ),
    (
        step(state=StepState.FAILED, error=ERROR, started_ms=NOW - 9_000, finished_ms=NOW),
        {},
        "ended as FAILED after 9.0 s: TRANSIENT 503",
    ),
    (step(state=StepState.CANCELLED), {"cancel_reason": "enough"}, "was cancelled: the run was ended (enough)"),
]


@pytest.mark.parametrize(("one", "facts", "sentence"), SENTENCES, ids=[sentence[:40] for _, _, sentence in SENTENCES])
def test_a_step_says_why(one: StepView, facts: dict[str, Any], sentence: str) -> None:
    assert reason.of_step(view(one, **facts), one) == sentence


@pytest.mark.parametrize(
    ("need", "sentence"),
    [
        (RUNNING_LOAD, "waits for load (running)"),
        (WAITING_LOAD, "waits for load (blocked on a decision)"),
        (replace(WAITING_LOAD, on=BlockedOn.TIMER), "waits for load (blocked until its time)"),
    ],
)
def test_a_waiting_step_names_what_it_waits_for(need: StepView, sentence: str) -> None:
    assert reason.of_step(view(need), step()) == sentence


def test_a_step_skipped_with_all_it_needs_says_so() -> None:
    skipped = step(state=StepState.SKIPPED)
    assert reason.of_step(view(step("load", StepState.SKIPPED), skipped), skipped) == "was skipped: so was load"


@pytest.mark.parametrize("on", list(BlockedOn))
def test_whatever_a_step_is_blocked_on_is_said_by_whoever_waits_for_it(on: BlockedOn) -> None:
    said = reason.of_step(view(replace(WAITING_LOAD, on=on)), step())
    assert said.startswith("waits for load (blocked ")


def test_a_run_made_from_another_says_so_and_how_much_it_reuses() -> None:
    reused = step("load", StepState.SUCCEEDED, reused_from="r0")
    made = view(reused, forked_from="r0", fork_kind="fork", fork_step="pay")
    assert reason.of_origin(made) == "fork of r0 from pay: 1 of 2 steps reused"
    assert reason.of_origin(replace(made, fork_kind="retry", fork_step=None)) == "retry of r0: 1 of 2 steps reused"
    assert reason.of_origin(view()) == ""


def test_a_paused_run_says_by_whom_what_still_runs_and_how_it_goes_on() -> None:
    made = view(RUNNING_LOAD, state=RunState.PAUSED, paused_ms=NOW - 42_000, paused_by="ann")
    resume = "Let it go on: convergio runs resume r1"
    assert reason.of_run(made) == f"the run is paused for 42 s by ann; load still runs. {resume}"
    assert reason.of_run(view(state=RunState.PAUSED)) == f"the run is paused. {resume}"


def test_a_ready_step_of_a_paused_run_says_that_it_starts_when_the_run_goes_on() -> None:
    said = reason.of_step(view(READY, state=RunState.PAUSED), READY, {})
    assert said == "is ready, and starts when its run goes on: convergio runs resume r1"


READY = step(state=StepState.READY, since_ms=NOW - 42_000, ahead=3)


def test_a_ready_step_whose_queue_nobody_serves_names_the_command() -> None:
    said = reason.of_step(view(READY), READY, {"turns": ["w1"]})
    assert said == (
        "is ready for 42 s: NO_WORKER, no worker serves queue 'steps'. Start one: convergio worker -Q steps"
    )


def test_a_ready_step_whose_queue_is_served_is_queued() -> None:
    said = reason.of_step(view(READY), READY, {"steps": ["w2", "w1"]})
    assert said == "is queued for 42 s in 'steps' with 3 messages, served by w1 and w2"
    assert reason.of_step(view(READY), READY) == "is queued for 42 s in 'steps' with 3 messages"


@pytest.mark.parametrize("state", list(StepState))
@pytest.mark.parametrize("board", ["live", "left", "absent", "away", "rebuilding"])
@pytest.mark.parametrize("on", [None, *BlockedOn])
def test_there_is_a_sentence_for_every_state(state: StepState, board: str, on: BlockedOn | None) -> None:
    """Also where nothing else is known of the step."""
    one = step(state=state, on=on if state is StepState.BLOCKED else None)
    assert reason.of_step(view(one, board=board), one, {})
    assert reason.of_run(view(one, board=board), {})


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"state": RunState.SUCCEEDED, "finished_ms": NOW}, "the run ended as SUCCEEDED after 1 min 0 s"),
        ({"state": RunState.FAILED, "error": {**ERROR, "step": "pay"}}, "the run ended as FAILED: TRANSIENT pay 503"),
        ({"board": "away"}, "Redis does not answer: what the run does now cannot be seen, and nothing of it is lost"),
        ({"board": "rebuilding"}, "the board is being made anew from the journal; the run goes on when that is done"),
        (
            {"board": "absent", "state": RunState.RUNNING},
            "the run is RUNNING and not on the board: this version of the engine could not read it when the board was"
            " made anew, and its log says why. Once that is mended: convergio rebuild",
        ),
        (
            {"board": "absent", "state": RunState.ACCEPTED},
            "accepted 1 min 0 s ago and not on the board yet: the service process starts it within some 10 s",
        ),
        ({"stopping": RunState.CANCELLED}, "the run is being ended as CANCELLED: no step starts any more"),
        (
            {"inbox_ms": NOW - 8_000},
            "decisions wait in its inbox for 8.0 s: the service process makes them",
        ),
        ({}, "no step is running or ready: the service process looks for what is missing twice a second"),
    ],
)
def test_a_run_says_why(facts: dict[str, Any], sentence: str) -> None:
    assert reason.of_run(view(**facts)) == sentence


def test_a_run_at_work_names_its_running_steps() -> None:
    assert reason.of_run(view(RUNNING_LOAD)) == "load runs now"
    both = view(RUNNING_LOAD, replace(RUNNING_LOAD, name="pay"))
    assert reason.of_run(both) == "load and pay run now"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (-5, "0.0 s"),
        (400, "0.4 s"),
        (9_960, "10.0 s"),
        (42_000, "42 s"),
        (59_600, "1 min 0 s"),
        (190_000, "3 min 10 s"),
        (7_500_000, "2 h 5 min"),
        (273_600_000, "3 d 4 h"),
    ],
)
def test_a_length_of_time_is_said_in_two_units_at_most(ms: float, text: str) -> None:
    assert reason.span(ms) == text


def test_whatever_a_step_may_be_blocked_on_has_a_sentence_and_a_word_of_its_own() -> None:
    blocked = [step(state=StepState.BLOCKED, on=on, since_ms=NOW, parked=StepState.SUCCEEDED) for on in BlockedOn]
    assert len({reason.of_step(view(one), one) for one in blocked}) == len(BlockedOn)
    waiting = [replace(WAITING_LOAD, on=on) for on in BlockedOn]
    assert len({reason.of_step(view(load), step()) for load in waiting}) == len(BlockedOn)
