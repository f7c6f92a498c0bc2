"""How the command line says that something went wrong: one line in the one shape, on stderr, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from convergio.workers.cli import exits

if TYPE_CHECKING:
    from convergio.graphflow.model import errors

DEBUG: Final = "CONVERGIO_CLI_DEBUG"
"""Set by `--debug`: errors are shown with their traceback."""


class Ending:
    """What the command ends with."""

    code: int = exits.OK


@contextmanager
def as_exit_code() -> Generator[Ending]:
    """Turns what the body raises into words and `Ending.code`."""
    ending = Ending()
    try:
        yield ending
    except click.exceptions.Exit as error:
        ending.code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        ending.code = exits.INTERRUPTED
    except click.ClickException as error:
        error.show()
        ending.code = exits.USAGE
    except BrokenPipeError:
        _forget_stdout()
        ending.code = exits.FAILED
    except Exception as error:  # noqa: BLE001 - whatever it is, a person is told in words, with a way to see more
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            _forget_stdout()
        ending.code = report(error)


def report(error: Exception) -> int:
    """Says it, and returns the exit code."""
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exception(error)
    known = as_ours(error)
    click.echo(text_of(known), err=True)
    return exits.of(known.code)


def as_ours(error: Exception) -> errors.ConvergioError:
    """Any exception as one of the tree. What nobody foresaw keeps its type, and says how to see more."""
    from convergio.config.settings import SettingError
    from convergio.graphflow.model import errors

    if isinstance(error, errors.ConvergioError):
        return error
    if isinstance(error, SettingError):
        return errors.InvalidSetting(str(error), hint="`convergio doctor --settings` shows every setting")
    if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
        return errors.InvalidInput(f"{error.filename}: {error.strerror}", hint="name a file that can be read")
    hint = "this should not happen: `convergio --debug ...` shows where"
    return errors.ConvergioError(f"{type(error).__name__}: {error}", hint=hint)


def text_of(error: errors.ConvergioError) -> str:
    """`CODE  what happened (where); what to do now`."""
    if getattr(error, "problems", ()):
        return str(error)
    told = ((name, value) for name, value in error.where.items() if str(value) not in error.message)
    where = ", ".join(f"{name} {value}" for name, value in told)
    said = f"{error.code}  {error.message}" + (f" ({where})" if where else "")
    if not error.hint:
        return said
    return f"{said} {error.hint}" if said.endswith(".") else f"{said}; {error.hint}"


def _forget_stdout() -> None:
    """The reader of our output is gone: nothing more can be written, also not by Python's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
