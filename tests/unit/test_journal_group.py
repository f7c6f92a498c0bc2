"""How a group of events becomes rows; what no table can hold is refused before SQL sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convergio.graphflow.journal import payload
from convergio.graphflow.journal.group import Group
from convergio.graphflow.model import errors, outcome
from tests.integration import journal_samples as samples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def group(*events: Any) -> Group:
    return Group(1, {"ledger": samples.LEDGER}).add(events)


def holds_nul(value: Any) -> bool:
    return any(isinstance(part, str) and "\x00" in part for part in parts(value))


def parts(value: Any) -> Iterator[Any]:
    yield value
    children: list[Any] = []
    if isinstance(value, dict):
        children = [*cast("dict[str, Any]", value).items()]
    elif isinstance(value, (list, tuple)):
        children = [*cast("list[Any]", value)]
    for child in children:
        yield from parts(child)


def kept(value: Any) -> Any:
    """What comes back of the value, however it was written; "NUL" if it is refused for that."""
    try:
        text = payload.to_text(value, what="it")
    except errors.InvalidPayload as refusal:
        with pytest.raises(errors.InvalidPayload, match="NUL"):  # what travels is refused as what is kept
            outcome.encode(value, what="it")
        return "NUL" if "NUL" in refusal.message else refusal
    back = payload.from_text(text)
    assert json.loads(outcome.encode(value, what="it")) == back
    return back if payload.reread(json.dumps(value, indent=1), what="it") == text else None


@given(JSON)
def test_json_comes_back_as_it_went_in_unless_it_holds_a_nul_character(value: Any) -> None:
    assert kept(value) == ("NUL" if holds_nul(value) else value)


@given(st.text("ab\\u0\x00", max_size=12))
def test_backslashes_before_u0000_do_not_deceive(text: str) -> None:
    assert kept({"text": text}) == ("NUL" if "\x00" in text else {"text": text})


def test_one_text_for_one_value_whatever_the_order_of_its_keys() -> None:
    assert payload.to_text({"b": 1, "a": "ü"}, what="it") == payload.to_text({"a": "ü", "b": 1}, what="it")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"x"])
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(errors.InvalidPayload, match="not JSON"):
        payload.to_text(value, what="it")


def test_of_two_outcomes_of_one_step_the_group_keeps_the_first() -> None:
    made = group(samples.outcome(1, data={"worker": "w1"}), samples.outcome(2, data={"worker": "w2"}))

    assert [columns["worker"] for columns in made.outcomes.values()] == ["w1"]


def test_a_domains_rows_are_grouped_by_the_columns_they_name() -> None:
    rows = [{"entry": "a", "amount": 1}, {"entry": "b", "amount": 2, "note": "n"}, {"entry": "c", "amount": 3}]
    made = group(samples.outcome(1, data={"rows": {"ledger": rows}}))

    batches = made.domain_rows(frozenset(made.outcomes))
    assert sorted([row["entry"] for row in batch] for batch in batches.values()) == [["a", "c"], ["b"]]
    assert made.domain_rows(frozenset()) == {}


def test_a_body_cannot_write_into_another_tenant_or_run() -> None:
    row = {"entry": "a", "amount": 1, "tenant": "victim", "run_id": "another"}
    made = group(samples.outcome(1, tenant="acme", data={"rows": {"ledger": [row]}}))

    ((kept,),) = made.domain_rows(frozenset(made.outcomes)).values()
    assert (kept["tenant"], kept["run_id"]) == ("acme", "run1")


def test_the_first_end_of_a_run_counts() -> None:
    made = group(samples.event(1, "run.failed", at_ms=5), samples.event(2, "run.cancelled", at_ms=6))

    assert [(columns["state"], columns["finished_ms"]) for columns in made.finished.values()] == [("FAILED", 5)]
    assert [columns["type"] for columns in made.events] == ["run.failed", "run.cancelled"]
