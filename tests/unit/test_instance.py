"""The names of instances: one number for round and item, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convergio.graphflow.model import ids, instance


@given(st.from_regex(ids.NAME, fullmatch=True), st.integers(0, instance.ROUNDS - 1), st.integers(0, instance.WIDEST))
def test_step_round_and_item_are_read_from_the_name_alone(step: str, number: int, index: int) -> None:
    whole = instance.named(step, number)
    member = instance.member(whole, index)
    assert instance.split(whole) == (step, number)
    assert (instance.step_of(member), instance.round_of(member), instance.index_of(member)) == (step, number, index)
    assert instance.named(*instance.split(member)) == member
    assert (instance.whole(member), instance.whole(whole), instance.index_of(whole)) == (whole, whole, None)


def test_the_first_round_has_the_name_of_the_step() -> None:
    assert instance.named("draft", 0) == "draft"
    assert instance.split("draft") == ("draft", 0)


@pytest.mark.parametrize(
    ("name", "label", "slug"),
    [
        ("draft", "draft", "draft"),
        ("draft#2", "draft#2", "draft~2"),
        ("review#4000", "review[3]", "review~4000"),
        ("review#4002", "review#2[3]", "review~4002"),
        ("", "", ""),
    ],
)
def test_people_read_an_instance_as_a_round_and_a_place(name: str, label: str, slug: str) -> None:
    assert (instance.label(name), instance.slug(name)) == (label, slug)


def test_no_step_can_have_the_name_of_an_instance() -> None:
    assert ids.NAME.fullmatch(instance.named("draft", 1)) is None
