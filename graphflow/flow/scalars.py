"""The single values of a workflow document, as pydantic knows them: names, durations, expressions, text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from convergio.graphflow.flow import durations, expressions, syntax, values
from convergio.graphflow.model import ids

MEANT: Final = frozenset({expressions.INPUT, expressions.ITERATION, expressions.INDEX})
"""Names that mean something of their own in expressions."""

DOTTED: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[.:-][A-Za-z0-9_]+)*")
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,127}")


def refused(code: str, message: str, hint: str = "") -> PydanticCustomError:
    """An error that becomes a Problem with this code."""
    return PydanticCustomError("problem", "{said}", {"said": message, "code": code, "hint": hint})


def check_name(name: str) -> str:
    """A workflow's or a step's name: an identifier of CEL and a part of keys."""
    if not ids.NAME.fullmatch(name):
        hint = "use a-z, 0-9 and _, a letter first, at most 63 characters"
        raise refused("BAD_NAME", f"'{name[:64]}' is not a name", hint)
    return name


def check_step_name(name: str) -> str:
    """A step's name, which must not mean something else in expressions."""
    if name in MEANT or name in syntax.RESERVED | syntax.TYPES:
        raise refused("BAD_NAME", f"'{name}' has a meaning of its own in expressions", "choose another name")
    return check_name(name)


def _pattern(pattern: re.Pattern[str], said: str, hint: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text) > 200 or not pattern.fullmatch(text):
            raise refused("BAD_NAME", f"'{text[:64]}' {said}", hint)
        return text

    return check


def duration(value: object) -> float:
    """A duration as people write it, in seconds; nothing is one."""
    try:
        return durations.seconds(value)
    except ValueError as error:
        raise refused("BAD_DURATION", str(error), durations.EXPECTED) from None


def some_time(value: object) -> float:
    """A duration that is longer than nothing, in seconds."""
    length = duration(value)
    if length == 0:
        raise refused("BAD_DURATION", "must be longer than nothing", durations.EXPECTED)
    return length


def _expression(value: Any) -> Any:
    """CEL for a value under `with`: text is CEL already, other scalars are constants."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, int) and not values.INT_MIN <= value <= values.INT_MAX:
        raise refused("BAD_VALUE", "is a whole number of more than 64 bits", "write it as text: \"'...'\"")
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, dict | list):
        raise refused(
            "BAD_VALUE", "is not an expression", "write CEL in quotes, such as \"[input.a, 'b']\" or \"{'a': 1}\""
        )
    return value


_DURATION_SCHEMA: Final = {
    "anyOf": [{"type": "string", "pattern": durations.PATTERN}, {"type": "number", "minimum": 0}],
    "description": "250ms, 30s, 5m, 2h, 1d, or a number of seconds",
}

Name = Annotated[
    str, AfterValidator(check_name), WithJsonSchema({"type": "string", "pattern": f"^{ids.NAME.pattern}$"})
]
FunctionName = Annotated[str, AfterValidator(_pattern(DOTTED, "is not a function", "write it as module.function"))]
ModelName = Annotated[
    str, AfterValidator(_pattern(_MODEL, "is not a model", "write provider/model, or the name alone: llama3.2:1b"))
]
Label = Annotated[str, AfterValidator(_pattern(_LABEL, "is not a name", "use letters, digits, '.', '_' and '-'"))]
Pause = Annotated[float, BeforeValidator(duration), WithJsonSchema(_DURATION_SCHEMA)]
Duration = Annotated[float, BeforeValidator(some_time), WithJsonSchema(_DURATION_SCHEMA)]
Priority = Literal["low", "medium", "high", "critical"]
Condition = Annotated[str, Field(max_length=syntax.LONGEST, description="CEL that gives true or false")]
Text = Annotated[str, Field(max_length=4_000)]
JsonSchema = Annotated[dict[str, Any], Field(description="JSON Schema, draft 2020-12")]
Key = Annotated[str, AfterValidator(_pattern(_IDENTIFIER, "is not a name", "use a-z, A-Z, 0-9 and _, no digit first"))]
Expressions = dict[
    Key,
    Annotated[
        str,
        Field(max_length=syntax.LONGEST),
        BeforeValidator(_expression),
        WithJsonSchema({"type": ["string", "number", "boolean", "null"], "description": "CEL, or a constant"}),
    ],
]
