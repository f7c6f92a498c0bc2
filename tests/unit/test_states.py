"""The transition table: what is made from it agrees with it, and no state is a trap.

That the engine performs no other transition is held by the played histories in `tests/property`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow.board.fields import Word
from convergio.graphflow.journal import schema
from convergio.graphflow.model import states
from convergio.graphflow.model.states import (
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    TERMINAL_RUN,
    TERMINAL_STEP,
    BlockedOn,
    RunState,
    StepState,
)

DOCS = Path(__file__).parents[2] / "docs" / "architecture.md"
TABLES: list[tuple[Mapping[tuple[Any, str], Any], Any, Any, Any]] = [
    (RUN_TRANSITIONS, RunState, TERMINAL_RUN, RunState.ACCEPTED),
    (STEP_TRANSITIONS, StepState, TERMINAL_STEP, StepState.WAITING),
]
both_tables = pytest.mark.parametrize(("table", "every", "terminal", "first"), TABLES, ids=["runs", "steps"])


# --- the table itself -------------------------------------------------------------------------------------------------


@both_tables
def test_terminal_states_never_change(table: Any, every: Any, terminal: Any, first: Any) -> None:
    assert {source for source, _ in table} == set(every) - terminal


@both_tables
def test_every_state_can_be_reached_and_every_live_state_can_end(
    table: Any, every: Any, terminal: Any, first: Any
) -> None:
    forward = [(source, target) for (source, _), target in table.items()]
    assert reached({first}, forward) == set(every)
    assert reached(terminal, [(target, source) for source, target in forward]) == set(every)


def reached(start: Iterable[Any], ways: list[tuple[Any, Any]]) -> set[Any]:
    """What can be reached from `start`."""
    found = set(start)
    while more := {target for source, target in ways if source in found} - found:
        found |= more
    return found


def test_the_table_answers_with_the_next_state_and_refuses_what_it_does_not_have() -> None:
    assert states.next_run(RunState.ACCEPTED, "start") is RunState.RUNNING
    assert states.next_step(StepState.RUNNING, "block") is StepState.BLOCKED
    with pytest.raises(KeyError):
        states.next_run(RunState.SUCCEEDED, "cancel")
    with pytest.raises(KeyError):
        states.next_step(StepState.SKIPPED, "ring")


def test_every_step_that_somebody_works_on_can_be_cancelled_and_one_that_never_began_stays_as_it_is() -> None:
    live = set(StepState) - TERMINAL_STEP - {StepState.WAITING}
    assert {source for (source, event) in STEP_TRANSITIONS if event == "cancel"} == live


# --- what is made from it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "allowed"), [("runs", set(RunState)), ("outcomes", set(TERMINAL_STEP))], ids=["runs", "outcomes"]
)
def test_sql_takes_exactly_the_states_of_the_table(tmp_path: Path, table: str, allowed: set[str]) -> None:
    path = tmp_path / "journal.sqlite"
    schema.migrate(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    (text,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    (listed,) = re.findall(r"CHECK \(state IN \((.*?)\)\)", text)
    assert {word.strip(" '") for word in listed.split(",")} == {str(state) for state in allowed}


@pytest.mark.parametrize("diagram", [states.run_diagram(), states.step_diagram()], ids=["runs", "steps"])
def test_the_diagram_in_the_documents_is_the_tables(diagram: str) -> None:
    assert diagram in DOCS.read_text(), "copy it from states.run_diagram() and states.step_diagram()"


@both_tables
def test_a_diagram_has_a_line_for_every_transition(table: Any, every: Any, terminal: Any, first: Any) -> None:
    diagram = states.run_diagram() if every is RunState else states.step_diagram()
    lines = [line.strip() for line in diagram.splitlines()]
    for (source, event), target in table.items():
        assert lines.count(f"{source} --> {target}: {event}") == 1
    assert [line for line in lines if line.startswith("[*]")] == [f"[*] --> {first}"]
    assert {line.split()[0] for line in lines if line.endswith("--> [*]")} == set(terminal)


# --- the words on the board -------------------------------------------------------------------------------------------


def test_every_state_word_in_the_scripts_is_one_of_the_table() -> None:
    folder = Path(str(resources.files("convergio.graphflow.board"))) / "lua"
    text = "\n".join(path.read_text() for path in folder.rglob("*.lua"))
    words = set(re.findall(r"'\^?([A-Z]+)\|", text))
    assert words >= {"READY", "RUNNING", "BLOCKED"}
    assert words <= set(StepState)
    assert set(re.findall(r"BLOCKED\|([A-Z]+)\|", text)) <= set(BlockedOn)


@pytest.mark.parametrize(
    ("text", "state", "blocked_on", "since_ms"),
    [
        (None, StepState.WAITING, None, None),
        ("", StepState.WAITING, None, None),
        ("READY|1.2", StepState.READY, None, None),
        ("RUNNING|1.2.n-1", StepState.RUNNING, None, None),
        ("BLOCKED|RETRY|1790000000000|TRANSIENT|1.2.n-1", StepState.BLOCKED, BlockedOn.RETRY, 1_790_000_000_000),
        ("SKIPPED", StepState.SKIPPED, None, None),
    ],
)
def test_a_state_word_says_on_what_a_step_waits_and_since_when(
    text: str | None, state: StepState, blocked_on: BlockedOn | None, since_ms: int | None
) -> None:
    word = Word.parse(text)
    assert (word.state, word.blocked_on, word.since_ms, word.parked) == (state, blocked_on, since_ms, None)
    assert word.text == (text or "WAITING")


def test_a_parked_outcome_is_the_state_that_comes_after() -> None:
    word = Word.parse("BLOCKED|JOURNAL|5|FAILED|1.2.n-1")
    assert (word.blocked_on, word.parked) == (BlockedOn.JOURNAL, Word(StepState.FAILED, "1.2.n-1"))


def test_a_word_of_no_state_is_refused() -> None:
    with pytest.raises(ValueError, match="LIMBO"):
        Word.parse("LIMBO|1")
