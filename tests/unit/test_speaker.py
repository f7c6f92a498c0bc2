"""Who speaks next: the policies, what the scored one weighs, and the defects that it mends."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pytest

from convergio.graphflow.model import errors
from convergio.tasks.conversation import kind, speaker, tuning
from convergio.tasks.conversation.factors import Scene, factors
from convergio.tasks.conversation.floor import STOP, USER, Candidate, SelectionContext, Utterance
from convergio.tasks.conversation.reading import Reader, stems
from convergio.tasks.conversation.speaker import Edge, Graph, Scored

TUNING: Final = tuning.load()
AMY: Final = Candidate(name="amy", description="Looks after budget, margin and cash flow.", domains=("finance",))
LUCA: Final = Candidate(name="luca", description="Knows all about threats and encryption.", domains=("security",))
SARA: Final = Candidate(name="sara", description="In charge of layout and typography.", domains=("design",))
TEAM: Final = (AMY, LUCA, SARA)


def context(*said: tuple[str, str], team: Sequence[Candidate] = TEAM, **more: Any) -> SelectionContext:
    thread = tuple(Utterance(index=place, speaker=who, text=text) for place, (who, text) in enumerate(said))
    return SelectionContext(candidates=tuple(team), thread=thread, **more)


def values(moment: SelectionContext) -> dict[str, dict[str, float]]:
    return factors(Scene.of(moment, TUNING, Reader(TUNING)))


def chosen_by(factor: str, moment: SelectionContext) -> str:
    """The choice if only this factor weighed anything."""
    weights = {name: (weight if name == factor else 0.0) for name, weight in TUNING.weights.items()}
    return Scored(TUNING.model_copy(update={"weights": weights}))(moment).speaker


PLAIN: Final = ("user", "Hello.")
MOMENTS: Final = {
    "addressed": context(PLAIN, ("amy", "luca, this is yours.")),
    "expertise": context(("user", "We need to check the encryption.")),
    "keywords": context(("user", "Please draft the budget. Please check the encryption.")),
    "phase": context(("user", "Please track and monitor it.")),
    "collaboration": context(
        ("user", "Please work on it together."), ("sara", "Hm."), team=(AMY, replace(LUCA, partners=("sara",)), SARA)
    ),
    "performance": context(PLAIN, team=(AMY, replace(LUCA, record=0.9), SARA)),
    "recency": context(PLAIN, ("amy", "Well.")),
    "complexity": context(PLAIN, team=(replace(AMY, depth=0.9), replace(LUCA, depth=0.1), SARA)),
    "urgency": context(
        ("user", "This is urgent."), team=(replace(AMY, seconds=30.0), replace(LUCA, seconds=3.0), SARA)
    ),
    "order": context(("user", "Hello."), ("amy", "The budget and its margin are done.")),
    "repetition": context(PLAIN, ("amy", "Well.")),
    "refusal": context(("user", "We need to draft the poster."), ("amy", "That is not my field.")),
}
"""One moment for each factor in which it alone prefers another than the team's first, who speaks if nothing weighs."""


@pytest.mark.parametrize("factor", tuning.FACTORS)
def test_every_factor_alone_changes_a_ranking(factor: str) -> None:
    moment = MOMENTS[factor]
    assert chosen_by("", moment) == "amy"
    assert chosen_by(factor, moment) != "amy"


@pytest.mark.parametrize("factor", tuning.FACTORS)
def test_no_factor_is_constant_and_all_are_shares(factor: str) -> None:
    """In the original three of seven factors were the same for everybody, whatever was said."""
    found = [scores[factor] for moment in MOMENTS.values() for scores in values(moment).values()]
    assert len(set(found)) > 1
    assert all(0 <= value <= 1 for value in found)


def test_the_latest_speaker_is_penalised_most() -> None:
    """The original's penalty was inverted: the oldest speaker was punished most."""
    found = values(context(PLAIN, ("amy", "Well."), ("luca", "Well.")))
    assert found["luca"]["repetition"] > found["amy"]["repetition"] > found["sara"]["repetition"] == 0


def test_words_are_matched_whole_and_phrases_by_all_their_words() -> None:
    """In the original "now" was in "know", "team" in "steam", and "cash flow" could match nothing."""
    team = (Candidate(name="now", description="Steam."), Candidate(name="amy", description="Cash flow."))
    found = values(context(("user", "I know the team. We need a cash flow."), team=team))
    assert found["now"]["expertise"] == 0
    assert found["amy"]["expertise"] == 1


def test_words_of_one_stem_are_the_same_word() -> None:
    assert stems("Analysing suppliers") == stems("analyses supplier") == stems("analysed suppliers")


def test_whoever_has_no_profile_can_be_chosen() -> None:
    """33 of the original's 41 agents could not."""
    team = (*TEAM, Candidate(name="newcomer"))
    moment = context(("user", "We need to talk. newcomer, this is yours."), team=team)
    assert speaker.select(moment).speaker == "newcomer"


def test_what_was_asked_for_and_not_yet_done_decides() -> None:
    task = ("user", "Please draft the budget. Please check the encryption. Please prepare the layout.")
    assert speaker.select(context(task)).speaker == "amy"
    done = ("amy", "I did it: draft the budget.")
    assert speaker.select(context(task, done)).speaker == "luca"
    failed = ("luca", "I tried to check the encryption, but it did not work out.")
    assert speaker.select(context(task, done, failed)).speaker == "luca", "trying again is no repetition"


def test_who_cannot_help_is_not_asked_again_at_once() -> None:
    task = ("user", "We need to check the encryption.")
    assert speaker.select(context(task, ("luca", "That is not my field."))).speaker != "luca"


def test_what_has_to_wait_comes_after_what_it_waits_for() -> None:
    task = ("user", "Please prepare the layout and typography. Please draft the budget and margin.")
    waits = (
        "sara",
        "I cannot prepare the layout and typography before somebody is able to draft the budget and margin.",
    )
    assert speaker.select(context(task, waits)).speaker == "amy"


def test_a_word_belongs_to_whose_words_it_stood_beside() -> None:
    """Nobody is described with invoices; they were mentioned beside the budget."""
    said = [
        PLAIN,
        ("sara", "I cannot help here. They say invoices and a budget go together."),
        ("user", "We need the invoices."),
    ]
    moment = context(*said, team=(SARA, LUCA, AMY))
    assert values(moment)["amy"]["expertise"] > max(values(moment)[name]["expertise"] for name in ("luca", "sara"))
    assert Scored(TUNING)(moment).speaker == "amy"


def test_colleagues_share_their_words_and_what_they_cannot_do_now() -> None:
    ben = Candidate(name="ben", domains=("finance",))
    asked = context(("user", "We need to check the margin."), team=(SARA, LUCA, ben, AMY))
    assert values(asked)["amy"]["expertise"] > values(asked)["ben"]["expertise"] > values(asked)["luca"]["expertise"]
    refused = context(("user", "We need a poster."), ("amy", "That is not my field."), team=(SARA, LUCA, ben, AMY))
    assert values(refused)["amy"]["refusal"] > values(refused)["ben"]["refusal"] > values(refused)["luca"]["refusal"]


def test_a_name_is_no_word_of_what_is_asked_for() -> None:
    desk = Candidate(name="budget_desk", description="Keeps the calendar.")
    moment = context(
        ("user", "We need to check the layout."), ("luca", "Next we need budget_desk."), team=(*TEAM, desk)
    )
    assert values(moment)["sara"]["expertise"] > 0
    assert values(moment)["amy"]["expertise"] == 0


def test_what_waits_waits_until_what_it_waits_for_is_done() -> None:
    said = [
        ("user", "We need to draft the budget. We need to check the encryption. We need to plan the layout."),
        ("luca", "I cannot check the encryption before somebody drafts the budget."),
        ("sara", "I did it: the layout is planned. Next we need the encryption."),
    ]
    assert Scored(TUNING)(context(*said)).speaker == "amy"
    assert Scored(TUNING)(context(*said, ("amy", "The budget is done."))).speaker == "luca"


@pytest.mark.parametrize("window", [4, 40])
def test_an_agenda_kept_at_hand_is_the_one_that_a_fresh_reading_makes(window: int) -> None:
    """Also of a fork, of a thread that was taken up late, and behind the window."""
    tuned = TUNING.model_copy(update={"window": window})
    lines = ["The budget and its margin are done.", "I cannot help here.", "Next we need the layout.", "luca, yours."]
    said = [("user", "We need a budget. We need the layout. Please check threats.")]
    said += [(TEAM[(turn * 2) % 3].name, lines[(turn * 7) % 4]) for turn in range(30)]
    kept = Scored(tuned)
    forked = [*said[:9], ("sara", "The layout is done."), *said[9:15]]
    for thread in ([said[:end] for end in range(1, 31)], [said[:9], forked[:10], forked, said[:12]]):
        for part in thread:
            moment = context(*part)
            assert kept(moment) == Scored(tuned)(moment)


def test_who_is_asked_in_turn_speaks_in_the_teams_order() -> None:
    """Whatever they say; but not where something of one's field is asked for, too."""
    thread = [("user", "Good morning. A short word from each of you, one after the other.")]
    heard: list[str] = []
    for _ in range(2 * len(TEAM)):
        heard.append(speaker.select(context(*thread)).speaker)
        thread.append((heard[-1], "The budget and the encryption are as they were, luca."))
    assert heard == 2 * [one.name for one in TEAM]
    both = context(("user", "Each of you in turn. We need to check the encryption."))
    assert speaker.select(both).speaker == "luca"


def test_a_name_counts_less_after_names_were_wrong() -> None:
    right = context(PLAIN, ("amy", "sara, this is yours."))
    wrong = context(PLAIN, ("amy", "sara, this is yours."), ("sara", "Not my field. luca, this is yours."))
    assert values(wrong)["luca"]["addressed"] < values(right)["sara"]["addressed"]


def test_stop_is_chosen_when_all_is_done_and_only_where_it_may_be() -> None:
    task, done = ("user", "Please draft the budget."), ("amy", "I did it: draft the budget.")
    assert speaker.select(context(task, may_stop=True)).speaker == "amy"
    assert speaker.select(context(task, done, may_stop=True)).speaker == STOP
    assert speaker.select(context(task, done)).speaker != STOP


def test_every_choice_keeps_what_every_candidate_had() -> None:
    found = speaker.select(context(("user", "We need to check the encryption."), may_stop=True))
    assert set(found.scores) == {"amy", "luca", "sara", STOP}
    assert set(found.scores["amy"]) == set(tuning.FACTORS)
    assert found.speaker == "luca"
    assert found.reason == "mostly by expertise"
    ranked = sorted(found.totals.values(), reverse=True)
    assert found.margin == ranked[0] - ranked[1]


def test_the_same_context_gives_the_same_choice() -> None:
    moment = MOMENTS["keywords"]
    assert Scored(TUNING)(moment) == Scored(TUNING)(moment) == speaker.select(moment)


def test_a_model_is_asked_only_when_it_is_close() -> None:
    asked: list[Sequence[str]] = []

    def ask(_: SelectionContext, names: Sequence[str]) -> str:
        asked.append(names)
        return f"I would say {names[-1]}."

    close = Scored(TUNING.model_copy(update={"epsilon": 100.0}), ask)
    clear = Scored(TUNING.model_copy(update={"epsilon": 0.01}), ask)
    moment = context(("user", "We need to check the encryption."))
    assert clear(moment).speaker == "luca"
    assert asked == []
    found = close(moment)
    assert found.asked
    assert [list(names) for names in asked] == [list(moment.names)]
    assert found.speaker == moment.names[-1]


def test_a_model_that_names_somebody_far_off_is_not_followed() -> None:
    """It errs, too: whom it names has to be nearly as good as the first by the words."""
    moment = context(("user", "We need to check the greenhouse."), ("luca", "That is not my field."))
    totals = Scored(TUNING)(moment).totals
    first, second, *_, last = sorted(totals, key=lambda name: -totals[name])
    between = TUNING.model_copy(update={"epsilon": (totals[first] - totals[second] + totals[first] - totals[last]) / 2})
    for answer, expected in ((second, second), (last, first)):
        found = Scored(between, answering(answer))(moment)
        assert (found.speaker, found.asked) == (expected, True)


def test_a_model_is_asked_rather_where_nobodys_words_fit() -> None:
    some = TUNING.model_copy(update={"epsilon": 2.0})
    known, strange = (
        Scored(some, answering("sara"))(context(("user", f"We need to check the {what}.")))
        for what in ("encryption", "greenhouse")
    )
    assert (known.speaker, known.asked) == ("luca", False)
    assert (strange.speaker, strange.asked) == ("sara", True)


def answering(answer: str) -> speaker.Ask:
    """A model that always says this."""

    def ask(_: SelectionContext, __: Sequence[str]) -> str:
        return answer

    return ask


def test_a_model_that_names_nobody_does_not_decide() -> None:
    moment = context(("user", "We need to check the encryption."))
    for answer in ("nobody", "amy or luca", ""):
        found = speaker.select(moment, by="llm", ask=answering(answer))
        assert (found.speaker, found.policy) == ("luca", "llm")
    assert speaker.select(moment, by="llm", ask=answering("It is sara's turn: sara.")).speaker == "sara"


def test_a_model_is_never_offered_the_last_speaker() -> None:
    """AutoGen falls back to the last speaker, who then may go on for ever."""
    moment = context(PLAIN, ("luca", "Well."))
    assert speaker.select(moment, by="llm", ask=lambda _, names: " ".join(names)).speaker != "luca"
    assert speaker.select(moment, by="llm", ask=answering("luca")).speaker != "luca"


def test_round_robin_goes_on_after_whoever_spoke_last() -> None:
    assert speaker.select(context(PLAIN), by="round_robin").speaker == "amy"
    assert speaker.select(context(PLAIN, ("amy", "."), ("user", "?")), by="round_robin").speaker == "luca"
    assert speaker.select(context(PLAIN, ("sara", ".")), by="round_robin").speaker == "amy"


def test_a_handoff_counts_until_the_next_one() -> None:
    over = Utterance(index=1, speaker="amy", text="over", handoff="sara")
    moment = replace(context(PLAIN), thread=(*context(PLAIN).thread, over))
    assert speaker.select(context(PLAIN), by="handoff").speaker == "amy"
    assert speaker.select(moment, by="handoff").speaker == "sara"
    later = replace(moment, thread=(*moment.thread, Utterance(index=2, speaker="sara", text="Well.")))
    assert speaker.select(later, by="handoff").speaker == "sara"
    outside = replace(moment, thread=(*later.thread, Utterance(index=3, speaker="sara", text="?", handoff=USER)))
    assert speaker.select(outside, by="handoff").speaker == USER
    answered = replace(outside, thread=(*outside.thread, Utterance(index=4, speaker=USER, text="yes")))
    assert speaker.select(answered, by="handoff").speaker == "sara"


def test_a_graph_says_who_may_follow_whom() -> None:
    edges = {"amy": (Edge(target="luca", contains="check"), Edge(target="sara", contains="draw")), "luca": ()}
    graph = Graph(start="amy", edges=edges, among=speaker.scored())
    assert speaker.select(context(PLAIN), by=graph).speaker == "amy"
    assert speaker.select(context(PLAIN, ("amy", "check it")), by=graph).speaker == "luca"
    both = context(("user", "We need a layout."), ("amy", "check it and draw it"))
    assert speaker.select(both, by=graph).speaker == "sara"
    ended = context(PLAIN, ("amy", "check it"), ("luca", "Well."), may_stop=True)
    assert speaker.select(ended, by=graph).speaker == STOP


@speaker.policy
def always_sara(_: SelectionContext) -> str:
    """A policy as a user writes one."""
    return "sara"


@speaker.policy
def nobody_of_the_team(_: SelectionContext) -> str:
    """A policy with a mistake."""
    return "sarah"


def test_a_users_policy_has_to_be_registered_and_has_to_name_somebody() -> None:
    assert speaker.select(context(PLAIN), by=f"{__name__}.always_sara").speaker == "sara"
    with pytest.raises(errors.UnknownFunction):
        speaker.select(context(PLAIN), by="os.getcwd")
    with pytest.raises(errors.UnknownAgent, match="sarah"):
        speaker.select(context(PLAIN), by=f"{__name__}.nobody_of_the_team")
    with pytest.raises(errors.InvalidSetting, match="no model"):
        speaker.select(context(PLAIN), by="llm")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is our budget?", "simple_query"),
        ("Please compare two markets.", "analysis"),
        ("Please write a plan and a roadmap.", "strategy"),
        (" ".join(f"We need to do thing {number}." for number in range(9)), "complex_workflow"),
    ],
)
def test_a_conversation_has_a_type(text: str, expected: str) -> None:
    assert kind.kind_of(text, TUNING.kinds, Reader(TUNING)) == expected


def test_turns_are_compared_with_a_measured_round_robin_and_losses_count() -> None:
    measured = tuning.Kind(baseline=20.0)
    assert kind.reduction(10, measured) == 0.5
    assert kind.reduction(30, measured) == -0.5
    assert kind.reduction(10, tuning.Kind()) is None
    assert all(one.baseline for one in TUNING.kinds.values())


def test_savings_are_means_by_type_and_policy() -> None:
    def ended(type_: str, turns: int, policy: str | None) -> dict[str, Any]:
        return {"type": type_, "turns": turns, "first": None if policy is None else json.dumps({"policy": policy})}

    kinds = {"simple_query": tuning.Kind(baseline=6.0), "strategy": tuning.Kind(baseline=20.0)}
    found = kind.savings(
        [
            ended("strategy", 10, "scored"),
            ended("strategy", 20, "scored"),
            ended("strategy", 30, "round_robin"),
            ended("simple_query", 3, None),
            ended("of_before", 3, "scored"),
        ],
        kinds,
    )
    assert [(one.type, one.policy, one.conversations, one.turns, one.saved) for one in found] == [
        ("simple_query", "?", 1, 3.0, 0.5),
        ("strategy", "round_robin", 1, 30.0, -0.5),
        ("strategy", "scored", 2, 15.0, 0.25),
        ("of_before", "scored", 1, 3.0, None),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": {"expertise": 1.0}},
        {"weights": {**TUNING.weights, "repetition": 0.1}},
        {"phases": {"discovery": {"words": ["x"], "domains": ["astrology"]}}},
        {"epsilon": -1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_tuning_that_is_not_whole_is_refused(wrong: dict[str, Any], tmp_path: Any) -> None:
    import yaml

    place = tmp_path / "speakers.yaml"
    place.write_text(yaml.safe_dump({**TUNING.model_dump(mode="json"), **wrong}))
    with pytest.raises(errors.InvalidSetting):
        tuning.load(place)


def test_choosing_among_seventeen_is_cheap_and_does_not_grow_with_the_thread() -> None:
    """As a ratio: the messages of the window, beside 4,000 in the thread. `bench selection` has the time."""
    domains = list(TUNING.domains)
    team = [
        Candidate(name=f"a{place}", description=" ".join(TUNING.domains[domains[place % 12]][:5]))
        for place in range(17)
    ]
    said = [
        ("user", "We need a budget."),
        *((f"a{place % 17}", f"Done: the budget {place}.") for place in range(4_000)),
    ]
    policy = Scored(TUNING)

    def spent(moment: SelectionContext) -> float:
        policy(moment)
        start = time.thread_time()
        for _ in range(5):
            policy(moment)
        return time.thread_time() - start

    short, long = context(*said[: TUNING.window + 1], team=team), context(*said, team=team)
    assert spent(long) < 20 * spent(short)
