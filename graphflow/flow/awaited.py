"""The form of what a step waits for: a person's decision, a time, a signal."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from convergio.graphflow.flow.part import Form
from convergio.graphflow.flow.scalars import Duration, Name, Text, refused


class ApprovalDetails(Form):
    """What the person who decides is shown."""

    model_config = ConfigDict(title="Approval")

    title: str = Field("", max_length=200)
    description: Text = Field("", description="text with {{ CEL }} pieces")
    risk: Literal["low", "medium", "high", "critical"] = "medium"


class WaitDetails(Form):
    """What a wait is for: a length of time, a moment, or a signal."""

    model_config = ConfigDict(title="Wait")

    for_: Duration | None = Field(None, alias="for")
    until: Text | None = Field(None, description="CEL that gives a time with its zone, such as '2026-12-24T18:00:00Z'")
    signal: Name | None = Field(None, description="the signal's name; one that came before it was waited for counts")
    timeout: Duration | None = Field(None, description="how long to wait for the signal; then the step fails")

    @model_validator(mode="after")
    def _one(self) -> WaitDetails:
        given = [name for name in ("for_", "until", "signal") if getattr(self, name) is not None]
        if len(given) != 1:
            raise refused("BAD_VALUE", "must have one of for, until and signal", "write wait: {for: 5m}")
        if self.timeout is not None and self.signal is None:
            raise refused("BAD_VALUE", "has a timeout and no signal", "a timeout is how long to wait for a signal")
        return self
