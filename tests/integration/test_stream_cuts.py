"""Readers of conversations that are stopped anywhere, a thousand times: no gap, no repeat, one end.

Everything that may happen to a stream happens meanwhile: it is trimmed, Redis is wiped, or killed and loses its tail,
attempts fail, runs leave the board. What a reader has at the end is the thread.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
import redis

from convergio.graphflow.board import voice as board_voice
from convergio.graphflow.client import feed
from convergio.graphflow.client.event import CUSTOM, FINISHED, MESSAGES, RESET, RETOLD, SNAPSHOT, STARTED, Event
from convergio.graphflow.client.feed import Feed
from convergio.graphflow.client.past import Past
from convergio.graphflow.client.transcript import Transcript
from convergio.graphflow.flow import document
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.conversation import told, voice
from convergio.tasks.tools.tool import tool
from tests.conftest import ValkeyFactory
from tests.integration.engine_rig import QUIET, Stage, stage_on
from tests.servers import ValkeyServer

pytestmark = QUIET

CUTS: Final = 1_000
READERS: Final = 12
KEPT: Final = 60
"""Events that a trim leaves at least; the product leaves 10,000 and tells a turn again after 5,000."""

STANDING: Final = frozenset({RESET, MESSAGES, SNAPSHOT})
"""What stands in for events, and is none itself."""


@tool(name="cuts.weigh")
def weigh(item: str) -> str:
    """What it weighs."""
    return f"{item} weighs {len(item)}"


@dataclass(kw_only=True)
class Reader:
    """Somebody who keeps what was said and how far the reading is, and is stopped at any moment."""

    client: redis.Redis
    ref: RunRef
    ended: Callable[[], Mapping[str, Any] | None]
    recall: Callable[[], Past]
    luck: random.Random
    transcript: Transcript = field(default_factory=Transcript)
    at: str = ""
    finals: int = 0
    cuts: int = 0
    over: bool = False
    reading: Iterator[Event | None] | None = None

    def step(self, most: int) -> None:
        """Reads some events, unless it is stopped before."""
        for _ in range(most):
            if self.over:
                return
            if self.reading is None:
                self.reading = Feed(self.client, self.ref, self.ended, recall=self.recall).events(self.at)
            try:
                event = next(self.reading)
            except StopIteration:
                self.over = True
                return
            if event is None:
                return
            if self.luck.random() < 0.25:
                self.reading, self.cuts = None, self.cuts + 1  # it has heard of the event, and does not know any more
            else:
                self._keep(event)

    def _keep(self, event: Event) -> None:
        was, now = _position(self.at or "0-0"), event.position
        assert self.at or event.type == STARTED, event
        if event.type == STARTED and event.id == "0-0":
            assert not self.at or self.at == event.id
        elif event.type in (RESET, MESSAGES) or _retold(event):
            assert now == was or (_retold(event) and now == (was[0], was[1] + 1)), (event, self.at)
        elif event.type in (SNAPSHOT, FINISHED):
            assert now > was, (event, self.at)
        else:
            assert now == (was[0] or now[0], was[1] + 1), (event, self.at)
        self.finals += event.type == FINISHED
        self.transcript.tell(event)
        self.at = event.id
        self.over = event.type == FINISHED


def _position(text: str) -> tuple[int, int]:
    epoch, _, seq = text.partition("-")
    return int(epoch), int(seq)


def _retold(event: Event) -> bool:
    return event.type == CUSTOM and event.data["name"] == RETOLD


@dataclass(kw_only=True)
class Town:
    """A conversation, its readers, and what happens to them."""

    stage: Stage
    server: ValkeyServer
    ref: RunRef
    luck: random.Random
    readers: list[Reader]
    lock: threading.RLock = field(default_factory=threading.RLock)
    happened: Counter[str] = field(default_factory=Counter[str])

    def tick(self) -> None:
        """A moment: something may happen, and some of the readers read."""
        with self.lock:
            if self.luck.random() < 0.15:
                self.trim()
            if self.luck.random() < 0.02:
                self.wipe()
            for reader in self.luck.sample(self.readers, 3):
                reader.step(self.luck.choice((1, 3, 10, 100)))

    def trim(self) -> None:
        self.happened["trim"] += 1
        stream = self.stage.keys.feed(self.ref)
        self.stage.client.xtrim(stream, maxlen=self.luck.randint(KEPT, 3 * KEPT), approximate=False)

    def wipe(self) -> None:
        self.happened["wipe"] += 1
        self.stage.wipe()
        self.settle()

    def kill(self) -> None:
        """Valkey is killed, and the end of what it had written is lost."""
        self.happened["kill"] += 1
        self.server.kill()
        self.server.cut_aof_tail(self.luck.randint(1, 20_000))
        self.server.restart()
        self.settle()

    def settle(self) -> None:
        self.stage.rebuild()
        self.stage.worker.meet_new_board()

    def beat(self) -> None:
        """What the service and the beats do all the time."""
        with self.lock:
            self.stage.journal()
            self.stage.worker.pulse()


@contextmanager
def living(town: Town) -> Generator[None]:
    """Time goes on: the journal is written, claims are beaten, and whenever something is said, a moment passes."""
    over, speak = threading.Event(), board_voice.speak

    def going() -> None:
        while not over.wait(0.005):
            town.beat()

    def speaking(*args: Any, **more: Any) -> Any:
        said = speak(*args, **more)
        town.tick()
        return said

    with ThreadPoolExecutor(1) as pool, mock.patch.object(board_voice, "speak", speaking):
        done = pool.submit(going)
        try:
            yield
        finally:
            over.set()
            done.result()


def words(name: str, turn: int) -> str:
    """Words that are nowhere else."""
    return " ".join(f"{name}{turn}.{place}" for place in range(20))


def team(name: str) -> dict[str, Any]:
    """Two who talk for some turns, with tools, and fail at times."""
    weighs = {"say": "", "call": [{"tool": "cuts.weigh", "arguments": {"item": name}}], "pace": 0.001}
    thinks = {**weighs, "say": f"{name} thinks first"}
    first = [{"say": words(f"{name}a", turn), "pace": 0.001} for turn in range(3)]
    second = [{"say": words(f"{name}b", turn), "pace": 0.001} for turn in range(3)]
    second[1] |= {"fail": "broken_off"}
    ann = {"name": f"{name}_ann", "role": "You talk.", "tools": ["cuts.weigh"], "script": [weighs, *first]}
    bob = {
        "name": f"{name}_bob",
        "role": "You talk.",
        "tools": ["cuts.weigh"],
        "script": [*second[:2], thinks, second[2]],
    }
    return {"agents": [ann, bob], "stop": {"turns": 6}}


def talks() -> Workflow:
    """Two conversations at once."""
    steps = {
        name: {"conversation": team(name), "prompt": f"Talk about {name}", "retry": {"max": 3, "backoff": 0.01}}
        for name in ("tea", "milk")
    }
    return document.parse_document({"workflow": "talks", "version": 1, "steps": steps})


def ended(stage: Stage, ref: RunRef) -> Mapping[str, Any] | None:
    row = stage.row(ref)
    return {"state": row.state.value, "output": row.output, "error": row.error} if row.terminal else None


def play(town: Town) -> None:
    """The run to its end, with a kill now and then between its turns."""
    stage = town.stage
    for number in range(200):
        with living(town):
            answered = stage.answer_all()
        town.beat()
        if stage.row(town.ref).terminal:
            return
        if number in (2, 5):
            town.kill()
        if not answered and not stage.bells():
            stage.pass_time(1.0, also=town.beat)
    raise AssertionError(stage.states(town.ref))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that depends on how long a stream is, a hundred times shorter, and nobody waits long for nothing."""
    monkeypatch.setattr(voice, "RETELL_EVERY", KEPT // 3)
    monkeypatch.setattr(voice, "BATCH_S", 0.002)
    monkeypatch.setattr(voice, "PAUSE_S", 0.01)
    monkeypatch.setattr(feed, "LOOK_BACK", KEPT // 6)
    monkeypatch.setattr(feed, "BLOCK_MS", 1)
    monkeypatch.setattr(feed, "PAUSE", 0.001)


@pytest.mark.usefixtures("quick")
def test_a_thousand_readers_that_are_stopped_anywhere_have_the_thread_and_one_end(
    valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path
) -> None:
    server, cuts, happened = valkey_server(fsync="everysec"), 0, Counter[str]()
    with stage_on(server.url, sqlite_url, tmp_path) as stage:
        for seed in range(20):
            town = town_of(stage, server, seed)
            play(town)
            finish(town)
            cuts += sum(reader.cuts for reader in town.readers)
            happened += town.happened
            if cuts >= CUTS and seed >= 2:
                break
    assert cuts >= CUTS
    assert min(happened[kind] for kind in ("trim", "wipe", "kill")) > 1, happened


def town_of(stage: Stage, server: ValkeyServer, seed: int) -> Town:
    ref = stage.submit(talks())
    process = stage.worker.process
    recall = partial(told.past, stage.store, process.steps.blobs, ref.tenant, ref.run)
    readers = [
        Reader(client=stage.client, ref=ref, ended=partial(ended, stage, ref), recall=recall, luck=random.Random(place))
        for place in range(seed * READERS, (seed + 1) * READERS)
    ]
    return Town(stage=stage, server=server, ref=ref, luck=random.Random(seed), readers=readers)


def finish(town: Town) -> None:
    """Every reader reads to the end: some while the run is on the board, some when it has left, some after a wipe."""
    stage, third = town.stage, READERS // 3
    assert stage.row(town.ref).state is RunState.SUCCEEDED
    said = [
        message for turn in told.past(stage.store, None, "default", town.ref.run).turns for message in turn.messages
    ]
    assert len([one for one in said if one["role"] == "tool"]) == 4
    for place, reader in enumerate(town.readers):
        if place == third:
            stage.pass_time(61)
            assert not stage.client.exists(stage.keys.run(town.ref))
            assert 0 < stage.client.pttl(stage.keys.feed(town.ref)) <= stage.settings.stream_retention * 1000
        if place == 2 * third:
            town.wipe()
        deadline = 500
        while not reader.over and deadline:
            reader.step(1_000)
            deadline -= 1
        assert reader.transcript.messages == sorted(said, key=lambda one: (one["step"], one["turn"]))
        assert reader.finals == 1
        assert list(Feed(reader.client, reader.ref, reader.ended, recall=reader.recall).events(reader.at)) == []
