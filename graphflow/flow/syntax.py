"""The structure of a CEL expression: which names and functions it uses and how its loops nest.

The binding checks the grammar; this reads only what the binding does not tell: names free of the variables that macros
bind, calls, and the nesting that `cost` needs. Operators are not ordered: `a + b ? c : d` is a chain of four operands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MACROS: Final = _words("all exists exists_one existsOne filter map")
FUNCTIONS: Final = _words(
    "bytes contains double duration dyn endsWith getDate getDayOfMonth getDayOfWeek getDayOfYear getFullYear getHours "
    "getMilliseconds getMinutes getMonth getSeconds has int matches size startsWith string timestamp type uint"
)
TYPES: Final = _words("bool bytes double int list map null_type string type uint")
RESERVED: Final = _words(
    "as break const continue else false for function if import in let loop namespace null package return true var void "
    "while"
)

LONGEST: Final = 2_000
MOST_TOKENS: Final = 600
DEEPEST: Final = 24
"""Characters, tokens and open brackets of one expression. The binding parses by recursion: at 1,900 tokens or 80
brackets it overruns a thread's stack of 512 KB, which ends the process."""

_TRIPLE: Final = r"'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\""
_SINGLE: Final = r"'(?:[^'\\\n\r]|\\.)*'|\"(?:[^\"\\\n\r]|\\.)*\""
_RAW: Final = r"[rR][bB]?(?:'''.*?'''|\"\"\".*?\"\"\"|'[^'\n\r]*'|\"[^\"\n\r]*\")"
_RAW_BYTES: Final = _RAW.replace("[rR][bB]?", "[bB][rR]")
_TOKEN: Final = re.compile(
    rf"(?P<space>\s+|//[^\n]*)|(?P<text>{_RAW}|{_RAW_BYTES}|[bB]?(?:{_TRIPLE}|{_SINGLE}))"
    r"|(?P<number>0x[0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>&&|\|\||[=!<>]=|.)",
    re.DOTALL,
)

_OPERATORS: Final = _words("&& || == != <= >= < > + - * / % ! ? : in")

Kind = Literal["call", "chain", "collection", "field", "index", "literal", "macro", "method", "name"]


class Unreadable(ValueError):
    """The expression is not of the language's form; the message says why."""


class Token(NamedTuple):
    """One token: `kind` is text, number, name or sign; `start` and `stop` are positions in the source."""

    kind: str
    text: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of an expression. `text`: a name, a literal, a function; `variable`: what a macro binds in its bodies."""

    kind: Kind
    text: str = ""
    parts: tuple[Node, ...] = ()
    variable: str = ""


def tokens(source: str, start: int = 0) -> Iterator[Token]:
    """The tokens from `start` on, spaces and comments left out. Whatever is no token comes as a sign."""
    while start < len(source):
        match = _TOKEN.match(source, start)
        assert match is not None, "the last alternative takes any character"
        start = match.end()
        if match.lastgroup != "space":
            yield Token(match.lastgroup or "", match.group(), match.start(), start)


def measured(source: str) -> list[Token]:
    """The tokens of `source`; Unreadable if it is too long, has too many of them or too many open brackets."""
    if len(source) > LONGEST:
        raise Unreadable(f"it has {len(source)} characters, the limit is {LONGEST}")
    found = list(tokens(source))
    if len(found) > MOST_TOKENS:
        raise Unreadable(f"it has {len(found)} words and signs, the limit is {MOST_TOKENS}")
    depth = deepest = 0
    for token in found:
        if token.kind == "sign":
            # `?` nests to the right in the binding's parser like a bracket that is never closed
            depth += (token.text in "([{?") - (token.text in ")]}")
            deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise Unreadable(f"it nests {deepest} levels deep, the limit is {DEEPEST}")
    return found


def parse(found: Sequence[Token]) -> Node:
    """The structure of an expression that the binding accepted. Unreadable for messages and leading dots."""
    return _Reader(found).whole()


def walk(root: Node) -> Iterator[Node]:
    """Every node, the root first."""
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.parts)


def free_names(node: Node, bound: frozenset[str] = frozenset()) -> frozenset[str]:
    """The names that must come from outside: no fields, functions, type names or variables bound by a macro."""
    if node.kind == "name":
        return frozenset() if node.text in bound or node.text in TYPES else frozenset({node.text})
    names: frozenset[str] = frozenset()
    for place, part in enumerate(node.parts):
        # a macro's first part is what it goes over: there its variable is not bound yet
        inside = bound | {node.variable} if node.kind == "macro" and place else bound
        names |= free_names(part, inside)
    return names


class _Reader:
    """Reads tokens into nodes."""

    def __init__(self, found: Sequence[Token]) -> None:
        self._tokens = found
        self._at = 0

    def whole(self) -> Node:
        node = self._chain()
        if self._at < len(self._tokens):
            raise Unreadable(f"'{self._text}' was not expected")
        return node

    @property
    def _text(self) -> str:
        """The next token; empty for text literals (which may look like signs) and at the end."""
        if self._at >= len(self._tokens):
            return ""
        token = self._tokens[self._at]
        return "" if token.kind == "text" else token.text

    def _take(self) -> Token:
        if self._at >= len(self._tokens):
            raise Unreadable("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, sign: str) -> None:
        if self._take().text != sign:
            raise Unreadable(f"'{sign}' is missing")

    def _chain(self) -> Node:
        operands: list[Node] = []
        while self._at < len(self._tokens) and self._text not in (")", "]", "}", ","):
            if self._text in _OPERATORS:
                self._at += 1
            else:
                operands.append(self._operand())
        return operands[0] if len(operands) == 1 else Node("chain", "", tuple(operands))

    def _list(self, end: str) -> tuple[Node, ...]:
        items: list[Node] = []
        while self._text != end:
            items.append(self._chain())
            if self._text == ",":
                self._at += 1
            elif self._text != end:
                raise Unreadable(f"'{end}' is missing")
        self._expect(end)
        return tuple(items)

    def _operand(self) -> Node:
        node = self._primary()
        while True:
            if self._text == ".":
                self._at += 1
                node = self._member(node)
            elif self._text == "[":
                self._at += 1
                node = Node("index", "", (node, *self._list("]")))
            else:
                return node

    def _member(self, target: Node) -> Node:
        name = self._take().text
        if self._text != "(":
            return Node("field", name, (target,))
        self._at += 1
        given = self._list(")")
        if name in MACROS:
            return _macro(target, name, given)
        return Node("method", name, (target, *given))

    def _primary(self) -> Node:
        token = self._take()
        if token.kind in ("text", "number"):
            return Node("literal", token.text)
        if token.kind == "name":
            return self._named(token.text)
        if token.text == "(":
            return Node("chain", "", self._list(")"))
        if token.text in "[{":
            return Node("collection", token.text, self._list("]" if token.text == "[" else "}"))
        raise Unreadable(f"'{token.text}' was not expected")

    def _named(self, name: str) -> Node:
        if name in ("true", "false", "null"):
            return Node("literal", name)
        if self._text == "{":
            raise Unreadable(f"messages such as {name}{{...}} are not supported")
        if self._text != "(":
            return Node("name", name)
        self._at += 1
        return Node("call", name, self._list(")"))


def _macro(target: Node, name: str, given: tuple[Node, ...]) -> Node:
    allowed = (2, 3) if name == "map" else (2,)
    if len(given) not in allowed or given[0].kind != "name":
        raise Unreadable(f"{name}() takes a variable and an expression, as in items.{name}(x, x.ok)")
    return Node("macro", name, (target, *given[1:]), given[0].text)
