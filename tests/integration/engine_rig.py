"""A whole engine in the test's own process, on real servers: nothing happens unless the test says so.

Built by `workers.boot`, as the real processes are, but without their loops: the test beats, journals, sweeps and
rebuilds. Time passes when `pass_time` says so: what is due on the board is due earlier, and the sweeper sees the clock
go on; that needs no waiting, and no luck.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from unittest import mock

import psycopg
import pytest
import sqlalchemy as sa
from celery.app import trace

from convergio.config import settings as configuration
from convergio.config.settings import Settings
from convergio.graphflow.board import fields
from convergio.graphflow.board.keys import Keys
from convergio.graphflow.engine import claims, steps, sweeper
from convergio.graphflow.engine.bell import LISTS, QUEUES, Caller, route_of
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.engine.submission import Submission
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal import database, tables
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import OutcomeRow, RunRow
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.instance import step_of
from convergio.graphflow.model.states import BlockedOn, StepState
from convergio.graphflow.model.workflow import StepKind, Workflow
from convergio.tasks import app as celery_app
from convergio.tasks.agents import tables as agent_tables
from convergio.tasks.app import PRIORITY_SEPARATOR
from convergio.tasks.conversation import tables as conversation_tables
from convergio.workers import boot
from convergio.workers.process import WorkerProcess
from convergio.workers.service import Service
from tests.integration import engine_bodies
from tests.integration.clients import let_go
from tests.waiting import wait_until

assert engine_bodies.QUICK  # importing the module registers its functions

TICK: Final = 0.5
"""Seconds between two sweeps while time passes."""

QUIET: Final = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
"""Celery's own result backend calls what redis-py has deprecated."""


AGE: Final = """#!lua flags=allow-oom
for _, name in ipairs(KEYS) do
  local kind = redis.call('TYPE', name).ok
  if kind == 'zset' then
    for _, member in ipairs(redis.call('ZRANGE', name, 0, -1)) do redis.call('ZINCRBY', name, -ARGV[1], member) end
  elseif kind == 'hash' then
    for _, moment in ipairs({'pushed', 'eaten'}) do
      if redis.call('HEXISTS', name, moment) == 1 then redis.call('HINCRBY', name, moment, -ARGV[1]) end
    end
  end
end"""
"""Makes every time in sorted sets, and those of canaries, so many milliseconds older."""


@dataclass
class Clock:
    """Stands where engine modules have the module `time`."""

    now: float = 1_000.0

    def monotonic(self) -> float:
        return self.now


@dataclass(frozen=True, kw_only=True)
class Doorbell:
    """One message out of a queue list, decoded."""

    queue_list: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    args: list[Any]

    @property
    def step(self) -> str:
        return str(self.args[1])


@dataclass(kw_only=True)
class Worker:
    """What one worker process has; `pulse` is what its beat threads would do."""

    process: WorkerProcess

    @property
    def steps(self) -> steps.Steps:
        return self.process.steps

    @property
    def claims(self) -> claims.Claims:
        return self.process.steps.claims

    def pulse(self) -> None:
        self.claims.beat()
        self.claims.catch_up()

    def meet_new_board(self) -> None:
        """Two pulses: the first learns that the epoch is another, the second asserts what runs."""
        self.pulse()
        self.pulse()

    def answer(self, bell: Doorbell) -> None:
        """Runs the task as Celery's worker does: its tracer, with `before_start` and all."""
        app = self.process.core.app
        queue, _, priority = bell.queue_list.partition(PRIORITY_SEPARATOR)
        delivery = {"routing_key": queue, "exchange": "", "priority": int(priority or 0), "redelivered": False}
        request = {**bell.headers, "delivery_info": delivery, "hostname": f"{self.process.name}@convergio"}
        task = app.tasks[bell.headers["task"]]
        trace.build_tracer(task.name, task, app=app)(bell.headers["id"], bell.args, {}, request)


@dataclass(kw_only=True)
class Stage:
    """The engine's processes, and all that the test wants to know of them."""

    settings: Settings
    service: Service
    clock: Clock = field(default_factory=Clock)
    workers: list[Worker] = field(default_factory=list[Worker])

    # --- who is there -----------------------------------------------------------------------------------------------

    @property
    def worker(self) -> Worker:
        """The first worker process."""
        return self.workers[0]

    @property
    def client(self) -> Any:
        """The server itself. redis-py types its answers for every mode it has; here they are text."""
        return self.service.link.client

    @property
    def keys(self) -> Keys:
        """The keys of the board that is there now."""
        return self.service.link.keys(self.service.link.refresh())

    @property
    def history(self) -> History:
        return self.service.sweeper.history

    @property
    def store(self) -> database.Database:
        """The service's own connections to SQL."""
        return self.history._database

    def another_worker(self) -> Worker:
        """One more worker process."""
        made = Worker(process=boot.worker(self.settings, name=f"w{len(self.workers) + 1}"))
        made.process.beats.stop()
        self.workers.append(made)
        return made

    # --- runs -------------------------------------------------------------------------------------------------------

    def submit(self, workflow: Workflow, given: Any = None, **more: Any) -> RunRef:
        """Through the door of the first worker."""
        row = self.worker.process.entrance.submit(Submission(workflow=workflow, input=given, **more))
        return RunRef(tenant=row.tenant, run=row.run_id)

    def signal(self, ref: RunRef, name: str, decision: str = "approve") -> None:
        self.worker.process.entrance.signal(ref, name=name, data={"decision": decision}, by="boss")

    def row(self, ref: RunRef) -> RunRow:
        """The run as SQL has it."""
        return self.history.run(ref.tenant, ref.run)

    def outcomes(self, ref: RunRef) -> dict[str, OutcomeRow]:
        """The journaled outcomes by instance; fails if one has two."""
        rows = self.history.facts(ref.run).outcomes
        assert len({row.instance for row in rows}) == len(rows)
        return {row.instance: row for row in rows}

    def events(self, ref: RunRef, kind: str) -> list[dict[str, Any]]:
        """The data of the run's journaled events of one kind."""
        return [dict(row.data) for row in self.history.facts(ref.run).events if row.type == kind]

    def values(self, ref: RunRef) -> dict[str, str]:
        """The run's hash."""
        return dict(self.client.hgetall(self.keys.run(ref)))

    def word(self, ref: RunRef, step: str) -> fields.Word:
        """The step's state on the board."""
        return fields.Word.parse(self.client.hget(self.keys.run(ref), fields.state(step)))

    def states(self, ref: RunRef) -> dict[str, str]:
        """Every step's state on the board that is not WAITING."""
        values = self.values(ref)
        return {name[2:]: fields.Word.parse(word).state.value for name, word in values.items() if name[:2] == "s:"}

    # --- steps ------------------------------------------------------------------------------------------------------

    def claim(self, ref: RunRef, step: str, worker: Worker | None = None) -> Claim:
        """The step's doorbell, answered by CLAIM alone."""
        word = self.word(ref, step)
        assert word.state is StepState.READY, word.text
        made = self.ring(ref, step, word.rest, worker)
        assert made is not None
        return made

    def ring(self, ref: RunRef, step: str, ring: str, worker: Worker | None = None) -> Claim | None:
        """A doorbell of this ring arrives; None if it is refused."""
        taker = worker or self.worker
        facts = json.loads(self.client.hget(self.keys.run(ref), fields.META))
        plan = self.service.sweeper.plans.get(facts["digest"])
        fresh, priority = step in plan.roots and ring.endswith(".1"), Caller.of(ref, facts).priority
        route = route_of(plan.step(step), priority=priority, fresh=fresh)
        queue_list = taker.process.core.ringer.bell.list_of(route)
        return taker.steps.claim(ref, step=step, ring=ring, queue_list=queue_list)

    def queue_lists(self) -> list[str]:
        """All lists of doorbells in kombu's order."""
        lists = [f"{PRIORITY_SEPARATOR}{number}" if number else "" for number in LISTS]
        return [f"{queue}{name}" for name in lists for queue in QUEUES]

    def take(self) -> Doorbell | None:
        """The next doorbell, popped as kombu pops it."""
        for name in self.queue_lists():
            text = self.client.rpop(name)
            if text is not None:
                return _decoded(name, text)
        return None

    def bells(self) -> list[tuple[str, str]]:
        """(step, ring) of every doorbell that waits."""
        texts = [(name, text) for name in self.queue_lists() for text in self.client.lrange(name, 0, -1)]
        return [(bell.step, str(bell.args[2])) for bell in (_decoded(name, text) for name, text in texts)]

    def answer_all(self, worker: Worker | None = None) -> int:
        """Answers doorbells until none is left; how many there were."""
        count = 0
        while (bell := self.take()) is not None:
            (worker or self.worker).answer(bell)
            count += 1
        return count

    def answer_one(self) -> None:
        """Answers the next doorbell."""
        bell = self.take()
        assert bell is not None
        self.worker.answer(bell)

    # --- the service process ----------------------------------------------------------------------------------------

    def journal(self) -> int:
        """Journals all that is in the stream; how many events."""
        count = 0
        self.service.link.refresh()  # as the sweeper does, twice a second
        while done := self.service.journaler.step(wait_ms=1):
            count += done
        return count

    def wipe(self) -> None:
        """FLUSHALL."""
        self.client.flushall()

    def rebuild(self) -> None:
        """The service finds no board, and makes one; connections to a server that was restarted fail once."""
        wait_until(self._ensured, timeout=5)

    def _ensured(self) -> bool:
        try:
            return self.service.rebuilder.ensure()
        except errors.BoardUnavailable:
            return False

    def pass_time(self, seconds: float, *, sweeping: bool = True, also: Callable[[], object] = lambda: None) -> None:
        """Time passes, with a sweep twice a second, and `also` before each."""
        for _ in range(round(seconds / TICK)):
            self.clock.now += TICK
            self.age(TICK)
            also()
            if sweeping:
                self.service.sweeper.sweep()

    def age(self, seconds: float) -> None:
        """Everything on the board that has a time is so much older."""
        keys, lists = self.keys, self.queue_lists()
        names = [keys.leases, keys.timers, keys.held, keys.inboxes, keys.done, *map(keys.rung, lists)]
        names += map(keys.canary, lists)
        self.client.eval(AGE, len(names), *names, round(seconds * 1000))
        for name in self.client.scan_iter(match=keys.waiters("*", "*")):
            if self.client.zscore(name, "@") is not None:
                self.client.zincrby(name, round(seconds * 1000), "@")

    def age_rows(self, seconds: float) -> None:
        """Runs and signals in SQL are so much older."""
        ms = round(seconds * 1000)
        runs, signals = tables.runs.c, tables.signals.c
        with self.store.write() as connection:
            connection.execute(sa.update(tables.runs).values(not_after_ms=runs.not_after_ms - ms))
            connection.execute(sa.update(tables.signals).values(created_ms=signals.created_ms - ms))

    @property
    def stores(self) -> list[database.Database]:
        """Every process's connections to SQL."""
        processes = [worker.process for worker in self.workers]
        doors = [process.entrance.doors._database for process in processes]
        return [self.store, *doors, *(process.callers.history._database for process in processes)]

    @contextmanager
    def sql_away(self) -> Generator[None]:
        """Nobody reaches the journal's database meanwhile; all that it holds is there afterwards."""
        for store in self.stores:
            store.close()
        with _hidden(sa.make_url(self.settings.journal_url)):
            yield
            for store in self.stores:
                store.close()

    # --- to the end -------------------------------------------------------------------------------------------------

    def play(self, *refs: RunRef, worker: Worker | None = None) -> None:
        """Whatever the runs still wait for comes: claims end well, approvals are approved, time passes."""
        for _ in range(60):
            self.journal()
            if all(self.row(ref).terminal for ref in refs):
                return
            for ref in refs:
                self._go_on(ref, worker or self.worker)
            self.pass_time(1.0, also=(worker or self.worker).pulse)
        raise AssertionError({str(ref): self.states(ref) for ref in refs})

    def _go_on(self, ref: RunRef, worker: Worker) -> None:
        for step, state in self.states(ref).items():
            word = self.word(ref, step)
            if state == StepState.READY and self.client.zscore(self.keys.held, f"{ref}/{step}") is None:
                claim = self.claim(ref, step, worker)
                if worker.steps.step(claim).kind is StepKind.APPROVAL:
                    worker.steps.block(claim, signal=step_of(step), data={})
                else:
                    worker.steps.succeed(claim, {"step": step})
            elif word.blocked_on is BlockedOn.SIGNAL:
                self.signal(ref, step_of(step))
        for claim in worker.claims._snapshot():
            if claim.held.ref == ref and claim.deliver is None:
                worker.steps.succeed(claim, {"step": claim.held.step})


@contextmanager
def _hidden(url: sa.URL) -> Generator[None]:
    if url.get_backend_name() == "sqlite":
        here, away = Path(str(url.database)), Path(f"{url.database}-away")
        here.rename(away)
        yield
        for made in here.parent.glob(f"{here.name}*"):
            if made != away:
                made.unlink()
        away.rename(here)
        return
    with psycopg.connect(host=url.host, port=url.port or 5432, user=url.username, autocommit=True) as server:
        for allowed in (False, True):
            server.execute(f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS {allowed}'.encode())
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.database])
            if not allowed:
                yield


def _decoded(queue_list: str, text: str) -> Doorbell:
    message = json.loads(text)
    args = cast("list[Any]", json.loads(base64.b64decode(message["body"]))[0])
    return Doorbell(queue_list=queue_list, headers=message["headers"], properties=message["properties"], args=args)


# --- setting it up ----------------------------------------------------------------------------------------------------


def migrated(journal_url: str) -> None:
    """All tables at once; `test_journal_migrations` holds the migrations equal to them."""
    store = database.connect(journal_url)
    with store.write() as connection:
        tables.metadata.create_all(connection)
        agent_tables.metadata.create_all(connection)
        conversation_tables.metadata.create_all(connection)
    store.close()


def settings_for(redis_url: str, journal_url: str, home: Path, **more: Any) -> Settings:
    """Settings for these servers."""
    given = {"redis_url": redis_url, "journal_url": journal_url, "home": home, "model_name": "scripted"}
    # Most tests leave something that SQL does not have, and nobody here waits for it.
    return configuration.load(**{**given, "task_events": False, "drain_seconds": 0.2, **more})


@contextmanager
def stage_on(redis_url: str, journal_url: str, home: Path, **more: Any) -> Generator[Stage]:
    """A stage with a board, one worker and one service process."""
    migrated(journal_url)
    settings = settings_for(redis_url, journal_url, home, **more)
    with ExitStack() as stack:
        clock = Clock()
        for module in (sweeper, claims, steps, celery_app):
            stack.enter_context(mock.patch.object(module, "time", clock))
        made = Stage(settings=settings, service=another_service(settings, stack), clock=clock)
        stack.callback(_close_workers, made.workers)
        made.another_worker()
        made.rebuild()
        yield made


def another_service(settings: Settings, stack: ExitStack, *, phase: Callable[[str], None] | None = None) -> Service:
    """What a service process has, without its threads; closed with the stack."""
    made = boot.service(settings, phase=phase)
    for lease in (made.rebuilder.lease, made.writer_lease, made.sweeper_lease):
        lease.name = f"service-{id(made):x}"  # boot names processes, and here they are one
    stack.callback(made.link.close)
    stack.callback(let_go, cast("Any", made.journaler.finished).__self__.app)
    stack.callback(made.sweeper.history._database.close)
    return made


def _close_workers(workers: Sequence[Worker]) -> None:
    for worker in workers:
        closing = asyncio.run_coroutine_threadsafe(worker.process.agents.close(), worker.process.loop.loop)
        closing.result(timeout=5)
        worker.process.close()
        worker.process.entrance.doors._database.close()
        worker.process.callers.history._database.close()
        let_go(worker.process.core.app)


# --- workflows --------------------------------------------------------------------------------------------------------


def chain(name: str = "chain", *, durability: str = "stream", retry: int | dict[str, Any] = 0) -> Workflow:
    """first -> last."""
    made = WorkflowBuilder(name, version=1)
    first = made.task("first", "probe.echo", durability=durability, retry=retry)
    made.task("last", "probe.echo", after=first, value="first")
    return made.build()


def single(function: str = "probe.echo", **fields: Any) -> Workflow:
    """One step: `only`."""
    made = WorkflowBuilder("single", version=1)
    made.task("only", function, **fields)
    return made.build()


def sign_off() -> Workflow:
    """draft -> sign (an approval) -> send."""
    made = WorkflowBuilder("sign_off", version=1)
    draft = made.task("draft", "probe.echo")
    sign = made.approval("sign", title="Sign it", after=draft)
    made.task("send", "probe.echo", after=sign, value="sign.decision")
    return made.build()


def fork() -> Workflow:
    """left and right side by side, then joined."""
    made = WorkflowBuilder("fork", version=1, output={"left": "left", "right": "right"})
    left, right = made.task("left", "probe.echo"), made.task("right", "probe.echo")
    made.task("joined", "probe.echo", after=[left, right])
    return made.build()
