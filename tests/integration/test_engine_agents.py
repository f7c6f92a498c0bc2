"""P3: an agent's answer is bought once, and what failed attempts cost reaches the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
from celery.exceptions import WorkerTerminate

from convergio.graphflow.board import scripts as board_scripts
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.agents import scripted
from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.step import Agents
from convergio.tasks.agents.tables import model_calls
from tests.failing_provider import RISK, FailingProvider, endpoint, says, serving
from tests.integration.engine_rig import QUIET, Stage, Worker

pytestmark = QUIET

FIRM_ANSWER = '{"level": "low", "why": ""}'


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """Every question that the scripted model was asked."""
    questions: list[str] = []
    words = scripted.words

    def counting(prompt: str, schema: Any) -> list[str]:
        questions.append(prompt)
        return words(prompt, schema)

    with mock.patch.object(scripted, "words", counting):
        yield questions


class Killed(WorkerTerminate):
    """The worker process ends here, without another word."""


def killed(*_: object, **__: object) -> None:
    raise Killed


def asking(*, retry: Any = 0, output: Any = None) -> Workflow:
    """`risk` asks an agent, `after` follows."""
    made = WorkflowBuilder("asking", version=1)
    risk = made.agent("risk", "amy", prompt="How risky is {{ input.country }}?", retry=retry, output=output)
    made.task("after", "probe.echo", after=risk, value="risk.text")
    return made.build()


def answer(stage: Stage, worker: Worker | None = None) -> None:
    bell = stage.take()
    assert bell is not None
    (worker or stage.worker).answer(bell)


def answer_and_die(stage: Stage, worker: Worker) -> None:
    """The worker is killed after the model's answer was recorded, and before the outcome was told."""
    with mock.patch.object(Steps, "succeed", killed), pytest.raises(Killed):
        answer(stage, worker)


def ledger(stage: Stage, ref: RunRef) -> Sequence[Any]:
    with stage.store.read() as connection:
        mine = sa.select(model_calls).where(model_calls.c.run_id == ref.run).order_by(model_calls.c.started_ms)
        return connection.execute(mine).all()


def asks(stage: Stage, provider: FailingProvider, *workers: Worker) -> None:
    """These workers' agents speak with this provider."""
    for worker in workers or stage.workers:
        worker.process.agents = Agents(roster=Roster.load(), model=endpoint(provider))


# --- an answer is bought once -----------------------------------------------------------------------------------------


def test_a_recorded_answer_is_not_asked_for_again(stage: Stage, asked: list[str]) -> None:
    doomed, heir = stage.another_worker(), stage.another_worker()
    ref = stage.submit(asking(), {"country": "Poland"})
    answer_and_die(stage, doomed)
    assert len(asked) == 1
    stage.pass_time(7)
    answer(stage, heir)
    stage.journal()
    assert len(asked) == 1
    outcome = stage.outcomes(ref)["risk"]
    assert outcome.worker == heir.process.name
    assert "Poland" in outcome.output["text"]
    assert len(ledger(stage, ref)) == 1
    assert stage.word(ref, "after").state is StepState.READY


def test_a_journaled_record_is_not_asked_for_again_on_a_new_board(stage: Stage, asked: list[str]) -> None:
    doomed = stage.another_worker()
    ref = stage.submit(asking(), {"country": "Poland"})
    answer_and_die(stage, doomed)
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.pass_time(7)
    answer(stage)
    stage.journal()
    assert len(asked) == 1
    assert stage.outcomes(ref)["risk"].state is StepState.SUCCEEDED


def test_a_record_that_the_old_board_took_with_it_is_offered_to_the_new_one(stage: Stage, asked: list[str]) -> None:
    """The process that bought the answer lives on for a moment: long enough to assert its claim."""
    doomed, heir = stage.another_worker(), stage.another_worker()
    ref = stage.submit(asking(), {"country": "Poland"})
    answer_and_die(stage, doomed)
    stage.wipe()
    stage.rebuild()
    doomed.meet_new_board()
    stage.pass_time(7)
    answer(stage, heir)
    stage.journal()
    assert len(asked) == 1
    assert stage.outcomes(ref)["risk"].worker == heir.process.name


def test_an_answer_that_the_board_could_not_record_fails_nothing(stage: Stage, asked: list[str]) -> None:
    """Redis is wiped while the model speaks: the answer lives on in the process, and is the outcome."""
    ref = stage.submit(asking(), {"country": "Poland"})
    stage.journal()
    record = board_scripts.record

    def wiped(*args: Any, **kwargs: Any) -> int:
        stage.wipe()
        return record(*args, **kwargs)

    with mock.patch.object(board_scripts, "record", wiped):
        answer(stage)
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.journal()
    assert len(asked) == 1
    assert stage.outcomes(ref)["risk"].state is StepState.SUCCEEDED
    assert len(ledger(stage, ref)) == 1


def test_an_answer_recorded_while_the_board_is_away_is_known_to_the_next_claim(stage: Stage, asked: list[str]) -> None:
    doomed, heir = stage.another_worker(), stage.another_worker()
    ref = stage.submit(asking(), {"country": "Poland"})
    stage.journal()
    record = board_scripts.record

    def wiped(*args: Any, **kwargs: Any) -> int:
        stage.wipe()
        return record(*args, **kwargs)

    with mock.patch.object(board_scripts, "record", wiped):
        answer_and_die(stage, doomed)
    stage.rebuild()
    doomed.meet_new_board()
    stage.pass_time(7)
    answer(stage, heir)
    stage.journal()
    assert len(asked) == 1
    assert stage.outcomes(ref)["risk"].worker == heir.process.name


def test_successors_of_an_agent_wait_for_sql(stage: Stage) -> None:
    stage.submit(asking(), {"country": "Poland"})
    answer(stage)
    assert stage.bells() == []
    stage.journal()
    assert [step for step, _ in stage.bells()] == ["after"]


# --- what failed attempts cost ----------------------------------------------------------------------------------------


def test_calls_of_failed_attempts_reach_the_ledger_with_the_final_outcome(stage: Stage) -> None:
    """Two calls of an attempt whose answers did not fit, and one of the next, which another process makes."""
    with serving(says("no JSON"), says("still none"), says(FIRM_ANSWER)) as provider:
        second = stage.another_worker()
        asks(stage, provider)
        ref = stage.submit(asking(retry={"max": 1, "backoff": 1}, output=RISK), {"country": "Poland"})
        answer(stage)
        stage.journal()
        assert ledger(stage, ref) == []
        stage.pass_time(2)
        answer(stage, second)
        stage.journal()
    outcome, rows = stage.outcomes(ref)["risk"], ledger(stage, ref)
    assert (outcome.state, outcome.attempt) == (StepState.SUCCEEDED, 2)
    assert [row.attempt for row in rows] == [1, 1, 2]
    assert len({row.call_id for row in rows}) == 3


def test_calls_of_a_step_that_failed_for_good_reach_the_ledger_too(stage: Stage) -> None:
    with serving(says("no JSON")) as provider:
        asks(stage, provider)
        ref = stage.submit(asking(output=RISK), {"country": "Poland"})
        answer(stage)
        stage.journal()
    assert stage.row(ref).state is RunState.FAILED
    assert stage.outcomes(ref)["risk"].error is not None
    assert len(ledger(stage, ref)) == 2


def test_calls_of_a_failed_attempt_survive_a_new_board(stage: Stage) -> None:
    with serving(says("no JSON"), says("still none"), says(FIRM_ANSWER)) as provider:
        second = stage.another_worker()
        asks(stage, provider)
        ref = stage.submit(asking(retry={"max": 1, "backoff": 1}, output=RISK), {"country": "Poland"})
        answer(stage)
        stage.journal()
        stage.wipe()
        stage.rebuild()
        stage.pass_time(7)
        answer(stage, second)
        stage.journal()
    assert [row.attempt for row in ledger(stage, ref)] == [1, 1, 2]


def test_an_unknown_agent_fails_its_step_and_costs_nothing(stage: Stage) -> None:
    made = WorkflowBuilder("asking", version=1)
    made.agent("risk", "nobody", prompt="?")
    ref = stage.submit(made.build())
    answer(stage)
    stage.journal()
    error = stage.outcomes(ref)["risk"].error
    assert error is not None
    assert (error["code"], bool(error["hint"])) == (errors.UnknownAgent.code, True)
    assert ledger(stage, ref) == []


# --- bought by one run, used by another -------------------------------------------------------------------------------


def cancelled_after_its_answer(stage: Stage) -> RunRef:
    """The answer is paid for and recorded; then the worker died, and the run was cancelled."""
    doomed = stage.another_worker()
    ref = stage.submit(asking(), {"country": "Poland"})
    answer_and_die(stage, doomed)
    stage.worker.process.entrance.cancel(ref, by="boss")
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED
    return ref


def forked(stage: Stage, ref: RunRef, **given: Any) -> RunRef:
    made = stage.worker.process.entrance.fork(Fork(ref=ref, **given))
    while stage.answer_all() + stage.journal():
        stage.worker.pulse()
    assert stage.row(RunRef(tenant="default", run=made.run.run_id)).state is RunState.SUCCEEDED
    return RunRef(tenant="default", run=made.run.run_id)


def test_an_answer_that_a_cancelled_run_bought_is_used_by_its_retry_and_booked_once(
    stage: Stage, asked: list[str]
) -> None:
    was = cancelled_after_its_answer(stage)
    ref = forked(stage, was, kind=ForkKind.RETRY)
    assert len(asked) == 1
    assert [row.run_id for row in (*ledger(stage, was), *ledger(stage, ref))] == [ref.run]
    tokens = [row.tokens for run in (was, ref) for row in stage.outcomes(run).values() if row.tokens]
    assert len(tokens) == 1


def test_a_reused_answer_is_neither_asked_for_nor_booked_again(stage: Stage, asked: list[str]) -> None:
    was = forked(stage, cancelled_after_its_answer(stage), kind=ForkKind.RETRY)
    ref = forked(stage, was, step="after")
    assert len(asked) == 1
    assert ledger(stage, ref) == []
    assert stage.outcomes(ref)["risk"].tokens == 0
    assert stage.outcomes(ref)["risk"].output == stage.outcomes(was)["risk"].output


def test_whoever_forks_from_an_agents_step_wants_another_answer(stage: Stage, asked: list[str]) -> None:
    was = cancelled_after_its_answer(stage)
    ref = forked(stage, was, step="risk")
    assert len(asked) == 2
    assert len(ledger(stage, ref)) == 1


def test_each_item_of_a_map_has_its_own_answer_and_its_own_row_in_the_ledger(stage: Stage, asked: list[str]) -> None:
    made = WorkflowBuilder("asking", version=1)
    made.map("risks", over="input", item="country").agent("amy", prompt="How risky is {{ country }}, no. {{ index }}?")
    ref = stage.submit(made.build(), ["IT", "DE"])
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert [question in prompt for question, prompt in zip(("IT, no. 0", "DE, no. 1"), asked, strict=True)] == [
        True
    ] * 2
    assert [(row.step, row.iteration) for row in ledger(stage, ref)] == [("risks", 1000), ("risks", 2000)]
