"""A worker asks only agents whose definition counts; a step of another one says why it does not, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from convergio.graphflow import signature
from convergio.graphflow.flow import document
from convergio.graphflow.journal.revoked import Recent
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.graphflow.trust import Trust
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.step import Agents
from convergio.tasks.agents.tables import model_calls
from convergio.workers import cli
from tests.integration.engine_rig import QUIET, Stage, Worker, stage_on
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = QUIET

DEFINITION = """
agents:
  zoe: {title: Tester, tier: tests, domains: [product], system_message: You test.}
"""


class Office:
    """A roster of one signed agent, and the folder of trusted keys."""

    def __init__(self, root: Path) -> None:
        self.file, self.keys = root / "zoe.yaml", root / "trusted"
        self.keys.mkdir()
        private, public = signature.new_key()
        (self.keys / "ops.pub").write_bytes(public)
        self.file.write_text(DEFINITION)
        signed = signature.sign(self.file.read_bytes(), private, "ops", now=datetime.now(UTC))
        signature.beside(self.file).write_text(signed.text())

    def hire(self, stage: Stage) -> None:
        """The workers read the roster as it is now."""
        for worker in stage.workers:
            roster = Roster.load(self.file, trust=Trust(self.keys))
            worker.process.agents = Agents(roster=roster, model=ModelSettings())

    def tamper(self) -> None:
        self.file.write_text(DEFINITION.replace("You test.", "You obey."))

    def revoke(self) -> None:
        (self.keys / "revoked.yaml").write_text("keys: [ops]\n")


@pytest.fixture
def office(tmp_path: Path) -> Office:
    (tmp_path / "office").mkdir()
    return Office(tmp_path / "office")


def one_step(step: dict[str, Any]) -> Workflow:
    return document.parse_document({"workflow": "asking", "version": 1, "steps": {"it": step}})


ASKED = {"agent": "zoe", "prompt": "How?", "retry": 2}
SPOKEN = {"conversation": {"agents": ["zoe"], "stop": {"turns": 1}}, "prompt": "How?", "retry": 2}


def error_of(stage: Stage, step: dict[str, Any]) -> Mapping[str, Any] | None:
    """What the one step's run ended with."""
    ref = stage.submit(one_step(step), {})
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state in (RunState.FAILED, RunState.SUCCEEDED)
    outcome = next(iter(stage.outcomes(ref).values()))
    return outcome.error


def paid(stage: Stage) -> int:
    with stage.store.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(model_calls)).scalar_one()


@pytest.mark.parametrize("step", [ASKED, SPOKEN], ids=["agent", "conversation"])
def test_a_step_of_an_agent_whose_file_was_changed_says_so_and_asks_nobody(
    stage: Stage, office: Office, step: dict[str, Any]
) -> None:
    office.tamper()
    office.hire(stage)
    error = error_of(stage, step)
    assert error is not None
    assert error["code"] == "DEFINITION_REFUSED"
    assert "agent 'zoe'" in error["message"]
    assert "zoe.yaml is not what was signed" in error["message"]
    assert "convergio agents sign" in error["hint"]
    assert paid(stage) == 0


def test_a_revocation_reaches_a_worker_that_runs(stage: Stage, office: Office) -> None:
    office.hire(stage)
    assert error_of(stage, ASKED) is None
    office.revoke()
    error = error_of(stage, ASKED)
    assert error is not None
    assert error["code"] == "DEFINITION_REFUSED"
    assert "revoked" in error["message"]


# --- revocations of the journal ---------------------------------------------------------------------------------------


@pytest.fixture
def branch(valkey: str, journal_url: str, tmp_path: Path, office: Office) -> Iterator[Stage]:
    """Two workers, each with its own copy of the roster; what they share is the journal. On each database."""
    settings = {"agents": str(office.file), "trusted_keys": str(office.keys)}
    with stage_on(valkey, journal_url, tmp_path, **settings) as made:
        made.another_worker()
        yield made


def refused_by(worker: Worker, code: str = "DEFINITION_REFUSED") -> Callable[[], bool]:
    """Whether this worker does not ask the agent any more."""

    def asked() -> bool:
        try:
            worker.process.agents.roster.get("zoe")
        except errors.ConvergioError as error:
            return error.code == code
        return False

    return asked


@pytest.mark.parametrize("what", [["--key", "ops"], ["FILE"]], ids=["key", "definition"])
def test_a_revocation_in_the_journal_reaches_every_worker_that_runs(
    branch: Stage, office: Office, monkeypatch: pytest.MonkeyPatch, what: list[str]
) -> None:
    assert [refused_by(worker)() for worker in branch.workers] == [False, False]
    monkeypatch.setenv("CONVERGIO_JOURNAL_URL", branch.settings.journal_url)
    given = [str(office.file) if one == "FILE" else one for one in what]
    assert cli.main(["agents", "revoke", *given, "--reason", "a key was lost"]) == 0
    for worker in branch.workers:
        wait_until(refused_by(worker), timeout=10)
    branch.wipe()
    branch.rebuild()
    error = error_of(branch, ASKED)
    assert error is not None
    assert error["code"] == "DEFINITION_REFUSED"
    assert "revoked" in error["message"]
    assert "convergio agents revoked" in error["hint"]
    assert paid(branch) == 0


def outcome_of(crew: Crew, queue: str) -> str:
    """What the one worker that serves this queue makes of a question: an error's code, or that the agent was asked."""
    ref = crew.submit(one_step({**ASKED, "queue": queue}))
    wait_until(lambda: crew.ended(ref), timeout=30)
    (outcome,) = crew.history.outcomes(ref.run, ["it"])
    return str(outcome.error["code"]) if outcome.error else "asked"


def refuses(crew: Crew, queue: str) -> bool:
    return outcome_of(crew, queue) == "DEFINITION_REFUSED"


@pytest.mark.slow
def test_a_revocation_reaches_every_process_that_runs(
    valkey: str, sqlite_url: str, tmp_path: Path, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = {"agents": str(office.file), "trusted_keys": str(office.keys)}
    with crew_on(valkey, sqlite_url, tmp_path, **signed) as crew:
        workers = {queue: crew.started(queue, queues=queue, **signed) for queue in ("steps", "tools")}
        assert [outcome_of(crew, queue) for queue in workers] == ["asked", "asked"]
        monkeypatch.setenv("CONVERGIO_JOURNAL_URL", sqlite_url)
        assert cli.main(["agents", "revoke", "--key", "ops", "--reason", "a key was lost"]) == 0
        for queue, process in workers.items():
            wait_until(partial(refuses, crew, queue), timeout=15)
            assert process.poll() is None, "nobody restarted it"


def test_a_new_key_counts_where_the_old_one_was_revoked(
    branch: Stage, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVERGIO_JOURNAL_URL", branch.settings.journal_url)
    private, public = signature.new_key()
    (office.keys / "ops2.pub").write_bytes(public)
    assert cli.main(["agents", "revoke", "--key", "ops", "--reason", "rotated"]) == 0
    signed = signature.sign(office.file.read_bytes(), private, "ops2", now=datetime.now(UTC))
    signature.beside(office.file).write_text(signed.text())
    newcomer = branch.another_worker()
    assert not refused_by(newcomer)()
    for worker in branch.workers[:2]:
        wait_until(refused_by(worker), timeout=10)


def test_what_was_revoked_holds_while_sql_is_away_and_is_asked_for_before_anybody_is(office: Office) -> None:
    now, away = [0.0], [False]

    def read() -> signature.Revoked:
        if away[0]:
            raise errors.JournalUnavailable
        return signature.Revoked(keys=frozenset({"ops"}))

    recent = Recent(read, clock=lambda: now[0])
    away[0] = True
    with pytest.raises(errors.JournalUnavailable):
        recent()
    away[0] = False
    assert recent().keys == {"ops"}
    away[0], now[0] = True, 5.0
    assert recent().keys == {"ops"}
    roster = Roster.load(office.file, trust=Trust(office.keys, revoked=recent))
    with pytest.raises(errors.DefinitionRefused, match="revoked"):
        roster.get("zoe")
