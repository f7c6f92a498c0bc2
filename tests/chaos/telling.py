"""What a journal says of a turn, and what its tools did, as an engine without faults would leave it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from convergio.benchmarks import reference, talks
from convergio.benchmarks.effects import Note
from convergio.benchmarks.evidence import Kept, Paid, Said, Taken, Talked
from convergio.benchmarks.talks import Talk


def of(talk: Talk, run: str, step: str, turn: int, value: int) -> tuple[Talked, list[Note]]:
    """One turn."""
    name, speech = reference.instance(step, turn), talk.turns[turn]
    at: dict[str, Any] = {"run": run, "step": name}
    texts = [text for some in speech.notes for text in some]
    ids = {text: f"call_{turn}_{place}" for place, text in enumerate(texts)}
    said = [
        Said(**at, seq=seq, kind=kind, source=source, body=_body(kind, content, ids))
        for seq, (kind, source, content) in enumerate(talk.lines(turn, talks.prompt(step, value)))
    ]
    rows = [{"call_id": f"{run}:{name}:{place}"} for place in range(speech.answers)]
    kept = [Kept(**at, key=f"model.{place + 1}", value={"row": row}) for place, row in enumerate(rows)]
    talked = Talked(
        said=said,
        taken=[Taken(**at, speaker=talk.speaker(turn), calls=speech.answers)],
        paid=[Paid(**at, call=row["call_id"]) for row in rows],
        kept=kept,
    )
    return talked, [Note(key=f"{run}:{step}:{turn}:{ids[text]}", text=text, pid=1) for text in texts]


def _body(kind: str, content: Any, ids: dict[str, str]) -> dict[str, Any]:
    if kind == "calls":
        return {"calls": [{"id": ids[text], "arguments": json.dumps({"text": text})} for text in content]}
    if kind == "results":
        return {"results": [{"text": text} for text in content]}
    return {"text": content}


def together(found: Iterable[Talked]) -> Talked:
    """Of all turns."""
    every = list(found)
    return Talked(
        said=[row for one in every for row in one.said],
        taken=[row for one in every for row in one.taken],
        paid=[row for one in every for row in one.paid],
        kept=[row for one in every for row in one.kept],
    )
