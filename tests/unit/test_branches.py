"""A graph of which all is followed: joins, branches and loops, from what was said alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from convergio.tasks.conversation.branches import Branch, Branches
from convergio.tasks.conversation.floor import STOP, USER, Candidate, SelectionContext, Utterance


def graph(edges: Mapping[str, Sequence[str | tuple[str, str] | Branch]], *starts: str) -> Branches:
    """`("b", "YES")`: to b, if YES is said."""

    def branch(edge: str | tuple[str, str] | Branch) -> Branch:
        if isinstance(edge, Branch):
            return edge
        return Branch(target=edge) if isinstance(edge, str) else Branch(target=edge[0], contains=edge[1])

    made = {name: tuple(map(branch, targets)) for name, targets in edges.items()}
    return Branches(starts=starts or ("a",), edges=made)


def course(made: Branches, said: Mapping[str, Sequence[str]] | None = None, most: int = 20) -> str:
    """Who speaks, one after the other. `said`: their words, turn by turn; else nothing."""
    words = {name: list(texts) for name, texts in (said or {}).items()}
    names = sorted({*made.starts, *made.edges, *(edge.target for edges in made.edges.values() for edge in edges)})
    thread = [Utterance(index=0, speaker=USER, text="Go")]
    while len(thread) <= most:
        team = tuple(Candidate(name=name) for name in names)
        found = made(SelectionContext(candidates=team, thread=tuple(thread), may_stop=True)).speaker
        if found == STOP:
            break
        text = words[found].pop(0) if words.get(found) else ""
        thread.append(Utterance(index=len(thread), speaker=found, text=text))
    return "".join(one.speaker for one in thread[1:])


ANY = Branch(target="j", any_of=True)


@pytest.mark.parametrize(
    ("made", "said", "spoke"),
    [
        (graph({"a": ["b", "c"], "b": ["d"], "c": ["d"]}), {}, "abcd"),
        (graph({"a": [("b", "B"), ("c", "C")], "b": ["d"], "c": ["d"]}), {"a": ["B"]}, "abd"),  # AutoGen: "ab"
        (graph({"a": [("b", "B"), ("c", "C")], "b": ["d"], "c": ["d"]}), {"a": ["none"]}, "a"),
        (graph({"a": ["b", ("c", "C")], "c": ["d"], "b": ["e"], "d": ["e"], "e": ["f"]}), {}, "abef"),
        (graph({"a": ["b", "c"], "b": ["x"], "x": [ANY], "c": [ANY]}), {}, "abcxj"),  # AutoGen: j twice
        (graph({"a": ["j"], "b": ["j"]}, "a", "b"), {}, "abj"),
        (
            graph({"a": [("b", "B"), ("c", "C")], "b": ["d"], "c": ["d"], "x": ["y"], "y": ["z"]}, "a", "x"),
            {"a": ["B"]},
            "axbydz",
        ),
    ],
)
def test_joins_wait_for_what_may_still_come_and_for_nothing_else(made: Branches, said: Any, spoke: str) -> None:
    assert course(made, said) == spoke


@pytest.mark.parametrize("entry", [{}, {"any_of": True}, {"group": "again"}])
def test_a_loop_goes_round_whatever_its_edges_are_joined_by(entry: Any) -> None:
    back = Branch(target="b", contains="AGAIN", **entry)
    into = Branch(target="b", any_of=back.any_of)
    made = graph({"a": [into], "b": ["c", "d"], "c": ["e"], "d": ["e"], "e": [back, ("f", "DONE")]})
    assert course(made, {"e": ["AGAIN", "AGAIN", "DONE"]}) == "abcdebcdebcdef"


def test_each_has_one_turn_in_a_round_of_a_loop() -> None:
    made = graph({"a": ["b", "c"], "b": [ANY], "c": [ANY], "j": [("a", "AGAIN")]})
    assert course(made, {"j": ["AGAIN", "AGAIN", "enough"]}) == "abcj" * 3


def test_a_branch_that_is_late_in_its_round_has_its_turn_in_the_next_one_too() -> None:
    made = graph({"a": ["b", "c"], "b": [ANY], "c": ["d"], "d": [ANY], "j": [("a", "AGAIN"), ("z", "DONE")]})
    assert course(made, {"j": ["AGAIN", "DONE"]}) == "abcjdabcjdz"


def test_who_is_outside_of_a_loop_hears_of_each_round_that_leads_to_it() -> None:
    made = graph({"a": ["b"], "b": ["log", ("a", "AGAIN")]})
    assert course(made, {"b": ["AGAIN", "AGAIN", "enough"]}) == "ablogablogablog"


def test_a_join_behind_a_loop_has_its_turn_once_however_often_the_loop_went_round() -> None:
    made = graph({"a": ["b", "c"], "b": [ANY], "c": [("c", "AGAIN"), Branch(target="j", contains="DONE", any_of=True)]})
    assert course(made, {"c": ["AGAIN", "DONE"]}) == "abcjc"


def test_who_waits_for_each_other_only_does_not_wait_for_ever() -> None:
    made = graph({"a": ["x", "y"], "x": ["y"], "y": [("x", "BACK")]})
    assert course(made, {"y": ["BACK"]}) == "axyxy"


def test_a_loop_of_one_goes_round_too() -> None:
    assert course(graph({"a": [("a", "AGAIN"), ("b", "DONE")]}), {"a": ["AGAIN", "AGAIN", "DONE"]}) == "aaab"


def test_new_words_of_people_begin_the_graph_anew() -> None:
    made, team = graph({"a": ["b"]}), (Candidate(name="a"), Candidate(name="b"))
    said = [(USER, "Go"), ("a", "1"), ("b", "2"), (USER, "Once more"), ("a", "3")]
    thread = tuple(Utterance(index=place, speaker=who, text=text) for place, (who, text) in enumerate(said))
    assert made(SelectionContext(candidates=team, thread=thread, may_stop=True)).speaker == "b"


def test_a_turn_that_was_not_due_counts_as_if_it_had_been() -> None:
    made, team = graph({"a": ["b"], "x": ["b"]}), tuple(Candidate(name=name) for name in "abx")
    thread = (Utterance(index=0, speaker=USER, text="Go"), Utterance(index=1, speaker="x", text=""))
    assert made(SelectionContext(candidates=team, thread=thread, may_stop=True)).speaker == "a"
