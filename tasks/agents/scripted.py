"""What the scripted model says: the same question, the same answer. It never pretends to be a language model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

Schema = Mapping[str, Any]

TOPIC_WORDS: Final = 12
FORMATS: Final[Mapping[str, str]] = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "email": "scripted@example.org",
    "time": "00:00:00Z",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def words(prompt: str, schema: Schema | None) -> list[str]:
    """The answer in pieces, each with the space that follows it: prose, or JSON that fits `schema`."""
    answer = prose(prompt) if schema is None else json.dumps(example(schema))
    return [piece for piece in re.split(r"(?<= )", answer) if piece]


def prose(prompt: str) -> str:
    """A short text that names the question by its digest and its last line."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=4).hexdigest()
    asked = prompt.strip().rpartition("\n")[2].split()
    topic = " ".join(asked[:TOPIC_WORDS]) + (" ..." if len(asked) > TOPIC_WORDS else "")
    return f"Scripted answer {digest}, no language model is configured. The question was: {topic}"


def example(schema: Schema, *, root: Schema | None = None) -> Any:
    """A short value that fits a JSON Schema, numbers at their maximum. `pattern` and rare formats are not looked at."""
    root = schema if root is None else root
    if "$ref" in schema:
        return example(_pointed_at(root, schema["$ref"]), root=root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return example(schema[choice][0], root=root)
    return _of_type(schema, root)


def _of_type(schema: Schema, root: Schema) -> Any:
    stated: str | list[str] = schema.get("type", "object" if "properties" in schema else "string")
    match stated if isinstance(stated, str) else stated[0]:
        case "object":
            required = schema.get("required", ())
            return {name: example(schema.get("properties", {}).get(name, {}), root=root) for name in required}
        case "array":
            return [example(schema.get("items", {}), root=root) for _ in range(schema.get("minItems", 0))]
        case "integer" | "number":
            return _number(schema)
        case "boolean" | "null" as plain:
            return False if plain == "boolean" else None
        case _:
            return FORMATS.get(schema.get("format", ""), _text(schema))


def _text(schema: Schema) -> str:
    return "scripted".ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]


def _number(schema: Schema) -> Any:
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if "maximum" in schema or "minimum" in schema:
        return schema.get("maximum", schema.get("minimum"))
    if low is not None and high is not None:
        return (low + high) / 2 if schema.get("type") == "number" else low + 1
    if low is not None:
        return low + 1
    return 0 if high is None else high - 1


def _pointed_at(root: Schema, reference: str) -> Schema:
    """Follows a local reference such as `#/$defs/Risk`."""
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        target = target[part.replace("~1", "/").replace("~0", "~")]
    found: Schema = target
    return found
