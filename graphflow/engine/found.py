"""A step as the board has it now, for who was told its name: by a timer, a lease, a doorbell or a grant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from convergio.graphflow.board import fields
from convergio.graphflow.board.connection import Link
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.engine.bell import Caller
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The step, and how often it was lost. `rings`: how often it was rung. `key`: its concurrency key, or ""."""

    caller: Caller
    step: Step
    word: fields.Word
    deliveries: int
    unclaimed: int
    rings: int
    key: str


def find(link: Link, plans: Plans, epoch: Epoch, ref: RunRef, step: str) -> Found | None:
    """The step; None if its run left the board."""
    names = [fields.META, fields.state(step), fields.deliveries(step), fields.unclaimed(step)]
    names += [fields.rings(step), fields.key(step)]
    values = cast("list[str | None]", link.client.hmget(link.keys(epoch).run(ref), names))
    meta, word, deliveries, unclaimed, rings, key = values
    if meta is None:
        return None
    facts: Mapping[str, Any] = json.loads(meta)
    return Found(
        caller=Caller.of(ref, facts),
        step=plans.get(facts["digest"]).step(step),
        word=fields.Word.parse(word),
        deliveries=int(deliveries or 0),
        unclaimed=int(unclaimed or 0),
        rings=int(rings or 0),
        key=key or "",
    )
