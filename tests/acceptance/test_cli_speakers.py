"""Why speakers were chosen, and what that saves, as a terminal shows it."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.town import Place

TEAM = """
agents:
  - {name: ann, description: "Looks after poster and layout.", role: You draw., script: [the poster is done]}
  - {name: bob, description: "Looks after budget and margin.", role: You count., script: [the budget is done]}
policy: scored
stop: {turns: 2}
"""


def test_every_choice_is_shown_factor_by_factor_and_turns_are_compared_with_a_round_robins(
    town: Place, tmp_path: Path
) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM)
    run = town.ok("chat", str(path), "We need to check the budget.").splitlines()[-1].split()[-2]
    told = town.ok("runs", "speakers", run)
    assert "talk 1: bob" in told
    assert "expertise" in told
    (choices,) = town.json("runs", "speakers", run)["conversations"].values()
    assert [choice["turn"] for choice in choices] == [1, 2]
    first = choices[0]
    assert first["scores"]["bob"]["expertise"] > first["scores"]["ann"]["expertise"]
    shown = town.json("runs", "show", run)
    assert shown["savings"] == town.json("runs", "savings", "--run", run)
    (saved,) = shown["savings"]
    assert (saved["type"], saved["policy"], saved["conversations"]) == ("simple_query", "scored", 1)
    assert saved["saved"] == round(1 - saved["turns"] / saved["baseline"], 4)
    assert "simple_query by scored" in town.ok("runs", "show", run)
