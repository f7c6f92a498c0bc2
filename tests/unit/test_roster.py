"""The roster: who ships, how a name is found, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from convergio.graphflow.model import errors
from convergio.tasks.agents.roster import Roster

GOOD = """
domains: [finance]
agents:
  amy-cfo: {aliases: [amy], title: CFO, tier: strategy, domains: [finance], system_message: You count., max_tokens: 40}
"""


@pytest.fixture
def shipped() -> Roster:
    return Roster.load()


def roster_of(tmp_path: Path, text: str) -> Roster:
    file = tmp_path / "agents.yaml"
    file.write_text(text)
    return Roster.load(file)


def test_seventeen_agents_ship_and_cover_twelve_domains(shipped: Roster) -> None:
    assert len(shipped) == 17
    assert len({domain for profile in shipped for domain in profile.domains}) == 12


def test_every_agent_has_a_short_system_message_of_its_own(shipped: Roster) -> None:
    messages = [profile.spec.system_message for profile in shipped]
    assert len(set(messages)) == len(messages)
    assert all(2 <= message.count(".") <= 4 and len(message) < 200 for message in messages)


def test_an_alias_finds_the_same_agent(shipped: Roster) -> None:
    assert shipped.get("amy") is shipped.get("amy-cfo")
    assert "ali" in shipped
    assert {"ali", "ali-chief-of-staff"} <= shipped.names
    assert [profile.spec.name for profile in shipped].count("amy") == 0


def test_an_unknown_agent_is_told_the_nearest_name(shipped: Roster) -> None:
    with pytest.raises(errors.UnknownAgent) as caught:
        shipped.get("wnada")
    assert caught.value.hint == "did you mean 'wanda'?"


def test_an_unknown_agent_far_from_every_name_is_told_all_of_them(shipped: Roster) -> None:
    with pytest.raises(errors.UnknownAgent) as caught:
        shipped.get("zzzzzzzz")
    assert "domik" in (caught.value.hint or "")


def test_a_roster_of_ones_own_replaces_the_shipped_one(tmp_path: Path) -> None:
    spec = roster_of(tmp_path, GOOD).get("amy")
    assert (spec.name, spec.description, spec.system_message, spec.max_tokens) == ("amy-cfo", "CFO", "You count.", 40)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("domains: [finance], system", "domains: [magic], system"), "magic"),
        (("title: CFO, ", ""), "agents.amy-cfo.title"),
        (("amy-cfo:", "amy cfo:"), "amy cfo"),
        (("aliases: [amy]", "aliases: [amy-cfo]"), "already taken"),
        (("max_tokens: 40", "max_tokens: 0"), "max_tokens"),
        (("max_tokens", "max_tokns"), "max_tokns"),
        (("agents:", "agents"), "cannot be read"),
    ],
)
def test_a_wrong_roster_says_where_and_what(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(errors.InvalidSetting) as caught:
        roster_of(tmp_path, GOOD.replace(*change))
    assert said in caught.value.message
    assert str(tmp_path) in str(caught.value)


def test_a_missing_roster_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidSetting) as caught:
        Roster.load(tmp_path / "none.yaml")
    assert "none.yaml" in str(caught.value)
