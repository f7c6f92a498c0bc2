"""Pre-run hooks, as Celery runs them: after the claim, before the body. What breaks in one denies, hangs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow.flow import registry
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import StepKind
from convergio.tasks.hooks import Allow, Answer, Defer, Deny, Hook, HookContext, Hooks
from tests.integration.engine_rig import QUIET, Stage, single, stage_on

pytestmark = QUIET


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        made.worker.process.hooks = Hooks()
        yield made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the bodies of `hooked.note` were called with."""
    calls: list[Any] = []

    def note(value: Any = None) -> None:
        calls.append(value)

    known = dict(registry.REGISTRY._by_name)
    monkeypatch.setattr(registry.REGISTRY, "_by_name", known)
    registry.REGISTRY.add(registry.Registered(name="hooked.note", function=note))
    return calls


def hooked(stage: Stage, hook: Hook, *kinds: StepKind) -> RunRef:
    """A run of one noting step, whose doorbell is answered behind the hook."""
    stage.worker.process.hooks.add(hook, kinds or tuple(StepKind))
    ref = stage.submit(single("hooked.note", value="1"))
    stage.answer_all()
    return ref


def code(stage: Stage, ref: RunRef) -> str:
    stage.journal()
    error = stage.outcomes(ref)["only"].error
    assert error is not None
    return str(error["code"])


def test_allow_lets_the_body_run(stage: Stage, ran: list[Any]) -> None:
    ref = hooked(stage, lambda context: Allow())
    stage.journal()
    assert (ran, stage.row(ref).state) == ([1], RunState.SUCCEEDED)


def test_deny_fails_the_step_with_the_reason_and_runs_nothing(stage: Stage, ran: list[Any]) -> None:
    ref = hooked(stage, lambda context: Deny("not on my watch"))
    assert code(stage, ref) == "STEP_DENIED"
    assert ran == []
    error = stage.row(ref).error
    assert error is not None
    assert (error["message"], error["step"]) == ("not on my watch", "only")


def test_a_denied_step_is_not_tried_again(stage: Stage, ran: list[Any]) -> None:
    stage.worker.process.hooks.add(lambda context: Deny("no"))
    ref = stage.submit(single("hooked.note", retry=5))
    stage.answer_all()
    assert code(stage, ref) == "STEP_DENIED"
    assert ran == []


def test_defer_parks_the_step_without_a_slot_until_its_time_and_asks_again(stage: Stage, ran: list[Any]) -> None:
    answers: list[Answer] = [Defer(datetime.now(UTC) + timedelta(minutes=1), "rush hour"), Allow()]
    ref = hooked(stage, lambda context: answers.pop(0))
    word = stage.word(ref, "only")
    assert word.blocked_on is BlockedOn.HOOK
    assert ran == []
    assert stage.client.zcard(stage.keys.leases) == 0
    assert len(stage.worker.claims) == 0
    stage.pass_time(45)
    assert stage.bells() == []
    stage.pass_time(16)
    assert stage.answer_all() == 1
    stage.journal()
    assert (ran, stage.row(ref).state) == ([1], RunState.SUCCEEDED)
    assert stage.events(ref, "step.deferred")[0]["reason"] == "rush hour"
    assert stage.outcomes(ref)["only"].attempt == 1, "to wait is not to fail"


def test_defer_to_a_time_that_is_over_rings_at_once(stage: Stage, ran: list[Any]) -> None:
    answers: list[Answer] = [Defer(datetime.now(UTC) - timedelta(minutes=1), "late"), Allow()]
    hooked(stage, lambda context: answers.pop(0))
    stage.pass_time(0.5)
    stage.answer_all()
    assert ran == [1]


def test_a_deferred_step_waits_on_a_new_board_too(stage: Stage, ran: list[Any]) -> None:
    answers: list[Answer] = [Defer(datetime.now(UTC) + timedelta(minutes=1), "rush hour"), Allow()]
    ref = hooked(stage, lambda context: answers.pop(0))
    stage.journal()
    stage.wipe()
    stage.rebuild()
    assert stage.word(ref, "only").blocked_on is BlockedOn.HOOK
    stage.pass_time(62)
    stage.answer_all()
    assert ran == [1]


def raising(context: HookContext) -> Answer:
    raise RuntimeError("budget service is down")


def exiting(context: HookContext) -> Answer:
    raise SystemExit(1)


def forgetful(context: HookContext) -> Any:
    """Forgot its `return`."""


def truthful(context: HookContext) -> Any:
    return True


def naive(context: HookContext) -> Answer:
    return Defer(datetime.now() + timedelta(minutes=1), "no zone")  # noqa: DTZ005  # what people write


@pytest.mark.parametrize("hook", [raising, exiting, forgetful, truthful, naive], ids=lambda hook: hook.__name__)
def test_a_hook_that_breaks_denies(stage: Stage, ran: list[Any], hook: Hook) -> None:
    """The guard fails closed, and the step does not hang in the hands of a process that goes on living."""
    ref = hooked(stage, hook)
    assert code(stage, ref) == "STEP_DENIED"
    assert ran == []
    assert len(stage.worker.claims) == 0
    error = stage.row(ref).error
    assert error is not None
    assert hook.__name__ in error["message"]


@pytest.mark.parametrize("answer", [Deny("half \ud800"), Defer(datetime.now(UTC), "a\x00b")], ids=["deny", "defer"])
def test_a_reason_that_cannot_be_stored_as_it_is_hangs_nothing(stage: Stage, ran: list[Any], answer: Answer) -> None:
    ref = hooked(stage, lambda context: answer)
    stage.journal()
    assert len(stage.worker.claims) == 0
    assert stage.word(ref, "only").state in (StepState.BLOCKED, StepState.FAILED)
    assert stage.history.dead_events() == []


def test_the_first_hook_that_does_not_allow_decides(stage: Stage, ran: list[Any]) -> None:
    asked: list[str] = []

    def note(name: str, answer: Answer) -> Hook:
        def hook(context: HookContext) -> Answer:
            asked.append(name)
            return answer

        return hook

    for name, answer in (("first", Allow()), ("second", Deny("no")), ("third", Allow())):
        stage.worker.process.hooks.add(note(name, answer))
    ref = stage.submit(single("hooked.note"))
    stage.answer_all()
    assert code(stage, ref) == "STEP_DENIED"
    assert asked == ["first", "second"]


def test_a_hook_sees_the_step_and_only_steps_of_its_kinds(stage: Stage, ran: list[Any]) -> None:
    seen: list[HookContext] = []

    def look(context: HookContext) -> Answer:
        seen.append(context)
        return Allow()

    made = WorkflowBuilder("mixed", version=1)
    task = made.task("work", "hooked.note")
    made.approval("sign", after=task)
    stage.worker.process.hooks.add(look, [StepKind.APPROVAL])
    ref = stage.submit(made.build(), tenant="acme", submitter="ann")
    stage.answer_all()
    (context,) = seen
    assert (context.tenant, context.submitter, context.run) == ("acme", "ann", ref.run)
    assert (context.workflow, context.step, context.kind, context.attempt) == ("mixed", "sign", StepKind.APPROVAL, 1)
    assert context.now.tzinfo is not None


def test_a_duplicate_doorbell_asks_no_hook(stage: Stage, ran: list[Any]) -> None:
    asked: list[str] = []

    def count(context: HookContext) -> Answer:
        asked.append(context.step)
        return Allow()

    stage.worker.process.hooks.add(count)
    stage.submit(single("hooked.note"))
    bell = stage.take()
    assert bell is not None
    for _ in range(2):
        stage.worker.answer(bell)
    assert (asked, ran) == (["only"], [None])


def test_a_hook_that_took_longer_than_the_lease_changes_nothing(stage: Stage, ran: list[Any]) -> None:
    """Its step is another's by then."""

    def slow(context: HookContext) -> Answer:
        stage.pass_time(7)
        return Deny("too late")

    ref = hooked_once(stage, slow)
    stage.journal()
    assert stage.word(ref, "only").state is StepState.READY
    assert stage.outcomes(ref) == {}


def hooked_once(stage: Stage, hook: Hook) -> RunRef:
    stage.worker.process.hooks.add(hook)
    ref = stage.submit(single("hooked.note"))
    bell = stage.take()
    assert bell is not None
    stage.worker.answer(bell)
    return ref


# --- a process that stood still ---------------------------------------------------------------------------------------


def test_a_process_that_stood_still_for_a_lease_before_the_body_gives_the_step_back(
    stage: Stage, ran: list[Any]
) -> None:
    """Frozen and thawed, it cannot know whether the step is another's by now."""
    frozen = iter([True, False])

    def freeze(context: HookContext) -> Answer:
        if next(frozen):
            stage.clock.now += 7
        return Allow()

    ref = hooked(stage, freeze)
    stage.journal()
    assert (ran, stage.row(ref).state) == ([1], RunState.SUCCEEDED)
    assert len(stage.events(ref, "step.given_back")) == 1
    assert stage.outcomes(ref)["only"].attempt == 1


def test_a_process_that_stood_still_and_lost_the_step_leaves_it_to_its_new_owner(stage: Stage, ran: list[Any]) -> None:
    other = stage.another_worker()

    def freeze(context: HookContext) -> Answer:
        if not ran:
            stage.pass_time(8)
            bell = stage.take()
            assert bell is not None
            other.process.hooks = Hooks()
            other.answer(bell)
        return Allow()

    ref = hooked(stage, freeze)
    stage.journal()
    assert (ran, stage.row(ref).state) == ([1], RunState.SUCCEEDED)
    assert stage.outcomes(ref)["only"].worker == other.process.name


def test_beats_keep_a_step_that_waits_long_in_a_hook(stage: Stage, ran: list[Any]) -> None:
    def slow(context: HookContext) -> Answer:
        for _ in range(4):
            stage.clock.now += 3
            stage.worker.pulse()
        return Allow()

    ref = hooked(stage, slow)
    stage.journal()
    assert (ran, stage.events(ref, "step.given_back")) == ([1], [])
