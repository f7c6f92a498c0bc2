"""What each candidate has to offer, factor by factor, each between 0 and 1. Penalties are positive here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from convergio.tasks.conversation.agenda import Agenda
from convergio.tasks.conversation.floor import Candidate, SelectionContext
from convergio.tasks.conversation.minutes import Minutes
from convergio.tasks.conversation.reading import Message, Reader
from convergio.tasks.conversation.tuning import Tuning

RECENT: Final = (1.0, 0.7, 0.4, 0.2)
"""Recency by appearances among the last three speakers."""

UNORDERED: Final = 0.125
"""What the team's order counts where nobody asked for it."""

FADING: Final = 0.85
HARD_WORDS: Final = 60
HARD_ITEMS: Final = 8
FAST_SECONDS: Final = 2.0
IDLE: Final = 1.0
KIN: Final = 0.6
"""What it counts that a colleague of the same domains has nothing to do now."""
FAILED: Final = 0.15
OPEN_ITEMS: Final = 8
"""How many open items are looked at beyond the one in focus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One moment of a conversation, read: what all factors look at."""

    context: SelectionContext
    tuning: Tuning
    reader: Reader
    agenda: Agenda
    last: Message
    together: bool
    """Whether the task or the last message asks for more than one."""

    speakers: tuple[str, ...]
    """Who spoke, the latest first."""

    @classmethod
    def of(cls, context: SelectionContext, tuning: Tuning, reader: Reader, minutes: Minutes | None = None) -> Scene:
        """The thread as it is now."""
        names = frozenset(context.names)
        first, last = (reader.read(context.thread[place].text if context.thread else "") for place in (0, -1))
        return cls(
            context=context,
            tuning=tuning,
            reader=reader,
            agenda=(minutes or Minutes(reader, tuning.window)).of(context),
            last=last,
            together=first.together or last.together,
            speakers=tuple(said.speaker for said in reversed(context.thread) if said.speaker in names),
        )


def factors(scene: Scene) -> dict[str, dict[str, float]]:
    """{candidate: {factor: value}} for everybody of the team."""
    tables: dict[str, Mapping[str, float]] = {
        "addressed": _addressed(scene),
        **_fits(scene),
        "phase": _phase(scene),
        "collaboration": _collaboration(scene),
        "performance": _performance(scene),
        "recency": _recency(scene),
        "complexity": _complexity(scene),
        "urgency": _urgency(scene),
        "order": _order(scene),
        "repetition": _repetition(scene),
        "refusal": _refusal(scene),
    }
    return {name: {factor: table.get(name, 0.0) for factor, table in tables.items()} for name in scene.context.names}


def _addressed(scene: Scene) -> dict[str, float]:
    """Who was named, as far as names have been right: a prior, and what the thread has shown."""
    agenda, prior = scene.agenda, 2.0
    if agenda.named is None:
        return {}
    return {agenda.named: (agenda.names_right + prior * scene.tuning.trust) / (agenda.names_seen + prior)}


def _fits(scene: Scene) -> dict[str, dict[str, float]]:
    """Expertise: what is in focus. Keywords: the rest that is open, the less the further away."""
    agenda = scene.agenda
    known = [
        fits
        for fits in (agenda.knowledge.fits(item.words) for item in agenda.open()[:OPEN_ITEMS])
        if any(fits.values())
    ]
    rest = dict.fromkeys(scene.context.names, 0.0)
    for place, fits in enumerate(known[1:]):
        for name, fit in fits.items():
            rest[name] = max(rest[name], fit * FADING**place)
    return {"expertise": known[0] if known else {}, "keywords": rest}


def phase_of(scene: Scene) -> dict[str, float]:
    """How much of each phase there is in this moment: its words in the last message, and the number of turns."""
    turns = len(scene.speakers)
    words = {word for sentence in scene.last.sentences for word in sentence.words}
    found: dict[str, float] = {}
    leaned = False
    for name, phase in scene.tuning.phases.items():
        lean = phase.lean if not leaned and (phase.until is None or turns < phase.until) else 0.0
        leaned = leaned or bool(lean)
        found[name] = min(1.0, lean + 0.5 * len(words & scene.reader.phases[name]))
    return found


def _phase(scene: Scene) -> dict[str, float]:
    """The share of this moment's phases that a candidate is good at: its own, else those of its domains."""
    moment = phase_of(scene)
    whole = sum(moment.values())
    if not whole:
        return {}
    shares = {name: share / whole for name, share in moment.items() if share}
    good = {one.name: scene.reader.phases_of(one) for one in scene.context.candidates}
    return {who: sum((share for name, share in shares.items() if name in phases), 0.0) for who, phases in good.items()}


def _collaboration(scene: Scene) -> dict[str, float]:
    """The share of a candidate's partners among the last three, when the matter asks for more than one field."""
    recent = set(scene.speakers[:3])
    needed = scene.together or len(scene.agenda.open()) > 2
    if not (needed and recent):
        return {}
    return {one.name: len(recent & set(one.partners)) / len(recent) for one in scene.context.candidates}


def _performance(scene: Scene) -> dict[str, float]:
    """The share of a candidate's turns that helped: its record, and this thread."""
    agenda = scene.agenda
    return {
        one.name: (agenda.helped[one.name] + (0.5 if one.record is None else one.record)) / (agenda.spoke[one.name] + 1)
        for one in scene.context.candidates
    }


def _recency(scene: Scene) -> dict[str, float]:
    """The fewer of the last three turns were a candidate's, the more."""
    recent = scene.speakers[:3]
    return {name: RECENT[recent.count(name)] for name in scene.context.names}


def _complexity(scene: Scene) -> dict[str, float]:
    """How near the depth a candidate is meant for comes to how hard this is; by its breadth if that is not said."""
    words = sum(len(sentence.words) for sentence in scene.last.sentences)
    hard = (min(1.0, words / HARD_WORDS) + min(1.0, len(scene.agenda.open()) / HARD_ITEMS)) / 2
    return {one.name: 1.0 - abs(hard - _depth(one)) for one in scene.context.candidates}


def _depth(candidate: Candidate) -> float:
    breadth = len(candidate.domains) + len(candidate.tools)
    return min(1.0, breadth / 4) if candidate.depth is None else candidate.depth


def _urgency(scene: Scene) -> dict[str, float]:
    """How soon a candidate answers, as far as that counts now; nothing is known of most."""
    if not scene.last.urgent:
        return {}
    known = [one for one in scene.context.candidates if one.seconds is not None]
    return {one.name: scene.last.urgent * FAST_SECONDS / max(FAST_SECONDS, one.seconds or 0.0) for one in known}


def _order(scene: Scene) -> dict[str, float]:
    """The team's order among those who contributed least, of little weight; where all were asked in turn: 1 for who is
    next among those who spoke least."""
    names, agenda = scene.context.names, scene.agenda
    counted = agenda.spoke if agenda.in_turn else agenda.helped
    ranked = sorted(range(len(names)), key=lambda place: (counted[names[place]], place))
    found = {names[place]: UNORDERED * (1.0 - rank / len(names)) for rank, place in enumerate(ranked)}
    return {**found, names[ranked[0]]: 1.0} if agenda.in_turn else found


def _repetition(scene: Scene) -> dict[str, float]:
    """Who spoke just now most, who spoke longer ago less; trying again what did not work out is no repetition."""
    window = scene.tuning.penalty_window
    found: dict[str, float] = {}
    for age, name in enumerate(scene.speakers[:window]):
        if name != scene.agenda.retrying:
            found.setdefault(name, 1.0 - age / window)
    return found


def _refusal(scene: Scene) -> dict[str, float]:
    """Who could not help with what is in focus, or with anything since something was last done."""
    focus, idle = scene.agenda.focus(), scene.agenda.idle
    found: dict[str, float] = {}
    for name in scene.context.names:
        refused = (focus.refused.get(name, 0.0) + FAILED * focus.failed[name]) if focus is not None else 0.0
        near = max((share for other, share in scene.agenda.knowledge.near(name).items() if other in idle), default=0.0)
        found[name] = max(IDLE if name in idle else KIN * near, 1.0 - 0.3**refused)
    return found
