"""What becomes of runs and steps, and of who asks for them."""

from __future__ import annotations

from convergio.graphflow.model.errors.tree import ConvergioError


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
