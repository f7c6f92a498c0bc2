"""The machines: board, journal, workers, servers; and too much at once."""

from __future__ import annotations

from convergio.graphflow.model.errors.tree import ConvergioError, Overloaded


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


class UnsupportedServer(ConvergioError):
    """This server cannot carry the board."""

    code = "UNSUPPORTED_SERVER"


class ProcessNotReady(ConvergioError):
    """A process of the embedded stack did not become ready."""

    code = "PROCESS_NOT_READY"


class EpochLost(ConvergioError):
    """The journal follows another epoch of the board, or another journaler; this one must stop."""

    code = "EPOCH_LOST"


class JournalBehind(Overloaded):
    """The journal (SQL) is too far behind the board."""

    code = "JOURNAL_BEHIND"


class BoardNearlyFull(Overloaded):
    """Redis has little memory left."""

    code = "BOARD_NEARLY_FULL"


class TooManySignals(Overloaded):
    """Too many signals of this name wait for a step that has not come to them yet."""

    code = "TOO_MANY_SIGNALS"
