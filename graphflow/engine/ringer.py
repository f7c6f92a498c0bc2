"""Making doorbells for steps: the bell of a first ring, and the ring of a step that has to be rung again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.engine.bell import Bell, Caller, route_of
from convergio.graphflow.model import instance
from convergio.graphflow.model.workflow import Step


class Ringer:
    """Renders doorbells and rings steps again."""

    def __init__(self, link: Link, bell: Bell) -> None:
        self.link = link
        self.bell = bell

    def doorbell(self, caller: Caller, step: Step, *, ring: str, fresh: bool, side: str = "L") -> scripts.Doorbell:
        """The message for one ring. Side L is the producing end of the list, R the consuming end."""
        route = route_of(step, priority=caller.priority, fresh=fresh)
        content = self.bell.render(
            route,
            tenant=caller.ref.tenant,
            submitter=caller.submitter,
            run=caller.ref.run,
            step=step.name,
            ring=ring,
            label=f"{caller.workflow}/{instance.label(step.name)}",
        )
        return scripts.Doorbell(
            queue_list=self.bell.list_of(route), side=side, content=content, step=step.name, ring=ring
        )

    def again(
        self,
        epoch: Epoch,
        caller: Caller,
        step: Step,
        *,
        was: str,
        kind: str,
        side: str = "R",
        lease: str = "",
        lease_must_be_over: bool = False,
        timer: str = "",
        sets: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        same: bool = False,
    ) -> bool:
        """Rings a step whose state word is `was`. False: it has another state by now, and needs no ring.

        `same`: under the ring that it has, so that a doorbell which was only slow is as good as the new one: whichever
        comes first has the claim. Raises BoardUnavailable.
        """
        run = self.link.keys(epoch).run(caller.ref)
        try:
            count = int(self.link.client.hget(run, fields.rings(step.name)) or 0) + (not same)
        except UNREACHABLE as error:
            raise unavailable(error) from error
        ring = was.removeprefix(fields.ready("")) if same else f"{epoch.number}.{count}"
        bell = self.doorbell(caller, step, ring=ring, fresh=False, side=side)
        ringing = scripts.Ringing(
            was=was,
            bell=bell,
            count=count,
            kind=kind,
            lease=lease,
            lease_must_be_over=lease_must_be_over,
            timer=timer,
            sets=sets or {},
            data=json.dumps(data or {}),
        )
        return scripts.ring(self.link, epoch, caller.ref, submitter=caller.submitter, ringing=ringing)
