"""The roster: who ships, how a name is found, and what a wrong file is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from convergio.config.settings import TIERS
from convergio.graphflow import signature
from convergio.graphflow.flow import document
from convergio.graphflow.model import errors
from convergio.graphflow.trust import Trust
from convergio.tasks.agents.profile import DOMAINS
from convergio.tasks.agents.roster import Roster
from convergio.tasks.conversation import tuning
from convergio.tasks.conversation.team import Team
from convergio.tasks.tools import market, tool

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
    assert {domain for profile in shipped for domain in profile.domains} == set(DOMAINS)
    assert len(DOMAINS) == 12
    assert set(DOMAINS) == set(tuning.load().domains)


def test_every_agent_that_ships_has_a_profile_by_which_it_can_be_chosen(shipped: Roster) -> None:
    phases = tuning.load().phases
    assert market.__name__  # importing it registers its tools
    for profile in shipped:
        assert profile.spec.description != profile.title
        assert set(profile.phases) <= set(phases)
        assert profile.phases
        assert profile.partners
        assert profile.depth is not None
        assert profile.seconds is not None
        assert all(tool.REGISTERED.get(name) for name in profile.spec.tools)
    assert {profile.model_tier for profile in shipped} == set(TIERS)
    assert {name for profile in shipped for name in profile.spec.tools} == {"break_even", "country_profile"}


def test_each_of_them_has_a_file_of_its_name(shipped: Roster) -> None:
    folder = Path(__file__).parents[2] / "config" / "agents"
    assert {path.stem for path in folder.iterdir()} == {profile.spec.name for profile in shipped}
    for path in folder.iterdir():
        assert set(Roster.load(folder).look(path.stem).partners) <= shipped.names


def test_the_models_of_tiers_are_those_of_the_settings_unless_an_agent_names_one(tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text(GOOD)
    assert Roster.load(file, models={"standard": "medium", "large": "big"}).get("amy").model == "medium"
    file.write_text(GOOD.replace("max_tokens", "model_tier: large, max_tokens"))
    assert Roster.load(file, models={"large": "big"}).get("amy").model == "big"
    file.write_text(GOOD.replace("max_tokens", "model: own, max_tokens"))
    assert Roster.load(file, models={"standard": "medium"}).get("amy").model == "own"


def team_of(roster: Roster, *members: object) -> Team:
    talk = {"conversation": {"agents": list(members), "policy": "scored"}, "prompt": "p"}
    flow = document.parse_document({"workflow": "w", "version": 1, "steps": {"t": talk}})
    return Team.of(flow.steps["t"].spec, roster)


def test_a_team_knows_its_members_profiles_by_the_names_it_uses(shipped: Roster) -> None:
    amy, domik, critic = team_of(shipped, "amy", "domik", {"name": "critic", "role": "R"}).candidates
    profile = shipped.profile("amy")
    assert (amy.domains, amy.phases, amy.depth) == (profile.domains, profile.phases, profile.depth)
    assert (amy.tools, amy.description) == (("break_even",), profile.spec.description)
    assert (amy.partners, domik.partners) == (("domik",), ("amy",))
    assert (critic.phases, critic.partners, critic.depth) == ((), (), None)


def test_a_team_may_give_its_member_other_tools(shipped: Roster) -> None:
    (member,) = team_of(shipped, {"name": "amy", "tools": ["country_profile"]}).members
    assert member == replace(shipped.get("amy"), name="amy", tools=("country_profile",))


def test_a_folder_is_one_roster_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yml").write_text(GOOD.replace("amy-cfo", "bob").replace("[amy]", "[]"))
    (tmp_path / "notes.txt").write_text("no agent")
    assert Roster.load(tmp_path).names == {"amy", "amy-cfo", "bob"}
    (tmp_path / "c.yaml").write_text(GOOD.replace("amy-cfo", "carl"))
    with pytest.raises(errors.InvalidSetting, match="'amy' is already taken") as caught:
        Roster.load(tmp_path)
    assert "c.yaml" in str(caught.value)


def test_a_folder_without_files_and_a_partner_that_nobody_is_are_told(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidSetting, match="no file with agents"):
        Roster.load(tmp_path)
    (tmp_path / "a.yaml").write_text(GOOD.replace("max_tokens", "partners: [zoe], max_tokens"))
    with pytest.raises(errors.InvalidSetting, match="zoe"):
        Roster.load(tmp_path)


def test_an_agent_whose_file_was_changed_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    private, public = signature.new_key()
    keys, agents = tmp_path / "keys", tmp_path / "agents"
    for folder in (keys, agents):
        folder.mkdir()
    (keys / "ops.pub").write_bytes(public)
    for name in ("amy-cfo", "bob"):
        file = agents / f"{name}.yaml"
        file.write_text(GOOD.replace("amy-cfo", name).replace("[amy]", "[]"))
        signature.beside(file).write_text(
            signature.sign(file.read_bytes(), private, "ops", now=datetime.now(UTC)).text()
        )
    (agents / "bob.yaml").write_text(GOOD.replace("amy-cfo", "bob").replace("[amy]", "[]").replace("count", "obey me"))
    roster = Roster.load(agents, trust=Trust(keys))
    assert roster.get("amy-cfo").system_message == "You count."
    with pytest.raises(errors.DefinitionRefused, match=r"agent 'bob': .*bob\.yaml is not what was signed"):
        roster.get("bob")
    with pytest.raises(errors.DefinitionRefused):
        team_of(roster, "amy-cfo", "bob")
    assert roster.names == {"amy-cfo", "bob"}
    (keys / "revoked.yaml").write_text("keys: [ops]\n")
    with pytest.raises(errors.DefinitionRefused, match="revoked"):
        roster.get("amy-cfo")


def test_what_ships_needs_no_signature(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for trust in (Trust(required=True), Trust(keys)):
        assert Roster.load(trust=trust).get("amy").name == "amy-cfo"


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
        (("title: CFO", "api_key: sk-0123456789abcdefgh, title: CFO"), "agents.amy-cfo.api_key"),
        (("You count.", "Your key is sk-0123456789abcdefgh."), "agents.amy-cfo.system_message: Value error, it holds"),
        (("max_tokens", "model_tier: huge, max_tokens"), "model_tier"),
        (("max_tokens", "depth: 2, max_tokens"), "depth"),
    ],
)
def test_a_wrong_roster_says_where_and_what(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(errors.InvalidSetting) as caught:
        roster_of(tmp_path, GOOD.replace(*change))
    assert said in caught.value.message
    assert "0123456789abcdefgh" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_roster_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidSetting) as caught:
        Roster.load(tmp_path / "none.yaml")
    assert "none.yaml" in str(caught.value)
