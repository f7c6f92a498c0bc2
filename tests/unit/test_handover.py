"""From one doorbell to the next without a broker: when one may be taken, what becomes of it, and of its claim."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.board.scripts import LEASE_MS, Claimed, Refused, Taken
from convergio.graphflow.engine import handover as port
from convergio.graphflow.engine.handover import Grant, Grants, Nobody
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import Nonces, RunRef
from convergio.tasks import handover
from convergio.tasks.handover import SPELL, Handover, delivering

REF = RunRef(tenant="default", run="r1")


@dataclass
class Clock:
    """Stands where the modules have `time`."""

    now: float = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(handover, "time", made)
    monkeypatch.setattr(port, "time", made)
    return made


@dataclass
class Channel:
    """A channel that delivers to `task`."""

    said: list[str]
    task: Callable[[str], None] = lambda message: None
    lists: list[str] = field(default_factory=lambda: ["steps", "turns"])

    def doorbell_lists(self) -> list[str]:
        return self.lists

    def rival_lists(self) -> list[str]:
        return ["entries"]

    def hand_on(self, queue_list: str, message: str) -> None:
        self.said.append(f"{queue_list}: {message} begins")
        self.task(message)
        self.said.append(f"{queue_list}: {message} ends")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def channel(said: list[str]) -> Channel:
    return Channel(said)


@pytest.fixture
def port_of_worker() -> Handover:
    return Handover(lambda: True)


def closing(said: list[str], message: str) -> Callable[[], None]:
    return lambda: said.append(f"{message} is done")


# --- when one may be taken --------------------------------------------------------------------------------------------


def test_only_while_a_channel_delivers_is_there_anything_to_take_from(
    port_of_worker: Handover, channel: Channel
) -> None:
    assert port_of_worker.lists() == ()
    with delivering(channel):
        assert port_of_worker.lists() == ["steps", "turns"]
    assert port_of_worker.lists() == ()


def test_when_the_spell_is_over_nothing_more_is_taken(port_of_worker: Handover, channel: Channel, clock: Clock) -> None:
    with delivering(channel):
        clock.now += SPELL
        assert port_of_worker.lists()
        clock.now += 0.001
        assert port_of_worker.lists() == ()
    with delivering(channel):
        assert port_of_worker.lists(), "each pop begins another"


def test_what_is_handed_over_does_not_prolong_the_spell(
    port_of_worker: Handover, channel: Channel, clock: Clock, said: list[str]
) -> None:
    def task(message: str) -> None:
        clock.now += 0.04
        if port_of_worker.lists() and len(message) < 9:
            port_of_worker.put("steps", f"{message}+", closing(said, f"{message}+"))

    channel.task = task
    with delivering(channel) as delivery:
        task("m")
        delivery.run()
    assert [line for line in said if line.endswith("begins")] == ["steps: m+ begins", "steps: m++ begins"]


def test_what_has_to_be_popped_goes_before(port_of_worker: Handover, grants: Grants, channel: Channel) -> None:
    assert port_of_worker.rivals() == ()
    with delivering(channel):
        assert port_of_worker.rivals() == ["entries"]
    wanted = grants.ask("n-1")
    assert wanted is not None
    assert wanted.rivals == ["entries"]


def test_a_worker_that_stops_takes_nothing(channel: Channel) -> None:
    willing = True
    port_of_worker = Handover(lambda: willing)
    with delivering(channel):
        assert port_of_worker.lists()
        willing = False
        assert port_of_worker.lists() == ()


def test_another_thread_takes_nothing(port_of_worker: Handover, channel: Channel) -> None:
    """A task of the pool `threads` would get a message that its consumer delivers to somebody else."""
    found: list[object] = []
    with delivering(channel):
        thread = threading.Thread(target=lambda: found.append(port_of_worker.lists()))
        thread.start()
        thread.join()
    assert found == [()]


def test_a_delivery_that_is_over_gives_nothing_to_what_was_begun_in_it(
    port_of_worker: Handover, channel: Channel
) -> None:
    """What copies its context, as a coroutine does, lives on."""

    async def later(go: asyncio.Event) -> object:
        await go.wait()
        return port_of_worker.lists()

    async def both() -> object:
        go = asyncio.Event()
        with delivering(channel):
            task = asyncio.ensure_future(later(go))
            await asyncio.sleep(0)
        go.set()
        return await task

    assert asyncio.run(both()) == ()


def test_a_delivery_in_a_delivery_has_its_own_messages(
    port_of_worker: Handover, channel: Channel, said: list[str]
) -> None:
    inner = Channel(said, lists=["inner"])
    with delivering(channel) as first:
        with delivering(inner) as second:
            assert port_of_worker.lists() == ["inner"]
            port_of_worker.put("inner", "b", closing(said, "b"))
            second.run()
        assert port_of_worker.lists() == ["steps", "turns"]
        port_of_worker.put("steps", "a", closing(said, "a"))
        first.run()
    assert said == ["inner: b begins", "inner: b ends", "b is done", "steps: a begins", "steps: a ends", "a is done"]


def test_a_message_without_a_delivery_is_a_mistake(port_of_worker: Handover) -> None:
    with pytest.raises(AssertionError, match="outside of a delivery"):
        port_of_worker.put("steps", "a", lambda: None)


# --- what becomes of it -----------------------------------------------------------------------------------------------


def test_messages_are_delivered_one_after_the_other_and_never_inside_each_other(
    port_of_worker: Handover, channel: Channel, said: list[str]
) -> None:
    def task(message: str) -> None:
        if len(message) < 3:
            port_of_worker.put("steps", f"{message}+", closing(said, f"{message}+"))

    channel.task = task
    with delivering(channel) as delivery:
        task("m")
        delivery.run()
        delivery.run()
    assert said == [
        line for name in ("m+", "m++") for line in (f"steps: {name} begins", f"steps: {name} ends", f"{name} is done")
    ]


def test_a_thousand_handovers_need_no_deeper_stack(port_of_worker: Handover, channel: Channel, said: list[str]) -> None:
    left = 3_000

    def task(message: str) -> None:
        nonlocal left
        left -= 1
        if left:
            port_of_worker.put("steps", message, lambda: None)

    channel.task = task
    with delivering(channel) as delivery:
        task("m")
        delivery.run()
    assert left == 0


def test_a_delivery_that_fails_is_done_too(port_of_worker: Handover, channel: Channel, said: list[str]) -> None:
    def task(_: str) -> None:
        raise RuntimeError("no JSON")

    channel.task = task
    with delivering(channel) as delivery:
        port_of_worker.put("steps", "a", closing(said, "a"))
        with pytest.raises(RuntimeError, match="no JSON"):
            delivery.run()
    assert said == ["steps: a begins", "a is done"]


def test_what_waits_behind_a_delivery_that_fails_is_done_too(
    port_of_worker: Handover, channel: Channel, said: list[str]
) -> None:
    """Its task never begins: whoever put it has to know, as it has the claim."""

    def task(_: str) -> None:
        port_of_worker.put("steps", "b", closing(said, "b"))
        raise SystemExit

    def pop() -> None:
        with delivering(channel) as delivery:
            port_of_worker.put("steps", "a", closing(said, "a"))
            delivery.run()

    channel.task = task
    with pytest.raises(SystemExit):
        pop()
    assert "b is done" in said


def test_what_a_pop_took_that_then_fails_is_done_too(
    port_of_worker: Handover, channel: Channel, said: list[str]
) -> None:
    def pop() -> None:
        with delivering(channel):
            port_of_worker.put("steps", "a", closing(said, "a"))
            raise SystemExit

    with pytest.raises(SystemExit):
        pop()
    assert said == ["a is done"]


# --- what becomes of its claim ----------------------------------------------------------------------------------------


@dataclass
class Port:
    """The engine's port, played by the test."""

    wanted: list[str] = field(default_factory=lambda: ["steps"])
    put_in: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    done: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    def lists(self) -> list[str]:
        return self.wanted

    def rivals(self) -> list[str]:
        return ["entries"]

    def put(self, queue_list: str, message: str, done: Callable[[], None]) -> None:
        self.put_in.append((queue_list, message))
        self.done.append(done)


CLAIMED = Claimed(
    epoch=Epoch(number=1, server="s"),
    ref=REF,
    step="a",
    fence="1.1.n-1",
    at_ms=0,
    attempt=1,
    deliveries=0,
    meta={},
    input=None,
    records={},
    outputs={},
)


def taken(claim: Claimed | Refused | None = CLAIMED, *, step: str = "a", ring: str = "1.1") -> Taken:
    if claim is None:
        return Taken(queue_list="steps", message="cheep")
    return Taken(queue_list="steps", message="ding", ref=REF, step=step, ring=ring, claim=claim)


@pytest.fixture
def unused() -> list[Grant]:
    return []


@pytest.fixture
def played() -> Port:
    return Port()


@pytest.fixture
def grants(played: Port, unused: list[Grant]) -> Grants:
    return Grants(played, worker="w1", unused=unused.append)


def take(grants: Grants, one: Taken, nonce: str = "n-1") -> None:
    wanted = grants.ask(nonce)
    assert wanted is not None
    assert (wanted.lists, wanted.nonce, wanted.worker) == (["steps"], nonce, "w1")
    wanted.taken(one)


def test_where_nothing_can_be_taken_the_board_is_not_asked(grants: Grants, played: Port) -> None:
    played.wanted = []
    assert grants.ask("n-1") is None
    assert Grants(Nobody(), worker="w1", unused=lambda grant: None).ask("n-1") is None
    with pytest.raises(AssertionError):
        Nobody().put("steps", "ding", lambda: None)


def test_a_task_finds_the_claim_that_was_made_for_it_once(
    grants: Grants, played: Port, unused: list[Grant], clock: Clock
) -> None:
    wanted = grants.ask("n-1")
    assert wanted is not None
    clock.now += 1.5  # the board took its time: the lease may have begun with the question
    wanted.taken(taken())
    assert played.put_in == [("steps", "ding")]
    assert grants.pop(REF, "b", "1.1") is None
    assert grants.pop(REF, "a", "1.2") is None
    assert grants.pop(RunRef(tenant="other", run="r1"), "a", "1.1") is None
    assert grants.pop(REF, "a", "1.1") == Grant(
        answer=CLAIMED, nonce="n-1", sure_until=clock.now - 1.5 + LEASE_MS / 1000
    )
    assert grants.pop(REF, "a", "1.1") is None
    played.done[0]()
    assert unused == []


def test_a_claim_whose_task_never_asked_for_it_is_returned_once(
    grants: Grants, played: Port, unused: list[Grant]
) -> None:
    take(grants, taken())
    (done,) = played.done
    done()
    assert [grant.answer for grant in unused] == [CLAIMED]
    assert grants.pop(REF, "a", "1.1") is None
    done()
    assert len(unused) == 1


def test_a_message_without_a_claim_is_put_and_nothing_is_returned(
    grants: Grants, played: Port, unused: list[Grant]
) -> None:
    take(grants, taken(None))
    assert played.put_in == [("steps", "cheep")]
    played.done[0]()
    assert unused == []


def test_the_same_doorbell_again_does_not_return_the_first_ones_claim(
    grants: Grants, played: Port, unused: list[Grant]
) -> None:
    take(grants, taken())
    first = grants.pop(REF, "a", "1.1")
    assert first is not None
    duplicate = Refused(why="DUPLICATE", state="SUCCEEDED|1.1.n-1")
    take(grants, taken(duplicate), nonce="n-2")
    played.done[0]()
    again = grants.pop(REF, "a", "1.1")
    assert again is None or again.answer == duplicate
    played.done[1]()
    assert all(grant.answer == duplicate for grant in unused)


# --- its way back -----------------------------------------------------------------------------------------------------


class Away:
    """A board and plans that are away: whoever asks them anything learns that."""

    def get(self, digest: str) -> Any:
        raise errors.BoardUnavailable

    def __getattr__(self, name: str) -> Any:
        raise errors.BoardUnavailable


@pytest.fixture
def steps(played: Port) -> Steps:
    away: Any = Away()
    return Steps(away, away, away, away, Nonces(), worker="w1", handover=played)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="convergio.graphflow.engine.steps")
    return caplog


def test_a_refused_doorbell_that_no_task_asked_for_has_nothing_to_be_given_back(
    steps: Steps, played: Port, told: pytest.LogCaptureFixture
) -> None:
    take(steps.grants, taken(Refused(why="GONE")))
    played.done[0]()
    assert told.messages == []
    assert list(steps.claims.running()) == []


def test_a_claim_that_cannot_be_given_back_as_the_board_is_away_is_left_to_its_lease(
    steps: Steps, played: Port, told: pytest.LogCaptureFixture
) -> None:
    """Who says that a message is done is the transport, under Celery's event loop: no error of ours belongs there."""
    take(steps.grants, taken(dataclasses.replace(CLAIMED, meta={"digest": "unknown"})))
    played.done[0]()
    assert [message.partition(":")[0] for message in told.messages] == ["a claim that no task asked for"]
    assert list(steps.claims.running()) == [], "nobody beats its lease"
