"""What a command works with: settings, and the parts that boot makes of them, each when it is first asked for."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from convergio.config.settings import Settings
    from convergio.graphflow.engine.inquiry import Inquiry
    from convergio.graphflow.engine.submission import Entrance
    from convergio.graphflow.journal.database import Database
    from convergio.graphflow.journal.history import History
    from convergio.graphflow.library import Catalog
    from convergio.graphflow.model.ids import RunRef
    from convergio.graphflow.signature import Revoked
    from convergio.tasks.conversation.archive import Archive
    from convergio.workers.boot import Core

P = ParamSpec("P")
R = TypeVar("R")

SHORTEST_PREFIX = 4
"""Characters of a run id that are enough to look for it."""


class Session:
    """One call of the command line. `close` ends its connections."""

    def __init__(self, settings: Settings | None = None) -> None:
        if settings is not None:
            vars(self)["settings"] = settings

    @cached_property
    def settings(self) -> Settings:
        """The settings, with the addresses of the stack that runs in HOME."""
        from convergio.config import settings
        from convergio.workers import boot

        return boot.resolve(settings.load())

    @cached_property
    def core(self) -> Core:
        """App and link to the board. Raises BoardUnavailable if nothing says where the board is."""
        from convergio.workers import boot

        return boot.core(self.settings, self.history)

    @cached_property
    def database(self) -> Database:
        """The journal's database."""
        from convergio.workers import boot

        return boot.database(self.settings)

    @cached_property
    def revoked(self) -> Callable[[], Revoked]:
        """What the journal says counts no more; nothing does before the first stack made an embedded one. It raises
        JournalUnavailable: who cannot ask does not call a definition good."""
        from convergio.graphflow.journal.revoked import Recent, RevokedSignatures
        from convergio.graphflow.signature import Revoked
        from convergio.workers import boot

        file = boot.journal_url(self.settings).partition("sqlite:///")[2]

        def read() -> Revoked:
            return Revoked() if file and not Path(file).exists() else RevokedSignatures(self.database).now()

        return Recent(read)

    @cached_property
    def history(self) -> History:
        """Reads of the journal."""
        from convergio.graphflow.journal.history import History

        return History(self.database)

    @cached_property
    def archive(self) -> Archive:
        """What was said in conversations."""
        from convergio.graphflow.journal.blobs import Blobs
        from convergio.tasks.conversation.archive import Archive

        return Archive(self.database, Blobs(self.database, limit=self.settings.blob_limit))

    @cached_property
    def catalog(self) -> Catalog:
        """Workflows by name."""
        from convergio.workers import boot

        return boot.catalog(self.settings, self.revoked)

    @cached_property
    def entrance(self) -> Entrance:
        """Submit, signal, cancel."""
        from convergio.workers import boot

        return boot.entrance(self.settings, self.core, lambda: self.catalog)

    @cached_property
    def inquiry(self) -> Inquiry:
        """The view of runs; without a board it is that of the journal."""
        from convergio.graphflow.engine.inquiry import Inquiry

        if not self.settings.redis_url:
            return Inquiry(None, self.history)
        return Inquiry(self.core.link, self.history, self.core.ringer.bell.list_of)

    @property
    def submitter(self) -> str:
        """Who acts: the setting, else the login name."""
        return self.settings.submitter or login_name()

    def ref(self, text: str) -> RunRef:
        """The run that `text` names: a whole id, or the beginning of just one. Raises UnknownRun."""
        from convergio.graphflow.model.ids import RunRef

        return RunRef(tenant=self.settings.tenant, run=self._run_id(text))

    def _run_id(self, text: str) -> str:
        from convergio.graphflow.model import errors

        try:
            return self.history.run(self.settings.tenant, text).run_id
        except errors.UnknownRun:
            found = self.history.like(self.settings.tenant, text) if len(text) >= SHORTEST_PREFIX else []
            if len(found) == 1:
                return found[0]
            if not found:
                raise
            hint = f"write more of it; the newest: {', '.join(found)}"
            raise errors.UnknownRun(f"several runs begin with '{text}'", hint=hint) from None

    def close(self) -> None:
        """Ends what was connected."""
        if "core" in vars(self):
            self.core.link.close()
            self.core.app.close()
        if "database" in vars(self):
            self.database.close()


def login_name() -> str:
    """The user's name, also where the user has no entry (a container)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "anonymous"


def with_session(function: Callable[Concatenate[Session, P], R]) -> Callable[P, R]:
    """Gives the command a session as its first argument, and closes it."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        session = Session()
        try:
            return function(session, *args, **kwargs)
        finally:
            session.close()

    return update_wrapper(call, function)


def as_json(value: Any) -> str:
    """Any of our values as JSON for people and scripts."""
    import dataclasses
    import json

    def plain(other: Any) -> Any:
        if dataclasses.is_dataclass(other) and not isinstance(other, type):
            return dataclasses.asdict(other)
        return str(other)

    return json.dumps(value, default=plain, ensure_ascii=False, indent=2)
