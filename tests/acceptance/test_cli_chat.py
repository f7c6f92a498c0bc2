"""A team talks in a terminal, on a real stack, and goes on later."""

from __future__ import annotations

import json
from pathlib import Path

from tests.acceptance.town import Place

TEAM = """
agents:
  - {name: ann, role: You plan., script: [we begin, then this]}
  - {name: bob, role: You doubt., script: ["{'not': 'so'} APPROVED", well]}
stop: {turns: 6, mention: APPROVED}
"""


def test_a_team_talks_and_goes_on_where_it_was_days_later(town: Place, tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM)
    said = town.ok("chat", str(path), "Plan a launch").splitlines()
    assert said[:2] == ["ann: we begin", "bob: {'not': 'so'} APPROVED"]
    run = said[-1].split()[-2]
    again = town.ok("chat", "--resume", run, "--turns", "1", "Go on").splitlines()
    assert again[0] == "ann: then this"
    other = town.cli("chat", "--resume", run, "--behind", "1", "--turns", "1", "--json", "Other words")
    assert other.returncode == 0, other.stderr
    events = [json.loads(line) for line in other.stdout.splitlines()]
    words = "".join(event["data"]["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")
    assert words == "{'not': 'so'} APPROVED"
    assert [event["type"] for event in events].count("run.finished") == 1
    assert town.cli("chat", "--resume", "Go on").returncode == 2
