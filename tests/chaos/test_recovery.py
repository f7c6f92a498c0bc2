"""What a fault cost is measured as `recovery` says: standing still, running twice, refused and unknown outcomes."""

from __future__ import annotations

import dataclasses

import pytest

from convergio.benchmarks import graphs, recovery
from convergio.benchmarks.recovery import Cost, Disturbance
from tests.chaos.histories import BEGAN_MS, PID, RUN, Told, execution, fan, graph, tell

OTHER = 200
"""Another worker's process."""


def cost(told: Told, *, at: int, wiped: bool = False, pids: frozenset[int] = frozenset()) -> Cost:
    fault = Disturbance(at=at / 1000, at_ms=BEGAN_MS + at, wiped=wiped, processes=pids)
    return recovery.cost(told.accepted, told.history, sorted(told.executions, key=lambda one: one.began), fault)


def rerun(told: Told, step: str, *, at: int) -> None:
    """The step runs again `at` milliseconds after the run began, elsewhere; this execution's outcome counts."""
    again = execution(step, at=at, saw=told.of(step).saw, pid=OTHER)
    told.executions.append(again)
    row = told.outcome(step)
    told.outcomes[RUN, step] = dataclasses.replace(
        row, output={**row.output, "by": again.nonce}, finished_ms=BEGAN_MS + at + 20
    )


def test_a_step_that_ran_again_took_from_the_fault_until_then() -> None:
    told = tell(fan())
    told.of("join").ended = None
    rerun(told, "join", at=6_410)
    assert cost(told, at=410, pids=frozenset({PID})).samples == [6.0]


def test_a_step_that_survived_took_from_its_end_until_the_board_had_it() -> None:
    told = tell(fan())
    told.outcomes[RUN, "join"] = dataclasses.replace(told.outcome("join"), finished_ms=BEGAN_MS + 3_420)
    assert cost(told, at=410).samples == [3.0]


def test_what_was_done_before_the_fault_is_not_touched() -> None:
    assert cost(tell(fan()), at=800_000).samples == []


def test_a_step_that_stood_still_later_counts_too() -> None:
    told = tell(fan())
    told.of("join").began_ms += 4_000
    told.of("join").ended_ms = BEGAN_MS + 4_420
    told.outcomes[RUN, "join"] = dataclasses.replace(told.outcome("join"), finished_ms=BEGAN_MS + 4_420)
    assert max(cost(told, at=350).samples) == pytest.approx(4.005)


def test_an_approval_took_from_the_fault_until_its_answer_counted() -> None:
    told = tell(graph(graphs.Node(name="sign", approval=True)))
    told.outcomes[RUN, "sign"] = dataclasses.replace(told.outcome("sign"), finished_ms=BEGAN_MS + 7_000)
    assert cost(told, at=2_000).samples == [5.0]


# --- twice --------------------------------------------------------------------------------------------------------


def test_a_body_that_still_ran_when_the_board_was_wiped_must_not_run_twice() -> None:
    told = tell(fan())
    rerun(told, "join", at=6_000)
    assert cost(told, at=410, wiped=True).healthy_run_twice == 1


def test_a_body_whose_worker_died_may_run_twice() -> None:
    told = tell(fan())
    rerun(told, "join", at=6_000)
    assert cost(told, at=410, wiped=True, pids=frozenset({PID})).healthy_run_twice == 0


def test_a_stream_outcome_that_was_wiped_is_not_run_twice_but_unknown() -> None:
    told = tell(fan())
    rerun(told, "join", at=6_000)
    found = cost(told, at=450, wiped=True)
    assert (found.healthy_run_twice, found.unknown_outcomes) == (0, 1)


def test_a_step_durable_outcome_that_was_wiped_must_be_offered_again() -> None:
    told = tell(graph(graphs.Node(name="paid", durable=True)))
    rerun(told, "paid", at=6_000)
    assert cost(told, at=450, wiped=True).healthy_run_twice == 1


def test_a_step_whose_input_was_wiped_runs_again_on_the_new_input() -> None:
    told = tell(fan())
    for step in ("a", "join"):
        rerun(told, step, at=6_000 if step == "a" else 7_000)
    assert cost(told, at=410, wiped=True).healthy_run_twice == 0


def test_a_step_that_had_gone_on_before_its_input_was_in_the_journal_may_run_twice() -> None:
    """The input's outcome was told again, to the new board: it is the same, and has another time."""
    told = tell(fan())
    told.outcomes[RUN, "a"] = dataclasses.replace(told.outcome("a"), finished_ms=BEGAN_MS + 5_000)
    rerun(told, "join", at=6_000)
    assert cost(told, at=410, wiped=True).healthy_run_twice == 0


def test_an_item_whose_turn_came_by_what_was_lost_may_run_twice() -> None:
    items = graphs.Items(over="head", flaws=(0, 0, 0), width=1)
    each = graphs.Node(name="each", links=(graphs.Link(step="head"),), items=items)
    told = tell(graph(graphs.Node(name="head", deals=3), each))
    item = "each#2000"
    began = told.of(item).began_ms - BEGAN_MS
    rerun(told, item, at=7_000)
    assert cost(told, at=began + 10, wiped=True).healthy_run_twice == 1
    rerun(told, "each#1000", at=6_000)
    assert cost(told, at=began + 10, wiped=True).healthy_run_twice == 0


def test_a_run_whose_start_was_wiped_keeps_its_running_steps() -> None:
    told = tell(graph(graphs.Node(name="only")))
    told.runs = [dataclasses.replace(told.runs[0], started_ms=BEGAN_MS + 5_000)]
    rerun(told, "only", at=6_000)
    assert cost(told, at=10, wiped=True).healthy_run_twice == 1


# --- fenced, unknown ----------------------------------------------------------------------------------------------


def test_a_claim_counts_as_fenced_only_if_another_one_came_after_it() -> None:
    told = tell(fan())
    told.of("join").fenced = 0.5
    assert cost(told, at=410).fenced == 0, "the run may have been ended under it"
    rerun(told, "join", at=6_000)
    assert cost(told, at=410).fenced == 1


def test_a_refused_outcome_is_not_unknown() -> None:
    told = tell(fan())
    told.of("join").fenced = 0.5
    rerun(told, "join", at=6_000)
    assert cost(told, at=410).unknown_outcomes == 0


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 201)]
    assert recovery.percentile(values, 0.50) == 100
    assert recovery.percentile(values, 0.99) == 198
    assert recovery.percentile([3.0], 0.99) == 3
    assert recovery.percentile([], 0.5) is None
