"""Flower, the real one, on a real run: steps under readable names, with their states, without a word of a prompt."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from convergio.graphflow import library
from convergio.graphflow.board.keys import Epoch
from convergio.tasks.bell import doorbell_id
from tests.acceptance.town import Place, going, stack
from tests.servers import free_port
from tests.waiting import wait_until

MINE = re.compile(r"Velomare|electric bicycles|Poland|Scripted answer|Describe in one", re.IGNORECASE)
"""Words of the brief, of prompts and of answers."""

ANN = "Basic YW5uOnNlY3JldA=="


@dataclass(frozen=True)
class Flower:
    """Its HTTP API."""

    port: int

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def tasks(self, run: str) -> dict[str, dict[str, Any]]:
        """The tasks of a run by their readable name."""
        status, body = self.ask("/api/tasks")
        assert status == 200, body
        return {task["name"]: task for task in json.loads(body).values() if task["root_id"] == run}

    def state(self, run: str, name: str) -> str:
        return str(self.tasks(run).get(name, {}).get("state", ""))


@pytest.fixture
def place(new_place: Place) -> Place:
    """A place whose Flower has a port of its own."""
    return Place(home=new_place.home, extra={**new_place.extra, "CONVERGIO_FLOWER_PORT": str(free_port())})


@pytest.fixture
def flower(place: Place) -> Iterator[Flower]:
    """`convergio up --flower`."""
    with stack(place, "--flower") as town:
        url = next(line.split()[1] for line in town.said if "Flower" in line)
        assert place.running["urls"]["flower"] == url
        yield Flower(int(url.rsplit(":", 1)[1]))


def test_steps_show_under_readable_names_with_their_states_and_without_prompts(place: Place, flower: Flower) -> None:
    run = place.ok("run", "market_entry", "--brief").strip()
    wait_until(lambda: flower.state(run, "market_entry/sign_off") == "BLOCKED", timeout=60)
    tasks = flower.tasks(run)
    done = {"country_data", "break_even", "market_research", "entry_strategy", "risk_assessment", "financial_modeling"}
    done |= {"entry_strategy#1", "entry_strategy#2"}  # the turns of a team
    assert {name.removeprefix("market_entry/") for name in tasks} == done | {"sign_off"}
    assert {tasks[f"market_entry/{name}"]["state"] for name in done} == {"SUCCESS"}
    place.ok("runs", "signal", run, "sign_off", "--approve")
    wait_until(lambda: flower.state(run, "market_entry/sign_off") == "SUCCESS", timeout=30)
    wait_until(lambda: flower.state(run, "market_entry/implementation_planning") == "SUCCESS", timeout=30)
    assert all(task["worker"].endswith("@convergio") for task in flower.tasks(run).values())
    for path in ("/api/tasks", *(f"/api/task/info/{task['uuid']}" for task in flower.tasks(run).values())):
        status, body = flower.ask(path)
        assert status == 200
        assert MINE.findall(body) == []


def test_rejected_failed_and_cancelled_steps_show_as_what_they_are(place: Place, flower: Flower) -> None:
    (place.home / "flow.yaml").write_text(
        "workflow: flow\nversion: 1\nsteps:\n  pay: {task: demo.fail, with: {message: \"'no'\"}}\n"
    )
    failing = place.ok("run", str(place.home / "flow.yaml")).strip()
    wait_until(lambda: flower.state(failing, "flow/pay") == "FAILURE", timeout=60)
    (place.home / "sign.yaml").write_text("workflow: sign\nversion: 1\nsteps: {sign: {approval: {}}}\n")
    for command, state in ((["signal", "sign", "--reject"], "FAILURE"), (["cancel"], "CANCELLED")):
        run = place.ok("run", str(place.home / "sign.yaml")).strip()
        wait_until(lambda run=run: flower.state(run, "sign/sign") == "BLOCKED", timeout=60)  # type: ignore[misc]
        place.ok("runs", command[0], run, *command[1:])
        wait_until(lambda run=run, state=state: flower.state(run, "sign/sign") == state, timeout=60)  # type: ignore[misc]


def test_a_submission_by_the_client_shows_names_and_never_its_input(place: Place, flower: Flower) -> None:
    from convergio.graphflow import Client

    with Client(place.redis_url) as client:
        brief = library.brief("market_entry")
        assert brief is not None
        run = client.start("market_entry", json.loads(brief.read_text()))
        wait_until(lambda: flower.state(run.id, "convergio.submit") == "SUBMITTED", timeout=30)
        wait_until(lambda: flower.state(run.id, "market_entry/sign_off") == "BLOCKED", timeout=60)
        run.signal("sign_off", {"decision": "approve", "reason": "Velomare can do it"})
        wait_until(lambda: flower.state(run.id, "convergio.submit") == "SUCCESS", timeout=60)
    assert "'workflow': 'market_entry'" in flower.tasks(run.id)["convergio.submit"]["kwargs"]
    assert MINE.findall(flower.ask("/api/tasks")[1]) == []


def test_without_a_password_it_is_read_only_on_this_machine(place: Place, flower: Flower) -> None:
    assert flower.ask("/api/workers")[0] == 200
    assert flower.ask("/api/worker/shutdown/any", "POST")[0] == 403
    refused = place.cli("flower", "--address", "0.0.0.0", "--port", "0")
    assert refused.returncode == 3
    assert "INVALID_SETTING  Flower on 0.0.0.0 would be open to everybody" in refused.stderr
    taken = place.cli("flower", "--port", str(flower.port))
    assert taken.returncode == 3
    assert f"port {flower.port} is taken" in taken.stderr


def test_with_a_password_it_asks_for_it_and_revokes_tasks(town: Place) -> None:
    env = {**town.env, "FLOWER_BASIC_AUTH": "ann:secret"}
    with going("flower", "--port", "0", env=env) as running:
        port = int(running.wait_for("Flower: http://127.0.0.1:").split()[1].rsplit(":", 1)[1])
        flower = Flower(port)
        wait_until(lambda: _answers(flower), timeout=60)
        assert flower.ask("/api/tasks")[0] == 401
        assert flower.ask("/api/tasks", Authorization=ANN)[0] == 200
        (town.home / "sign.yaml").write_text("workflow: sign\nversion: 1\nsteps: {sign: {approval: {}}}\n")
        run = town.ok("run", str(town.home / "sign.yaml")).strip()
        wait_until(lambda: "waits for a decision" in town.ok("runs", "why", run), timeout=60)
        path = f"/api/task/revoke/{doorbell_id(run, 'sign', f'{epoch_of(town)}.1')}?terminate=true"
        assert flower.ask(path, "POST")[0] == 401
        assert flower.ask(path, "POST", Authorization=ANN)[0] == 200
        wait_until(lambda: "ended as CANCELLED" in town.ok("runs", "why", run), timeout=60)


def epoch_of(town: Place) -> int:
    """The number of the board, which every doorbell's id has."""
    with town.redis() as client:
        return Epoch.parse(str(client.get("convergio:epoch"))).number


def _answers(flower: Flower) -> bool:
    try:
        return flower.ask("/healthcheck")[0] == 200
    except OSError:
        return False
