"""Whether scored selection of speakers needs fewer turns: simulated teams, held-out seeds and vocabularies.

`convergio bench selection [--seeds A-B] [--vocabulary F ...] [--training | --anew] [--json]`. A task is a hidden graph
of goals; agents say what they do in text; selectors see the text, the names and the descriptions. Every selector gets
the same tasks and the same luck; a conversation ends when every goal is done (a verified success, the same rule for
all) or after 60 turns, which count as 60. Simulated agents: this measures coordination, not the quality of answers.

Bounds: against the best baseline (neither ours nor the oracle) the lower end of the 95 % interval of the share of
turns saved is 0.10 or more, success is at most 2 points lower, and a choice among 14 to 17 agents takes less than 1 ms
of processor time (median). Ours is `scored` with the simulated model to ask (`llm_style`, with its errors) where the
second is closer than epsilon and words do not tell; `asking` has the calls that takes, beside one a turn of
`llm_style`, and `alone` what `scored` saves without it. The last line on stdout is one JSON object; exit code 1 if a
bound fails. `losses` names the families in which some baseline needs fewer turns than ours; `stopping` says what the
stop candidate would have done, apart from everything else. `--anew` says what to expect of vocabularies that nobody
has seen: those of the training, each read by a tuning that was made without it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any, Final

from convergio.benchmarks import learning, vocabulary
from convergio.benchmarks.engine import quantile
from convergio.benchmarks.errands import FAMILIES, Errand, errands
from convergio.benchmarks.selectors import BASELINES, ORACLE, READERS, Reader, Selector, oracle
from convergio.benchmarks.talk import Talk, words_of
from convergio.tasks.conversation import tuning
from convergio.tasks.conversation.floor import STOP, SelectionContext
from convergio.tasks.conversation.speaker import Scored

TRAINING_SEEDS: Final = (1, 5)
HELD_OUT_SEEDS: Final = (101, 105)
TASKS: Final = 30 * len(FAMILIES)
"""Tasks of one seed, all vocabularies together."""

RESAMPLES: Final = 2_000
LEVEL: Final = 0.95
REDUCTION: Final = 0.10
POINTS: Final = 0.02
SELECT_MS: Final = 1.0
LARGE_TEAM: Final = 14
OURS: Final = "scored"
ASKING: Final = "scored_asking"
STOPPING_TASKS: Final = 10 * len(FAMILIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One conversation. `words`: of all prompts and answers of its agents; `chosen_ms`: processor time per choice."""

    errand: Errand
    turns: int
    solved: bool
    words: int
    chosen_ms: float


def held(talk: Talk, select: Selector) -> Outcome:
    """The conversation that this selector makes of it."""
    spent, words = 0.0, 0
    while not talk.over:
        start = time.thread_time()
        name = select(talk)
        spent += time.thread_time() - start
        words += words_of(talk.thread)
        talk.speak(name)
    return Outcome(
        errand=talk.errand,
        turns=talk.turns,
        solved=talk.solved,
        words=words + words_of(talk.thread),
        chosen_ms=spent / talk.turns * 1000,
    )


def played(
    selectors: Mapping[str, Selector], vocabularies: Sequence[vocabulary.Vocabulary], seeds: Iterable[int], count: int
) -> dict[str, list[Outcome]]:
    """Every selector on every task: `count` tasks of each seed, spread over the vocabularies."""
    found: dict[str, list[Outcome]] = {name: [] for name in selectors}
    each = max(1, count // len(vocabularies))
    for words, seed in product(vocabularies, seeds):
        for errand in errands(words, seed=seed, count=each):
            for name, select in selectors.items():
                found[name].append(held(Talk(errand=errand, vocabulary=words), select))
    return found


def mean_turns(outcomes: Iterable[Outcome]) -> float:
    """Turns of a conversation, the unsolved at the cap."""
    return fmean(outcome.turns for outcome in outcomes)


def reduction(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> tuple[float, float, float]:
    """By which share of the turns of `theirs` ours are fewer, with the bounds of the paired bootstrap's interval."""
    pairs = [(mine.turns, other.turns) for mine, other in zip(ours, theirs, strict=True)]
    luck = random.Random(0)
    draws = sorted(_share(luck.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    edge = round(RESAMPLES * (1 - LEVEL) / 2)
    return _share(pairs), draws[edge], draws[-edge - 1]


def _share(pairs: Sequence[tuple[int, int]]) -> float:
    return 1 - sum(mine for mine, _ in pairs) / sum(other for _, other in pairs)


class Asking:
    """Our policy with the simulated model to ask about those that it cannot tell apart. `calls`: how often it was."""

    def __init__(self, tuning_: tuning.Tuning) -> None:
        self.calls = 0
        self._talk: Talk | None = None
        self._scored = Scored(tuning_, self._ask)
        self._model = Reader()

    def __call__(self, talk: Talk) -> str:
        """Its choice for the next turn."""
        self._talk = talk
        return self._scored(talk.view()).speaker

    def _ask(self, _context: SelectionContext, names: Sequence[str]) -> str:
        """The model is offered these names only."""
        assert self._talk is not None, "a model is asked while a choice is made"
        self.calls += 1
        talk = copy.copy(self._talk)
        offered = tuple(agent for agent in talk.errand.agents if agent.face.name in names)
        talk.errand = replace(talk.errand, agents=offered)
        return self._model(talk)


def saved(outcomes: Mapping[str, Sequence[Outcome]], name: str) -> dict[str, float]:
    """What this one of ours gives, against the best baseline."""
    share, low, high = reduction(outcomes[name], outcomes[best_baseline(outcomes)])
    return {
        "turn_reduction": round(share, 4),
        "turn_reduction_ci_low": round(low, 4),
        "turn_reduction_ci_high": round(high, 4),
        "success": fmean(one.solved for one in outcomes[name]),
    }


def asked(outcomes: Mapping[str, Sequence[Outcome]], calls: int) -> dict[str, float]:
    """What asking takes: calls of the model, of which `llm_style` takes one for each turn."""
    found = outcomes[ASKING]
    return {
        "epsilon": tuning.load().epsilon,
        "calls_per_turn": round(calls / sum(one.turns for one in found), 4),
        "calls_per_conversation": round(calls / len(found), 3),
    }


def cold_ms(tuning_: tuning.Tuning, errand_list: Iterable[Errand], words: vocabulary.Vocabulary) -> float | None:
    """Processor time of a choice in a large team by a process that has never seen its thread, half-way: the median."""
    found: list[float] = []
    for errand in (one for one in errand_list if len(one.agents) >= LARGE_TEAM):
        talk, ours = Talk(errand=errand, vocabulary=words), Scored(tuning_)
        while not talk.over:
            talk.speak(ours(talk.view()).speaker)
        view = talk.view()
        half = replace(view, thread=view.thread[: len(view.thread) // 2 + 1])
        fresh = Scored(tuning_)
        start = time.thread_time()
        fresh(half)
        found.append((time.thread_time() - start) * 1000)
    return round(quantile(found, 0.5), 3) if found else None


def by(key: Callable[[Errand], str], outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, dict[str, float]]:
    """Mean turns of every selector, for each value of `key`."""
    values = dict.fromkeys(key(one.errand) for one in next(iter(outcomes.values())))
    return {
        value: {
            name: round(mean_turns(one for one in found if key(one.errand) == value), 2)
            for name, found in outcomes.items()
        }
        for value in values
    }


def summary(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """What is published of every selector."""
    return {
        "turns": {name: round(mean_turns(found), 3) for name, found in outcomes.items()},
        "success": {name: round(fmean(one.solved for one in found), 4) for name, found in outcomes.items()},
        "words": {name: round(fmean(one.words for one in found)) for name, found in outcomes.items()},
        "families": by(lambda errand: errand.family, outcomes),
        "kinds": by(lambda errand: errand.kind, outcomes),
    }


def best_baseline(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """The baseline with the fewest turns; the oracle is none."""
    return min(BASELINES, key=lambda name: mean_turns(outcomes[name]))


def compared(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """Ours, which may ask, against the best baseline, and against each of the others."""
    best = best_baseline(outcomes)
    ours = saved(outcomes, ASKING)
    success = ours.pop("success")
    chosen = outcomes[OURS]  # without what the simulated model takes
    large = [one.chosen_ms for one in chosen if len(one.errand.agents) >= LARGE_TEAM]
    return {
        "best_baseline": best,
        **ours,
        "success_ours": success,
        "success_best_baseline": fmean(one.solved for one in outcomes[best]),
        "select_ms_p50": round(quantile([one.chosen_ms for one in chosen], 0.5), 3),
        "select_ms_p50_large_teams": round(quantile(large, 0.5), 3) if large else None,
        "reductions": {
            name: [round(one, 4) for one in reduction(outcomes[ASKING], outcomes[name])]
            for name in outcomes
            if name != ASKING
        },
    }


def losses(families: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Families in which a baseline needs fewer turns than ours: ours, then those that are better."""
    found: dict[str, dict[str, float]] = {}
    for family, turns in families.items():
        better = {name: turns[name] for name in BASELINES if turns[name] < turns[ASKING]}
        if better:
            found[family] = {ASKING: turns[ASKING], **better}
    return found


def stopping(ours: Scored, errand_list: Sequence[Errand], words: vocabulary.Vocabulary) -> dict[str, float]:
    """What the stop candidate would do: shares of conversations ended too early, and of those ended when solved."""
    early = right = 0
    for errand in errand_list:
        talk = Talk(errand=errand, vocabulary=words)
        stopped = False
        while not talk.over:
            stopped = stopped or (talk.turns > 0 and ours(replace(talk.view(), may_stop=True)).speaker == STOP)
            talk.speak(ours(talk.view()).speaker)
        early += stopped
        right += not stopped and ours(replace(talk.view(), may_stop=True)).speaker == STOP
    return {"too_early": round(early / len(errand_list), 4), "when_solved": round(right / len(errand_list), 4)}


def judged(result: Mapping[str, Any]) -> list[str]:
    """The bounds that do not hold, in words."""
    large = result["select_ms_p50_large_teams"]
    bounds = [
        (result["turn_reduction_ci_low"] >= REDUCTION, f"fewer than {REDUCTION:.0%} of the turns are saved for sure"),
        (
            result["success_ours"] >= result["success_best_baseline"] - POINTS,
            f"success is more than {POINTS * 100:g} points lower",
        ),
        (large is None or large < SELECT_MS, f"a choice takes {SELECT_MS:g} ms or more"),
    ]
    return [said for holds, said in bounds if not holds]


def main(argv: Sequence[str] | None = None) -> int:
    """Plays, prints, and says whether the bounds hold."""
    arguments = parser().parse_args(argv)
    first, last = arguments.seeds or (TRAINING_SEEDS if arguments.training or arguments.anew else HELD_OUT_SEEDS)
    words = [vocabulary.load(name) for name in named(arguments)]
    shipped = tuning.load()
    tunings = learning.read_anew() if arguments.anew else {}
    outcomes: dict[str, list[Outcome]] = {}
    calls = 0
    for one in words:
        read_by = tunings.get(one.name, shipped)
        asking = Asking(read_by)
        ours: dict[str, Selector] = {OURS: blind(Scored(read_by)), ASKING: asking}
        selectors: dict[str, Selector] = {**BASELINES, ORACLE: oracle, **READERS, **ours}
        seeds = range(first, last + 1)
        for name, found in played(selectors, [one], seeds, max(1, arguments.tasks // len(words))).items():
            outcomes.setdefault(name, []).extend(found)
        calls += asking.calls
    result = {**compared(outcomes), **summary(outcomes)}
    result["losses"] = losses(result["families"])
    result["alone"] = saved(outcomes, OURS)
    result["asking"] = asked(outcomes, calls)
    some = errands(words[0], seed=first, count=min(arguments.tasks, STOPPING_TASKS))
    result["stopping"] = stopping(Scored(shipped), some, words[0])
    result["select_cold_ms_p50_large_teams"] = cold_ms(shipped, some, words[0])
    failed = judged(result)
    head = {"vocabularies": [one.name for one in words], "seeds": [first, last], "tasks": len(outcomes[OURS])}
    print(json.dumps({**head, **result, "failed": failed, "ok": not failed}))
    return 1 if failed else 0


def named(arguments: argparse.Namespace) -> Sequence[str]:
    """The vocabularies that are played."""
    if arguments.anew:
        return [one for one in vocabulary.TRAINING if vocabulary.load(one).phrases != vocabulary.Phrases()]
    return arguments.vocabulary or (vocabulary.TRAINING if arguments.training else vocabulary.HELD_OUT)


def blind(ours: Scored) -> Selector:
    """Our policy, which sees what every selector sees."""
    return lambda talk: ours(talk.view()).speaker


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="convergio bench selection", description=__doc__)
    made.add_argument("--seeds", type=_span, metavar="A-B", help="seeds of the tasks; held-out: 101-105")
    made.add_argument(
        "--vocabulary", action="append", metavar="F", help="a YAML file, or a shipped one; may be repeated"
    )
    made.add_argument("--training", action="store_true", help="the seeds and vocabularies that weights are tuned on")
    made.add_argument(
        "--anew", action="store_true", help="training vocabularies, each read by a tuning that has never seen it"
    )
    made.add_argument("--tasks", type=int, default=TASKS, help=f"tasks of one seed; default {TASKS}")
    made.add_argument("--json", action="store_true", help="the result is JSON in any case")
    return made


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"'{text}' is not A-B with A <= B, e.g. 201-205")
    return int(first), int(last or first)


if __name__ == "__main__":
    raise SystemExit(main())
