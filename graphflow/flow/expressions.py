"""Conditions, value mappings and prompts: CEL (the Rust binding), never eval.

Names are `input` and steps; a step that was SKIPPED is null, so guard it: `sign != null && sign.approved`. JSON
integers are CEL ints and JSON fractions doubles: they compare with each other, but arithmetic does not mix them
(`double(n) * 1.5`). `size()` of text counts UTF-8 bytes in this binding. There is no clock: an expression gives the
same result on each replay. Language: https://github.com/google/cel-spec/blob/master/doc/langdef.md
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from convergio.graphflow.flow import cost, durations, syntax, values
from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.model import errors

if TYPE_CHECKING:
    import cel

INPUT: Final = "input"
"""The name of a run's input in expressions."""

ITERATION: Final = "iteration"
"""The name of the round that a loop is in, from 0."""

INDEX: Final = "index"
"""The name of an item's place in its map's list, from 0."""

_SYNTAX_ERROR: Final = re.compile(
    r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?(.*?)(?: expecting .*)?$", re.MULTILINE
)
_REASONS: Final[tuple[tuple[type[Exception], str, str], ...]] = (
    (ZeroDivisionError, "it divides by zero", ""),
    (ArithmeticError, "a number is out of range", ""),
    (IndexError, "an index is outside its list", "guard it with size(...)"),
    (KeyError, "a value has no such field", "guard it with has(a.b)"),
    (
        TypeError,
        "the types do not fit",
        "CEL converts nothing by itself: use int(), double(), string(); null has no fields",
    ),
    (RuntimeError, "a function does not accept these values", ""),
    (ValueError, "a value cannot be used in expressions", ""),
)


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A compiled expression. Made by `compile_expression`; safe to share between threads."""

    text: str
    references: frozenset[str]
    _program: cel.Program
    _costly: syntax.Node | None

    def evaluate(self, names: Mapping[str, Any]) -> Any:
        """The result as JSON. `names` maps names to JSON values; more than are used may be given.

        ExpressionFailed if it fails, would take too long or gives what JSON does not have; its text holds the
        expression and the reason, never a value.
        """
        given = {name: names[name] for name in self.references if name in names}
        missing = self.references - given.keys()
        if missing:
            raise self._failed(f"'{min(missing)}' has no value here")
        try:
            for value in given.values():
                values.survey(value)
            if self._costly is not None:
                cost.check(self._costly, given)
        except ValueError as error:
            raise self._failed(str(error)) from None
        return self._run(given)

    def condition(self, names: Mapping[str, Any]) -> bool:
        """The result of a condition. ExpressionFailed also if it is not true or false."""
        result = self.evaluate(names)
        if not isinstance(result, bool):
            raise self._failed(f"it gives {_kind(result)}", "a condition must give true or false")
        return result

    def _run(self, given: dict[str, Any]) -> Any:
        try:
            result = self._program.execute(given)
        except (ArithmeticError, LookupError, TypeError, RuntimeError, ValueError) as error:
            failure = _reason(error)
        else:
            return self._plain(result)
        # raised here and not above: the binding's texts quote values, they must not even be this error's context
        raise self._failed(*failure)

    def _plain(self, result: Any) -> Any:
        try:
            return values.plain(result)
        except ValueError as error:
            raise self._failed(str(error)) from None

    def _failed(self, reason: str, hint: str = "") -> errors.ExpressionFailed:
        return errors.ExpressionFailed(f"`{_shortened(self.text)}` failed: {reason}", hint=hint or None)


@functools.lru_cache(maxsize=8192)
def compile_expression(text: str) -> Expression:
    """The compiled form of `text`, cached. ExpressionFailed says where it is not CEL, or what it uses that does not
    exist."""
    try:
        found = syntax.measured(text)
        program = _compiled(text)
        root = syntax.parse(found)
        _check_functions(root)
    except syntax.Unreadable as error:
        raise errors.ExpressionFailed(f"`{_shortened(text)}` is not a valid expression: {error}") from None
    references = syntax.free_names(root)
    # whatever the binding sees beyond that is kept: an unneeded reference costs little, a missing one fails the step
    bound = {node.variable for node in syntax.walk(root)}
    references |= frozenset(program.variables()) - references - bound - syntax.TYPES
    loops = any(node.kind == "macro" or node.text == "matches" for node in syntax.walk(root))
    return Expression(text, references, program, root if loops else None)


def condition(text: str, names: Mapping[str, Any]) -> bool:
    """Whether the condition holds. ExpressionFailed if it fails or gives something else than true or false."""
    return compile_expression(text).condition(names)


def moment(text: str, names: Mapping[str, Any]) -> int:
    """The time that the expression gives, in ms since 1970: RFC 3339 text, or a timestamp. ExpressionFailed."""
    value = compile_expression(text).evaluate(names)
    try:
        return durations.moment_ms(value)
    except ValueError as error:
        raise errors.ExpressionFailed(f"`{_shortened(text)}` {error}", hint=durations.EXPECTED_MOMENT) from None


def references(text: str) -> frozenset[str]:
    """The names an expression needs: `input` and steps. Variables of macros, fields and functions are not among
    them."""
    return compile_expression(text).references


@dataclass(frozen=True, slots=True)
class Template:
    """Text with `{{ expression }}` pieces. Made by `compile_template`."""

    parts: tuple[str | Expression, ...]

    @property
    def references(self) -> frozenset[str]:
        """The names its expressions need."""
        return frozenset[str]().union(*(part.references for part in self.parts if isinstance(part, Expression)))

    def render(self, names: Mapping[str, Any]) -> str:
        """The text with each piece replaced by its value: text as it is, null as nothing, the rest as compact JSON."""
        return "".join(part if isinstance(part, str) else _shown(part.evaluate(names)) for part in self.parts)


@functools.lru_cache(maxsize=1024)
def compile_template(text: str) -> Template:
    """The compiled form of a template, cached. ExpressionFailed as for expressions, and for `{{` without `}}`.

    `}}` outside a piece is text; a literal `{{` is written `{{ '{{' }}`.
    """
    parts: list[str | Expression] = []
    at = 0
    while (opening := text.find("{{", at)) >= 0:
        closing = _closing(text, opening + 2)
        parts += [text[at:opening], compile_expression(text[opening + 2 : closing].strip())]
        at = closing + 2
    return Template(tuple(part for part in [*parts, text[at:]] if part != ""))


def render(text: str, names: Mapping[str, Any]) -> str:
    """A template's text on given names."""
    return compile_template(text).render(names)


def template_references(text: str) -> frozenset[str]:
    """The names a template needs."""
    return compile_template(text).references


def _compiled(text: str) -> cel.Program:
    # here, not above: the package's command line comes with it (a quarter of a second), which clients never need
    import cel

    try:
        return cel.compile(text)
    except ValueError as error:
        match = _SYNTAX_ERROR.search(str(error))
    if match is None:
        raise syntax.Unreadable("it cannot be parsed")
    line, column, said = match.groups()
    said = said.replace("mismatched input", "unexpected").replace("'<EOF>'", "end")
    raise syntax.Unreadable(f"line {line}, column {column}: {said[:120]}")


def _check_functions(root: syntax.Node) -> None:
    for node in syntax.walk(root):
        if node.kind in ("call", "method") and node.text not in syntax.FUNCTIONS:
            hint = did_you_mean(node.text, syntax.FUNCTIONS | syntax.MACROS)
            raise syntax.Unreadable(f"there is no function '{node.text}'" + (f"; {hint}" if hint else ""))


def _closing(text: str, start: int) -> int:
    """Where the `}}` of a piece is; braces and texts inside the expression are stepped over."""
    depth = 0
    for token in syntax.tokens(text, start):
        if token.start - start > syntax.LONGEST:
            break
        if token.text == "}" and depth == 0:
            if text.startswith("}}", token.start):
                return token.start
            break
        depth += (token.text == "{") - (token.text == "}")
    line = text.count("\n", 0, start) + 1
    raise errors.ExpressionFailed(f"the '{{{{' in line {line} is not closed by '}}}}'", hint="write {{ expression }}")


def _reason(error: Exception) -> tuple[str, str]:
    return next((reason, hint) for kind, reason, hint in _REASONS if isinstance(error, kind))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _kind(value: Any) -> str:
    if values.is_list(value):
        return "a list"
    if values.is_map(value):
        return "a map"
    return "text" if isinstance(value, str) else "null" if value is None else "a number"


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
