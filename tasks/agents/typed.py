"""Typed answers: how a JSON Schema is asked for, and how what came back is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from convergio.graphflow.flow import schema as json_schema
from convergio.graphflow.model import errors
from convergio.tasks.agents import storable

Schema = Mapping[str, Any]

MOST_PROBLEMS: Final = 5
"""A repair prompt names no more: a small model has little room."""


def response_format(schema: Schema) -> dict[str, Any]:
    """The request's `response_format`. Not `strict`: OpenAI refuses many ordinary schemas then, and we check anyway."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}


def instruction(schema: Schema) -> str:
    """What a prompt says about the form of its answer: servers that enforce a schema do not show it to the model."""
    properties = schema.get("properties")
    if not properties:
        return f"Answer with JSON that fits this schema: {json.dumps(dict(schema))}"
    fields = ", ".join(f"{name} ({_kind(field)})" for name, field in properties.items())
    return f"Answer with one JSON object with these fields: {fields}."


def repair(problem: errors.ModelOutputInvalid, schema: Schema) -> str:
    """What an agent is told after an answer that does not fit."""
    return f"That answer cannot be used: {problem.message}. {instruction(schema)}"


def parsed(text: str, schema: Schema) -> Any:
    """The JSON value in `text`, checked against `schema`. A Markdown fence around it is taken off.

    Raises: errors.ModelOutputInvalid.
    """
    try:
        value = json.loads(_unfenced(text), parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise errors.ModelOutputInvalid(f"the answer is not JSON: {error}") from error
    if found := json_schema.violations(schema, value):
        said = "; ".join(f"{path}: {problem}" if path else problem for path, problem in found[:MOST_PROBLEMS])
        raise errors.ModelOutputInvalid(f"the answer does not fit its schema: {said}")
    return storable.storable(value)


def _unfenced(text: str) -> str:
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```"):
        return bare.partition("\n")[2].removesuffix("```")
    return bare


def _not_finite(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _kind(field: Schema | bool) -> str:
    if isinstance(field, bool):
        return "any"
    if "enum" in field:
        return " or ".join(str(choice) for choice in field["enum"])
    kind = str(field.get("type", "any"))
    return {"string": "text", "integer": "whole number"}.get(kind, kind)
