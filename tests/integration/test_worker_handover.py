"""A solo worker that gets its next doorbell with the board's answer: real processes, stopped and killed meanwhile."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from convergio.graphflow.board import scripts
from convergio.graphflow.engine.handover import Grants, Nobody
from convergio.graphflow.engine.submission import Submission
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.bell import doorbell_id
from tests.integration import engine_rig
from tests.integration.clients import foreign
from tests.integration.engine_rig import QUIET, chain
from tests.integration.lost_answers import lose_next_answer
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]

LONG: Final = 10
"""Steps of one row."""

DONE: Final = "row"
"""Where the steps of all rows note what they do."""


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def row(length: int = LONG) -> Workflow:
    """Steps that do next to nothing, one after the other."""
    made = WorkflowBuilder("row", version=1)
    given: Mapping[str, int | str] = {"seconds": 0, "name": f"'{DONE}'"}
    last = made.task("s0", "probe.lasts", with_=given)
    for number in range(1, length):
        last = made.task(f"s{number}", "probe.lasts", after=last, with_=given)
    return made.build()


def calls(crew: Crew) -> dict[str, int]:
    """How many pops there were, and how many looks for the next doorbell."""
    statistics: Any = crew.entrance.link.client.info("commandstats")
    return {name: int(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("brpop", "lmpop")}


def are_ended(crew: Crew, refs: Sequence[RunRef]) -> Callable[[], bool]:
    return lambda: all(crew.ended(ref) for ref in reversed(refs))


def is_once(crew: Crew, ref: RunRef, length: int = LONG) -> bool:
    """The run ended well, and each of its steps ended once."""
    outcomes = crew.history.facts(ref.run).outcomes
    return (
        crew.history.run(ref.tenant, ref.run).state is RunState.SUCCEEDED
        and sorted(row.step for row in outcomes) == sorted(f"s{number}" for number in range(length))
        and {row.attempt for row in outcomes} == {1}
    )


# --- what it saves ----------------------------------------------------------------------------------------------------


def cost(crew: Crew, pool: str) -> dict[str, int]:
    """What 200 steps cost that wait when the worker comes."""
    refs = [crew.submit(row()) for _ in range(20)]
    before = calls(crew)
    crew.started("w1", pool=pool, concurrency=1)
    wait_until(are_ended(crew, refs), timeout=60)
    assert all(is_once(crew, ref) for ref in refs)
    return {name: count - before[name] for name, count in calls(crew).items()}


def test_a_solo_worker_needs_far_fewer_pops_than_steps(crew: Crew) -> None:
    spent = cost(crew, "solo")
    assert spent["lmpop"] >= 150
    assert spent["brpop"] < 60


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_where_tasks_run_elsewhere_each_doorbell_is_popped(pool: str, crew: Crew) -> None:
    spent = cost(crew, pool)
    assert spent["lmpop"] == 0
    assert spent["brpop"] >= 200


# --- a doorbell whose task never runs ---------------------------------------------------------------------------------


def test_a_doorbell_that_was_taken_and_then_discarded_is_given_back_and_rung_again(crew: Crew) -> None:
    """Each step has Celery discard the next one's task. One that the worker had to pop after all is lost meanwhile."""
    made, run = WorkflowBuilder("discards", version=1), "019abcde0123456789abcdef01234567"
    last = made.task("s0", "probe.echo")
    for number in range(1, 5):
        task_id = doorbell_id(run, f"s{number + 1}", "1.1")
        last = made.task(f"s{number}", "worker.discards", after=last, with_={"task_id": f"'{task_id}'"})
    crew.started("w1", pool="solo")
    row = crew.entrance.submit(Submission(workflow=made.build(), input=None, run_id=run))
    ref = RunRef(tenant=row.tenant, run=run)
    wait_until(lambda: crew.ended(ref), timeout=40)
    assert is_once(crew, ref, 5)
    assert "Discarding revoked task" in crew.log("w1")
    assert crew.events(ref, "step.given_back") >= 1
    assert crew.events(ref, "step.expired") == 0


# --- a worker that stops or dies in a spell ---------------------------------------------------------------------------


def busy(crew: Crew, runs: int, length: int = LONG) -> list[RunRef]:
    """So many rows, which a solo worker has begun, and most of which have not ended."""
    refs = [crew.submit(row(length)) for _ in range(runs)]
    crew.start("w1", pool="solo")
    before = calls(crew)["lmpop"]
    wait_until(lambda: calls(crew)["lmpop"] > before + 50, timeout=30, interval=0.001)
    return refs


def states(crew: Crew, refs: Sequence[RunRef]) -> list[tuple[RunRef, str, StepState]]:
    """Every step of theirs that is on the board and has not ended."""
    found = [(ref, f"s{number}", crew.word(ref, f"s{number}").state) for ref in refs for number in range(LONG)]
    return [one for one in found if one[2] in (StepState.READY, StepState.RUNNING)]


def test_a_worker_that_is_stopped_in_a_spell_loses_nothing_and_ends_soon(crew: Crew) -> None:
    refs = busy(crew, 40)
    first = crew.processes["w1"]
    first.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert first.wait(timeout=20) == 0
    assert time.monotonic() - asked < 3
    left = states(crew, refs)
    assert left
    assert {state for *_, state in left} == {StepState.READY}, "no step waits for its lease to end"
    crew.started("w2", pool="solo")
    wait_until(are_ended(crew, refs), timeout=60)
    assert all(is_once(crew, ref) for ref in refs)
    assert len(crew.began(DONE)) == len(refs) * LONG, "no body ran twice"
    assert sum(crew.events(ref, "step.expired") for ref in refs) == 0
    assert sum(crew.events(ref, "step.rung") for ref in refs) == 0, "nobody had to find what was lost"


def test_a_worker_that_is_killed_in_a_spell_costs_one_lease_and_every_step_ends_once(crew: Crew) -> None:
    refs = busy(crew, 40)
    first = crew.processes["w1"]
    first.kill()
    first.wait()
    left = states(crew, refs)
    assert [state for *_, state in left].count(StepState.RUNNING) <= 1
    crew.started("w2", pool="solo")
    wait_until(are_ended(crew, refs), timeout=60)
    assert all(is_once(crew, ref) for ref in refs)
    assert sum(crew.events(ref, "step.expired") for ref in refs) <= 1
    assert len(crew.began(DONE)) <= len(refs) * LONG + 1


def test_a_doorbell_that_came_with_a_lost_answer_is_rung_again_when_its_lease_is_over(
    valkey: str, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board did it all, and the worker asked once more: it got another doorbell, and nobody has the first."""
    with engine_rig.stage_on(valkey, sqlite_url, tmp_path) as stage:
        given: list[tuple[str, Callable[[], None]]] = []

        class Port:
            def lists(self) -> Sequence[str]:
                return stage.queue_lists()

            def rivals(self) -> Sequence[str]:
                return ()

            def put(self, queue_list: str, message: str, done: Callable[[], None]) -> None:
                given.append((message, done))

        steps = stage.worker.steps
        steps.grants = Grants(Port(), worker="w1", unused=steps._return)
        refs = [stage.submit(chain()) for _ in range(3)]
        claim = stage.claim(refs[0], "first")
        assert any(stage.client.rpop(name) for name in stage.queue_lists())  # its doorbell, as it came by one
        with monkeypatch.context() as patch:
            lost = lose_next_answer(patch)
            steps.succeed(claim, {})
        assert lost == ["lost"]
        ((_, done),) = given
        running = [ref for ref in refs for state in stage.states(ref).values() if state == StepState.RUNNING]
        assert len(running) == 2
        done()
        assert sum(len(stage.events(ref, "step.given_back")) for ref in refs if stage.journal() or True) == 1
        steps.grants = Grants(Nobody(), worker="w1", unused=steps._return)
        stage.pass_time(scripts.LEASE_MS / 1000 + 3)
        for ref in refs:
            stage.play(ref)
        assert {stage.row(ref).state for ref in refs} == {RunState.SUCCEEDED}
        assert all(set(stage.outcomes(ref)) == {"first", "last"} for ref in refs)
        assert sum(len(stage.events(ref, "step.expired")) for ref in refs) == 1


# --- everything else that a worker does -------------------------------------------------------------------------------


def test_a_public_entry_is_answered_while_rows_of_steps_keep_the_worker_busy(crew: Crew) -> None:
    """The entry, the new run's first step and its result: all of it long before the rows are at their end."""
    refs = busy(crew, 4, 900)
    with foreign(crew.settings.redis_url) as app:
        asked = time.monotonic()
        answer = app.send_task("convergio.submit", kwargs={"workflow": "quick"}, queue="convergio")
        assert answer.get(timeout=60) == "soon"
        answered = time.monotonic()
    done = len(crew.began(DONE))
    wait_until(are_ended(crew, refs), timeout=90)
    over = time.monotonic()
    assert done < 4 * 900 / 2
    assert answered - asked < (over - asked) / 2


def test_a_burst_of_public_entries_does_not_wait_for_one_spell_each(crew: Crew) -> None:
    """While an entry waits, the worker pops: steps and entries take turns."""
    refs = busy(crew, 4, 900)
    with foreign(crew.settings.redis_url) as app:
        before = len(crew.began(DONE))
        for _ in range(20):
            app.send_task("convergio.submit", kwargs={"workflow": "quick"}, queue="convergio", ignore_result=True)
        wait_until(lambda: not crew.entrance.link.client.exists("convergio"), timeout=60)
    done = len(crew.began(DONE)) - before
    assert done < 4 * 900 / 4
    wait_until(are_ended(crew, refs), timeout=90)
