"""The command line: it answers at once, says what is wrong in one shape, and ends with the documented codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

import click
import pytest

from convergio.graphflow.model import errors
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.workers import cli
from convergio.workers.cli import exits, failure, given, look, menu, prove, up

HEAVY = (
    "alembic",
    "autogen_agentchat",
    "autogen_core",
    "celery",
    "kombu",
    "openai",
    "pydantic",
    "redis",
    "rich",
    "sqlalchemy",
)
HELP_LIMIT = 0.3
"""Seconds: what a person calls at once."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convergio.workers.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def loaded_by(arguments: Sequence[str]) -> set[str]:
    """Heavy modules that a call of the command line loads."""
    program = (
        f"import sys; from convergio.workers.cli import main; main({list(arguments)!r}); print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()} & set(HEAVY)


# --- speed --------------------------------------------------------------------------------------------------------


def test_help_answers_at_once() -> None:
    """Processor time, start of Python included: on a machine with nothing else to do a clock would show the same."""
    times: list[float] = []
    for _ in range(5):
        began = os.times()
        assert run("--help").returncode == 0
        ended = os.times()
        times.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
    assert min(times) < HELP_LIMIT, times


@pytest.mark.parametrize(
    "arguments", [["--help"], ["runs", "--help"], ["run", "--help"], ["doctor", "--help"], ["nope"]]
)
def test_what_only_explains_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(arguments) == set()


# --- the menu -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(menu.ITEMS))
def test_every_command_of_the_menu_exists_and_explains_itself(name: str) -> None:
    command = menu.convergio.get_command(click.Context(menu.convergio), name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_help_lists_every_command_but_the_internal_one() -> None:
    listed = run("--help").stdout
    names = re.findall(r"^  ([a-z]+)  ", listed, re.MULTILINE)
    assert set(names) == set(menu.ITEMS) - {"service"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnus"], "did you mean 'runs'?"),
        (["runs", "lst"], "No such command 'lst'"),
        (["run"], "Missing argument 'WORKFLOW'"),
        (["runs", "signal", "r", "s"], "say --approve, --reject or --answer"),
        (["runs", "list", "--state", "runing"], "did you mean 'running'?"),
        (["bench", "engin"], "did you mean 'engine'?"),
        (["worker", "--processes", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_is_right(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == exits.USAGE
    assert said in done.stderr
    assert done.stdout == ""


def test_benchmarks_are_listed_by_name() -> None:
    assert "engine" in prove.names()
    assert run("bench").stdout.splitlines() == [f"convergio bench {name}" for name in prove.names()]


# --- what it ends with --------------------------------------------------------------------------------------------


def codes() -> dict[str, type[errors.ConvergioError]]:
    found: list[type[errors.ConvergioError]] = [errors.ConvergioError]
    for kind in found:
        found += kind.__subclasses__()
    return {kind.code: kind for kind in found}


def test_the_table_of_exits_names_real_codes_and_documented_numbers() -> None:
    assert set(exits.OF_CODE) <= set(codes())
    documented = set(re.findall(r"^\| (\d+) ", exits.__doc__ or "", re.MULTILINE))
    used = {*exits.OF_CODE.values(), exits.OK, exits.FAILED, exits.USAGE, exits.INTERRUPTED}
    assert {str(number) for number in used} == documented


def ended_by(error: BaseException) -> failure.Ending:
    """How a command ends that raises this."""

    def command() -> None:
        raise error

    with failure.as_exit_code() as ending:
        command()
    return ending


@pytest.mark.parametrize("code", sorted(codes()))
def test_every_error_ends_with_its_code(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = codes()[code]
    ending = ended_by(kind("it happened", hint="do this", run="r1"))
    assert ending.code == exits.of(code) != exits.OK
    assert capsys.readouterr().err == f"{code}  it happened (run r1); do this\n"


def test_problems_are_said_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [
        errors.Problem(code="UNKNOWN_STEP", path="steps.pay", message="names 'sing'", hint="did you mean 'sign'?")
    ]
    failure.report(errors.InvalidWorkflow(problems=[*problems, *problems], source="refund.yaml"))
    line = "UNKNOWN_STEP  refund.yaml: steps.pay names 'sing'; did you mean 'sign'?\n"
    assert capsys.readouterr().err == 2 * line


def test_a_place_that_the_message_names_is_not_said_twice() -> None:
    error = errors.DirectoryInUse("Another stack (pid 7) uses x.", hint="Stop it.", pid=7)
    assert failure.text_of(error) == "DIRECTORY_IN_USE  Another stack (pid 7) uses x. Stop it."


@pytest.mark.parametrize("debug", [False, True])
def test_a_traceback_is_shown_on_request_only(
    debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if debug:
        monkeypatch.setenv(failure.DEBUG, "1")
    ending = ended_by(ZeroDivisionError("1/0"))
    said = capsys.readouterr().err
    assert ending.code == exits.FAILED
    assert "ERROR  ZeroDivisionError: 1/0" in said
    assert ("Traceback" in said) is debug


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    ending = ended_by(KeyboardInterrupt())
    assert ending.code == exits.INTERRUPTED
    assert capsys.readouterr().err == "stopped\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m convergio.workers.cli doctor --settings --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "["
    assert done.stderr == ""


def test_a_wrong_setting_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERGIO_CONCURRENCY", "many")
    assert cli.main(["doctor", "--settings"]) == exits.INVALID
    said = capsys.readouterr().err
    assert said.startswith("INVALID_SETTING  CONVERGIO_CONCURRENCY='many'")
    assert "Traceback" not in said


# --- how it looks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [RunState, StepState])
def test_states_differ_by_icon_and_word_not_by_colour_alone(states: type[RunState] | type[StepState]) -> None:
    looks = [look.LOOKS[state] for state in states]
    assert len({one.word for one in looks}) == len(looks)
    assert all(one.icon.strip() and one.style for one in looks)
    assert [one.word.upper() for one in looks] == [state.value for state in states]


@pytest.mark.parametrize("on", list(BlockedOn))
def test_a_blocked_step_says_on_what(on: BlockedOn) -> None:
    assert look.word_of(StepState.BLOCKED, on).startswith("⏸ blocked on ")


def test_nothing_is_coloured_in_a_pipe_and_no_line_ends_in_blanks() -> None:
    done = run("workflows", "list")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line != line.rstrip()] == []


def test_a_terminal_without_unicode_gets_no_traceback() -> None:
    command = [sys.executable, "-m", "convergio.workers.cli", "doctor", "--home", "/nonexistent/home"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == exits.FAILED
    assert "FAIL" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://user:p@ss@host/db", "postgresql://user:***@host/db"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
    ],
)
def test_passwords_are_never_shown(url: str, shown: str) -> None:
    assert up.masked(url) == shown


def test_settings_are_printed_with_source_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERGIO_MODEL_API_KEY", "sk-123")
    monkeypatch.setenv("CONVERGIO_REDIS_URL", "redis://:sk-123@host/0")
    assert cli.main(["doctor", "--settings", "--json"]) == exits.OK
    printed = capsys.readouterr().out
    assert "sk-123" not in printed
    assert '"source": "environment CONVERGIO_MODEL_API_KEY"' in printed
    assert '"variable": "CONVERGIO_TENANT"' in printed


# --- what is given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "code"),
    [
        ('{"a": 1', "x.json", "INVALID_INPUT"),
        ("a: [1", "x.yaml", "INVALID_INPUT"),
        ("a: 1\na: 2", "x.yaml", "INVALID_INPUT"),
        (b"\xff\xfe\x00", "x.json", "INVALID_INPUT"),
    ],
)
def test_input_that_cannot_be_read_says_where(
    content: str | bytes, name: str, code: str, tmp_path: os.PathLike[str]
) -> None:
    path = os.path.join(tmp_path, name)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(errors.ConvergioError, match="x\\.") as caught:
        given.value(path, what="--input")
    assert caught.value.code == code


def test_input_is_json_or_the_file_that_has_it(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "x.yaml")
    with open(path, "w") as file:
        file.write("a: 1\nb: [two]\n")
    assert given.value(path, what="--input") == given.value('{"a": 1, "b": ["two"]}', what="--input")
    with pytest.raises(errors.InvalidInput, match="there is no file 'nope'"):
        given.value("nope", what="--input")
    with pytest.raises(errors.InvalidInput, match="is not a JSON object"):
        given.an_object("[1]", what="--data")
