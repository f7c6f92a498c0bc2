"""Plans by digest: built once per process, loaded from the board when they are not known."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any, Final, Protocol

from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Workflow, canonical

KEPT: Final = 256


class Definitions(Protocol):
    """Where pinned definitions are kept for good: the journal."""

    def definition(self, digest: str) -> dict[str, Any] | None: ...


class Plans:
    """A cache of the most recently used plans. Processes that may read SQL give `definitions`, workers do not."""

    def __init__(self, link: Link, definitions: Definitions | None = None) -> None:
        self.link = link
        self.definitions = definitions
        self._plans: OrderedDict[str, Plan] = OrderedDict()

    def add(self, digest: str, plan: Plan) -> None:
        """Remember a plan that was built here."""
        self._plans[digest] = plan
        while len(self._plans) > KEPT:
            self._plans.popitem(last=False)

    def of(self, workflow: Workflow) -> Plan:
        """The plan of a valid workflow that this process has at hand."""
        plan = self.known(workflow.digest)
        if plan is None:
            plan = Plan.of(workflow)
            self.add(workflow.digest, plan)
        return plan

    def get(self, digest: str) -> Plan:
        """The plan; raises BoardRebuilding if the board does not have it."""
        plan = self.known(digest)
        if plan is None:
            plan = self._load(digest)
            self.add(digest, plan)
        return plan

    def known(self, digest: str) -> Plan | None:
        """The plan, if this process has it at hand."""
        plan = self._plans.get(digest)
        if plan is not None:
            with suppress(KeyError):  # another thread has just dropped it
                self._plans.move_to_end(digest)
        return plan

    def _load(self, digest: str) -> Plan:
        """From the board first: a sweep must not wait for a database that does not answer."""
        try:
            text = self._on_board(digest)
        except (errors.BoardUnavailable, errors.BoardRebuilding):
            if self.definitions is None:
                raise
            text = None
        if text is None and self.definitions is not None:
            document = self.definitions.definition(digest)
            text = None if document is None else canonical(document)
        if text is None:
            raise errors.BoardRebuilding(f"the board has no definition {digest}")
        return Plan.from_json(text)

    def _on_board(self, digest: str) -> str | None:
        try:
            text = self.link.client.get(self.link.keys(self.link.epoch()).plan(digest))
        except UNREACHABLE as error:
            raise unavailable(error) from error
        return None if text is None else str(text)
