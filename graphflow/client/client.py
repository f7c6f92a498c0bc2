"""The client for other systems: Redis is all it needs to reach. Importing it is cheap; what it uses is loaded then."""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path
from typing import Any, Final, Self

from convergio.graphflow.client.run import SUBMIT, Run, Wire, begun, in_thread
from convergio.graphflow.model import errors, ids
from convergio.graphflow.model.ids import DEFAULT_TENANT, RunRef

PATIENCE: Final = 30.0
"""Seconds to wait for a worker to take a message."""


class Client:
    """Starts runs and holds on to them. Safe for threads; close it, or use it as a context manager."""

    def __init__(
        self,
        url: str,
        *,
        tenant: str = DEFAULT_TENANT,
        submitter: str | None = None,
        prefix: str = "convergio",
        patience: float = PATIENCE,
    ) -> None:
        """`url`: redis://, rediss://, unix:// or sentinel://host:port/0?master_name=name. `submitter`: who acts; None:
        the user's login name.

        `patience`: seconds after which no answer means that no worker is there. Raises UnsupportedServer for any
        other URL.
        """
        self._wire = Wire(url, prefix=prefix, patience=patience, submitter=submitter or _login_name())
        self._tenant = tenant

    @classmethod
    def from_env(cls) -> Client:
        """By CONVERGIO_REDIS_URL, or the stack that `convergio up` runs in CONVERGIO_HOME (default .convergio).

        CONVERGIO_TENANT, CONVERGIO_SUBMITTER and CONVERGIO_KEY_PREFIX count too. Raises BoardUnavailable if neither
        says where Redis is.
        """
        given = {name: os.environ.get(f"CONVERGIO_{name}", "") for name in ("REDIS_URL", "TENANT", "SUBMITTER")}
        return cls(
            given["REDIS_URL"] or _embedded_url(),
            tenant=given["TENANT"] or DEFAULT_TENANT,
            submitter=given["SUBMITTER"] or None,
            prefix=os.environ.get("CONVERGIO_KEY_PREFIX") or "convergio",
        )

    def start(
        self,
        workflow: str,
        input: Any = None,
        *,
        key: str | None = None,
        run_id: str | None = None,
        priority: str | None = None,
    ) -> Run:
        """Starts a run of the workflow. Returns once it is accepted: then it cannot be lost.

        `priority`: low, medium, high or critical; None is the workflow's. The same `key` with the same input gives the
        same run; so does the same `run_id`. Raises UnknownWorkflow, InvalidInput, KeyConflict, NoWorker (the
        submission stays in the queue; repeat the call with the `run_id` that the error names), JournalUnavailable,
        BoardUnavailable.
        """
        given = {"workflow": workflow, "input": input}
        if priority is not None:
            given["priority"] = priority
        return begun(self._wire, self._tenant, SUBMIT, given, key=key, task_id=run_id or ids.new_run_id())

    async def astart(
        self,
        workflow: str,
        input: Any = None,
        *,
        key: str | None = None,
        run_id: str | None = None,
        priority: str | None = None,
    ) -> Run:
        """`start` for asyncio."""
        return await in_thread(self.start, workflow, input, key=key, run_id=run_id, priority=priority)

    def run(self, run_id: str) -> Run:
        """A run that was started elsewhere or before. Asks nobody."""
        return Run(self._wire, RunRef(tenant=self._tenant, run=run_id))

    def close(self) -> None:
        """Ends the connections."""
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "anonymous"


def _embedded_url() -> str:
    """Where the stack of this directory says that its Redis is."""
    home = Path(os.environ.get("CONVERGIO_HOME") or ".convergio")
    try:
        running: dict[str, Any] = json.loads((home / "run.json").read_bytes())
        return str(running["urls"]["redis"])
    except (OSError, ValueError, KeyError) as error:
        hint = "start one with `convergio up`, or set CONVERGIO_REDIS_URL"
        raise errors.BoardUnavailable(f"no stack runs in {home}", hint=hint) from error
