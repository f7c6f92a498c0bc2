"""`convergio agents`: from a new key to a signed definition that counts, and to one that does not any more."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from convergio.config import settings
from convergio.graphflow import signature
from convergio.graphflow.flow import document
from convergio.graphflow.flow.known import Known
from convergio.graphflow.library import Catalog
from convergio.graphflow.model import errors
from convergio.graphflow.trust import Trust
from convergio.workers import boot, cli
from convergio.workers.cli import exits, teams

AGENTS = """
agents:
  zoe: {title: Tester, tier: tests, domains: [product], system_message: You test.}
"""
WORKFLOW = """
workflow: mine
version: 1
steps:
  ask: {agent: zoe, prompt: "How?"}
"""


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with a folder of agents, one of workflows and one of trusted keys, as settings say."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"agents/zoe.yaml": AGENTS, "workflows/mine.yaml": WORKFLOW}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    (tmp_path / "trusted").mkdir()
    for name, folder in (("AGENTS", "agents"), ("WORKFLOWS", "workflows"), ("TRUSTED_KEYS", "trusted")):
        monkeypatch.setenv(f"CONVERGIO_{name}", folder)
    return tmp_path


FILES = ("agents/zoe.yaml", "workflows/mine.yaml")


def signed(office: Path) -> None:
    assert cli.main(["agents", "key", "ops", "--out", "private"]) == exits.OK
    (office / "private" / "ops.pub").rename(office / "trusted" / "ops.pub")
    assert cli.main(["agents", "sign", "--key", "private/ops.key", *FILES]) == exits.OK


def test_what_ships_is_listed_without_any_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["agents", "list", "--json"]) == exits.OK
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == 17
    assert {one["definition"] for one in listed} == {"shipped"}
    assert cli.main(["agents", "show", "amy"]) == exits.OK
    assert "tools: break_even" in capsys.readouterr().out.splitlines()
    assert cli.main(["agents", "verify"]) == exits.OK


def test_from_a_new_key_to_definitions_that_count(office: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["agents", "verify"]) == exits.INVALID
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["UNSIGNED", "UNSIGNED"]
    signed(office)
    capsys.readouterr()
    assert cli.main(["agents", "verify", "--json"]) == exits.OK
    assert [(one["state"], one["key"]) for one in json.loads(capsys.readouterr().out)] == [("signed", "ops")] * 2
    assert cli.main(["agents", "list"]) == exits.OK
    assert "signed (ops, " in capsys.readouterr().out


def test_a_private_key_is_its_owners_alone_and_is_not_written_over(
    office: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signed(office)
    private = office / "private" / "ops.key"
    before = private.read_bytes()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert cli.main(["agents", "key", "ops", "--out", "private"]) == exits.TAKEN
    assert private.read_bytes() == before
    assert cli.main(["agents", "key", "../ops"]) == exits.INVALID
    assert "NAME_TAKEN" in capsys.readouterr().err


def test_a_key_that_is_closed_by_a_passphrase_signs_with_it_only(
    office: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERGIO_SIGNING_PASSPHRASE", "secret")
    signed(office)
    monkeypatch.delenv("CONVERGIO_SIGNING_PASSPHRASE")
    assert cli.main(["agents", "sign", "--key", "private/ops.key", *FILES]) == exits.INVALID
    assert "CONVERGIO_SIGNING_PASSPHRASE" in capsys.readouterr().err


@pytest.mark.parametrize("file", FILES)
def test_nobody_signs_what_cannot_be_read(office: Path, file: str) -> None:
    signed(office)
    before = signature.beside(office / FILES[0]).read_text()
    (office / file).write_text("agents: 7\n" if "agents" in file else "workflow: mine\nsteps: {}\n")
    assert cli.main(["agents", "sign", "--key", "private/ops.key", *FILES]) == exits.INVALID
    assert signature.beside(office / FILES[0]).read_text() == before


def test_a_workflow_that_was_changed_is_refused_by_name_and_by_file(
    office: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signed(office)
    mine = office / "workflows" / "mine.yaml"
    catalog = Catalog([mine.parent], trust=Trust(office / "trusted"))
    assert catalog.get("mine").name == "mine"
    mine.write_text(WORKFLOW.replace("How?", "Pay whom?"))
    for name in ("mine", "workflows/mine.yaml"):
        capsys.readouterr()
        assert cli.main(["run", name, "--input", "{}"]) == exits.INVALID
        said = capsys.readouterr().err
        assert said.startswith("DEFINITION_REFUSED  workflows/mine.yaml is not what was signed")
        assert "convergio agents sign" in said
    assert cli.main(["workflows", "list"]) == exits.OK
    (office / "trusted" / "revoked.yaml").write_text("keys: [ops]\n")
    with pytest.raises(errors.DefinitionRefused, match="revoked"):
        catalog.get("mine")


def test_what_ships_or_was_built_runs_where_signatures_are_required() -> None:
    built = document.parse_yaml(WORKFLOW)
    catalog = Catalog(built=[built], trust=Trust(required=True))
    assert catalog.get("mine") is built
    assert catalog.get("market_entry").name == "market_entry"


def test_a_newcomer_signs_nothing(office: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVERGIO_TRUSTED_KEYS")
    assert Catalog([office / "workflows"], trust=Trust()).get("mine").name == "mine"
    assert cli.main(["agents", "show", "zoe"]) == exits.OK
    monkeypatch.setenv("CONVERGIO_REQUIRE_SIGNED", "true")
    assert cli.main(["run", "mine", "--input", "{}"]) == exits.INVALID


@pytest.mark.parametrize("value", ["huge=gpt", "small", "small="])
def test_a_tier_without_a_model_or_a_model_without_a_tier_is_told(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERGIO_MODEL_TIERS", value)
    assert cli.main(["agents", "list"]) == exits.INVALID
    assert "TIER=MODEL" in capsys.readouterr().err


def test_tiers_have_the_models_that_settings_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVERGIO_MODEL_TIERS", "small=gpt-a, large=gpt-b")
    assert cli.main(["agents", "list", "--json"]) == exits.OK
    models = {one["name"]: one["model"] for one in json.loads(capsys.readouterr().out)}
    assert (models["giulia"], models["amy-cfo"], models["wanda"]) == ("gpt-a", "gpt-b", None)


def doctor_on_definitions(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    capsys.readouterr()
    cli.main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    return [(one["level"], one["saw"]) for one in found if one["name"].startswith("definition")]


def test_the_doctor_tells_what_does_not_count_and_what_soon_will_not(
    office: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signed(office)
    assert doctor_on_definitions(capsys) == [("OK", "2 of 2 files of yours count")]
    (office / "agents" / "zoe.yaml").write_text(AGENTS.replace("You test.", "You obey."))
    private = (office / "private" / "ops.key").read_bytes()
    mine = office / "workflows" / "mine.yaml"
    old = datetime.now(UTC) - timedelta(days=350)
    signature.beside(mine).write_text(signature.sign(mine.read_bytes(), private, "ops", now=old).text())
    (refused, _), (warned, said), (_, counted) = doctor_on_definitions(capsys)
    assert (refused, warned, counted) == ("FAIL", "WARN", "1 of 2 files of yours count")
    assert "ends in 14 days" in said
    monkeypatch.delenv("CONVERGIO_TRUSTED_KEYS")
    assert doctor_on_definitions(capsys) == []


def test_workers_verify_what_the_settings_say(office: Path) -> None:
    signed(office)
    process = boot.agents(settings.load(model_name="scripted")), boot.catalog(settings.load())
    assert process[0].roster.get("zoe").system_message == "You test."
    assert process[1].get("mine").name == "mine"
    (office / "trusted" / "ops.pub").unlink()
    for ask in (lambda: process[0].roster.get("zoe"), lambda: process[1].get("mine")):
        with pytest.raises(errors.DefinitionRefused, match="not trusted here"):
            ask()


def test_what_was_revoked_is_shown_with_who_and_why_and_is_found_by_verify(
    office: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVERGIO_JOURNAL_URL", f"sqlite:///{office}/journal.sqlite3")
    signed(office)
    assert cli.main(["agents", "verify"]) == exits.OK
    assert not (office / "journal.sqlite3").exists(), "to look makes no journal"
    assert cli.main(["migrate"]) == exits.OK
    assert cli.main(["agents", "revoke", "agents/zoe.yaml", "--reason", "an old version"]) == exits.OK
    assert cli.main(["agents", "revoke", "agents/zoe.yaml", "--key", "ops", "--reason", "lost"]) == exits.OK
    assert "1 revoked, 1 were before" in capsys.readouterr().out
    assert cli.main(["agents", "verify", "--json"]) == exits.INVALID
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == ["revoked", "revoked"]
    assert cli.main(["agents", "revoked", "--json"]) == exits.OK
    told = json.loads(capsys.readouterr().out)
    assert [(one["kind"], one["reason"]) for one in told] == [("sha256", "an old version"), ("key", "lost")]
    assert told[1]["value"] == "ops"
    for given in ([], ["--sha256", "12"], ["--key", "ops.pub"]):
        assert cli.main(["agents", "revoke", *given, "--reason", "?"]) == exits.USAGE
    assert cli.main(["agents", "revoke", "--key", "opps", "--reason", "?"]) == exits.OK
    assert "no key 'opps' is trusted here" in capsys.readouterr().err


def test_who_cannot_ask_what_was_revoked_calls_nothing_good(
    office: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signed(office)
    (office / "journal.sqlite3").write_text("no database")
    monkeypatch.setenv("CONVERGIO_JOURNAL_URL", f"sqlite:///{office}/journal.sqlite3")
    capsys.readouterr()
    assert cli.main(["agents", "verify"]) not in (exits.OK, exits.INVALID)
    said = capsys.readouterr()
    assert "JOURNAL_UNAVAILABLE" in said.err
    assert said.out == ""
    cli.main(["doctor", "--json"])
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert "JOURNAL_UNAVAILABLE" in told["definitions"]["saw"]


def test_keys_are_rotated_by_the_command_line(office: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERGIO_JOURNAL_URL", f"sqlite:///{office}/journal.sqlite3")
    assert cli.main(["migrate"]) == exits.OK
    signed(office)
    assert cli.main(["agents", "key", "ops2", "--out", "private"]) == exits.OK
    (office / "private" / "ops2.pub").rename(office / "trusted" / "ops2.pub")
    assert cli.main(["agents", "sign", "--key", "private/ops2.key", FILES[0]]) == exits.OK
    assert cli.main(["agents", "verify"]) == exits.OK, "the old key counts beside the new one"
    assert cli.main(["agents", "revoke", "--key", "ops", "--reason", "rotated"]) == exits.OK
    assert cli.main(["agents", "verify", FILES[0]]) == exits.OK
    assert cli.main(["agents", "verify", FILES[1]]) == exits.INVALID
    (office / "trusted" / "ops.pub").unlink()
    assert cli.main(["agents", "sign", "--key", "private/ops2.key", FILES[1]]) == exits.OK
    assert cli.main(["agents", "verify"]) == exits.OK


TEAM = "{team: x, version: 2, agents: [{name: ann, role: You plan.}, zoe]}"


def test_a_teams_file_counts_with_a_signature_where_one_is_needed(office: Path) -> None:
    signed(office)
    file, trust = office / "x.yaml", Trust(office / "trusted")
    file.write_text(TEAM)
    with pytest.raises(errors.DefinitionRefused, match="is not signed"):
        teams.workflow_of(str(file), tools={}, known=Known(), trust=trust)
    assert cli.main(["agents", "sign", "--key", "private/ops.key", "x.yaml"]) == exits.OK
    flow = teams.workflow_of(str(file), tools={}, known=Known(), trust=trust)
    assert [one["name"] for one in flow.steps["talk"].spec["agents"]] == ["ann", "zoe"]
    file.write_text(TEAM.replace("plan", "obey"))
    with pytest.raises(errors.DefinitionRefused, match="is not what was signed"):
        teams.workflow_of(str(file), tools={}, known=Known(), trust=trust)
    file.write_text("{team: x, version: 2}")
    assert cli.main(["agents", "sign", "--key", "private/ops.key", "x.yaml"]) == exits.INVALID
