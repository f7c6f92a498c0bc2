"""Maps: a step that is done once for each item of a list. The part of `decide` that is about them.

The items are dealt out first, each into a field of its own; then as many are rung as may run. A map that has a verdict
withdraws what is left of it, and only then ends. Each of these goes on over as many decisions as it takes: what a
decision writes does not grow with the list, and nothing that does is written again for each item.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from convergio.graphflow.board import fields
from convergio.graphflow.board.fields import Progress
from convergio.graphflow.decision import Entry, Unloaded
from convergio.graphflow.draft import AHEAD, ALIVE, DONE
from convergio.graphflow.flow import expressions, values
from convergio.graphflow.model import errors, instance, reference
from convergio.graphflow.model.outcome import PAYLOAD_LIMIT, Outcome, encode
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, StepState
from convergio.graphflow.model.workflow import Map, Step
from convergio.graphflow.undoing import Undoing

LARGEST: Final = 16 * 1024 * 1024
"""Bytes of JSON that the result of a map may have."""


class Items(Undoing):
    """What maps mean. A map that is at work is BLOCKED on its ITEMS, and says of how many."""

    def go_on_with(self, entry: Entry) -> None:
        """What a decision began with a map, another one may have to go on with."""
        if entry["t"] == "deal":
            self.deal(entry["step"])
        else:
            self.fold(entry["step"])

    # --- beginning ----------------------------------------------------------------------------------------------------

    def spread(self, step: Step) -> None:
        """A map's turn has come: its list is known now."""
        try:
            items = self.items(step.name, _map(step))
        except errors.ConvergioError as error:
            self.fail(step.name, error)
            return
        if not items:
            self.conclude(step.name, Outcome(state=StepState.SUCCEEDED, output=[], started_ms=self.now_ms))
            return
        word = fields.Word(StepState.BLOCKED, f"{BlockedOn.ITEMS}|{self.now_ms}|{len(items)}|")
        self.put(fields.state(step.name), word.text)
        self.tell("step.mapped", step.name, {"items": len(items)})
        self.queue.append({"t": "deal", "step": step.name})

    def items(self, step: str, made: Map) -> Sequence[Any]:
        """The list that the map is over. Raises ExpressionFailed, BadList."""
        known = self.view.lists.get(step)
        if known is not None:
            return known
        names = self.names(self.plan.references[instance.step_of(step)], step)
        found = expressions.compile_expression(made.over).evaluate(
            {name: self.opened(value) for name, value in names.items()}
        )
        if not values.is_list(found):
            hint = "write `over` as CEL that gives a list, such as load.rows or [input.a, input.b]"
            raise errors.BadList(f"`{made.over[:80]}` gives no list", hint=hint)
        if len(found) > instance.WIDEST:
            hint = "give each item more to do"
            raise errors.BadList(f"the list has {len(found)} items, the limit is {instance.WIDEST}", hint=hint)
        self.view.lists[step] = found
        return found

    def deal(self, step: str) -> None:
        """Every item into a field of its own; then the first ones are rung."""
        if self.ended() or self.count(step) == 0:
            return
        made, progress = _map(self.plan.step(step)), self.progress(step)
        if progress.verdict:
            return
        items = self.items(step, made) if progress.dealt < self.count(step) else ()
        while progress.dealt < len(items):
            self.room()
            try:
                text = encode(items[progress.dealt], what=f"item {progress.dealt}")
            except errors.ConvergioError as error:
                self.fail(step, error)  # nothing was rung: the items come first, all of them
                return
            self.made.writes[fields.item(instance.member(step, progress.dealt))] = ("", text)
            progress.dealt += 1
            self.put(fields.progress(step), progress.text)
        self.ring_items(step, made, progress)

    def ring_items(self, step: str, made: Map, progress: Progress) -> None:
        """As many as may run: in the order of the list, without those that had ended before."""
        count = self.count(step)
        most = made.max_concurrency or count
        while progress.rung < min(count, progress.dealt) and progress.active < most:
            member = instance.member(step, progress.rung)
            self.foresee_items(step, progress.rung, min(most - progress.active, count - progress.rung))
            self.room()
            if self.word(member).state in TERMINAL_STEP:
                progress.ahead -= 1
            elif self.word(member).state is StepState.WAITING:
                self.fire(member, fresh=False)
            progress.rung += 1
            self.put(fields.progress(step), progress.text)

    def foresee_items(self, step: str, start: int, count: int) -> None:
        """Asks for the fields of many members at once, where the first one's were not read."""
        members = [instance.member(step, index) for index in range(start, start + min(count, AHEAD))]
        if not self.view.knows(fields.rings(members[0])) or not self.view.knows(fields.state(members[0])):
            keyed = self.plan.step(members[0]).concurrency is not None
            kinds = [fields.state, fields.rings, *((fields.key, fields.item) if keyed else ())]
            names = [kind(member) for member in members for kind in kinds]
            raise Unloaded(name for name in names if not self.view.knows(name))

    # --- going on -----------------------------------------------------------------------------------------------------

    def item_arrived(self, member: str) -> None:
        """A member is terminal: it is counted, once, and makes room for the next one."""
        word, step = self.word(member), instance.whole(member)
        if word.state not in TERMINAL_STEP:
            return
        count = self.count(step)
        self.room()
        self.put(fields.cursor(member), DONE)
        progress = self.progress(step)
        if not count or word.state is StepState.CANCELLED or progress.verdict:
            return
        index = instance.index_of(member) or 0
        progress.done += 1
        progress.good += word.state is StepState.SUCCEEDED
        progress.ahead += index >= progress.rung
        made = _map(self.plan.step(step))
        verdict = made.join.verdict(items=count, done=progress.done, good=progress.good)
        if verdict is not None:
            progress.verdict = str(int(verdict))
            progress.culprit = -1 if verdict else index
            self.queue.append({"t": "fold", "step": step})
            self.flush |= progress.active > 0  # what this decision rings is not withdrawn by the same one
        self.put(fields.progress(step), progress.text)
        if verdict is None and progress.rung < progress.dealt:
            self.queue.append({"t": "deal", "step": step})

    # --- ending -------------------------------------------------------------------------------------------------------

    def fold(self, step: str) -> None:
        """The map has a verdict: what still runs is withdrawn, and then it ends."""
        count, progress = self.count(step), self.progress(step)
        if self.ended() or not count or not progress.verdict:
            return
        if progress.active:
            self.withdraw_items(step, progress)
        self.room()
        outcome = self.come_true(step, count) if progress.verdict == "1" else self.come_to_nothing(step, progress)
        self.conclude(step, outcome)

    def withdraw_items(self, step: str, progress: Progress) -> None:
        while progress.folded < progress.rung:
            member = instance.member(step, progress.folded)
            if not self.view.knows(fields.state(member)):
                ahead = range(progress.folded, min(progress.rung, progress.folded + AHEAD))
                raise Unloaded(fields.state(instance.member(step, index)) for index in ahead)
            self.room()
            word = self.word(member)
            if word.state in ALIVE and word.parked is None:
                self.withdraw(member)
            progress.folded += 1
            self.put(fields.progress(step), progress.text)

    def come_true(self, step: str, count: int) -> Outcome:
        """The list of the results, in the order of the items; null for what did not succeed."""
        members = [instance.member(step, index) for index in range(count)]
        wanted = [name for member in members for name in (fields.state(member), fields.output(member))]
        missing = [name for name in wanted if not self.view.knows(name)]
        if missing:
            raise Unloaded(missing)
        since = self.word(step).since_ms
        results = [self.output(member) for member in members]
        try:
            text = encode(results, what="the list of the results", limit=LARGEST)
        except errors.ConvergioError as error:
            return Outcome.failed(error, started_ms=since)
        large = self.blob(text)
        return Outcome(state=StepState.SUCCEEDED, output=results if large is None else large, started_ms=since)

    def blob(self, text: str) -> dict[str, Any] | None:
        """The reference to JSON that is too large to travel: whoever commits this keeps it first. None: it may."""
        content = text.encode()
        if len(content) <= PAYLOAD_LIMIT:
            return None
        self.made.blobs.append(text)
        return reference.to(hashlib.sha256(content).hexdigest(), len(content))

    def come_to_nothing(self, step: str, progress: Progress) -> Outcome:
        culprit = instance.member(step, progress.culprit)
        error = json.loads(self.get(fields.output(culprit)) or "{}")
        bad, count = progress.done - progress.good, self.count(step)
        said = f"{bad} of {count} items failed, the last one is {instance.label(culprit)}"
        because = ": ".join(str(error[name]) for name in ("code", "message") if error.get(name))
        failure = errors.ItemsFailed(f"{said} ({because})" if because else said, hint=error.get("hint"))
        return Outcome.failed(failure, started_ms=self.word(step).since_ms)

    # --- reading ------------------------------------------------------------------------------------------------------

    def count(self, step: str) -> int:
        """Of how many items the map is at work; 0 if it is not."""
        word = self.word(step)
        return int(word.rest.split("|")[2]) if word.blocked_on is BlockedOn.ITEMS else 0

    def progress(self, step: str) -> Progress:
        return Progress.parse(self.get(fields.progress(step)))


def _map(step: Step) -> Map:
    assert step.map is not None, f"'{step.name}' is no map"
    return step.map
