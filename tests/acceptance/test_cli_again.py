"""Retry, fork and redrive from the command line and from the Python client, on a real stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convergio.graphflow import Client
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import new_run_id
from tests.acceptance.town import Place
from tests.waiting import wait_until

ORDER = """
workflow: NAME
version: 1
input: {type: object, required: [gate], properties: {gate: {type: string}}}
output: {gate: pay, amount: load}
steps:
  load: {task: demo.noted, with: {name: "'NAME-load'", value: 7}}
  pay: {task: demo.need, with: {gate: input.gate}, needs: [load]}
  tell: {task: demo.noted, with: {name: "'NAME-tell'", value: pay}, needs: [pay]}
"""


class Order:
    """A workflow of this test's own, whose runs fail until their gate is open."""

    def __init__(self, town: Place, folder: Path) -> None:
        self.town = town
        self.name = f"order_{new_run_id()[-8:]}"
        self.path = folder / "order.yaml"
        self.path.write_text(ORDER.replace("NAME", self.name))

    def failed(self, gate: str) -> str:
        """A run that has failed for want of its gate; its id."""
        given = json.dumps({"gate": f"{self.name}-{gate}"})
        run = self.town.ok("run", str(self.path), "--input", given).strip()
        assert self.town.cli("runs", "watch", run).returncode == 1
        return run

    def open(self, gate: str) -> None:
        (self.town.home / "gates" / f"{self.name}-{gate}").touch()

    def calls(self, step: str) -> int:
        """How often the body of `load` or `tell` ran."""
        file = self.town.home / "gates" / f"{self.name}-{step}.calls"
        return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def order(town: Place, tmp_path: Path) -> Order:
    return Order(town, tmp_path)


def test_a_failed_run_is_retried_and_shows_what_it_reused(town: Place, order: Order) -> None:
    was = order.failed("one")
    order.open("one")
    done = town.cli("runs", "retry", was)
    assert done.returncode == 0, done.stderr
    assert f"retry of {was}: 1 of 3 steps reused" in done.stderr
    run = done.stdout.strip()
    watched = town.cli("runs", "watch", run)
    assert watched.returncode == 0, watched.stderr
    assert "0.0 s  ● load succeeded" in watched.stdout
    assert f"reused from {was}" in watched.stdout
    assert (order.calls("load"), order.calls("tell")) == (1, 1)
    shown = town.json("runs", "show", run)
    assert (shown["state"], shown["forked_from"], shown["reused"]) == ("SUCCEEDED", was, 1)
    assert f"retry of {was}: 1 of 3 steps reused" in town.ok("runs", "show", run)
    assert f"in run {was}, and is not run again" in town.ok("runs", "why", run, "load")
    assert town.json("runs", "show", was)["state"] == "FAILED"


def test_a_run_is_forked_from_a_step_with_another_input_or_with_another_definition(town: Place, order: Order) -> None:
    order.open("two")
    given = json.dumps({"gate": f"{order.name}-two"})
    was = town.ok("run", str(order.path), "--input", given).strip()
    assert town.cli("runs", "watch", was).returncode == 0
    edited = order.path.with_name("edited.yaml")
    edited.write_text(order.path.read_text().replace("amount: load", "amount: load * 10"))
    order.open("three")
    other = json.dumps({"gate": f"{order.name}-three"})
    cases = {
        ("--from", "tell"): (f"{order.name}-two", 7, 2),
        ("--input", other): (f"{order.name}-three", 7, 1),
        ("--workflow", str(edited)): (f"{order.name}-two", 70, 3),
    }
    for options, (gate, amount, reused) in cases.items():
        made = town.json("runs", "fork", was, *options)
        assert (made["created"], made["reused"], made["steps"]) == (True, reused, 3)
        assert town.cli("runs", "watch", made["id"]).returncode == 0
        assert town.json("runs", "show", made["id"])["output"] == {"gate": gate, "amount": amount}
    assert (order.calls("load"), order.calls("tell")) == (1, 3)


def test_what_cannot_be_done_again_is_refused_in_words(town: Place, order: Order) -> None:
    order.open("four")
    run = town.ok("run", str(order.path), "--input", json.dumps({"gate": f"{order.name}-four"})).strip()
    assert town.cli("runs", "watch", run).returncode == 0
    broken = order.path.with_name("broken.yaml")
    broken.write_text(order.path.read_text().replace("needs: [load]", "needs: [laod]"))
    cases = {
        ("retry", run): (1, "NOTHING_TO_RETRY", "--from STEP"),
        ("retry", "nobody"): (4, "UNKNOWN_RUN", "runs list"),
        ("fork", run): (3, "INVALID_INPUT", "name a step to begin with"),
        ("fork", run, "--from", "tel"): (4, "UNKNOWN_STEP", "did you mean 'tell'"),
        ("fork", run, "--input", "{}"): (3, "INVALID_INPUT", "gate"),
        ("fork", run, "--workflow", str(broken)): (3, "UNKNOWN_STEP", "did you mean 'load'"),
        ("fork", run, "--workflow", "market_entry"): (3, "INVALID_INPUT", "not of 'market_entry'"),
    }
    for words, (code, name, hint) in cases.items():
        done = town.cli("runs", *words)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert name in done.stderr
        assert hint in done.stderr


def test_a_run_that_waits_for_a_decision_is_not_retried_before_it_has_ended(town: Place, tmp_path: Path) -> None:
    path = tmp_path / "held.yaml"
    path.write_text("workflow: held\nversion: 1\nsteps: {sign: {approval: {title: Go on?}}}\n")
    run = town.ok("run", str(path)).strip()
    done = town.cli("runs", "retry", run)
    assert (done.returncode, "RUN_NOT_ENDED" in done.stderr, "cancel it first" in done.stderr) == (1, True, True)
    town.ok("runs", "cancel", run)
    assert town.cli("runs", "watch", run).returncode == 1
    again = town.ok("runs", "retry", run).strip()
    wait_until(lambda: town.state(again, "sign") == "BLOCKED", timeout=30)
    town.ok("runs", "signal", again, "sign", "--approve")
    assert town.cli("runs", "watch", again).returncode == 0


def test_all_failed_runs_of_a_workflow_are_redriven_once(town: Place, order: Order) -> None:
    runs = [order.failed(gate) for gate in ("a", "b")]
    order.open("a")
    listed = town.json("runs", "redrive", "--workflow", order.name, "--dry-run")
    assert [one["run"] for one in listed] == runs
    assert "2 runs would be retried" in town.ok("runs", "redrive", "--workflow", order.name, "--dry-run")
    assert town.json("runs", "redrive", "--workflow", order.name, "--quarantined") == []
    assert town.json("runs", "redrive", "--workflow", order.name, "--since", "2090-01-01") == []
    done = town.json("runs", "redrive", "--workflow", order.name, "--since", "1h")
    assert [(one["run"], one["reused"], one["steps"]) for one in done] == [(run, 1, 3) for run in runs]
    good, bad = (one["new"] for one in done)
    assert town.cli("runs", "watch", good).returncode == 0
    assert town.cli("runs", "watch", bad).returncode == 1
    again = town.json("runs", "redrive", "--workflow", order.name)
    assert [one["run"] for one in again] == [bad], "those that were retried are not retried again"
    assert town.cli("runs", "watch", again[0]["new"]).returncode == 1
    assert order.calls("load") == 2, "once for each of the two first runs"


def test_the_python_client_retries_and_forks_a_run_by_a_key_once(town: Place, order: Order) -> None:
    was = order.failed("five")
    order.open("five")
    with Client(town.redis_url, submitter="ann") as client:
        run = client.run(was).retry(key=order.name)
        assert run.id != was
        assert run.result("30s") == {"gate": f"{order.name}-five", "amount": 7}
        assert client.run(was).retry(key=order.name).result("30s") == run.result("30s")
        assert order.calls("tell") == 1
        again = run.fork("tell")
        assert again.result("30s") == run.result("30s")
        other = run.fork(input={"gate": f"{order.name}-never"})
        with pytest.raises(errors.RunFailed, match="there is no"):
            other.result("30s")
        with pytest.raises(errors.NothingToRetry, match="has succeeded"):
            run.retry()
        with pytest.raises(errors.UnknownStep):
            run.fork("tel")
    assert (order.calls("load"), order.calls("tell")) == (1, 2)
    assert town.json("runs", "show", again.id)["submitter"] == "ann"
