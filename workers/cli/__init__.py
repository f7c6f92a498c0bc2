"""The `convergio` command. What a command needs is imported when it runs: `convergio --help` must answer at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code (`exits` has the table)."""
    from convergio.workers.cli import failure
    from convergio.workers.cli.menu import convergio

    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe without UTF-8 gets `?` for a symbol, not a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    with failure.as_exit_code() as ending:
        ending.code = convergio.main(args=given, prog_name="convergio", standalone_mode=False) or 0
    return ending.code
