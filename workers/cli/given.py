"""Reading what was given on the command line: a JSON text, a file, or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convergio.graphflow.model import errors


def value(text: str, *, what: str) -> Any:
    """The value that `text` names: `-` is standard input, JSON is itself, else a file of JSON or YAML.

    Raises InvalidInput with the place.
    """
    if text == "-":
        return _read(sys.stdin.read(), what=f"{what} (standard input)")
    if text.lstrip()[:1] in ("{", "[", '"'):
        return _read(text, what=what)
    found, _ = file(text, what=what)
    return found


def file(name: str, *, what: str) -> tuple[Any, bytes]:
    """The value in a file of JSON or YAML, and the very bytes that it was read from. Raises InvalidInput."""
    path = Path(name)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        hint = "give JSON, the path of a file, or - for standard input"
        raise errors.InvalidInput(f"{what}: there is no file '{name[:80]}'", hint=hint) from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        hint = "give a UTF-8 text file that can be read"
        raise errors.InvalidInput(f"{what}: '{name[:80]}' cannot be read: {error}", hint=hint) from error
    return _read(text, what=name, is_yaml=path.suffix in (".yaml", ".yml")), content


def lines(path: str, *, what: str) -> Iterator[Any]:
    """The values of a file of JSON lines (`-`: standard input); empty lines count for nothing. Raises InvalidInput."""
    try:
        with sys.stdin if path == "-" else Path(path).open(encoding="utf-8-sig") as given:
            for number, line in enumerate(given, 1):
                if line.strip():
                    yield _read(line, what=f"{what}, line {number},")
    except (OSError, UnicodeDecodeError) as error:
        hint = "give a UTF-8 text file with one JSON value on each line"
        raise errors.InvalidInput(f"{what}: '{path[:80]}' cannot be read: {error}", hint=hint) from error


def an_object(text: str, *, what: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises InvalidInput."""
    found = _read(text, what=what)
    if not isinstance(found, dict):
        raise errors.InvalidInput(f"{what} is not a JSON object", hint="""write it as '{"name": "value"}'""")
    return found  # pyright: ignore[reportUnknownVariableType]


def _read(text: str, *, what: str, is_yaml: bool = False) -> Any:
    if is_yaml:
        from convergio.graphflow.flow import reader

        try:
            found, problems = reader.read_yaml(text, what)
        except errors.InvalidWorkflow as error:  # the reader's own word for a text that cannot be read
            raise errors.InvalidInput(problems=error.problems, source=what) from None
        if problems:
            raise errors.InvalidInput(problems=problems, source=what)
        return found
    try:
        return json.loads(text)
    except ValueError as error:
        raise errors.InvalidInput(f"{what} is not JSON: {error}", hint="check quotes and commas") from error
    except RecursionError as error:
        raise errors.InvalidInput(f"{what} nests too deeply", hint="make it flatter") from error
