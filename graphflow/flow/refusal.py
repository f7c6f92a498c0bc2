"""What pydantic says about a document, in the words of this system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from convergio.graphflow.flow.part import Form, fields_of
from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.model.errors import Problem

_WANTED: Final = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "a mapping of names to values",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_LIMITS: Final = {
    "greater_than_equal": "is less than {ge}",
    "less_than_equal": "is more than {le}",
    "string_too_short": "is empty",
    "string_too_long": "is longer than {max_length} characters",
}


def problems_of(error: ValidationError, path: str, form: type[Form], what: str) -> Iterator[Problem]:
    """The problems of one part of a document. `path`: where the part is; `what`: what it is, as in "a task step"."""
    for detail in error.errors(include_url=False):
        yield _problem(detail, path, form, what)


def path_of(parts: Sequence[str | int], start: str = "") -> str:
    """`steps.pay.needs[1].when`."""
    text = start
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{str(part)[:80]}"
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """A short form of what somebody wrote."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _problem(detail: ErrorDetails, path: str, form: type[Form], what: str) -> Problem:
    kind, context = detail["type"], detail.get("ctx", {})
    at = path_of([part for part in detail["loc"] if not str(part).startswith("[")], path)
    if kind == "problem":
        return Problem(code=context["code"], path=at, message=context["said"], hint=context["hint"])
    if kind == "extra_forbidden":
        return _unknown_field(detail, at, form, what)
    if kind == "missing":
        return Problem(code="MISSING_FIELD", path=at, message="is missing", hint=f"{what} needs it")
    if kind == "literal_error":
        allowed = str(context.get("expected", "")).replace(" or ", ", ").replace("'", "").split(", ")
        near = did_you_mean(detail["input"], allowed) if isinstance(detail["input"], str) and len(allowed) > 1 else ""
        hint = near or _one_of(allowed)
        return Problem(code="BAD_VALUE", path=at, message=f"is {shown(detail['input'])}", hint=hint)
    if kind in _LIMITS:
        return Problem(code="BAD_VALUE", path=at, message=_LIMITS[kind].format(**context))
    return _wrong_type(detail, at)


def _wrong_type(detail: ErrorDetails, at: str) -> Problem:
    kind, value = detail["type"], detail["input"]
    hint = f"must be {_WANTED[kind]}" if kind in _WANTED else detail["msg"].lower()
    if kind == "string_type" and isinstance(value, int | float):
        hint += f": '{value}' in quotes"
    if kind == "list_type" and isinstance(value, str):
        hint += f": [{value[:40]}]"
    return Problem(code="BAD_VALUE", path=at, message=f"is {shown(value)}", hint=hint)


def _unknown_field(detail: ErrorDetails, at: str, form: type[Form], what: str) -> Problem:
    name = str(detail["loc"][-1])
    inner = len(detail["loc"]) > 1
    fields = [] if inner else fields_of(form)
    hint = did_you_mean(name, fields) or (f"{what} has {', '.join(fields)}" if fields else "remove it")
    return Problem(
        code="UNKNOWN_FIELD", path=at, message="is not a field" + ("" if inner else f" of {what}"), hint=hint
    )


def _one_of(allowed: Sequence[str]) -> str:
    return f"must be {allowed[0]}" if len(allowed) == 1 else f"must be one of {', '.join(allowed)}"
