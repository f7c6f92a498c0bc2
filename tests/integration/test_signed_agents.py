"""A worker asks only agents whose definition counts; a step of another one says why it does not, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from convergio.graphflow import signature
from convergio.graphflow.flow import document
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.graphflow.trust import Trust
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.step import Agents
from convergio.tasks.agents.tables import model_calls
from tests.integration.engine_rig import QUIET, Stage

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
