"""What the scripted model makes up for a schema always fits it."""

from __future__ import annotations

from typing import Any

import pytest

from convergio.graphflow.flow import schema as json_schema
from convergio.tasks.agents import scripted

SCHEMAS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "minLength": 12},
    {"type": "string", "maxLength": 3},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "email"},
    {"type": "integer", "minimum": 3},
    {"type": "integer", "maximum": -3},
    {"type": "integer", "minimum": 0, "maximum": 100},
    {"type": "integer", "exclusiveMinimum": 0},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "exclusiveMaximum": 0},
    {"type": "boolean"},
    {"type": ["null", "string"]},
    {"const": 7},
    {"enum": ["low", "high"]},
    {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    {"type": "array", "minItems": 2, "items": {"type": "integer"}},
    {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {}}},
    {
        "$defs": {"risk": {"enum": ["x"]}},
        "type": "object",
        "required": ["r"],
        "properties": {"r": {"$ref": "#/$defs/risk"}},
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_an_example_fits_its_schema(schema: dict[str, Any]) -> None:
    assert json_schema.violations(schema, scripted.example(schema)) == []


def test_words_are_the_answer_when_put_together() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}
    assert "".join(scripted.words("Why?", None)) == scripted.prose("Why?")
    assert "".join(scripted.words("Why?", schema)) == '{"a": "scripted"}'


def test_prompts_with_lone_surrogates_are_no_trouble() -> None:
    assert scripted.prose("\ud800")
