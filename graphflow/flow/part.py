"""What all parts of a document have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Form(BaseModel):
    """What all parts of a document have in common: no unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def fields_of(form: type[Form]) -> list[str]:
    """The names of a form's fields as people write them."""
    return [field.alias or name for name, field in form.model_fields.items()]
