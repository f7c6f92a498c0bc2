"""JSON Schema, draft 2020-12, for inputs and typed answers. Nothing is ever fetched: references stay inside the schema.

The validator (`jsonschema-rs`) runs patterns in linear time, so that no input can make it spin.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from convergio.graphflow.flow import values

if TYPE_CHECKING:
    import jsonschema_rs

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MOST_VIOLATIONS: Final = 100

_MASK: Final = "the value"

Found = tuple[str, str]
"""Where (`items[2].price`, empty for the whole) and what."""


def problems_of(schema: Mapping[str, Any]) -> list[Found]:
    """What is wrong with a schema itself; paths lead into the schema."""
    if not schema:
        return []
    import jsonschema_rs

    dialect = schema.get("$schema", DIALECT)
    if str(dialect).rstrip("#") != DIALECT:
        return [("$schema", f"must be {DIALECT}, or left out")]
    found = [(_path(error.instance_path), _said(error.message)) for error in _meta().iter_errors(dict(schema))]
    if found:
        return found[:MOST_VIOLATIONS]
    try:
        _compiled(dict(schema))
    except jsonschema_rs.ValidationError as error:
        return [(_path(error.instance_path), _said(error.message))]
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        return [("", _said(str(error)))]
    return []


def violations(schema: Mapping[str, Any], value: Any) -> list[Found]:
    """How `value` does not fit a valid schema: every place at once, at most MOST_VIOLATIONS. The texts never quote
    values."""
    try:
        values.survey(value)
        if not schema:
            return []
        errors = _validator(_text(schema)).iter_errors(value)
        found = [(_path(error.instance_path), _said(error.message)) for error in errors]
    except ValueError as error:
        reason = "has text that cannot be encoded" if isinstance(error, UnicodeError) else f"cannot be checked: {error}"
        return [("", reason)]
    return sorted(found[:MOST_VIOLATIONS])


@functools.lru_cache(maxsize=512)
def _validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    return _compiled(json.loads(schema), mask=_MASK)


def _compiled(schema: dict[str, Any], mask: str | None = None) -> jsonschema_rs.Draft202012Validator:
    # here, not above: most workflows of a process may have no schema at all
    import jsonschema_rs

    # formats are annotations in 2020-12; checked here, because people who write "format: email" mean it
    return jsonschema_rs.Draft202012Validator(
        schema, mask=mask, offline=True, validate_formats=True, pattern_options=jsonschema_rs.RegexOptions()
    )


@functools.cache
def _meta() -> jsonschema_rs.Draft202012Validator:
    return _compiled({"$ref": DIALECT})


def _text(schema: Mapping[str, Any]) -> str:
    return json.dumps(dict(schema), sort_keys=True)


def _path(parts: Sequence[str | int]) -> str:
    """`items[2].price`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _said(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:197]}..."
