"""The one error tree. A class docstring is its default message; `code` is stable and public."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

LISTED_PROBLEMS: Final = 50
"""So many problems an error's text lists; its attribute `problems` has all."""


class ConvergioError(Exception):
    """Something went wrong in Convergio."""

    code: ClassVar[str] = "ERROR"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, hint: str | None = None, **where: Any) -> None:
        """`message` says what happened, `hint` what to do now, `where` names run, step or path."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.hint = hint
        self.where = where
        super().__init__(self.message)

    def __str__(self) -> str:
        place = " ".join(f"{name}={value}" for name, value in self.where.items())
        said = " ".join(part for part in (f"{self.code}  {self.message}", f"({place})" if place else "") if part)
        return f"{said.removesuffix('.')}. {self.hint}" if self.hint else said

    def as_dict(self) -> dict[str, Any]:
        """The shape in which an error crosses a process: code, message, hint, retryable."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable}


# --- what a person wrote ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in what a person wrote: where, what, and what to do. `code` is stable and public."""

    code: str
    path: str
    message: str
    hint: str = ""

    def line(self, source: str = "") -> str:
        """`CODE  source: path message; hint`, the form in which people meet it."""
        where = " ".join(part for part in (f"{source}:" if source else "", self.path) if part)
        said = " ".join(part for part in (where, self.message) if part)
        return f"{self.code}  {said}; {self.hint}" if self.hint else f"{self.code}  {said}"


class ProblemsError(ConvergioError):
    """What a person wrote has problems."""

    code = "PROBLEMS"

    def __init__(
        self,
        message: str | None = None,
        *,
        problems: Sequence[Problem] = (),
        source: str = "",
        hint: str | None = None,
        **where: Any,
    ) -> None:
        """`problems`: everything that is wrong, in document order; `source`: the file, or its name to people."""
        self.problems = tuple(problems)
        self.source = source
        lines = [problem.line(source) for problem in self.problems[:LISTED_PROBLEMS]]
        if len(self.problems) > LISTED_PROBLEMS:
            lines.append(f"... and {len(self.problems) - LISTED_PROBLEMS} more problems")
        listed = "\n".join(lines)
        super().__init__(message or listed or None, hint=hint, **where)

    def __str__(self) -> str:
        return self.message if self.problems else super().__str__()


class InvalidWorkflow(ProblemsError):
    """The workflow definition is not valid."""

    code = "INVALID_WORKFLOW"


class InvalidTermination(ProblemsError):
    """A condition that ends a conversation has problems."""

    code = "INVALID_TERMINATION"


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


# --- runs and steps -----------------------------------------------------------------------------------------------


class UnknownRun(ConvergioError):
    """No run with this id is known."""

    code = "UNKNOWN_RUN"


class UnknownStep(ConvergioError):
    """The workflow has no step of this name."""

    code = "UNKNOWN_STEP"


class KeyConflict(ConvergioError):
    """This idempotency key was used before with another workflow or input."""

    code = "KEY_CONFLICT"


class RunFailed(ConvergioError):
    """The run ended as FAILED."""

    code = "RUN_FAILED"


class RunCancelled(ConvergioError):
    """The run was cancelled."""

    code = "RUN_CANCELLED"


class ResultTimeout(ConvergioError):
    """The run did not end in the time given."""

    code = "RESULT_TIMEOUT"
    retryable = True


class StepFailed(ConvergioError):
    """The step's body failed."""

    code = "STEP_FAILED"
    retryable = True


class StepTimeout(ConvergioError):
    """The step ran longer than its timeout."""

    code = "STEP_TIMEOUT"
    retryable = True


class StepDenied(ConvergioError):
    """A pre-run hook denied the step."""

    code = "STEP_DENIED"


class Quarantined(ConvergioError):
    """The step lost its worker too often and was put in quarantine."""

    code = "QUARANTINED"


class ApprovalRejected(ConvergioError):
    """The approval was rejected."""

    code = "APPROVAL_REJECTED"


class Transient(ConvergioError):
    """A fault that may pass: the step is tried again by its retry policy."""

    code = "TRANSIENT"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after: float | None = None, **where: Any) -> None:
        """`retry_after`: seconds to wait at least, as the other side asked."""
        self.retry_after = retry_after
        super().__init__(message, **where)


class Permanent(ConvergioError):
    """A fault that will not pass: the step is not tried again."""

    code = "PERMANENT"


# --- the machines -------------------------------------------------------------------------------------------------


class BoardUnavailable(ConvergioError):
    """Redis does not answer."""

    code = "BOARD_UNAVAILABLE"
    retryable = True


class JournalUnavailable(ConvergioError):
    """The SQL database does not answer."""

    code = "JOURNAL_UNAVAILABLE"
    retryable = True


class BoardRebuilding(ConvergioError):
    """The board is being rebuilt from the journal; the call may be repeated in a few seconds."""

    code = "BOARD_REBUILDING"
    retryable = True


class SchemaMismatch(ConvergioError):
    """The board was written by another version of Convergio."""

    code = "SCHEMA_MISMATCH"


class AnotherJournal(ConvergioError):
    """The board belongs to another journal."""

    code = "ANOTHER_JOURNAL"


class StaleFence(ConvergioError):
    """Another owner has this step now; the result of this one is dropped."""

    code = "FENCED"


class SubmitTooLate(ConvergioError):
    """The run was accepted, and is started by the sweeper instead of by this call."""

    code = "SUBMIT_TOO_LATE"


class NoWorker(ConvergioError):
    """No worker serves the queue."""

    code = "NO_WORKER"
    retryable = True


class DirectoryInUse(ConvergioError):
    """Another `convergio up` uses this directory."""

    code = "DIRECTORY_IN_USE"


class ModelUnavailable(ConvergioError):
    """The model is not available."""

    code = "MODEL_UNAVAILABLE"
    retryable = True


class UnknownAgent(ConvergioError):
    """No agent of this name is in the roster."""

    code = "UNKNOWN_AGENT"


class UnsupportedServer(ConvergioError):
    """This server cannot carry the board."""

    code = "UNSUPPORTED_SERVER"


class ProcessNotReady(ConvergioError):
    """A process of the embedded stack did not become ready."""

    code = "PROCESS_NOT_READY"


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


class EpochLost(ConvergioError):
    """The journal follows another epoch of the board, or another journaler; this one must stop."""

    code = "EPOCH_LOST"


class UnknownFunction(ConvergioError):
    """No function of this name is registered."""

    code = "UNKNOWN_FUNCTION"


class NameTaken(ConvergioError):
    """Another function is already registered under this name."""

    code = "NAME_TAKEN"


class WorkerStopping(ConvergioError):
    """The worker stops: the step is given back, and runs elsewhere."""

    code = "WORKER_STOPPING"
    retryable = True


class RunNotEnded(ConvergioError):
    """The run has not ended yet."""

    code = "RUN_NOT_ENDED"


class NothingToRetry(ConvergioError):
    """Nothing of this run failed that could be tried again."""

    code = "NOTHING_TO_RETRY"


# --- too much at once -----------------------------------------------------------------------------------------------


class Overloaded(ConvergioError):
    """Nothing new is taken on now; what runs goes on."""

    code = "OVERLOADED"
    retryable = True

    def __init__(
        self,
        message: str | None = None,
        *,
        hint: str | None = "what runs goes on meanwhile",
        retry_after: float | None = None,
        **where: Any,
    ) -> None:
        """`retry_after`: seconds to wait at least before it is worth to ask again."""
        self.retry_after = retry_after
        again = "" if retry_after is None else f"ask again in {retry_after:.0f} s; "
        super().__init__(message, hint=f"{again}{hint or ''}" or None, **where)


class JournalBehind(Overloaded):
    """The journal (SQL) is too far behind the board."""

    code = "JOURNAL_BEHIND"


class BoardNearlyFull(Overloaded):
    """Redis has little memory left."""

    code = "BOARD_NEARLY_FULL"


class TooManySignals(Overloaded):
    """Too many signals of this name wait for a step that has not come to them yet."""

    code = "TOO_MANY_SIGNALS"


class ChildFailed(ConvergioError):
    """The run that a step started has failed."""

    code = "CHILD_FAILED"
    retryable = True


class ChildCancelled(ConvergioError):
    """Somebody cancelled the run that a step started."""

    code = "CHILD_CANCELLED"


class ChildTooDeep(ConvergioError):
    """Too many runs are above this one."""

    code = "CHILD_TOO_DEEP"


class BadList(ConvergioError):
    """What a map is over is no list."""

    code = "BAD_LIST"


class ItemsFailed(ConvergioError):
    """So many items of a map failed that it cannot come true."""

    code = "ITEMS_FAILED"


class LoopExhausted(ConvergioError):
    """A loop has made all its rounds, and its condition still does not hold."""

    code = "LOOP_EXHAUSTED"


class DefinitionRefused(ConvergioError):
    """A definition's signature does not hold."""

    code = "DEFINITION_REFUSED"


# --- models ---------------------------------------------------------------------------------------------------------


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
