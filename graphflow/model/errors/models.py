"""Models, agents and conversations."""

from __future__ import annotations

from convergio.graphflow.model.errors.tree import ConvergioError, Permanent, ProblemsError, Transient


class InvalidTermination(ProblemsError):
    """A condition that ends a conversation has problems."""

    code = "INVALID_TERMINATION"


class ModelUnavailable(ConvergioError):
    """The model is not available."""

    code = "MODEL_UNAVAILABLE"
    retryable = True


class UnknownAgent(ConvergioError):
    """No agent of this name is in the roster."""

    code = "UNKNOWN_AGENT"


class ModelRefused(Permanent):
    """The model provider refuses the call."""

    code = "MODEL_REFUSED"


class ContextTooLong(Permanent):
    """The prompt and the answer do not fit the model's context."""

    code = "CONTEXT_TOO_LONG"


class ModelOutputInvalid(ConvergioError):
    """The model's answer does not fit what was asked for."""

    code = "MODEL_OUTPUT_INVALID"
    retryable = True


class DefinitionRefused(ConvergioError):
    """A definition's signature does not hold."""

    code = "DEFINITION_REFUSED"


class UnknownModel(ConvergioError):
    """No provider of this name is known."""

    code = "UNKNOWN_MODEL"


class RateLimited(Transient):
    """The model provider has had enough requests for now."""

    code = "RATE_LIMITED"


class ModelSilent(Transient):
    """The model provider says nothing."""

    code = "MODEL_SILENT"


class ProviderFailed(Transient):
    """The model provider is in trouble."""

    code = "PROVIDER_FAILED"


class AnswerBroken(Transient):
    """The model's answer broke off, or cannot be read."""

    code = "ANSWER_BROKEN"


class ModelBusy(Transient):
    """The model's own limits leave no room for this call yet."""

    code = "MODEL_BUSY"


class AnswerWithheld(Permanent):
    """The model, or its provider's filter, refuses to answer this."""

    code = "ANSWER_WITHHELD"


class AnswerTooLong(Permanent):
    """The model goes on far beyond what it may say."""

    code = "ANSWER_TOO_LONG"


class ImageRefused(Permanent):
    """An image cannot be given to the model."""

    code = "IMAGE_REFUSED"


class MessageTooLarge(Permanent):
    """What was said is too large for a conversation."""

    code = "MESSAGE_TOO_LARGE"


class InvalidTeam(ProblemsError):
    """A team's document is not valid, or cannot be imported."""

    code = "INVALID_TEAM"


class ConversationBusy(ConvergioError):
    """The conversation goes on, and takes no word before its turn."""

    code = "CONVERSATION_BUSY"
