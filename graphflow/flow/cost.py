"""An upper bound of the work an expression does on given values, found before it runs.

The binding has no limit of its own, holds the interpreter lock while it works, and `map` and `filter` copy the whole
list they build at every element: 8,000 numbers take 3.3 s, a map in a map over 1,000 takes 73 s. A bound that is a
little too high refuses an expression in words; no bound stops the heartbeat of every step in the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from convergio.graphflow.flow import values
from convergio.graphflow.flow.syntax import Node

LIMIT: Final = 2_000_000
"""Units of about 0.1-0.3 microseconds: one copied number, one turn of a loop. Reached by a map over 2,000 numbers."""

_PATTERN_CHARACTER: Final = 2_000
_OPEN_PATTERN: Final = 500_000
"""A regular expression is compiled at each call: counted repeats and patterns from data take up to 140 ms."""


class TooCostly(ValueError):
    """The expression would do too much work on these values."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How big a value can be: its elements, its weight, and samples to look fields up in (none: unknown)."""

    length: int
    weight: int
    samples: tuple[Any, ...] = ()
    item: Extent | None = None

    def element(self) -> Extent:
        """The extent of what a loop over this value sees."""
        if self.samples:
            return extent_of([part for sample in self.samples for part in _elements(sample)])
        return self.item or Extent(self.weight, self.weight)

    def field(self, name: str) -> Extent:
        """The extent of a field: a part is never bigger than the whole."""
        if not self.samples:
            return Extent(self.weight, self.weight)
        return extent_of([sample[name] for sample in self.samples if values.is_map(sample) and name in sample])


_SCALAR: Final = Extent(0, 1)


def extent_of(samples: Sequence[Any]) -> Extent:
    """The extent of a value that is one of `samples`."""
    if not samples:
        return _SCALAR
    length = max(len(_elements(sample)) for sample in samples)
    return Extent(length, max(values.survey(sample) for sample in samples), tuple(samples))


def check(root: Node, names: Mapping[str, Any]) -> None:
    """Raises TooCostly if evaluating `root` on `names` may take more than LIMIT units."""
    meter = _Meter()
    meter.extent(root, {name: extent_of([value]) for name, value in names.items()})


def _elements(sample: Any) -> Sequence[Any]:
    if values.is_map(sample):
        return list(sample)
    return sample if values.is_list(sample) else ()


class _Meter:
    """Adds up the work while it finds the extents. A loop's body has a meter of its own, inside that of the whole."""

    def __init__(self, whole: _Meter | None = None) -> None:
        self.spent = 0
        self._whole = whole or self

    def charge(self, units: int) -> None:
        self.spent += units
        if self.spent > LIMIT:
            raise TooCostly(f"it would take more than {LIMIT:,} steps on these values")

    def extent(self, node: Node, scope: Mapping[str, Extent]) -> Extent:
        match node.kind:
            case "name":
                return scope.get(node.text, _SCALAR)
            case "literal":
                return Extent(0, 1 + len(node.text) // 100)
            case "field":
                return self.extent(node.parts[0], scope).field(node.text)
            case _:
                return self._composite(node, scope)

    def _composite(self, node: Node, scope: Mapping[str, Extent]) -> Extent:
        match node.kind:
            case "index":
                return self._index(node, scope)
            case "macro":
                return self._macro(node, scope)
            case "call" | "method":
                return self._call(node, scope)
            case _:
                return self._together(node, scope)

    def _index(self, node: Node, scope: Mapping[str, Extent]) -> Extent:
        target = self.extent(node.parts[0], scope)
        for part in node.parts[1:]:
            self.extent(part, scope)
        if any(values.is_map(sample) for sample in target.samples):
            return Extent(target.weight, target.weight)
        return target.element()

    def _call(self, node: Node, scope: Mapping[str, Extent]) -> Extent:
        given = [self.extent(part, scope) for part in node.parts]
        self.charge(1 + sum(extent.weight for extent in given))
        if node.text == "matches":
            pattern = node.parts[-1]
            open_ended = pattern.kind != "literal" or "{" in pattern.text
            self.charge(_OPEN_PATTERN if open_ended else _PATTERN_CHARACTER * len(pattern.text))
        # a result is text, a number or (dyn) the argument itself
        return _biggest(given)

    def _together(self, node: Node, scope: Mapping[str, Extent]) -> Extent:
        """Operands of a chain or parts of a collection: at most the sum of all (`+` adds lists and text)."""
        given = [self.extent(part, scope) for part in node.parts]
        # a few numbers make a number, a few short texts a text
        light = all(extent.weight == 1 for extent in given)
        weight = 1 + len(given) // 4 if light else sum(extent.weight for extent in given)
        self.charge(1 + weight)
        if node.kind == "collection":
            parts = given if node.text == "[" else []
            return Extent(len(given), weight + 3 * (1 + len(given)), item=_biggest(parts) if parts else None)
        item = _biggest([extent.element() for extent in given])
        known = all(extent.samples for extent in given)
        samples = tuple(sample for extent in given for sample in extent.samples) if known else ()
        return Extent(sum(extent.length for extent in given), weight, samples, item)

    def _macro(self, node: Node, scope: Mapping[str, Extent]) -> Extent:
        over = self.extent(node.parts[0], scope)
        # finding the elements is work too, done once, in Python
        self._whole.charge(5 * over.weight)
        inner = _Meter(self._whole)
        inside = {**scope, node.variable: over.element()}
        bodies = [inner.extent(body, inside) for body in node.parts[1:]]
        turns = over.length
        self.charge(over.weight // 4 + turns * (1 + inner.spent))
        if node.text == "filter":
            self.charge(turns * over.weight // 2)
            return over
        if node.text == "map":
            made = bodies[-1]
            self.charge(turns * turns * made.weight // 2)
            return Extent(turns, 1 + turns * made.weight, item=made)
        return _SCALAR


def _biggest(extents: Sequence[Extent]) -> Extent:
    if not extents:
        return _SCALAR
    samples = tuple(sample for extent in extents for sample in extent.samples)
    known = all(extent.samples or extent.weight <= 1 for extent in extents)
    length, weight = max(e.length for e in extents), max(e.weight for e in extents)
    return Extent(length, weight, samples if known else ())
