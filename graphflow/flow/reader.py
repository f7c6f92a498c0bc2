"""Reading the text of a definition: the part of YAML 1.2 that is JSON with comfort, and JSON itself.

No tags, no `yes` that becomes true, no `1:30` that becomes 90, no key twice, no alias bombs, nothing nested past
reason.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from convergio.graphflow.model import errors
from convergio.graphflow.model.errors import Problem

LARGEST: Final = 1024 * 1024
"""Bytes of UTF-8."""

DEEPEST: Final = 64
MOST_VALUES: Final = 500_000
"""Values after aliases are followed: nine lists of nine aliases each would be 10**9."""

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_file(path: Path) -> tuple[Any, list[Problem]]:
    """The value in a file (`.json`: JSON; else YAML), as `read_yaml`. OSError if the file cannot be read."""
    with path.open("rb") as stream:
        return read_content(stream.read(LARGEST + 1), path)


def read_content(content: bytes, path: Path) -> tuple[Any, list[Problem]]:
    """The value that the content of a file has."""
    if len(content) > LARGEST:
        raise _too_large(path.name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _unreadable(path.name, 1, "is not UTF-8 text", "save the file as UTF-8") from None
    return (read_json if path.suffix == ".json" else read_yaml)(text, path.name)


def read_yaml(text: str, source: str) -> tuple[Any, list[Problem]]:
    """The value that `text` describes, and what is wrong in it though it can be read (such as a key twice).

    InvalidWorkflow if it cannot be read, with the line.
    """
    _check_size(text, source)
    reader = _Reader(text, source)
    try:
        return reader.document(), reader.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context or "cannot be read"
        raise _unreadable(source, mark.line + 1 if mark else 1, said) from None
    except (yaml.YAMLError, UnicodeError):
        hint = "remove control characters"
        raise _unreadable(source, 1, "the text has characters that YAML does not allow", hint) from None


def read_json(text: str, source: str) -> tuple[Any, list[Problem]]:
    """The same for JSON text."""
    _check_size(text, source)
    problems: list[Problem] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(name for name, _ in items)
        problems.extend(_twice(name, "") for name, count in counts.items() if count > 1)
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs), problems
    except json.JSONDecodeError as error:
        raise _unreadable(source, error.lineno, error.msg, code="BAD_JSON") from None
    except (RecursionError, ValueError):
        raise _unreadable(source, 1, "it nests too deeply or has a number too long", code="BAD_JSON") from None


def _check_size(text: str, source: str) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST:
        raise _too_large(source)


def _too_large(source: str) -> errors.InvalidWorkflow:
    said = f"has more than {LARGEST:,} bytes"
    return errors.InvalidWorkflow(problems=[Problem(code="TOO_LARGE", path="", message=said)], source=source)


def _unreadable(source: str, line: int, said: str, hint: str = "", code: str = "BAD_YAML") -> errors.InvalidWorkflow:
    problem = Problem(code=code, path=f"line {line}:", message=said, hint=hint)
    return errors.InvalidWorkflow(problems=[problem], source=source)


def _twice(name: str, where: str) -> Problem:
    said = f"has '{name[:80]}' twice"
    return Problem(code="DUPLICATE_KEY", path=where, message=said, hint="keep one of them")


class _Reader:
    """Builds values from YAML events."""

    def __init__(self, text: str, source: str) -> None:
        self.problems: list[Problem] = []
        self._source = source
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_LOADER))
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._values = 0

    def document(self) -> Any:
        """The one document of the text."""
        value: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._failed(event, "a second document starts here", "write one workflow per file")
                value = self._value(next(self._events), 0)
        return value

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag not in (None, "!") or (isinstance(event, yaml.ScalarEvent) and event.tag == "!"):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:40]
            self._note(event, "BAD_YAML", f"has the tag '{tag}'", "tags are not allowed: remove it")
        if depth > DEEPEST:
            raise self._failed(event, f"it nests deeper than {DEEPEST} levels")
        before = self._values
        self._count(1, event)
        value = self._untagged(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._values - before)
        return value

    def _untagged(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(item, depth + 1))
            return items
        return event.value if event.style else self._plain(event)

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            value = self._value(next(self._events), depth + 1)
            if not isinstance(key, str):
                self._note(event, "BAD_KEY", "has a name that is not text", "put it in quotes")
            elif key in found:
                self.problems.append(_twice(key, self._line(event)))
            else:
                found[key] = value
        return found

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            raise self._failed(event, f"the alias *{event.anchor[:40]} names nothing that is complete before it")
        value, size = self._anchors[event.anchor]
        self._count(size, event)
        return value

    def _plain(self, event: Any) -> Any:
        text: str = event.value
        if text in _NULL:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if _INTEGER.fullmatch(text):
            return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
        if _FLOAT.fullmatch(text):
            number = float(text)
            if not math.isfinite(number):
                self._note(event, "BAD_VALUE", f"the number {text[:40]} is too large", "put it in quotes if it is text")
            return number
        return text

    def _count(self, values: int, event: Any) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise self._failed(event, f"there are more than {MOST_VALUES:,} values, aliases followed")

    def _note(self, event: Any, code: str, said: str, hint: str) -> None:
        self.problems.append(Problem(code=code, path=self._line(event), message=said, hint=hint))

    def _failed(self, event: Any, said: str, hint: str = "") -> errors.InvalidWorkflow:
        return _unreadable(self._source, event.start_mark.line + 1, said, hint)

    @staticmethod
    def _line(event: Any) -> str:
        return f"line {event.start_mark.line + 1}"
