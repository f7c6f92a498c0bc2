"""Values too large for Redis: kept in SQL under their digest, while a reference travels (a claim check)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.submission import Submission
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal import blobs, tables
from convergio.graphflow.model import errors, reference
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from convergio.workers import boot
from tests.integration import journal_samples as samples
from tests.integration.engine_rig import QUIET, Stage, chain, migrated, settings_for, single, stage_on
from tests.integration.test_adopted_tasks import has_board
from tests.integration.test_engine_workers import running
from tests.waiting import wait_until

pytestmark = QUIET

LARGE = "x" * 300_000


@pytest.fixture
def stage(valkey: str, journal_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, journal_url, tmp_path) as made:
        yield made


def kept(stage: Stage) -> list[int]:
    """Sizes of all blobs."""
    with stage.store.read() as connection:
        return sorted(len(row.content) for row in connection.execute(sa.select(tables.blobs)))


def largest(stage: Stage) -> int:
    """Bytes of the largest key in Redis but those of Celery's results."""
    names = [name for name in stage.client.scan_iter() if not name.startswith("celery-task-meta-")]
    return max(int(stage.client.memory_usage(name, samples=0)) for name in names)


def finished(stage: Stage, ref: RunRef) -> Any:
    for _ in range(2):
        stage.answer_all()
        stage.journal()
        stage.worker.pulse()
    row = stage.row(ref)
    assert row.state is RunState.SUCCEEDED, row.error
    return row.output


def doubling(durability: str = "stream") -> Workflow:
    """first makes a large value out of the input; last gets it as an argument."""
    made = WorkflowBuilder("doubling", version=1)
    first = made.task("first", "probe.echo", value="input", durability=durability)
    made.task("last", "probe.echo", after=first, value="first.value")
    return made.build()


# --- through a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["stream", "step"])
def test_a_large_value_reaches_the_next_step_and_the_result_and_is_never_in_redis(
    stage: Stage, durability: str
) -> None:
    ref = stage.submit(doubling(durability), LARGE)
    stage.answer_all()
    stage.journal()
    assert largest(stage) < 40_000
    assert finished(stage, ref) == {"value": LARGE}
    sizes = [len(json.dumps(LARGE)), len(json.dumps({"value": LARGE}, separators=(",", ":")))]
    assert kept(stage) == sizes, "the same value is kept once"
    outcomes = {step: row.output for step, row in stage.outcomes(ref).items()}
    assert outcomes["first"] == outcomes["last"]
    assert (outcomes["first"]["bytes"], set(outcomes["first"])) == (sizes[1], {"$blob", "bytes"})


def test_a_result_that_names_blobs_is_read_whole(stage: Stage) -> None:
    made = WorkflowBuilder("mapped", version=1, output={"both": "[first, first]", "n": "1"})
    made.task("first", "probe.echo", value="input")
    whole = {"value": LARGE}
    assert finished(stage, stage.submit(made.build(), LARGE)) == {"both": [whole, whole], "n": 1}


def test_a_composed_result_that_is_too_large_to_travel_is_read_whole(stage: Stage) -> None:
    """It is a blob that names blobs: parts that travel alone do not travel together."""
    part = "x" * 20_000
    made = WorkflowBuilder("composed", version=1, output={"large": "first", "parts": "[last, last]"})
    made.task("first", "probe.echo", value="input.large")
    made.task("last", "probe.echo", value="input.part")
    ref = stage.submit(made.build(), {"large": LARGE, "part": part})
    assert finished(stage, ref) == {"large": {"value": LARGE}, "parts": [{"value": part}, {"value": part}]}
    assert largest(stage) < 40_000


def test_what_is_small_stays_where_it_was(stage: Stage) -> None:
    text = "x" * 30_000
    assert finished(stage, stage.submit(doubling(), text)) == {"value": text}
    assert kept(stage) == []


def test_a_run_with_blobs_survives_a_new_board(stage: Stage) -> None:
    ref = stage.submit(doubling("step"), LARGE)
    claim = stage.claim(ref, "first")
    stage.worker.steps.succeed(claim, {"value": stage.worker.steps.arguments(claim)["value"]})
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.pass_time(7)
    assert finished(stage, ref) == {"value": LARGE}


def test_a_fork_reuses_blobs_and_its_input_is_checked_whole(stage: Stage) -> None:
    made = WorkflowBuilder("typed", version=1, input={"type": "string"})
    first = made.task("first", "probe.echo", value="input")
    made.task("last", "probe.echo", after=first, value="first.value")
    ref = stage.submit(made.build(), LARGE)
    finished(stage, ref)
    before = kept(stage)
    forked = stage.worker.process.entrance.fork(Fork(ref=ref, step="last", submitter="ann")).run
    assert finished(stage, RunRef(tenant=forked.tenant, run=forked.run_id)) == {"value": LARGE}
    assert kept(stage) == before


def test_a_large_recorded_fact_comes_back_whole(stage: Stage) -> None:
    ref = stage.submit(single())
    claim = stage.claim(ref, "only")
    stage.worker.steps.record(claim, "answer", {"text": LARGE})
    stage.worker.claims._claims.clear()
    assert largest(stage) < 40_000
    stage.pass_time(7)
    again = stage.claim(ref, "only", stage.another_worker())
    assert again.held.records["answer"] == {"text": LARGE}
    assert dict(again.held.records) == {"answer": {"text": LARGE}}


def test_the_same_key_with_the_same_large_input_is_the_same_run(stage: Stage) -> None:
    one, two = (stage.submit(chain(), LARGE, key="order-7") for _ in range(2))
    assert one == two
    with pytest.raises(errors.KeyConflict):
        stage.submit(chain(), LARGE + "y", key="order-7")


# --- conditions -------------------------------------------------------------------------------------------------------


def test_a_condition_sees_the_size_of_a_blob_and_nothing_in_it(stage: Stage) -> None:
    """Conditions are decided where no SQL is read. What one needs of a large value is an output of its own."""
    made = WorkflowBuilder("conditions", version=1)
    first = made.task("first", "probe.echo", value="input")
    made.task("large", "probe.echo", after=first, when="first.bytes > 100000")
    made.task("inside", "probe.echo", after=first, when="first.value != ''")
    ref = stage.submit(made.build(), LARGE)
    stage.answer_all()
    stage.journal()
    error = stage.outcomes(ref)["inside"].error
    assert error is not None
    assert error["code"] == "EXPRESSION_FAILED"
    assert stage.word(ref, "large").state is not StepState.SKIPPED


# --- refused ----------------------------------------------------------------------------------------------------------


def test_above_the_blobs_limit_the_step_fails(valkey: str, sqlite_url: str, tmp_path: Path) -> None:
    with stage_on(valkey, sqlite_url, tmp_path, blob_limit=310_000) as stage:
        ref = stage.submit(single(value="input + input"), LARGE)
        stage.answer_all()
        stage.journal()
        error = stage.outcomes(ref)["only"].error
        assert error is not None
        assert error["code"] == "PAYLOAD_TOO_LARGE"
        assert "310000" in error["message"]
        with pytest.raises(errors.PayloadTooLarge):
            stage.submit(single(), LARGE + LARGE)
        assert len(kept(stage)) == 1


@pytest.mark.parametrize("value", ["\x00" * 40_000, [float("nan")] * 40_000, ["\ud800"] * 40_000])
def test_what_no_store_can_keep_is_refused_before_it_is_kept(stage: Stage, value: Any) -> None:
    with pytest.raises(errors.InvalidPayload):
        stage.submit(single(), value)
    assert kept(stage) == []


@pytest.mark.parametrize("value", [{"$blob": "sha256:" + "0" * 64, "bytes": 1}, {"a": [{"$blob": 1}]}])
def test_a_value_of_somebodys_own_that_looks_like_a_reference_is_refused(stage: Stage, value: Any) -> None:
    with pytest.raises(errors.InvalidPayload, match=r"'\$blob'"):
        stage.submit(single(), value)
    ref = stage.submit(single())
    with pytest.raises(errors.InvalidPayload):
        stage.worker.steps.succeed(stage.claim(ref, "only"), value)


def test_the_text_of_the_key_alone_is_no_reference(stage: Stage) -> None:
    assert finished(stage, stage.submit(single(value="input"), ["$blob"])) == {"value": ["$blob"]}


# --- SQL away ---------------------------------------------------------------------------------------------------------


def test_without_sql_a_step_that_needs_a_blob_waits_without_a_slot_and_fails_nothing(stage: Stage) -> None:
    ref = stage.submit(doubling(), LARGE)
    stage.worker.process.entrance.blobs._known.clear()  # type: ignore[union-attr]  # as in another process
    with stage.sql_away():
        stage.answer_all()
        assert stage.word(ref, "first").blocked_on == "HOOK"
        assert len(stage.worker.claims) == 0
    stage.pass_time(3)
    assert finished(stage, ref) == {"value": LARGE}
    assert stage.outcomes(ref)["first"].attempt == 1


def test_without_sql_a_large_output_is_made_again_later_and_a_small_one_goes_on(stage: Stage) -> None:
    large, small = stage.submit(single(value="input + input"), LARGE), stage.submit(single(value="1"))
    with stage.sql_away():
        stage.answer_all()
        assert stage.word(large, "only").blocked_on == "HOOK"
        assert stage.word(small, "only").state is StepState.SUCCEEDED
    stage.pass_time(3)
    assert finished(stage, large) == {"value": LARGE + LARGE}
    assert stage.row(small).state is RunState.SUCCEEDED


@pytest.mark.slow
def test_a_blob_made_in_one_process_is_read_in_another(valkey: str, journal_url: str, tmp_path: Path) -> None:
    """The worker that made it is killed before the next step starts."""
    settings = settings_for(valkey, journal_url, tmp_path)
    migrated(journal_url)
    made = WorkflowBuilder("handed_over", version=1)
    first = made.task("first", "probe.echo", value="input", durability="step")
    sign = made.approval("sign", title="Go on", after=first)
    made.task("last", "probe.echo", after=sign, value="first.value")
    with ExitStack() as stack:
        entrance, history = boot.entrance(settings), boot.history(settings)
        for closing in (entrance.doors._database.close, history._database.close, entrance.link.close):
            stack.callback(closing)
        stack.enter_context(running("service", settings, tmp_path))
        maker = stack.enter_context(running("w1", settings, tmp_path))
        wait_until(lambda: has_board(entrance.link), timeout=30)
        row = entrance.submit(Submission(workflow=made.build(), input=LARGE))
        ref = RunRef(tenant=row.tenant, run=row.run_id)
        wait_until(lambda: [one.step for one in history.facts(ref.run).outcomes] == ["first"], timeout=30)
        maker.kill()
        stack.enter_context(running("w2", settings, tmp_path))
        entrance.signal(ref, name="sign", data={"decision": "approve"}, by="boss")
        wait_until(lambda: history.run(ref.tenant, ref.run).terminal, timeout=30)
        assert history.run(ref.tenant, ref.run).output == {"value": LARGE}
        outcomes = {one.step: one for one in history.facts(ref.run).outcomes}
        assert (outcomes["first"].worker, outcomes["last"].worker) == ("w1", "w2")


# --- the store itself -------------------------------------------------------------------------------------------------


def test_a_tenant_cannot_read_another_tenants_blob(journal_url: str) -> None:
    with samples.migrated(journal_url) as store:
        made = blobs.Blobs(store)
        named = made.kept("ann", json.dumps(LARGE))
        assert named is not None
        assert made.opened("ann", named) == LARGE
        for reader in (made, blobs.Blobs(store)):
            with pytest.raises(errors.Permanent, match="is not in the journal"):
                reader.opened("bob", named)


def test_a_process_keeps_only_so_much_at_hand(journal_url: str) -> None:
    with samples.migrated(journal_url) as store:
        made = blobs.Blobs(store, memory=700_000)
        values = [str(number) * 300_000 for number in range(5)]
        named = [made.kept("ann", json.dumps(value)) for value in values]
        assert [made.opened("ann", name) for name in named] == values
        assert made._size == sum(map(len, made._known.values())) <= 700_000
        assert len(made._known) == 2


@pytest.mark.parametrize(
    "value",
    [
        None,
        "sha256:0",
        {},
        {"$blob": "sha256:00", "bytes": 1},
        {"$blob": 1, "bytes": 1},
        {"$blob": "sha256:" + "0" * 64},
    ],
)
def test_only_a_whole_reference_is_one(value: Any) -> None:
    assert reference.digest_of(value) is None
