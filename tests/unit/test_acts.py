"""What sentences of a turn are read as, where no cue tells."""

from __future__ import annotations

import pytest

from convergio.tasks.conversation import tuning
from convergio.tasks.conversation.acts import ACTS, REPORTS, Acts
from convergio.tasks.conversation.floor import Candidate, SelectionContext, Utterance
from convergio.tasks.conversation.minutes import Minutes
from convergio.tasks.conversation.reading import Reader

TEAM = (
    Candidate(name="amy", description="Looks after budget, invoices and margins.", domains=("finance",)),
    Candidate(name="leo", description="Looks after contract, clause and liability.", domains=("legal",)),
    Candidate(name="mia", description="Looks after poster, logo and banner.", domains=("design",)),
)
TASK = "Please prepare budget and invoices. Please draw contract and clause. Please paint poster and logo."


def opened(*said: tuple[str, str]) -> list[frozenset[str]]:
    """The words of what is open after these turns, what is wanted first at the head."""
    reader = Reader(tuning.load())
    thread = [
        Utterance(index=place, speaker=who, text=text) for place, (who, text) in enumerate((("user", TASK), *said))
    ]
    agenda = Minutes(reader, 40).of(SelectionContext(candidates=TEAM, thread=tuple(thread)))
    return [frozenset(item.words) for item in agenda.open()]


def test_a_report_is_one_in_words_that_no_cue_has() -> None:
    """Whose words they are, and that they are alone, tells."""
    assert not any(
        "invoic" in words for words in opened(("amy", "Prepare budget and invoices, ship shape and Bristol."))
    )


def test_who_speaks_of_somebody_elses_work_has_not_done_it() -> None:
    """Amy has nothing to do with contracts."""
    found = opened(("amy", "Cheerio. Up the hill goes draw contract and clause."))
    assert "contract" in found[0]
    assert any("invoic" in words for words in found)


def test_what_names_ones_own_and_somebody_elses_work_has_to_wait() -> None:
    """The other's comes first then."""
    found = opened(("amy", "Prepare budget and invoices hangs on draw contract and clause."))
    assert "contract" in found[0]
    assert any("invoic" in words for words in found)


def test_a_turn_reports_in_one_sentence_at_least() -> None:
    """If none reads like a report, the likeliest one is."""
    acts = Acts({"a": {"plain": 3, "done": 2}, "b": {"plain": 3, "failed": 1}})
    assert acts([frozenset("b"), frozenset("a")]) == ["plain", "done"]
    assert acts([]) == []


def test_marks_and_acts_that_nobody_knows_are_refused() -> None:
    """A table with a word that is none would weigh nothing, silently."""
    right = tuning.load()
    assert set(REPORTS) < set(ACTS)
    with pytest.raises(ValueError, match="acts: unknown"):
        tuning.Tuning.model_validate({**right.model_dump(), "acts": {"own": {"dne": 1.0}}})
