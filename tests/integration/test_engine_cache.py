"""Outcomes that are used again: the same function with the same arguments, in the same tenant, not too long ago."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.engine.reason import of_step
from convergio.graphflow.flow import registry
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal import tables
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks import hooks
from tests.integration.engine_rig import QUIET, Stage, stage_on

pytestmark = QUIET


@pytest.fixture
def stage(valkey: str, journal_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, journal_url, tmp_path) as made:
        yield made


@pytest.fixture
def calls() -> list[Any]:
    """What the function was called with."""
    made: list[Any] = []

    def called(value: Any) -> Any:
        made.append(value)
        if value == "bad":
            raise errors.Permanent("no")
        return {"value": value, "call": len(made)}

    for name in ("cache.called", "cache.other"):
        registry.REGISTRY.add(registry.Registered(name=name, function=called))
    return made


def cached(function: str = "cache.called", *, cache: Any = "1h", **more: Any) -> Workflow:
    """only (cached) -> after, which reads it."""
    made = WorkflowBuilder("cached", version=1)
    only = made.task("only", function, value="input.value", cache=cache, **more)
    made.task("after", "probe.echo", after=only, value="only.call")
    return made.build()


def played(stage: Stage, workflow: Workflow, value: Any = 1, **more: Any) -> RunRef:
    """A run that came to its end."""
    ref = stage.submit(workflow, {"value": value}, **more)
    while not stage.row(ref).terminal:
        assert stage.answer_all() + stage.journal(), stage.states(ref)
    return ref


def age(stage: Stage, seconds: float) -> None:
    """All outcomes are so much older."""
    older = tables.outcomes.c.finished_ms - round(seconds * 1000)
    with stage.store.write() as connection:
        connection.execute(sa.update(tables.outcomes).values(finished_ms=older))


def test_the_same_call_is_made_once_until_its_outcome_is_too_old(stage: Stage, calls: list[Any]) -> None:
    first, second = (played(stage, cached()) for _ in range(2))
    assert calls == [1]
    row = stage.outcomes(second)["only"]
    assert (row.output, row.cached_from, row.tokens) == ({"value": 1, "call": 1}, f"{first.run}/only", 0)
    assert stage.row(second).output == {"value": 1}, "its successors read it"
    age(stage, 3_000)
    third = played(stage, cached())
    assert stage.outcomes(third)["only"].cached_from == f"{first.run}/only", "not the second's, which made no call"
    age(stage, 1_000)
    played(stage, cached())
    assert calls == [1, 1]


OTHERS: dict[str, Callable[[Stage], RunRef]] = {
    "arguments": lambda stage: played(stage, cached(), value=2),
    "function": lambda stage: played(stage, cached("cache.other")),
    "version": lambda stage: played(stage, cached(cache={"ttl": "1h", "version": "2"})),
    "tenant": lambda stage: played(stage, cached(), tenant="other"),
    "no cache": lambda stage: played(stage, cached(cache=None)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_call_is_made(stage: Stage, calls: list[Any], what: str) -> None:
    played(stage, cached())
    ref = OTHERS[what](stage)
    assert len(calls) == 2
    assert stage.outcomes(ref)["only"].cached_from is None


def test_what_was_called_without_a_cache_is_used_by_nobody(stage: Stage, calls: list[Any]) -> None:
    played(stage, cached(cache=None))
    played(stage, cached())
    assert len(calls) == 2


def test_a_failure_is_never_used_again(stage: Stage, calls: list[Any]) -> None:
    refs = [played(stage, cached(), value="bad") for _ in range(2)]
    assert calls == ["bad", "bad"]
    assert {stage.row(ref).state for ref in refs} == {RunState.FAILED}


def test_a_large_outcome_is_used_again_by_its_reference(stage: Stage, calls: list[Any]) -> None:
    large = "x" * 50_000
    refs = [played(stage, cached(), value=large) for _ in range(2)]
    assert len(calls) == 1
    one, other = (stage.outcomes(ref)["only"].output for ref in refs)
    assert one == other


def test_hooks_are_asked_before(stage: Stage, calls: list[Any]) -> None:
    played(stage, cached())
    chain = hooks.Hooks()
    chain.add(lambda context: hooks.Deny("no"))
    stage.worker.process.hooks = chain
    assert stage.row(played(stage, cached())).state is RunState.FAILED


def test_a_cached_outcome_is_durable_where_that_was_asked_for(stage: Stage, calls: list[Any]) -> None:
    played(stage, cached(durability="step"))
    ref = stage.submit(cached(durability="step"), {"value": 1})
    stage.answer_all()
    assert stage.states(ref) == {"only": "BLOCKED"}
    stage.play(ref)
    assert len(calls) == 1


def test_without_sql_the_call_is_made(stage: Stage, calls: list[Any]) -> None:
    played(stage, cached())
    ref = stage.submit(cached(), {"value": 1})
    with stage.sql_away():
        stage.answer_one()
    assert stage.states(ref)["only"] == "SUCCEEDED"
    assert len(calls) == 2


def test_a_cached_outcome_survives_a_wipe(stage: Stage, calls: list[Any]) -> None:
    first = played(stage, cached())
    ref = stage.submit(cached(), {"value": 1})
    stage.answer_one()
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.pass_time(7)
    stage.answer_all()
    stage.journal()
    assert stage.outcomes(ref)["only"].cached_from == f"{first.run}/only"
    assert (stage.row(ref).output, len(calls)) == ({"value": 1}, 1)


def test_why_says_whose_outcome_it_is(stage: Stage, calls: list[Any]) -> None:
    first, second = (played(stage, cached()) for _ in range(2))
    view = Inquiry(stage.service.link, stage.history).view(second)
    assert of_step(view, view.steps["only"]).endswith(f"(cached: the outcome of {first.run}/only)")
