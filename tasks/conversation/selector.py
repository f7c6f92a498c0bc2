"""A choice of speaker for which a model is asked: the policy is pure, and is told what the model has answered so far.

A policy that wants another answer is left, the model asked, and the policy asked anew, with all answers: so what was
recorded of them leads to the same choice again, on any worker.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from convergio.graphflow.flow.team import POLICIES
from convergio.tasks.conversation import course
from convergio.tasks.conversation.floor import STOP, Selection, SelectionContext
from convergio.tasks.conversation.team import Team
from convergio.tasks.conversation.thread import Message

RECENT: Final = 40
"""Messages that the model is shown, beside the first: what was asked for."""

LONGEST: Final = 2_000
"""Characters of a message that it is shown."""

Asking = Callable[[int, str], Awaitable[str]]
"""Asks a model: the how-manieth question of this choice, from 0, and its text."""


class _Wanted(Exception):  # no error: it takes a question out of a policy
    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


class _Told:
    """Gives a policy the answers that are there, in their order, and leaves it where there is none."""

    def __init__(self, answers: Sequence[str], prompt: str | None) -> None:
        self._answers = answers
        self._prompt = prompt
        self._given = 0

    def __call__(self, context: SelectionContext, names: Sequence[str]) -> str:
        if self._given == len(self._answers):
            raise _Wanted(question(context, names, self._prompt))
        self._given += 1
        return self._answers[self._given - 1]


async def choose(team: Team, thread: Sequence[Message], asking: Asking, *, may_stop: bool) -> tuple[Selection, int]:
    """Who speaks next, and how many answers of a model it took. Raises as `course.chosen`, and what `asking` does."""
    answers: list[str] = []
    while True:
        try:
            decide = partial(course.chosen, team, thread, may_stop=may_stop, ask=_Told(answers, team.asking["prompt"]))
            # Somebody else's function may take its time: not on the loop that all turns of this process share.
            found = decide() if team.policy in POLICIES else await asyncio.to_thread(decide)
            return found, len(answers)
        except _Wanted as wanted:
            answers.append(await asking(len(answers), wanted.question))


def question(context: SelectionContext, names: Sequence[str], prompt: str | None = None) -> str:
    """What the model is asked: who is there, what was said, and which names it may give; in words of one's own if
    there is a `prompt` with places for them."""
    thread = context.thread
    said = thread if len(thread) <= RECENT else (thread[0], *thread[-RECENT:])
    people = [f"{one.name}: {one.description or one.name}" for one in context.candidates if one.name in names]
    allowed = [name for name in names if name != STOP]
    talk = [f"{one.speaker}: {one.text[:LONGEST]}" for one in said]
    if prompt is not None:
        told = {"roles": "\n".join(people), "participants": ", ".join(allowed), "history": "\n\n".join(talk)}
        return re.sub(r"\{(roles|participants|history)\}", lambda place: told[place[1]], prompt)
    asked = f"Who speaks next? One of: {', '.join(allowed)}"
    return "\n".join(["Who is there:", *people, "", "What was said:", *talk, "", asked])
