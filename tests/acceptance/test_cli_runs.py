"""Runs from the command line, on a real stack: start, list, show, watch, why, signal, cancel, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convergio.graphflow import library
from tests.acceptance.town import Place, going
from tests.servers import free_port
from tests.waiting import wait_until

BRIEF = str(library.brief("market_entry"))

SIGNED = """
workflow: signed
version: 1
input: {type: object, properties: {gate: {type: string}}}
output: {answer: last.value}
steps:
  first: {task: demo.echo, with: {value: input.gate}}
  sign: {approval: {title: Go on?, description: "The gate is {{ first }}"}, needs: [first]}
  last: {task: demo.echo, with: {value: "{'value': first}"}, needs: [sign]}
"""
GATED = """
workflow: gated
version: 1
steps:
  gate: {task: demo.wait_for, with: {gate: input.gate}}
  after: {task: demo.echo, with: {value: gate}, needs: [gate]}
"""
BUSY = "workflow: busy\nversion: 1\nsteps: {call: {task: demo.busy, with: {seconds: 600}, retry: 3}}\n"
COUNTED = (
    "workflow: counted\nversion: 1\noutput: {n: input.n}\nsteps: {call: {task: demo.echo, with: {value: input}}}\n"
)
FAILING = "workflow: failing\nversion: 1\nsteps: {pay: {task: demo.fail, with: {message: \"'no money'\"}}}\n"


def written(tmp_path: Path, text: str) -> str:
    """The workflow as a file."""
    path = tmp_path / "flow.yaml"
    path.write_text(text)
    return str(path)


def started(town: Place, tmp_path: Path, text: str, **given: str) -> str:
    """A run of this workflow; its id."""
    return town.ok("run", written(tmp_path, text), "--input", json.dumps(given)).strip()


# --- a run, from start to end -------------------------------------------------------------------------------------


def test_a_shipped_workflow_runs_to_its_end_and_is_listed_shown_and_explained(town: Place) -> None:
    done = town.cli("run", "market_entry", "--input", BRIEF, "--watch", "--yes")
    assert done.returncode == 0, done.stderr
    run = done.stdout.split("\nrun ", 1)[1].split()[0]
    assert f"run {run} SUCCEEDED" in done.stdout
    assert "● implementation_planning succeeded  wanda" in done.stdout
    listed = town.json("runs", "list", "--workflow", "market_entry", "--state", "succeeded")
    assert run in [one["id"] for one in listed]
    shown = town.json("runs", "show", run)
    assert shown["state"] == "SUCCEEDED"
    assert {step["state"] for step in shown["steps"]} == {"SUCCEEDED"}
    assert sum(step["tokens"] for step in shown["steps"]) > 0
    assert "the run ended as SUCCEEDED after" in town.ok("runs", "why", run)
    assert town.json("runs", "why", run, "market_research")["steps"]["market_research"].startswith("ended as SUCCEEDED")


def test_a_run_is_started_for_each_line_of_a_file_and_once_for_each_key(town: Place, tmp_path: Path) -> None:
    path, lines = written(tmp_path, COUNTED), tmp_path / "orders.jsonl"
    lines.write_text('{"n": 1}\n\n{"n": 2}\n')
    first = town.ok("run", path, "--each", str(lines), "--key", "import").split()
    for run in first:
        town.ok("runs", "watch", run)
    assert [town.json("runs", "show", run)["output"] for run in first] == [{"n": 1}, {"n": 2}]
    lines.write_text('{"n": 1}\n{"n": 2}\n{"n": 3}\n')
    assert town.ok("run", path, "--each", str(lines), "--key", "import").split()[:2] == first
    lines.write_text('{"n": 1}\n{"n": \n')
    wrong = town.cli("run", path, "--each", str(lines))
    assert wrong.returncode == 3
    assert not wrong.stdout, "what is together in one file is accepted together"
    assert "line 2" in wrong.stderr


def test_an_approval_is_asked_in_the_terminal_with_its_question(town: Place, tmp_path: Path) -> None:
    path = written(tmp_path, SIGNED)
    done = town.cli("run", path, "--input", '{"gate": "open"}', "--watch", given="maybe\ny\nfine\n")
    assert done.returncode == 0, done.stderr
    assert "Go on?" in done.stdout
    assert "The gate is open" in done.stdout
    assert "please answer y or n" in done.stdout
    assert json.loads(done.stdout[done.stdout.rindex("{") :]) == {"answer": "open"}


def test_a_rejection_fails_the_run_and_gives_the_reason(town: Place, tmp_path: Path) -> None:
    done = town.cli("run", written(tmp_path, SIGNED), "--watch", "--input", '{"gate": "g"}', given="n\ntoo dear\n")
    assert done.returncode == 1
    assert "APPROVAL_REJECTED" in done.stdout
    assert "too dear" in done.stdout


def test_without_an_answer_the_command_to_give_it_is_said_and_the_run_goes_on(town: Place, tmp_path: Path) -> None:
    with going("run", written(tmp_path, SIGNED), "--input", '{"gate": "g"}', "--watch", env=town.env) as watching:
        assert watching.process.stdin is not None
        watching.process.stdin.close()
        line = watching.wait_for("no answer here")
        run, step = line.split("runs signal ", 1)[1].split()[:2]
        assert town.ok("runs", "signal", run, step, "--approve", "--reason", "because").endswith("is told: approve\n")
        assert watching.ended() == 0


def test_a_signal_that_came_first_is_kept(town: Place, tmp_path: Path) -> None:
    text = SIGNED.replace(
        "first: {task: demo.echo, with: {value: input.gate}}", "first: {task: demo.wait_for, with: {gate: input.gate}}"
    )
    run = started(town, tmp_path, text, gate="early")
    town.ok("runs", "signal", run, "sign", "--approve")
    (town.home / "gates" / "early").touch()
    assert town.cli("runs", "watch", run).returncode == 0


ASKS = """
workflow: asks
version: 1
steps:
  input_of: {task: demo.echo, with: {value: "'x'"}, compensate: demo.echo}
  below: {workflow: market_entry, needs: [input_of], with: {}, on_failure: ask}
"""


def test_a_failed_step_asks_and_is_answered_from_the_command_line(town: Place, tmp_path: Path) -> None:
    """A child of a workflow that ships, whose input does not fit."""
    run = started(town, tmp_path, ASKS)
    wait_until(lambda: town.state(run, "below") == "BLOCKED", timeout=30)
    wait_until(lambda: "--answer retry (or skip, fail, compensate)" in town.ok("runs", "why", run), timeout=30)
    assert "asks what to do: INVALID_INPUT" in town.ok("runs", "show", run)
    assert town.ok("runs", "signal", run, "below", "--answer", "skip").endswith("is told: skip\n")
    assert town.cli("runs", "watch", run).returncode == 0


def test_watching_with_json_prints_every_event_once(town: Place, tmp_path: Path) -> None:
    run = started(town, tmp_path, "workflow: e\nversion: 1\nsteps: {a: {task: demo.echo, with: {value: 1}}}\n")
    events = [json.loads(line) for line in town.ok("runs", "watch", run, "--json").splitlines()]
    assert [event["type"] for event in events][-1] == "RUN_FINISHED"
    assert [int(event["id"].split("-")[1]) for event in events] == list(range(1, len(events) + 1))


def test_a_cancelled_run_says_so_everywhere(town: Place, tmp_path: Path) -> None:
    run = started(town, tmp_path, SIGNED, gate="g")
    wait_until(lambda: town.state(run, "sign") == "BLOCKED", timeout=30)
    assert "is being cancelled" in town.ok("runs", "cancel", run, "--reason", "enough")
    assert town.cli("runs", "watch", run).returncode == 1
    assert "sign was cancelled: the run was ended (enough)" in town.ok("runs", "why", run, "sign")
    assert "has ended as CANCELLED before" in town.ok("runs", "cancel", run)


def test_a_failed_run_names_the_step_and_the_error(town: Place, tmp_path: Path) -> None:
    run = started(town, tmp_path, FAILING)
    assert town.cli("runs", "watch", run).returncode == 1
    assert "pay ended as FAILED" in town.ok("runs", "why", run)
    assert "PERMANENT" in town.ok("runs", "show", run)
    assert "no money" in town.ok("runs", "why", run, "pay")


# --- why it is not running ----------------------------------------------------------------------------------------


def test_why_tells_running_waiting_and_blocked_steps_apart(town: Place, tmp_path: Path) -> None:
    run = started(town, tmp_path, GATED, gate="why")
    wait_until(lambda: town.state(run, "gate") == "RUNNING", timeout=30)
    why = town.json("runs", "why", run)
    assert why["steps"]["gate"].startswith("runs on ")
    assert why["steps"]["after"] == "waits for gate (running)"
    assert why["why"] == "gate runs now"
    (town.home / "gates" / "why").touch()
    assert town.cli("runs", "watch", run).returncode == 0


def test_why_tells_when_a_retry_is_due_and_after_what(town: Place, tmp_path: Path) -> None:
    run = started(town, tmp_path, BUSY)
    said = wait_until(lambda: _retry(town, run), timeout=30)
    assert said.startswith("is tried again in ")
    assert said.endswith("(attempt 2 of 4): TRANSIENT 503")
    town.ok("runs", "cancel", run)


def _retry(town: Place, run: str) -> str:
    said = str(town.json("runs", "why", run)["steps"]["call"])
    return said if "TRANSIENT" in said else ""


# --- names and keys -----------------------------------------------------------------------------------------------


def test_the_beginning_of_an_id_is_enough_if_it_names_one_run(town: Place, tmp_path: Path) -> None:
    run = started(town, tmp_path, FAILING)
    other = started(town, tmp_path, FAILING)
    assert town.json("runs", "show", run[:24])["id"] == run
    shared = town.cli("runs", "show", run[:4])
    assert shared.returncode == 4
    assert "several runs begin with" in shared.stderr
    assert run in shared.stderr or other in shared.stderr


def test_the_same_key_is_the_same_run(town: Place, tmp_path: Path) -> None:
    path = written(tmp_path, FAILING)
    first = town.ok("run", path, "--key", "k-1")
    assert town.ok("run", path, "--key", "k-1") == first
    conflict = town.cli("run", path, "--key", "k-1", "--input", '{"n": 2}')
    assert conflict.returncode == 5
    assert conflict.stderr.startswith("KEY_CONFLICT  ")


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "start"),
    [
        (
            ["run", "market_entri"],
            4,
            "UNKNOWN_WORKFLOW  no workflow is called 'market_entri'; did you mean 'market_entry'?",
        ),
        (["run", "market_entry"], 3, "INVALID_INPUT  market_entry: input"),
        (["run", "market_entry", "--input", "{"], 3, "INVALID_INPUT  --input is not JSON"),
        (["run", "market_entry", "--input", "no.json"], 3, "INVALID_INPUT  --input: there is no file 'no.json'"),
        (["run", "nothing.yaml"], 3, "INVALID_INPUT  nothing.yaml: No such file or directory"),
        (["runs", "show", "ffff"], 4, "UNKNOWN_RUN  no run 'ffff'"),
        (["runs", "why", "ffff"], 4, "UNKNOWN_RUN  no run 'ffff'"),
        (["runs", "signal", "ffff", "sign", "--approve"], 4, "UNKNOWN_RUN  no run 'ffff'"),
        (["workflows", "show", "nope"], 4, "UNKNOWN_WORKFLOW  no workflow is called 'nope'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_code(
    town: Place, arguments: list[str], code: int, start: str
) -> None:
    done = town.cli(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(start)
    assert "Traceback" not in done.stderr


def test_an_unknown_step_is_named_with_the_nearest(town: Place, tmp_path: Path) -> None:
    run = started(town, tmp_path, SIGNED, gate="g")
    why = town.cli("runs", "why", run, "sing")
    assert (why.returncode, why.stderr) == (4, "UNKNOWN_STEP  'signed' has no step 'sing'; did you mean 'sign'?\n")
    signal = town.cli("runs", "signal", run, "first", "--approve")
    assert signal.returncode == 4
    assert signal.stderr.startswith("UNKNOWN_STEP  'first' waits for no signal; signals of this workflow: sign")
    town.ok("runs", "cancel", run)


def test_malformed_definitions_are_refused_whole_and_nothing_is_started(town: Place, tmp_path: Path) -> None:
    before = len(town.json("runs", "list", "--limit", "1000"))
    broken = written(
        tmp_path, "workflow: x\nversion: 1\nsteps: {a: {task: demo.nope}, b: {agent: nobody, prompt: p, needs: [c]}}"
    )
    for command in (["workflows", "validate", broken], ["run", broken]):
        done = town.cli(*command)
        assert done.returncode == 3
        assert {"UNKNOWN_FUNCTION", "UNKNOWN_AGENT", "UNKNOWN_STEP"} <= {
            line.split()[0] for line in done.stderr.splitlines()
        }
    unreadable = town.cli("workflows", "validate", written(tmp_path, "steps: [1, "))
    assert unreadable.returncode == 3
    assert unreadable.stderr.startswith("BAD_YAML  flow.yaml: line ")
    assert len(town.json("runs", "list", "--limit", "1000")) == before


def test_with_redis_down_a_submission_is_refused_and_nothing_is_kept(town: Place, tmp_path: Path) -> None:
    before = len(town.json("runs", "list", "--limit", "1000"))
    away = {
        "CONVERGIO_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "CONVERGIO_JOURNAL_URL": f"sqlite:///{tmp_path / 'journal.sqlite3'}",
    }
    assert town.cli("migrate", env=away).returncode == 0
    done = town.cli("run", written(tmp_path, FAILING), env=away)
    assert done.returncode == 6
    assert done.stderr.startswith("BOARD_UNAVAILABLE  Redis does not answer")
    assert "convergio up" in done.stderr
    assert len(town.json("runs", "list", "--limit", "1000")) == before


def test_with_sql_down_a_submission_is_refused_and_nothing_is_on_the_board(town: Place, tmp_path: Path) -> None:
    away = {"CONVERGIO_JOURNAL_URL": "sqlite:////nonexistent/directory/journal.sqlite3"}
    done = town.cli("run", written(tmp_path, FAILING), "--key", "sql-down", env=away)
    assert done.returncode == 6
    assert done.stderr.startswith("JOURNAL_UNAVAILABLE  the SQL database does not answer")
    assert "sql-down" not in town.ok("runs", "list", "--json")


def test_a_key_that_is_not_sent_twice_needs_no_stack_to_be_validated(tmp_path: Path) -> None:
    place = Place(home=tmp_path / "none")
    assert "is valid" in place.ok("workflows", "validate", str(next(iter(library.shipped()))))
    done = place.cli("run", "market_entry", "--brief")
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("BOARD_UNAVAILABLE  no stack runs in ")
