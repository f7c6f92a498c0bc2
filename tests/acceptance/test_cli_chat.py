"""A team talks in a terminal, on a real stack, and goes on later."""

from __future__ import annotations

import json
from pathlib import Path

import redis

from convergio.graphflow import Client
from convergio.graphflow.client.transcript import Transcript
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
    assert [event["type"] for event in events].count("RUN_FINISHED") == 1
    assert town.cli("chat", "--resume", "Go on").returncode == 2
    assert watched(town, run) == ["we begin", "{'not': 'so'} APPROVED"]


def watched(town: Place, run: str) -> list[str]:
    """What readers have of an ended conversation: from its start, from behind any event, and when only SQL has it."""
    every = [json.loads(line) for line in town.ok("runs", "watch", run, "--json").splitlines()]
    middle = every[len(every) // 2]["id"]
    behind = town.ok("runs", "watch", run, "--from", middle, "--json").splitlines()
    assert [json.loads(line) for line in behind] == every[len(every) // 2 + 1 :]
    speed = town.json("runs", "show", run)
    assert [(one["step"], one["turns"]) for one in speed["conversations"]] == [("talk", 2)]
    assert [row["speaker"] for row in speed["paces"]] == ["ann", "bob"]
    with redis.Redis.from_url(town.redis_url, decode_responses=True) as client:
        client.delete(*client.keys(f"convergio:*:default:{run}"), *client.keys(f"convergio:*:default:{run}:feed"))
    said = town.ok("runs", "watch", run).splitlines()
    with Client(town.redis_url) as remote:
        transcript, types = Transcript(), list[str]()
        for event in remote.run(run).events():
            transcript.tell(event)
            types.append(event.type)
    assert types == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    texts = [str(one["content"]) for one in transcript.messages if one["role"] == "assistant"]
    assert [line.partition(": ")[2] for line in said if line[:3] in ("ann", "bob")] == texts
    return texts


DESK = """
agents:
  - name: desk
    role: You pay back.
    handoffs: [user]
    script: [which order?, {call: [{tool: transfer_to_user}]}, paid DONE]
policy: handoff
stop: {turns: 6, mention: DONE}
"""


def test_a_team_that_asks_people_waits_for_them_and_is_kept_as_a_document(town: Place, tmp_path: Path) -> None:
    path = tmp_path / "desk.yaml"
    path.write_text(DESK)
    said = town.ok("chat", str(path), "Pay me back").splitlines()
    assert said[0] == "desk: which order?"
    run = said[-1].split()[-2]
    assert said[-1] == f"waits for an answer: convergio chat --resume {run} TEXT"
    assert "desk: which order?" in town.ok("runs", "why", run)
    assert "desk: paid DONE" in town.ok("chat", "--resume", run, "F-17")
    kept = town.ok("runs", "export", run)
    assert [line for line in kept.splitlines() if line in ("Pay me back", "F-17", "paid DONE")] == [
        "Pay me back",
        "F-17",
        "paid DONE",
    ]
    (chapter,) = json.loads(town.ok("runs", "export", run, "--format", "json"))
    assert [turn["speaker"] for turn in chapter["turns"]] == ["desk", "desk", "user", "desk"]
