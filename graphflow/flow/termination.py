"""When a conversation is over: conditions as pure functions over its turns, read from AutoGen's ComponentModel JSON.

A condition answers the first turn at which it is met, from the persisted turns alone: nothing is counted beside them,
so a restart, a resumed conversation or another worker gets the same answer (AutoGen's own counters are in no saved
state). Wording and order of the reasons are AutoGen's; where its JSON loses what was meant (`sources` of a
TextMentionTermination) ours keeps it.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, cast

import pydantic

from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.model import errors

CONDITIONS: Final = "autogen_agentchat.conditions."
GROUPS: Final = "autogen_agentchat.base."
DEEPEST: Final = 16
"""How deep conditions may be inside each other."""

Count = Annotated[int, pydantic.Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One message or inner event of a turn. `kind`: AutoGen's name for it, e.g. TextMessage, ToolCallExecutionEvent.

    `target`: of a handoff; `executed`: names of the tools that were called.
    """

    kind: str
    source: str
    text: str = ""
    target: str | None = None
    executed: tuple[str, ...] = ()

    @property
    def is_event(self) -> bool:
        """Whether it is an inner event, and no message of the thread."""
        return self.kind.endswith("Event")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn as it was committed; the first is the task. `elapsed_s`: from the start of the conversation to its end.

    Tokens are the ledger's: every model call of the turn. `stop_asked`: somebody outside wants it to end.
    """

    said: tuple[Said, ...]
    elapsed_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stop_asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why it ends: AutoGen's words, the conditions that say so, and the place of the turn that met them, from 0."""

    content: str
    source: str
    turn: int


class Condition(pydantic.BaseModel, abc.ABC):
    """What ends a conversation. Its fields are those of AutoGen's configuration."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    provider: ClassVar[str]

    @abc.abstractmethod
    def met(self, turns: Sequence[Turn]) -> Stop | None:
        """The first turn at which this holds; None while it does not."""

    def as_component(self) -> dict[str, Any]:
        """AutoGen's JSON."""
        config = self.model_dump(mode="json")
        return {"provider": self.provider, "component_type": "termination", "version": 1, "config": config}


class _Plain(Condition):
    """A condition that has no others inside."""

    def met(self, turns: Sequence[Turn]) -> Stop | None:
        """The first turn at which it holds, with AutoGen's words for it."""
        found = next(self._reasons(turns), None)
        if found is None:
            return None
        place, content = found
        return Stop(content=content, source=type(self).__name__, turn=place)

    @abc.abstractmethod
    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        """Turns at which it holds, and the words for it, from the first on."""


class MaxMessageTermination(_Plain):
    """So many messages, the task included; inner events count if wanted."""

    provider = CONDITIONS + "MaxMessageTermination"
    max_messages: Count
    include_agent_event: bool = False

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        count = 0
        for place, turn in enumerate(turns):
            count += sum(1 for said in turn.said if self.include_agent_event or not said.is_event)
            if count >= self.max_messages:
                said = f"Maximum number of messages {self.max_messages} reached, current message count: {count}"
                yield place, said


class TextMentionTermination(_Plain):
    """A text is in a message or event, of one of these sources if any are named."""

    provider = CONDITIONS + "TextMentionTermination"
    text: str = pydantic.Field(min_length=1)
    sources: tuple[str, ...] | None = None

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        for place, said in _each(turns):
            if self.text in said.text and (self.sources is None or said.source in self.sources):
                yield place, f"Text '{self.text}' mentioned"


class StopMessageTermination(_Plain):
    """Somebody sent a StopMessage."""

    provider = CONDITIONS + "StopMessageTermination"

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        return ((place, "Stop message received") for place, said in _each(turns) if said.kind == "StopMessage")


class TextMessageTermination(_Plain):
    """A plain text message came, from `source` if one is named."""

    provider = CONDITIONS + "TextMessageTermination"
    source: str | None = None

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        for place, said in _each(turns):
            if said.kind == "TextMessage" and self.source in (None, said.source):
                yield place, f"Text message received from '{said.source}'"


class HandoffTermination(_Plain):
    """The floor was handed to this target."""

    provider = CONDITIONS + "HandoffTermination"
    target: str

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        for place, said in _each(turns):
            if said.kind == "HandoffMessage" and said.target == self.target:
                yield place, f"Handoff to {self.target} from {said.source} detected."


class SourceMatchTermination(_Plain):
    """One of these has spoken."""

    provider = CONDITIONS + "SourceMatchTermination"
    sources: tuple[str, ...]

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        return ((place, f"'{said.source}' answered") for place, said in _each(turns) if said.source in self.sources)


class FunctionCallTermination(_Plain):
    """A tool of this name was executed."""

    provider = CONDITIONS + "FunctionCallTermination"
    function_name: str

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        for place, said in _each(turns):
            if said.kind == "ToolCallExecutionEvent" and self.function_name in said.executed:
                yield place, f"Function '{self.function_name}' was executed."


class TokenUsageTermination(_Plain):
    """So many tokens were used, by the ledger: selection, retries and reflection count too."""

    provider = CONDITIONS + "TokenUsageTermination"
    max_total_token: Count | None = None
    max_prompt_token: Count | None = None
    max_completion_token: Count | None = None

    @pydantic.model_validator(mode="after")
    def _one_at_least(self) -> TokenUsageTermination:
        if self.max_total_token is None and self.max_prompt_token is None and self.max_completion_token is None:
            raise ValueError("one of max_total_token, max_prompt_token and max_completion_token has to be given")
        return self

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        prompt = completion = 0
        for place, turn in enumerate(turns):
            prompt += turn.prompt_tokens
            completion += turn.completion_tokens
            used = ((self.max_total_token, prompt + completion), (self.max_prompt_token, prompt))
            if any(
                most is not None and count >= most for most, count in (*used, (self.max_completion_token, completion))
            ):
                yield (
                    place,
                    f"Token usage limit reached, total token count: {prompt + completion}, "
                    f"prompt token count: {prompt}, completion token count: {completion}.",
                )


class TimeoutTermination(_Plain):
    """So many seconds since the conversation began, by the journal's times: a restart does not begin anew."""

    provider = CONDITIONS + "TimeoutTermination"
    timeout_seconds: float = pydantic.Field(gt=0)

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        for place, turn in enumerate(turns):
            if turn.elapsed_s >= self.timeout_seconds:
                yield place, f"Timeout of {self.timeout_seconds} seconds reached"


class ExternalTermination(_Plain):
    """Somebody outside asked for the end."""

    provider = CONDITIONS + "ExternalTermination"

    def _reasons(self, turns: Sequence[Turn]) -> Iterator[tuple[int, str]]:
        return ((place, "External termination requested") for place, turn in enumerate(turns) if turn.stop_asked)


class _Group(Condition):
    conditions: tuple[pydantic.SerializeAsAny[Condition], ...] = pydantic.Field(min_length=1)

    def as_component(self) -> dict[str, Any]:
        """AutoGen's JSON, with that of its members."""
        config = {"conditions": [condition.as_component() for condition in self.conditions]}
        return {"provider": self.provider, "component_type": "termination", "version": 1, "config": config}

    def _stops(self, turns: Sequence[Turn]) -> list[Stop]:
        """Those of the members that are met, the earlier first, then in their order."""
        met = (condition.met(turns) for condition in self.conditions)
        return sorted((stop for stop in met if stop is not None), key=lambda stop: stop.turn)


class AndTerminationCondition(_Group):
    """All of these, each at its own turn."""

    provider = GROUPS + "AndTerminationCondition"

    def met(self, turns: Sequence[Turn]) -> Stop | None:
        """Met at the turn of the last of them."""
        stops = self._stops(turns)
        return _joined(stops) if len(stops) == len(self.conditions) else None


class OrTerminationCondition(_Group):
    """Any of these; all that are met at the same turn are named."""

    provider = GROUPS + "OrTerminationCondition"

    def met(self, turns: Sequence[Turn]) -> Stop | None:
        """Met at the turn of the first of them."""
        stops = self._stops(turns)
        return _joined([stop for stop in stops if stop.turn == stops[0].turn]) if stops else None


ALL: Final[tuple[type[Condition], ...]] = (
    MaxMessageTermination,
    TextMentionTermination,
    StopMessageTermination,
    TextMessageTermination,
    HandoffTermination,
    SourceMatchTermination,
    FunctionCallTermination,
    TokenUsageTermination,
    TimeoutTermination,
    ExternalTermination,
    AndTerminationCondition,
    OrTerminationCondition,
)
PROVIDERS: Final[dict[str, type[Condition]]] = {one.provider: one for one in ALL}
"""What may be named; nothing else is ever looked up, and nothing is executed by reading."""


def read(document: Any) -> Condition:
    """The condition in a ComponentModel document. Raises: errors.InvalidTermination with every problem."""
    found, wrong = examine(document, "termination")
    if found is None or wrong:
        raise errors.InvalidTermination(problems=wrong)
    return found


def examine(document: Any, path: str) -> tuple[Condition | None, list[errors.Problem]]:
    """The condition at this path of a larger document, or None, and every problem of it."""
    problems: list[errors.Problem] = []
    return _read(document, path, problems, 0), problems


def each(condition: Condition, path: str) -> Iterator[tuple[str, Condition]]:
    """The condition and those inside of it, with their paths."""
    yield path, condition
    if isinstance(condition, _Group):
        for place, member in enumerate(condition.conditions):
            yield from each(member, f"{path}.config.conditions[{place}]")


def _read(document: Any, path: str, problems: list[errors.Problem], depth: int) -> Condition | None:
    """The condition, or None and at least one problem more."""
    if not isinstance(document, Mapping) or not isinstance(document.get("config"), Mapping):
        _wrong(problems, path, "is no component: it needs a provider and a config")
        return None
    known = cast(Mapping[str, Any], document)
    provider = str(known.get("provider"))
    model = PROVIDERS.get(provider)
    if model is None:
        hint = did_you_mean(provider, PROVIDERS) or f"allowed are: {', '.join(PROVIDERS)}"
        _wrong(problems, f"{path}.provider", f"'{provider}' is not allowed", hint)
        return None
    config: dict[str, Any] = dict(known["config"])
    if issubclass(model, _Group):
        members = _members(config.get("conditions"), f"{path}.config.conditions", problems, depth)
        if members is None:
            return None
        config["conditions"] = members
    try:
        return model.model_validate(config)
    except pydantic.ValidationError as error:
        for fault in error.errors():
            _wrong(problems, ".".join((f"{path}.config", *map(str, fault["loc"]))), fault["msg"])
    return None


def _members(given: Any, path: str, problems: list[errors.Problem], depth: int) -> list[Condition] | None:
    if depth >= DEEPEST or not isinstance(given, list):
        _wrong(problems, path, f"has to be a list, at most {DEEPEST} deep")
        return None
    members = enumerate(cast(Sequence[Any], given))
    found = [_read(one, f"{path}[{place}]", problems, depth + 1) for place, one in members]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else None


def _wrong(problems: list[errors.Problem], path: str, message: str, hint: str = "") -> None:
    problems.append(errors.Problem(code="INVALID_TERMINATION", path=path, message=message, hint=hint))


def _each(turns: Sequence[Turn]) -> Iterator[tuple[int, Said]]:
    return ((place, said) for place, turn in enumerate(turns) for said in turn.said)


def _joined(stops: Sequence[Stop]) -> Stop:
    return Stop(
        content=", ".join(stop.content for stop in stops),
        source=", ".join(stop.source for stop in stops),
        turn=max(stop.turn for stop in stops),
    )
