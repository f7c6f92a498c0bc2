"""`convergio demo`: a workflow from its brief to its outcome, also when its worker is killed and Redis is wiped."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from convergio.graphflow import library
from tests.acceptance.town import SCRIPTED, Place, cli, going
from tests.servers import free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PARTS = ("country", "market", "strategy", "risks", "finance", "break even units", "plan")


def test_the_demo_says_what_it_does_streams_and_ends_with_the_outcome(new_place: Place) -> None:
    done = new_place.cli("demo", "--yes")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "SUCCEEDED"
    assert lines[0] == "market_entry: Market entry"
    said = (
        "8 steps: 4 by agents, 1 by a team that talks, 2 by functions, 1 by a person; each one, and each turn of a team"
    )
    assert said in lines[1]
    assert "the scripted model: no language model" in done.stdout
    assert f"directory {new_place.home} (kept)" in done.stdout
    assert "approval sign_off (Enter this market?): approved by --yes" in done.stdout
    assert [part for part in PARTS if part not in lines] == []
    spoke = Counter(line.split(": ")[0] for line in lines if ": Scripted answer" in line and line[0] != " ")
    assert spoke == {"ali-chief-of-staff": 2, "luca": 2, "domik": 1, "amy-cfo": 1, "wanda": 1}, (
        "teams and agents' steps"
    )
    assert [line for line in lines if line.startswith("entry_strategy ") and line.endswith("  3 turns")]
    assert "tokens" in next(line for line in lines if line.startswith("total "))
    assert [line for line in lines if "● implementation_planning succeeded  wanda" in line]
    command = next(line for line in lines if "convergio runs show" in line).split()
    assert cli(*command[1:], env=SCRIPTED).returncode == 0  # what it leaves behind can be looked at, as it says
    (run,) = new_place.json("runs", "list")
    assert (run["workflow"], run["state"]) == ("market_entry", "SUCCEEDED")
    assert not (new_place.home / "run.json").exists()


@pytest.mark.parametrize("name", ["customer_onboarding", "product_launch", "strategic_analysis"])
def test_every_other_workflow_that_ships_runs_on_its_brief(town: Place, name: str) -> None:
    done = town.cli("run", name, "--brief", "--watch", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in done.stdout


ASKING = """
workflow: asking
version: 1
steps:
  talk:
    prompt: Talk
    conversation:
      agents: [{name: ann, role: You talk., script: [{say: one two three four, pace: 0.4}]}]
      stop: {turns: 1}
  sign: {approval: {title: Go on?}}
"""


def test_nobody_is_asked_in_the_middle_of_what_an_agent_says(town: Place, tmp_path: Path) -> None:
    path = tmp_path / "asking.yaml"
    path.write_text(ASKING)
    lines = town.ok("run", str(path), "--watch", "--yes").splitlines()
    assert "ann: one two three four" in lines
    assert "approval sign (Go on?): approved by --yes" in lines


def test_the_demo_takes_real_input(new_place: Place, tmp_path: Path) -> None:
    brief = json.loads((library.brief("market_entry") or Path()).read_text())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**brief, "countries": ["Japan"], "product": "tea bowls"}))
    done = new_place.cli("demo", "--yes", "--input", str(path))
    assert done.returncode == 0, done.stderr
    assert "\ncountry\n  Japan\n" in done.stdout


def test_the_demo_survives_its_worker_killed_and_redis_wiped(new_place: Place) -> None:
    with going("demo", env=new_place.env) as demo:
        demo.wait_for("ali-chief-of-staff: ")  # a team talks
        os.kill(new_place.pid("worker"), signal.SIGKILL)
        demo.wait_for("worker ended (SIGKILL): started again")
        demo.wait_for("⏸ Enter this market?")
        with new_place.redis() as board:
            before = str(board.get("convergio:epoch"))
            board.flushall()
            wait_until(lambda: board.get("convergio:epoch") not in (None, before), timeout=30)
        demo.write("y\nlooks good\n")
        demo.wait_for("the board was lost: it is made anew from the journal")
        assert demo.ended() == 0
        assert demo.said[-1] == "SUCCEEDED\n"
        assert any(line.startswith("luca: ") for line in demo.said)
    (run,) = new_place.json("runs", "list")
    assert run["state"] == "SUCCEEDED"


def test_a_rejected_demo_ends_with_1_and_the_reason(new_place: Place) -> None:
    done = new_place.cli("demo", given="n\ntoo risky\n")
    assert done.returncode == 1
    assert "APPROVAL_REJECTED" in done.stdout
    assert "too risky" in done.stdout
    assert done.stdout.endswith("FAILED\n")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_everything_and_up_goes_on_with_it(new_place: Place, sign: signal.Signals) -> None:
    with going("demo", env=new_place.env) as demo:
        demo.wait_for("⏸ Enter this market?")
        pids = new_place.running["pids"].values()
        demo.process.send_signal(sign)
        assert demo.ended() == 130
        assert f"`convergio up --home {new_place.home}` goes on with it" in "".join(demo.said)
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    with going("up", env=new_place.env) as town:
        town.wait_for("Ctrl-C stops everything")
        (run,) = new_place.json("runs", "list")
        new_place.ok("runs", "signal", run["id"], "sign_off", "--approve")
        assert new_place.cli("runs", "watch", run["id"]).returncode == 0


def test_the_demo_never_touches_servers_that_are_configured(new_place: Place) -> None:
    away = {
        "CONVERGIO_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "CONVERGIO_JOURNAL_URL": "sqlite:////nonexistent/directory/journal.sqlite3",
    }
    done = new_place.cli("demo", "--yes", env=away)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "start"),
    [
        (["--workflow", "nope"], 4, "UNKNOWN_WORKFLOW  "),
        (["--input", "nope.json"], 3, "INVALID_INPUT  --input: there is no file 'nope.json'"),
        (["--input", "{}"], 3, "INVALID_INPUT  market_entry: input"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(
    new_place: Place, arguments: list[str], code: int, start: str
) -> None:
    done = new_place.cli("demo", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(start)
    assert not (new_place.home / "journal.sqlite3").exists()
