"""What is wrong with what a person wrote: definitions, inputs, settings."""

from __future__ import annotations

from convergio.graphflow.model.errors.tree import ConvergioError, ProblemsError


class InvalidWorkflow(ProblemsError):
    """The workflow definition is not valid."""

    code = "INVALID_WORKFLOW"


class UnknownWorkflow(ConvergioError):
    """No workflow of this name is known."""

    code = "UNKNOWN_WORKFLOW"


class InvalidInput(ProblemsError):
    """The input does not fit the workflow's input schema."""

    code = "INVALID_INPUT"


class ExpressionFailed(ConvergioError):
    """An expression could not be evaluated."""

    code = "EXPRESSION_FAILED"


class InvalidSetting(ConvergioError):
    """A setting has a wrong value."""

    code = "INVALID_SETTING"


class PayloadTooLarge(ConvergioError):
    """A payload is larger than the limit."""

    code = "PAYLOAD_TOO_LARGE"


class InvalidPayload(ConvergioError):
    """A value cannot be stored: it is not JSON, or it holds a NUL character."""

    code = "INVALID_PAYLOAD"
