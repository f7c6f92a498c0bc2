"""Loops of a workflow: which steps they repeat. A loop's region is every step on a way from `back_to` to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from convergio.graphflow.model import instance
from convergio.graphflow.model.errors import Problem
from convergio.graphflow.model.workflow import Loop, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The steps that a loop repeats. `end`: the step that has the loop; `above`: what each of them waits for within the
    region, directly or not."""

    end: str
    loop: Loop
    above: Mapping[str, frozenset[str]]

    @property
    def size(self) -> int:
        """How many steps there are."""
        return len(self.above)


def regions(steps: Mapping[str, Step]) -> dict[str, Region]:
    """The region of each step that is in one."""
    found: dict[str, Region] = {}
    for name, step in steps.items():
        if step.loop is not None:
            region = region_of(steps, name, step.loop)
            found |= dict.fromkeys(region.above, region)
    return found


def region_of(steps: Mapping[str, Step], end: str, loop: Loop) -> Region:
    """The region of one loop. No steps, if no way leads from `back_to` to the end."""
    needs = {name: [edge.step for edge in step.needs if edge.step in steps] for name, step in steps.items()}
    before = _reached(end, needs)
    if loop.back_to not in before:
        return Region(end=end, loop=loop, above={})
    after: dict[str, list[str]] = {name: [] for name in before}
    for name in before:
        for need in needs[name]:
            after[need].append(name)
    inside = _reached(loop.back_to, after)
    inner = {name: [need for need in needs[name] if need in inside] for name in inside}
    inner[loop.back_to] = []
    return Region(end=end, loop=loop, above={name: frozenset(_reached(name, inner) - {name}) for name in inside})


def seen(
    regions: Mapping[str, Region], step: str, at: str, last: Callable[[Region], int], *, after: bool = False
) -> str | None:
    """The instance of `step` that the instance `at` sees: of the same round, or, if it comes later in its loop, of the
    one before (None: there was none); from without a loop, that of the last round, which `last` knows. `after`: it has
    ended, and sees itself."""
    region = regions.get(step)
    if region is None:
        return step
    here = instance.step_of(at)
    if regions.get(here) is not region:
        return instance.named(step, last(region))
    done = step in region.above[here] or (after and step == here)
    number = instance.round_of(at) - (not done)
    return None if number < 0 else instance.named(step, number)


def problems(steps: Mapping[str, Step]) -> Iterator[Problem]:
    """What is wrong with the loops of steps whose names and needs are right."""
    owner: dict[str, str] = {}
    for end, step in steps.items():
        if step.loop is None or step.loop.back_to not in steps:
            continue
        path, back_to = f"steps.{end}.loop", step.loop.back_to
        inside = region_of(steps, end, step.loop).above.keys()
        if not inside:
            hint = "name the step itself, or one that it needs, directly or not"
            yield Problem(code="BAD_LOOP", path=f"{path}.back_to", message=f"'{back_to}' does not lead here", hint=hint)
        for name in sorted(inside & owner.keys())[:1]:
            said = f"shares '{name}' with the loop of '{owner[name]}'"
            yield Problem(code="BAD_LOOP", path=path, message=said, hint="loops cannot overlap, nor hold each other")
        for name in sorted(inside):
            if steps[name].compensate is not None:
                said, hint = "is of a step that a loop repeats", "let a step after the loop undo what its rounds did"
                yield Problem(code="BAD_LOOP", path=f"steps.{name}.compensate", message=said, hint=hint)
        owner |= dict.fromkeys(inside, end)
        yield from _ways_in(steps, inside, end, back_to)
        yield from _ways_out(steps, inside, end, back_to)


def _ways_in(steps: Mapping[str, Step], inside: Iterable[str], end: str, back_to: str) -> Iterator[Problem]:
    region = set(inside)
    for name in sorted(region - {back_to}):
        for place, edge in enumerate(steps[name].needs):
            if edge.step not in region:
                said = f"names '{edge.step}', which is not in the loop from '{back_to}' to '{end}', as '{name}' is"
                hint = f"let '{back_to}' need it: all that come after it may use its result"
                yield Problem(code="BAD_LOOP", path=f"steps.{name}.needs[{place}]", message=said, hint=hint)


def _ways_out(steps: Mapping[str, Step], inside: Iterable[str], end: str, back_to: str) -> Iterator[Problem]:
    region = set(inside)
    for name, step in steps.items() if region else ():
        for place, edge in enumerate(step.needs):
            if name not in region and edge.step in region and edge.step != end:
                said = f"names '{edge.step}', which is in the middle of the loop from '{back_to}' to '{end}'"
                hint = f"need '{end}': what is in the loop may be used then"
                yield Problem(code="BAD_LOOP", path=f"steps.{name}.needs[{place}]", message=said, hint=hint)


def _reached(start: str, ways: Mapping[str, Iterable[str]]) -> set[str]:
    """`start` and all that the ways lead to from there."""
    found, pending = {start}, [start]
    while pending:
        for name in ways[pending.pop()]:
            if name not in found:
                found.add(name)
                pending.append(name)
    return found
