"""The simulator of speaker selection: the same for everybody, blind where it has to be, and its bounds can fail."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest

from convergio.benchmarks import learning, selection, vocabulary
from convergio.benchmarks.errands import FAMILIES, ROUND_ROBIN_IS_BEST, Errand, errand, errands
from convergio.benchmarks.selectors import BASELINES, oracle, round_robin
from convergio.benchmarks.talk import CAP, Talk
from convergio.graphflow.model import errors
from convergio.tasks.conversation import tuning
from convergio.tasks.conversation.speaker import Scored

OURS: Final = Scored(tuning.load())
WORDS: Final = vocabulary.load("software")
GOOD: Final[dict[str, Any]] = {
    "turn_reduction_ci_low": 0.10,
    "success_ours": 0.98,
    "success_best_baseline": 1.0,
    "select_ms_p50_large_teams": 0.99,
}


def played(family: str, number: int = 0) -> selection.Outcome:
    return selection.held(Talk(errand=one(family, number), vocabulary=WORDS), oracle)


def one(family: str, number: int = 0) -> Errand:
    return errand(WORDS, family, seed=7, number=number)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_can_be_solved_and_is_the_same_each_time(family: str) -> None:
    for number in range(3):
        outcome = played(family, number)
        assert outcome.solved
        assert outcome.turns >= len(outcome.errand.goals)
        assert outcome.turns == played(family, number).turns


@pytest.mark.parametrize("family", ROUND_ROBIN_IS_BEST)
def test_in_these_families_nobody_is_better_than_round_robin(family: str) -> None:
    for number in range(5):
        talk = Talk(errand=one(family, number), vocabulary=WORDS)
        assert selection.held(talk, round_robin).turns == played(family, number).turns


def test_selectors_do_not_see_the_goals() -> None:
    view = Talk(errand=one("query"), vocabulary=WORDS).view()
    assert not re.search("Goal|skill|needs", repr(view))


def test_a_conversation_that_gets_nowhere_counts_with_the_cap() -> None:
    task = one("pipeline")
    outcome = selection.held(Talk(errand=task, vocabulary=WORDS), lambda talk: talk.view().names[0])
    assert (outcome.turns, outcome.solved) == (CAP, False)


def test_tasks_depend_on_seed_and_vocabulary_only() -> None:
    assert errands(WORDS, seed=3, count=22) == errands(WORDS, seed=3, count=22)
    assert errands(WORDS, seed=3, count=22) != errands(WORDS, seed=4, count=22)


def test_what_is_held_out_is_not_trained_on() -> None:
    assert not set(vocabulary.TRAINING) & set(vocabulary.HELD_OUT)
    assert selection.TRAINING_SEEDS[1] < selection.HELD_OUT_SEEDS[0]
    assert len(FAMILIES) * 30 == selection.TASKS >= 300
    assert all(vocabulary.load(name).name == name for name in (*vocabulary.TRAINING, *vocabulary.HELD_OUT))


def test_the_interval_is_of_pairs_and_the_share_of_turns() -> None:
    theirs = [played("query", number) for number in range(8)]
    assert selection.reduction(theirs, theirs) == (0.0, 0.0, 0.0)


def test_a_vocabulary_that_cannot_be_used_says_why(tmp_path: Any) -> None:
    place = tmp_path / "few.yaml"
    place.write_text("name: few\ndomains: {one: {roles: [a], words: [b]}}\n")
    with pytest.raises(errors.InvalidSetting, match=r"domains\.one\.roles"):
        vocabulary.load(place)
    with pytest.raises(errors.InvalidSetting, match="cannot be read"):
        vocabulary.load("nowhere")


def test_losses_name_every_family_in_which_a_baseline_is_better() -> None:
    turns = dict.fromkeys(BASELINES, 5.0) | {selection.ASKING: 4.0}
    assert selection.losses({"a": turns, "b": {**turns, selection.ASKING: 6.0}}).keys() == {"b"}


def test_good_figures_are_accepted() -> None:
    assert selection.judged(GOOD) == []


@pytest.mark.parametrize(
    "worse",
    [{"turn_reduction_ci_low": 0.099}, {"success_ours": 0.979}, {"select_ms_p50_large_teams": 1.0}],
    ids=lambda worse: next(iter(worse)),
)
def test_each_bound_can_fail(worse: dict[str, Any]) -> None:
    assert len(selection.judged(GOOD | worse)) == 1


def test_asking_counts_its_calls_and_none_are_made_without_epsilon() -> None:
    task = one("specialist")
    asking = selection.Asking(tuning.load().model_copy(update={"epsilon": 100.0}))
    never = selection.Asking(tuning.load().model_copy(update={"epsilon": 0.0}))
    held = [selection.held(Talk(errand=task, vocabulary=WORDS), each) for each in (asking, never)]
    assert all(outcome.solved for outcome in held)
    assert 0 < asking.calls <= held[0].turns
    assert never.calls == 0
    assert held[1].turns == selection.held(Talk(errand=task, vocabulary=WORDS), selection.blind(OURS)).turns


def test_who_reads_anew_has_no_cue_that_only_the_vocabulary_has_which_it_reads() -> None:
    own = {name: read_by for name, read_by in learning.read_anew(count=2).items() if name in ("museum", "bank")}
    everybody = [vocabulary.load(name) for name in vocabulary.TRAINING]
    for name, read_by in own.items():
        mine = learning.said_by(vocabulary.load(name))
        others = "\n".join(learning.said_by(one) for one in everybody if one.name != name)
        kept = [cue for cue in (*read_by.cues.done, *read_by.cues.failed) if re.search(rf"\b{re.escape(cue)}\b", mine)]
        assert kept
        assert all(re.search(rf"\b{re.escape(cue)}\b", others) for cue in kept)
        assert read_by.acts != tuning.load().acts


def test_the_round_robin_of_the_configuration_is_the_one_that_the_bench_measures() -> None:
    """`convergio bench selection --training` measures it on five seeds; this on a part of one."""
    words = [vocabulary.load(name) for name in vocabulary.TRAINING]
    found = selection.played({"round_robin": round_robin}, words, [1], 11 * 4 * len(words))
    measured = selection.by(lambda errand: errand.kind, found)
    for name, kind in tuning.load().kinds.items():
        assert measured[name]["round_robin"] == pytest.approx(kind.baseline, rel=0.2)
