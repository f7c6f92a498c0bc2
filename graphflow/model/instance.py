"""Instances: one step may run many times in a run, as a round of a loop, as an item of a map, or as both.

The identity of an outcome is (run, step, iteration). One number says both: its last three decimal digits are the round,
what is before them the place of the item, counted from 1; 0 is the step itself. On the board an instance is named
`step` for iteration 0 and `step#iteration` for the others: no step's name holds a '#'.
"""

from __future__ import annotations

from typing import Final

ROUNDS: Final = 1_000
"""Rounds that a loop may have, at most."""

WIDEST: Final = 100_000
"""Items that a map may have, at most."""

MARK: Final = "#"


def named(step: str, iteration: int) -> str:
    """The instance's name on the board."""
    return f"{step}{MARK}{iteration}" if iteration else step


def split(instance: str) -> tuple[str, int]:
    """The step and the iteration."""
    if MARK not in instance:
        return instance, 0
    step, _, iteration = instance.partition(MARK)
    return step, int(iteration or 0)


def step_of(instance: str) -> str:
    """The step of which this is an instance."""
    return instance.partition(MARK)[0]


def round_of(instance: str) -> int:
    """The round of its loop, from 0."""
    return split(instance)[1] % ROUNDS


def index_of(instance: str) -> int | None:
    """The place of its item in the map's list, from 0. None: it is no item, but a step, or the map itself."""
    iteration = split(instance)[1]
    return iteration // ROUNDS - 1 if iteration >= ROUNDS else None


def member(instance: str, index: int) -> str:
    """The instance that does the item at `index`, of the map that is `instance`."""
    step, iteration = split(instance)
    return named(step, (index + 1) * ROUNDS + iteration)


def whole(instance: str) -> str:
    """The map that a member belongs to; any other instance is itself."""
    step, iteration = split(instance)
    return named(step, iteration % ROUNDS)


def label(instance: str) -> str:
    """How people read it: `review`, `review[3]` (an item), `draft#2` (a round), `review#2[3]`."""
    if MARK not in instance:
        return instance
    step, index = whole(instance), index_of(instance)
    return step if index is None else f"{step}[{index}]"


def item(member: str) -> str:
    """Stands for a member's item where instances stand whose outputs are read."""
    return f"{member}@"


def slug(instance: str) -> str:
    """The instance as a part of ids: a '#' would end the path of a page that shows them."""
    return instance.replace(MARK, "~")


def of_slug(slug: str) -> str:
    """The inverse of `slug`."""
    return slug.replace("~", MARK)
