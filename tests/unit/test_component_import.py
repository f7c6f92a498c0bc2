"""AutoGen's documents become ours by an allow-list: nothing is executed, nothing is lost in silence."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from convergio.benchmarks import casts, lookups
from convergio.benchmarks.casts import assistant, component, condition, edge, replaying, team
from convergio.graphflow.flow import component_team, document, teamfile
from convergio.graphflow.flow.known import Known
from convergio.graphflow.model import errors
from convergio.graphflow.trust import Trust
from convergio.workers import cli
from convergio.workers.cli import exits, teams

OPENAI = "autogen_ext.models.openai.OpenAIChatCompletionClient"


def pair(**config: Any) -> dict[str, Any]:
    """Ann and Bob take turns."""
    return team("RoundRobinGroupChat", [assistant("ann", ["a"]), assistant("bob", ["b"])], **config)


def problems(given: Any, **more: Any) -> list[str]:
    with pytest.raises(errors.InvalidTeam) as caught:
        component_team.read(given, **more)
    return [f"{one.code} {one.path}" for one in caught.value.problems]


def changed(given: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The same team, with another value at this place of its config."""
    made = copy.deepcopy(given)
    here: Any = made["config"]
    *above, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    for part in above:
        here = here[part]
    here[last] = value
    return made


def client(**config: Any) -> dict[str, Any]:
    return component(OPENAI, {"model": "gpt-4o", **config})


FIRST = "config.participants[0]"


REFUSED: list[tuple[str, Any, str]] = [
    ("max_turns", 0, "BAD_VALUE config.max_turns"),
    ("selector_func", "x", "CALLABLE config.selector_func"),
    ("participants", [], "BAD_VALUE config.participants"),
    ("rounds", 3, "WOULD_BE_LOST config.rounds"),
    ("termination_condition", condition("FunctionalTermination"), "INVALID_TERMINATION"),
    ("participants.0.provider", "os.system", f"UNSUPPORTED_COMPONENT {FIRST}.provider"),
    ("participants.0.component_version", 1, f"UNSUPPORTED_VERSION {FIRST}.component_version"),
    ("participants.0", pair(), f"UNSUPPORTED_COMPONENT {FIRST}.provider"),
    ("participants.0.config.tool_call_summary_format", "{x}", "WOULD_BE_LOST"),
    ("participants.0.config.memory", [{"provider": "x", "config": {}}], f"WOULD_BE_LOST {FIRST}.config.memory"),
    ("participants.0.config.structured_message_factory", {}, "WOULD_BE_LOST"),
    ("participants.0.config.system_message", None, f"MISSING_FIELD {FIRST}.config.system_message"),
    ("participants.0.config.handoffs", [{"target": "bob", "message": "Go on"}], "WOULD_BE_LOST"),
    ("participants.0.config.handoffs", [{"target": "bob", "name": "go"}], "WOULD_BE_LOST"),
    ("participants.0.config.model_context", component("autogen_core.model_context.X", {}), "UNSUPPORTED"),
    ("participants.0.config.system_message", "sk-" + "x" * 20, f"SECRET {FIRST}.config.system_message"),
    ("participants.0.config.model_client", client(api_key="real"), "SECRET"),
    ("participants.0.config.model_client", client(base_url="http://there"), "WOULD_BE_LOST"),
    ("participants.0.config.model_client", client(top_p=0.5), "WOULD_BE_LOST"),
    ("participants.0.config.model_client", component("autogen_ext.models.cache.ChatCompletionCache", {}), "UNS"),
    ("participants.0.config.model_client", replaying([]), "BAD_VALUE"),
    ("participants.0.config.workbench", [component("autogen_ext.tools.mcp.McpWorkbench", {})], "UNSUPPORTED"),
]


@pytest.mark.parametrize(("place", "value", "told"), REFUSED)
def test_what_would_be_lost_or_executed_is_refused_at_its_place(place: str, value: Any, told: str) -> None:
    found = problems(changed(pair(max_turns=2), place, value))
    assert len(found) == 1
    assert found[0].startswith(told)


def _first(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["participants"][0]["config"]
    return found


def test_all_problems_of_a_document_come_at_once_with_hints() -> None:
    given = pair(max_turns=-1, termination_condition=condition("Nothing"), selector_func="f")
    _first(given["config"]).update(memory=[1], tool_call_summary_format="x")
    with pytest.raises(errors.InvalidTeam) as caught:
        component_team.read(given, source="team.json")
    assert len(caught.value.problems) == 5
    assert all(one.hint for one in caught.value.problems)
    assert str(caught.value).count("team.json: config") == 5


@pytest.mark.parametrize("given", [None, [], {}, {"provider": "x"}, {"provider": 3, "config": {}}, "text"])
def test_what_is_no_component_is_refused(given: Any) -> None:
    assert problems(given)[0].split()[0] in ("BAD_COMPONENT", "UNSUPPORTED_COMPONENT")


def test_a_tools_source_is_never_executed_and_a_registered_tool_takes_its_place(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    tool = lookups.component("stock")
    tool["config"]["source_code"] = f"open({str(trap)!r}, 'w').write('x')\n{tool['config']['source_code']}"
    bench = component("autogen_core.tools.StaticStreamWorkbench", {"tools": [tool]})
    given = team("RoundRobinGroupChat", [assistant("ann", ["a"], workbench=[bench])], max_turns=1)
    assert problems(given) == [f"SOURCE_CODE {FIRST}.config.workbench[0].config.tools[0].config.source_code"]
    made = component_team.read(given, tools={"stock": "stock"})
    assert made.document["agents"][0]["tools"] == ["stock"]
    assert "source_code" not in json.dumps(made.document)
    assert not trap.exists()


def test_reading_imports_nothing_of_autogens() -> None:
    code = (
        "import json, sys; from convergio.graphflow.flow import component_team; "
        "component_team.read(json.load(sys.stdin)); "
        "sys.exit(any(name.startswith('autogen') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(pair(max_turns=1)), text=True, check=False)
    assert done.returncode == 0


def test_a_masked_key_becomes_a_reference_to_the_workers_own() -> None:
    given = changed(pair(max_turns=1), "participants.0.config.model_client", client(api_key="**********"))
    made = component_team.read(given)
    assert teamfile.parse(made.document).document["agents"][0]["model"] == "openai/gpt-4o"
    assert "*" not in json.dumps(made.document)
    assert any("api_key is masked" in note for note in made.notes)


def test_magentic_one_is_refused_with_its_reason() -> None:
    given = team("MagenticOneGroupChat", [assistant("ann", ["a"])])
    with pytest.raises(errors.InvalidTeam, match="ledger of facts, plan and stalls"):
        component_team.read(given)


def test_a_selector_says_how_it_is_asked() -> None:
    given = team(
        "SelectorGroupChat",
        [assistant("ann", ["a"]), assistant("bob", ["b"])],
        model_client=client(),
        selector_prompt="Who of {participants}?",
        allow_repeated_speaker=True,
        max_selector_attempts=2,
    )
    made = component_team.read(given)
    asked = {"model": "openai/gpt-4o", "prompt": "Who of {participants}?", "attempts": 2}
    assert made.document["selector"] == {**asked, "repeat": True, "otherwise": "same"}
    assert any("selector_func" in note for note in made.notes)


def drawn(edges: dict[str, list[Any]], **config: Any) -> dict[str, Any]:
    """A GraphFlow of agents with these names and edges."""
    nodes = {name: {"name": name, "edges": targets, "activation": "all"} for name, targets in edges.items()}
    agents = [assistant(name, ["x"]) for name in edges]
    return team("GraphFlow", agents, graph={"nodes": nodes, "default_start_node": None}, **config)


def test_a_graph_that_nothing_ends_early_becomes_steps_that_run_at_once() -> None:
    given = drawn({"ann": [edge("bob"), edge("cem", "C")], "bob": [edge("dora")], "cem": [edge("dora")], "dora": []})
    made = component_team.read(given)
    flow = document.parse_document(made.document)
    assert made.kind == "workflow"
    assert [one.when for one in flow.steps["cem"].needs] == ['ann.text.contains("C")']
    assert flow.steps["dora"].spec["hears"] == ["ann", "bob", "cem"]


@pytest.mark.parametrize(
    "given",
    [
        drawn({"ann": [edge("bob")], "bob": []}, max_turns=5),
        drawn({"ann": [edge("bob")], "bob": []}, termination_condition=condition("StopMessageTermination")),
        drawn({"ann": [edge("bob", group="x")], "cem": [edge("bob", group="y")], "bob": []}),
    ],
)
def test_a_graph_that_may_end_early_or_joins_in_groups_becomes_a_conversation(given: dict[str, Any]) -> None:
    made = component_team.read(given)
    assert made.kind == "team"
    assert teamfile.parse(made.document).document["graph"]["follow"] == "all"


@pytest.mark.parametrize(
    ("edges", "told"),
    [
        ({"ann": [edge("bob")], "bob": [edge("ann")]}, "BAD_GRAPH config.graph.default_start_node"),
        ({"ann": [edge("zoe")]}, "UNKNOWN_AGENT config.graph.nodes.ann.edges[0].target"),
        ({"ann": [edge("bob")], "bob": [edge("bob")]}, "BAD_GRAPH config.graph.nodes.bob"),
        ({"ann": [edge("bob", join="some")], "bob": []}, "BAD_VALUE config.graph.nodes.ann.edges[0].activation_cond"),
        ({"ann": [{**edge("bob"), "condition_function": "f"}], "bob": []}, "CALLABLE config.graph.nodes.ann.edges[0]"),
        ({"ann": [{**edge("bob"), "condition": 3}], "bob": []}, "CALLABLE config.graph.nodes.ann.edges[0].condition"),
        ({"ann": [{**edge("bob"), "weight": 3}], "bob": []}, "WOULD_BE_LOST config.graph.nodes.ann.edges[0].weight"),
        (
            {"ann": [edge("bob"), edge("cem")], "cem": [edge("bob", join="any")], "bob": []},
            "BAD_GRAPH config.graph.nodes.cem",
        ),
    ],
)
def test_what_is_wrong_with_a_graph_is_told_at_its_place(edges: dict[str, list[Any]], told: str) -> None:
    assert problems(drawn(edges, max_turns=5))[0].startswith(told)


def test_everything_that_is_generated_can_be_imported_and_read_again() -> None:
    for case in casts.cases(seed=7, count=60):
        made = component_team.read(case.document, tools={"stock": "stock", "price": "price"})
        again = yaml.safe_load(yaml.safe_dump(made.document))
        assert again == made.document
        if made.kind == "team":
            assert teamfile.parse(again).digest == teamfile.parse(made.document).digest


def test_the_command_writes_a_file_that_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dump.json").write_text(json.dumps(pair(max_turns=2)))
    assert cli.main(["workflows", "import", "dump.json", "--out", "team.yaml"]) == exits.OK
    assert "convergio chat team.yaml TEXT" in capsys.readouterr().out
    assert teamfile.load(tmp_path / "team.yaml").name == "round_robin_group_chat"
    (tmp_path / "dump.json").write_text(json.dumps(pair(max_turns=0, selector_func="f")))
    assert cli.main(["workflows", "import", "dump.json"]) == exits.INVALID
    assert "dump.json: config.max_turns" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "steps", "agents"),
    [
        ("dump.json", json.dumps(pair(max_turns=2)), ["talk"], ["ann", "bob"]),
        ("graph.json", json.dumps(drawn({"ann": [edge("bob")], "bob": []})), ["ann", "bob"], ["ann"]),
        ("team.yaml", "{team: x, version: 2, agents: [{name: ann, role: You plan.}]}", ["talk"], ["ann"]),
        ("bare.yaml", "{agents: [amy, ali]}", ["talk"], ["amy", "ali"]),
        ("amy,ali", None, ["talk"], ["amy", "ali"]),
    ],
)
def test_chat_takes_teams_in_every_form(
    tmp_path: Path, name: str, content: str | None, steps: list[str], agents: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    flow = teams.workflow_of(name if content is None else str(tmp_path / name), tools={}, known=Known(), trust=Trust())
    assert list(flow.steps) == steps
    assert [one["name"] for one in flow.steps[steps[0]].spec["agents"]] == agents


# --- a team's own document --------------------------------------------------------------------------------------------

LAUNCH = {"team": "launch", "version": 3, "title": "Launch", "agents": [{"name": "ann", "role": "You plan."}, "amy"]}


def test_a_teams_document_is_versioned_and_has_one_digest_however_it_is_written() -> None:
    spec = teamfile.parse(LAUNCH)
    assert (spec.name, spec.version, spec.title) == ("launch", 3, "Launch")
    assert "team" not in spec.talk
    assert spec.talk["policy"] == "round_robin"
    assert teamfile.parse(dict(spec.document)).digest == spec.digest
    assert teamfile.parse({**LAUNCH, "version": 4}).digest != spec.digest


def test_all_problems_of_a_team_come_at_once() -> None:
    known = Known(agents={"amy"}, policies=frozenset())
    wrong = {
        **LAUNCH,
        "agents": [{"name": "ann", "role": "sk-" + "y" * 20, "handoffs": ["zoe"]}, "emy"],
        "policy": "my.own",
    }
    with pytest.raises(errors.InvalidTeam) as caught:
        teamfile.parse(wrong, "launch.yaml", known=known)
    assert [f"{one.code} {one.path}" for one in caught.value.problems] == [
        "SECRET agents[0].role",
        "UNKNOWN_FUNCTION policy",
        "UNKNOWN_AGENT agents[0].handoffs[0]",
        "UNKNOWN_AGENT agents[1]",
    ]


@pytest.mark.parametrize("given", [[], {"team": "Big One", "agents": ["amy"]}, {"team": "x", "agents": ["a"], "n": 1}])
def test_what_is_no_team_is_refused(given: Any) -> None:
    with pytest.raises(errors.InvalidTeam):
        teamfile.parse(given)
