"""A turn's worker is killed, by the operating system, at every place where the code of a turn awaits something.

The places are read from the sources: one that no conversation here comes by fails the test until one does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from convergio.graphflow.client.event import CUSTOM, RESTARTED
from convergio.graphflow.flow import document
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Workflow
from tests.integration import cut_bodies
from tests.integration.cutting import REACHED, ROOT, Point, cuts
from tests.integration.engine_rig import QUIET, Stage, stage_on
from tests.integration.test_turns import agent, die, journaling, ledger, run, said

pytestmark = [QUIET, pytest.mark.slow, pytest.mark.timeout(300)]

ELSEWHERE: Final = {
    "tasks.conversation.voice:Voice._told: await asyncio.sleep(PAUSE_S)": "only while the board is away",
    "tasks.agents.deadline:Watchdog.run: await self._give_up(task)": "only in a process that has lost its claim",
}
"""Points by which no turn comes that anybody waits for, and when one does."""


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv(cut_bodies.EFFECTS, str(tmp_path / "effects"))
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        yield made


# --- conversations ----------------------------------------------------------------------------------------------------


def uses(name: str, word: str) -> dict[str, Any]:
    return {"call": [{"tool": name, "arguments": {"word": word}}]}


def conversation(*agents: Mapping[str, Any], step: Mapping[str, Any] | None = None, **team: Any) -> Workflow:
    talk = {"conversation": {"agents": list(agents), **team}, "prompt": "Do it", "retry": 2, **(step or {})}
    return document.parse_document({"workflow": "cut", "version": 1, "steps": {"talk": talk}})


ANN: Final = agent("ann", uses("cut.now", "one"), uses("cut.later", "two"), "all done", tools=["cut.now", "cut.later"])
MAX_MESSAGES: Final = {
    "provider": "autogen_agentchat.conditions.MaxMessageTermination",
    "component_type": "termination",
    "config": {"max_messages": 12},
}


def asks_a_model(stage: Stage) -> RunRef:
    """Tools on a thread and on the loop, a model that chooses, a condition that reads SQL."""
    chooses = {"script": ["ann", "bob"]}
    stop = {"turns": 2, "condition": MAX_MESSAGES}
    return stage.submit(
        conversation(ANN, agent("bob", "well"), agent("cem"), policy="llm", selector=chooses, stop=stop)
    )


def has_its_own_policy(stage: Stage) -> RunRef:
    own = f"{cut_bodies.__name__}.{cut_bodies.own.__name__}"
    return stage.submit(conversation(agent("ann", "one"), policy=own, stop={"turns": 1}))


def begins_again(stage: Stage) -> RunRef:
    """A worker has died when the first turn's last answer was known."""
    ref = stage.submit(conversation(ANN, stop={"turns": 1}))
    die(stage, stage.another_worker(), "succeed", at=1, done=False)
    stage.pass_time(8)
    return ref


def is_answered_by_people(stage: Stage) -> RunRef:
    """An agent has asked people, and they have answered."""
    asks = agent("ann", {"call": [{"tool": "transfer_to_user", "arguments": {}}]}, "thanks", handoffs=["user"])
    ref = stage.submit(conversation(asks, policy="handoff", stop={"turns": 1}, people="wait"))
    return told(stage, ref, "F-17")


def is_summed_up(stage: Stage) -> RunRef:
    short = {"tokens": 100, "keep": 1, "script": ["in short"]}
    long = agent("ann", "word " * 80, "so be it")
    return stage.submit(conversation(long, agent("bob", "well"), stop={"turns": 3}, compaction=short))


def is_interrupted_at_once(stage: Stage) -> RunRef:
    """People interrupt the first turn when its agent has asked for a tool."""
    ref = stage.submit(conversation(ANN, stop={"turns": 1}, if_busy="interrupt"))
    die(stage, stage.another_worker(), "guard", at=1, done=True)
    return told(stage, ref, "wait", quiet=False)


def outlasts_its_time(stage: Stage) -> RunRef:
    slow = agent("ann", uses("cut.slow", "one"), "all done", tools=["cut.slow"])
    return stage.submit(conversation(slow, stop={"turns": 1}, step={"timeout": "300ms"}))


def told(stage: Stage, ref: RunRef, text: str, *, quiet: bool = True) -> RunRef:
    """The run, once people have said something to it."""
    while quiet and (stage.journal() or stage.bells()):
        with journaling(stage):
            stage.answer_all()
    stage.worker.process.entrance.signal(ref, name="talk", data={"text": text}, by="eve")
    return ref


CONVERSATIONS: Final[tuple[Callable[[Stage], RunRef], ...]] = (
    asks_a_model,
    has_its_own_policy,
    is_summed_up,
    is_answered_by_people,
    is_interrupted_at_once,
    outlasts_its_time,
    begins_again,
)
"""The first one that comes by a point is cut there."""


# --- a process that is cut --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Guillotine:
    """Starts workers that are killed at a point."""

    stage: Stage
    process: subprocess.Popen[str]

    def ask(self, **wanted: str) -> Mapping[str, Any]:
        """What became of the worker: the journal goes on meanwhile."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        settings = self.stage.settings
        facts = {"home": str(settings.home), "redis_url": settings.redis_url, "journal_url": settings.journal_url}
        print(json.dumps({**facts, **wanted}), file=self.process.stdin, flush=True)
        with journaling(self.stage):
            return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]


@contextmanager
def guillotine(stage: Stage) -> Generator[Guillotine]:
    command, env = [sys.executable, "-m", "tests.integration.cutting"], {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (stage.settings.home / "cut.log").open("ab")
    with log, subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdin=-1, stdout=-1, stderr=log) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"ready": True}
        try:
            yield Guillotine(stage=stage, process=process)
        finally:
            process.stdin.close()


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a conversation comes to if nothing happens to it, and the cuts that it comes by."""

    begin: Callable[[Stage], RunRef]
    thread: list[tuple[str, str]]
    ledger: list[tuple[str, int, int]]
    effects: int
    reached: frozenset[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A run whose worker was killed: what had been told and done by then."""

    ref: RunRef
    story: Story
    where: str
    spoke: int = field(default=0)
    restarted: int = field(default=0)
    unrecorded: int = field(default=0)


def effects(ref: RunRef) -> list[str]:
    """The keys of what the run's tools did, in order."""
    file = Path(os.environ[cut_bodies.EFFECTS])
    keys = file.read_text().splitlines() if file.exists() else []
    return [key for key in keys if key.startswith(f"{ref.run}:")]


def restarts(stage: Stage, ref: RunRef) -> int:
    """How often readers were told that a turn begins anew; the stream outlasts its run."""
    told = [facts for _, facts in stage.client.xrange(stage.keys.feed(ref)) if facts["type"] == CUSTOM]
    return sum(json.loads(facts["data"])["name"] == RESTARTED for facts in told)


def undisturbed(stage: Stage, blade: Guillotine, begin: Callable[[Stage], RunRef]) -> Story:
    ref = begin(stage)
    assert blade.ask(run=ref.run, point="", side="") == {"killed": False, "status": 0}
    reached = json.loads((stage.settings.home / REACHED).read_text())
    run(stage, ref)
    return Story(
        begin=begin,
        thread=said(stage, ref),
        ledger=ledger(stage, ref),
        effects=len(effects(ref)),
        reached=frozenset((point, side) for point, side in reached),
    )


def cut(stage: Stage, blade: Guillotine, story: Story, point: Point, side: str) -> Killed:
    ref, where = story.begin(stage), f"{side} {point.name}"
    assert blade.ask(run=ref.run, point=point.name, side=side)["killed"], where
    stage.journal()
    values = stage.values(ref)
    alive = [name[2:] for name, word in values.items() if name.startswith("s:") and word.startswith("RUNNING|")]
    assert len(alive) == 1, where
    records = "".join(text for name, text in values.items() if name.startswith("x:"))
    return Killed(
        ref=ref,
        story=story,
        where=where,
        spoke=int(f"v:{alive[0]}" in values),
        restarted=restarts(stage, ref),
        unrecorded=sum(f"tool.{key.rsplit(':', 1)[1]}\t" not in records for key in effects(ref)),
    )


def test_a_worker_that_is_killed_at_any_await_of_a_turn_costs_nothing_but_time(stage: Stage) -> None:
    with guillotine(stage) as blade:
        stories = [undisturbed(stage, blade, begin) for begin in CONVERSATIONS]
        killed: list[Killed] = []
        found = {
            one: next((story for story in stories if (one[0].name, one[1]) in story.reached), None) for one in cuts()
        }
        missing = {point.name for (point, _), story in found.items() if story is None} - ELSEWHERE.keys()
        assert not missing, "no conversation of this test comes by these places: add one that does"
        for story in reversed(stories):  # time passes for one of them, and for all that were killed before it
            killed += [cut(stage, blade, story, *one) for one, its in found.items() if its is story]
    assert len(killed) >= len(found) - 2 * len(ELSEWHERE)
    stage.pass_time(8)
    run(stage, *(one.ref for one in killed))
    for one in killed:
        assert said(stage, one.ref) == one.story.thread, one.where
        assert ledger(stage, one.ref) == one.story.ledger, one.where
        assert restarts(stage, one.ref) - one.restarted == one.spoke, one.where
        done = Counter(effects(one.ref))
        assert len(done) == one.story.effects, one.where
        # The one gap that nobody can close: a tool that ran, and of which nobody knows, runs again, with its key.
        assert sum(done.values()) - len(done) == one.unrecorded, one.where
