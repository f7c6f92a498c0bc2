"""What was said in a run, as a reader has it who follows its events: the same from wherever it began to read.

Two readers at the same position have the same messages, however often each was stopped, and whatever was trimmed or
lost meanwhile; at the end these are the messages of the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from convergio.graphflow.client.event import CUSTOM, MESSAGES, RESTARTED, RETOLD, Event

VOID: Final = frozenset({"step.failed", "step.cancelled", "step.quarantined", "step.skipped"})
"""A turn that ends like this has said nothing."""

Said = dict[str, dict[str, Any]]
"""Messages of one turn by their ids, in order."""


class Transcript:
    """The messages of a run's conversations, as AG-UI has them, and beside that with `step` and `turn` (from 1)."""

    def __init__(self) -> None:
        self._turns: dict[tuple[str, int], Said] = {}

    @property
    def messages(self) -> list[dict[str, Any]]:
        """All of them: conversation by conversation, turn by turn."""
        return [message for turn in sorted(self._turns) for message in self._turns[turn].values()]

    def of(self, step: str, iteration: int) -> list[dict[str, Any]]:
        """Those of one turn."""
        return list(self._turns.get((step, iteration), {}).values())

    def tell(self, event: Event) -> None:
        """One event; those that are not about what is said change nothing."""
        data, place = event.data, (event.step or "", event.iteration)
        match event.type:
            case "TEXT_MESSAGE_START":
                self._add(place, data["messageId"], {"role": data["role"], "name": data["name"], "content": ""})
            case "TEXT_MESSAGE_CONTENT":
                said = self._turns.get(place, {}).get(data["messageId"])
                if said is not None:
                    said["content"] += data["delta"]
            case "TEXT_MESSAGE_CHUNK":  # a whole message in one event
                told = {"role": data["role"], "name": data["name"], "content": data["delta"]}
                self._add(place, data["messageId"], told)
            case "TOOL_CALL_START" | "TOOL_CALL_ARGS":
                self._call(place, event.type, data)
            case "TOOL_CALL_RESULT":
                told = {"role": "tool", "toolCallId": data["toolCallId"], "content": data["content"], "ok": data["ok"]}
                self._add(place, data["messageId"], told)
            case kind if kind == CUSTOM and data["name"] == RESTARTED:
                self._turns.pop(place, None)
            case kind if kind == CUSTOM and data["name"] == RETOLD:
                self._turns.pop(place, None)
                self.take(data["value"]["messages"])
            case kind if kind == MESSAGES:
                self._turns.clear()
                self.take(data["messages"])
            case kind if kind in VOID:
                self._turns.pop(place, None)
            case _:
                pass

    def _add(self, place: tuple[str, int], name: str, message: Mapping[str, Any]) -> None:
        step, iteration = place
        self._turns.setdefault(place, {})[name] = {"id": name, "step": step, "turn": iteration + 1, **message}

    def _call(self, place: tuple[str, int], kind: str, data: Mapping[str, Any]) -> None:
        said = self._turns.get(place, {})
        if kind == "TOOL_CALL_START":
            parent = data["parentMessageId"]
            if parent not in said:
                self._add(place, parent, {"role": "assistant", "name": data["speaker"], "toolCalls": []})
            function = {"name": data["toolCallName"], "arguments": ""}
            made = {"id": data["toolCallId"], "type": "function", "function": function}
            self._turns[place][parent]["toolCalls"].append(made)
            return
        for message in said.values():
            for call in message.get("toolCalls", ()):
                if call["id"] == data["toolCallId"]:
                    call["function"]["arguments"] += data["delta"]

    def take(self, messages: Iterable[Mapping[str, Any]]) -> None:
        """Messages as a snapshot has them."""
        for message in messages:
            place = (str(message["step"]), int(message["turn"]) - 1)
            calls = [{**one, "function": dict(one["function"])} for one in message.get("toolCalls", ())]
            self._turns.setdefault(place, {})[message["id"]] = {**message, **({"toolCalls": calls} if calls else {})}
