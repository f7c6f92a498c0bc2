"""What `convergio` ends with. Scripts rely on these numbers.

| exit | meaning                                                                           |
|------|-----------------------------------------------------------------------------------|
| 0    | done                                                                              |
| 1    | the run failed or was cancelled, a check or a bound failed, or a fault of our own |
| 2    | the command line is wrong                                                         |
| 3    | something a person wrote is wrong: a definition, an input, a setting, a payload   |
| 4    | there is no such workflow, run, step, agent or function                           |
| 5    | it is taken: the key, the directory, the name                                     |
| 6    | a machine is away: Redis, SQL, a worker, the model; trying again may help         |
| 7    | it took too long                                                                  |
| 8    | this server or this version cannot do it                                          |
| 130  | Ctrl-C                                                                            |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INVALID: Final = 3
UNKNOWN: Final = 4
TAKEN: Final = 5
AWAY: Final = 6
TIMEOUT: Final = 7
UNSUPPORTED: Final = 8
INTERRUPTED: Final = 130

OF_CODE: Final[Mapping[str, int]] = {
    "PROBLEMS": INVALID,
    "INVALID_TEAM": INVALID,
    "INVALID_WORKFLOW": INVALID,
    "INVALID_INPUT": INVALID,
    "INVALID_SETTING": INVALID,
    "DEFINITION_REFUSED": INVALID,
    "INVALID_PAYLOAD": INVALID,
    "PAYLOAD_TOO_LARGE": INVALID,
    "EXPRESSION_FAILED": INVALID,
    "IMAGE_REFUSED": INVALID,
    "MESSAGE_TOO_LARGE": INVALID,
    "UNKNOWN_WORKFLOW": UNKNOWN,
    "UNKNOWN_RUN": UNKNOWN,
    "UNKNOWN_STEP": UNKNOWN,
    "UNKNOWN_AGENT": UNKNOWN,
    "UNKNOWN_FUNCTION": UNKNOWN,
    "UNKNOWN_MODEL": UNKNOWN,
    "KEY_CONFLICT": TAKEN,
    "CONVERSATION_BUSY": TAKEN,
    "DIRECTORY_IN_USE": TAKEN,
    "NAME_TAKEN": TAKEN,
    "BOARD_UNAVAILABLE": AWAY,
    "BOARD_REBUILDING": AWAY,
    "JOURNAL_UNAVAILABLE": AWAY,
    "OVERLOADED": AWAY,
    "JOURNAL_BEHIND": AWAY,
    "BOARD_NEARLY_FULL": AWAY,
    "MODEL_UNAVAILABLE": AWAY,
    "MODEL_SILENT": AWAY,
    "MODEL_BUSY": AWAY,
    "PROVIDER_FAILED": AWAY,
    "RATE_LIMITED": AWAY,
    "NO_WORKER": AWAY,
    "PROCESS_NOT_READY": AWAY,
    "RESULT_TIMEOUT": TIMEOUT,
    "SCHEMA_MISMATCH": UNSUPPORTED,
    "ANOTHER_JOURNAL": TAKEN,
    "UNSUPPORTED_SERVER": UNSUPPORTED,
}
"""Exit by error code; every other error ends with FAILED."""


def of(code: str) -> int:
    """The exit for an error's code."""
    return OF_CODE.get(code, FAILED)
