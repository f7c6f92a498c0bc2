"""Settings -> engine. The only place where objects are built; everything else receives them."""

from __future__ import annotations

import functools
import importlib
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from convergio.config.settings import Settings
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import Nonces
from convergio.graphflow.model.workflow import Workflow

if TYPE_CHECKING:  # every role, and every command, loads only what it is made of
    from celery import Celery

    from convergio.graphflow.board.connection import Link
    from convergio.graphflow.engine.drain import Drain
    from convergio.graphflow.engine.journaler import Finished
    from convergio.graphflow.engine.plans import Definitions, Plans
    from convergio.graphflow.engine.pressure import Pressure
    from convergio.graphflow.engine.ringer import Ringer
    from convergio.graphflow.engine.starter import Starter
    from convergio.graphflow.engine.submission import Entrance
    from convergio.graphflow.engine.sweeper import Sweeper
    from convergio.graphflow.journal.database import Database
    from convergio.graphflow.journal.history import History
    from convergio.graphflow.library import Catalog
    from convergio.graphflow.signature import Revoked
    from convergio.graphflow.trust import Trust, Verdict
    from convergio.tasks.agents.model import ModelSettings
    from convergio.tasks.agents.registry import Registry
    from convergio.tasks.agents.roster import Roster
    from convergio.tasks.agents.step import Agents
    from convergio.workers.embedded.model_endpoint import ModelEndpoint
    from convergio.workers.process import WorkerProcess
    from convergio.workers.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What every role shares: the app, the way to the board, and how decisions are made and rung."""

    app: Celery
    link: Link
    nonces: Nonces
    plans: Plans
    ringer: Ringer
    drain: Drain


def resolve(settings: Settings) -> Settings:
    """The settings with the addresses of the stack that runs in HOME, where they name none themselves.

    A Redis of the user's own has no journal by default (`journal_url`): a second one beside the right one does harm.
    """
    if settings.redis_url and settings.journal_url:
        return settings
    from convergio.workers.embedded.directory import DataDirectory

    running = DataDirectory(root=settings.home.absolute()).running()
    urls = dict(running.urls) if running is not None else {}
    redis = settings.redis_url or urls.get("redis", "")
    journal = f"sqlite:///{settings.home.absolute() / 'journal.sqlite3'}"
    if settings.redis_url and settings.redis_url != urls.get("redis"):
        journal = ""
    found = {"redis_url": redis, "journal_url": settings.journal_url or (journal and urls.get("journal", journal))}
    return settings.model_copy(update=found)


def journal_url(settings: Settings) -> str:
    """Where the journal is. Raises InvalidSetting if the settings name a Redis of their own and no journal."""
    url = resolve(settings).journal_url
    if not url:
        hint = (
            "set CONVERGIO_JOURNAL_URL, too: every process of one installation has the same Redis and the same journal"
        )
        raise errors.InvalidSetting(
            "CONVERGIO_REDIS_URL is set, and nothing says which journal belongs to it", hint=hint
        )
    return url


def core(settings: Settings, definitions: Definitions | None = None) -> Core:
    """The shared parts. Nothing is connected yet."""
    from convergio.tasks.app import make_app

    url = resolve(settings).redis_url
    if not url:
        hint = "start one with `convergio up`, or set CONVERGIO_REDIS_URL"
        raise errors.BoardUnavailable(f"no stack runs in {settings.home}", hint=hint)
    app = make_app(
        url,
        key_prefix=settings.key_prefix,
        visibility_timeout=settings.visibility_timeout,
        socket_timeout=settings.socket_timeout,
        task_events=settings.task_events,
    )
    return _parts(app, settings, url, Nonces(), definitions)


def forked(parent: Core, settings: Settings) -> Core:
    """The shared parts of a process that was forked from one with `parent`: nothing but the app is the same.

    Its nonces begin with its parent's, so that the parent knows the leases of a child that died.
    """
    nonces = Nonces()
    nonces.boot = f"{parent.nonces.boot}.{nonces.boot}"
    return _parts(parent.app, settings, resolve(settings).redis_url, nonces)


def _parts(app: Celery, settings: Settings, url: str, nonces: Nonces, definitions: Definitions | None = None) -> Core:
    from convergio.graphflow.board.connection import Link
    from convergio.graphflow.engine.drain import Drain
    from convergio.graphflow.engine.plans import Plans
    from convergio.graphflow.engine.ringer import Ringer
    from convergio.tasks.bell import Bell

    link = Link(board_url(url), prefix=settings.key_prefix, socket_timeout=settings.socket_timeout)
    plans = Plans(link, definitions)
    ringer = Ringer(link, Bell(app))
    return Core(app=app, link=link, nonces=nonces, plans=plans, ringer=ringer, drain=Drain(link, plans, ringer))


def board_url(url: str) -> str:
    """redis-py's name for the server behind a Celery broker URL."""
    return url.replace("redis+socket://", "unix://", 1)


def pressure(settings: Settings, link: Link) -> Pressure:
    """When nothing new is taken on."""
    from convergio.graphflow.engine.pressure import Limits, Pressure

    limits = Limits(
        events=settings.journal_lag_events, seconds=settings.journal_lag_seconds, memory=settings.memory_watermark
    )
    return Pressure(link, limits)


def database(settings: Settings) -> Database:
    """The journal's database; nothing is connected yet."""
    from convergio.graphflow.journal.database import connect

    return connect(journal_url(settings), synchronous=settings.sqlite_synchronous)


def admit(settings: Settings) -> None:
    """Raises AnotherJournal if the board is not this journal's, before a process that would serve it is begun.

    What is away is waited for later, by who needs it.
    """
    from convergio.graphflow.board.connection import Link
    from convergio.graphflow.journal.boards import identity_of

    rows = database(settings)
    link = Link(
        board_url(resolve(settings).redis_url), prefix=settings.key_prefix, socket_timeout=settings.socket_timeout
    )
    try:
        with suppress(errors.BoardUnavailable, errors.BoardRebuilding, errors.JournalUnavailable):
            link.journal = identity_of(rows)
            link.refresh()
    finally:
        link.close()
        rows.close()


def migrations() -> list[Path]:
    """Where the domains keep their own migrations."""
    from importlib import resources

    found: list[Path] = []
    for domain in ("agents", "conversation"):
        with resources.as_file(resources.files(f"convergio.tasks.{domain}") / "migrations") as path:
            found.append(path)
    return found


def migrate(url: str) -> None:
    """Brings the journal's tables, and those of the domains, to this version."""
    from convergio.graphflow.journal.schema import migrate as upgrade

    upgrade(url, migrations())


def catalog(settings: Settings, revoked: Callable[[], Revoked] | None = None) -> Catalog:
    """The workflows this process knows: shipped, from directories, and built by the included modules."""
    from convergio.graphflow.library import Catalog

    return Catalog(settings.workflow_dirs, built=include(settings), trust=trust(settings, revoked))


def include(settings: Settings) -> list[Workflow]:
    """Imports the user's modules: their steps and hooks register themselves, their Celery tasks are registered
    here, their workflows are returned."""
    from convergio.tasks import adopted, foreign

    importlib.import_module("convergio.tasks.tools.market")
    found: list[Workflow] = []
    modules: list[ModuleType] = []
    for name in settings.included:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            hint = "CONVERGIO_INCLUDE names modules that Python can import; is the directory on PYTHONPATH?"
            raise errors.InvalidSetting(f"module '{name}' cannot be imported: {error}", hint=hint) from error
        modules.append(module)
        found += [value for value in vars(module).values() if isinstance(value, Workflow)]
    adopted.adopt(modules)
    foreign.register(adopted.apps(modules))
    return found


def history(settings: Settings) -> History:
    """Reads of the journal."""
    from convergio.graphflow.journal.history import History

    return History(database(settings))


def entrance(settings: Settings, shared: Core | None = None, known: Callable[[], Catalog] | None = None) -> Entrance:
    """The doors: submit, signal, cancel. `known`: the catalog, which is read when a step wants another workflow."""
    from convergio.graphflow.engine.drain import Drain
    from convergio.graphflow.engine.plans import Plans
    from convergio.graphflow.engine.starter import Starter
    from convergio.graphflow.engine.submission import Entrance
    from convergio.graphflow.journal.blobs import Blobs
    from convergio.graphflow.journal.doors import Doors
    from convergio.graphflow.journal.history import History

    rows = database(settings)
    parts = shared or core(settings)
    past = History(rows)
    plans = Plans(parts.link, past)
    blobs = Blobs(rows, limit=settings.blob_limit)
    drain = Drain(parts.link, plans, parts.ringer, blobs)
    starter = Starter(parts.link, plans, drain, parts.nonces, past)
    limit = pressure(settings, parts.link)
    read = functools.cache(known or (lambda: catalog(settings)))
    return Entrance(
        parts.link, Doors(rows), starter, drain, parts.nonces, blobs, limit, find=lambda name: read().get(name)
    )


def worker(settings: Settings, *, name: str | None = None) -> WorkerProcess:
    """A worker process: the app with its tasks, and what they need."""
    from convergio.workers.allocator import share_arenas
    from convergio.workers.process import WorkerProcess

    share_arenas()
    resolved = resolve(settings)  # children of the process must find what it found
    return WorkerProcess(resolved, core(resolved), name=name or worker_name())


def worker_name() -> str:
    """What this process is called in outcomes, events and Flower."""
    return f"{socket.gethostname()}-{os.getpid()}"


def service(settings: Settings, *, phase: Callable[[str], None] | None = None) -> Service:
    """The service process: journaler and sweeper."""
    from convergio.graphflow.engine.canaries import Canaries
    from convergio.graphflow.engine.children import Children
    from convergio.graphflow.engine.journaler import Journaler
    from convergio.graphflow.engine.leader import Leader
    from convergio.graphflow.engine.rebuild import Rebuilder
    from convergio.graphflow.engine.starter import Starter
    from convergio.graphflow.journal.blobs import Blobs
    from convergio.graphflow.journal.boards import Boards
    from convergio.graphflow.journal.children import Children as ChildRows
    from convergio.graphflow.journal.doors import Doors
    from convergio.graphflow.journal.history import History
    from convergio.graphflow.journal.writer import Writer
    from convergio.tasks.agents.tables import MODEL_CALLS, model_calls
    from convergio.tasks.conversation import tables as conversation
    from convergio.tasks.revocation import Revocations
    from convergio.workers.callers import Callers
    from convergio.workers.service import Service

    rows = database(settings)
    past, boards = History(rows), Boards(rows)
    writer = Writer(rows, {MODEL_CALLS: model_calls, **conversation.TABLES})
    parts = core(settings, past)
    blobs = parts.drain.blobs = Blobs(rows, limit=settings.blob_limit)
    callers = Callers(parts.app, parts.link, past)
    finished: Finished = callers.finished
    starter = Starter(parts.link, parts.plans, parts.drain, parts.nonces, past)
    children = Children(parts.link, ChildRows(rows), Doors(rows), past, starter, parts.drain, parts.nonces, blobs)
    journaler = Journaler(
        parts.link,
        boards,
        writer,
        parts.drain,
        parts.nonces,
        finished=finished,
        decided=callers.decided,
        children=children.news.set,
    )
    name = f"{worker_name()}-service"
    sweeper = _sweeper(settings, parts, starter, past)
    lease = Leader(parts.link, "rebuilder", name)
    return Service(
        link=parts.link,
        journaler=journaler,
        sweeper=sweeper,
        children=children,
        canaries=Canaries(parts.link, parts.ringer.bell, sweeper, parts.nonces),
        rebuilder=Rebuilder(parts.link, boards, past, writer, parts.plans, lease, blobs),
        revocations=Revocations(parts.link, Doors(rows), past),
        name=name,
        phase=phase or (lambda name: None),
    )


def _sweeper(settings: Settings, parts: Core, starter: Starter, past: History) -> Sweeper:
    from convergio.graphflow.engine.sweeper import Sweeper

    return Sweeper(
        parts.link,
        parts.plans,
        parts.ringer,
        parts.drain,
        starter,
        past,
        parts.nonces,
        pressure(settings, parts.link),
        keep_s=settings.stream_retention,
    )


def embedded_model(settings: Settings) -> ModelEndpoint | None:
    """The model server of the stack that started this process, or that runs in HOME."""
    from convergio.workers.embedded.directory import DataDirectory
    from convergio.workers.embedded.model_endpoint import ModelEndpoint

    running = DataDirectory(root=settings.home.absolute()).running()
    return ModelEndpoint.given() or (ModelEndpoint.given(running.env) if running is not None else None)


def agents(settings: Settings, link: Link | None = None, revoked: Callable[[], Revoked] | None = None) -> Agents:
    """Roster and models of the agent steps. `link`: where workers keep the models' limits together."""
    from convergio.tasks.agents.quota import Quota
    from convergio.tasks.agents.step import Agents

    known = models(settings)
    gate = None if link is None else Quota(link.client, link.prefix)
    return Agents(roster=roster(settings, revoked), model=known.default, models=known, gate=gate)


def models(settings: Settings) -> Registry:
    """The models of this process. Raises InvalidSetting."""
    from convergio.tasks.agents import registry, secret
    from convergio.tasks.agents.model import SCRIPTED, local_model, model_settings

    known = registry.of(Path(settings.models) if settings.models else None, timeout_s=settings.model_timeout)
    chosen = chosen_model(settings)
    if chosen is not None:
        return replace(known, default=chosen)
    key = settings.model_api_key.get_secret_value() or os.environ.get("OPENAI_API_KEY") or ""
    key = secret.resolved(key) if secret.is_reference(key) else key
    seconds, endpoint = settings.model_timeout, embedded_model(settings)
    if settings.model_local and settings.model_base_url:
        model = local_model(settings.model_base_url, key, name=settings.model_name, timeout_s=seconds)
    else:
        model = model_settings(
            name=settings.model_name,
            base_url=settings.model_base_url,
            api_key=key,
            timeout_s=seconds,
            local=local_model(endpoint.url, endpoint.key, name=endpoint.name, timeout_s=seconds) if endpoint else None,
        )
    return replace(known, default=model, closed=settings.model_name == SCRIPTED)


def chosen_model(settings: Settings) -> ModelSettings | None:
    """The model of a known provider that answers by default, if the settings or their file name one."""
    from convergio.tasks.agents import registry

    known = registry.of(Path(settings.models) if settings.models else None, timeout_s=settings.model_timeout)
    name = registry.chosen(known.document, name=settings.model_name, base_url=settings.model_base_url)
    return None if name is None else known.named(name)


def roster(settings: Settings, revoked: Callable[[], Revoked] | None = None) -> Roster:
    """The agents this process knows."""
    from convergio.tasks.agents.roster import Roster

    path = Path(settings.agents) if settings.agents else None
    return Roster.load(path, trust=trust(settings, revoked), models=settings.tier_models)


def trust(settings: Settings, revoked: Callable[[], Revoked] | None = None) -> Trust:
    """Whose definitions count here. `revoked`: what the journal says counts no more."""
    from convergio.graphflow.trust import Trust

    folder = Path(settings.trusted_keys) if settings.trusted_keys else None
    if revoked is None:
        return Trust(folder, required=settings.require_signed)
    return Trust(folder, required=settings.require_signed, revoked=revoked)


def definitions(settings: Settings) -> list[Path]:
    """The files of one's own roster and workflows, which may be signed."""
    from convergio.graphflow import library
    from convergio.tasks.agents import roster

    agents = roster.files(Path(settings.agents)) if settings.agents else []
    return [*agents, *(path for folder in settings.workflow_dirs for path in library.files(folder))]


def verdicts(settings: Settings, files: Iterable[Path], revoked: Callable[[], Revoked]) -> dict[Path, Verdict]:
    """What these files are found to be. Raises DefinitionRefused if the folder of keys cannot be read."""
    from convergio.graphflow.trust import Definition

    asked = trust(settings, revoked)
    return {path: asked.verdict(Definition.of(path, path.read_bytes())) for path in files}
