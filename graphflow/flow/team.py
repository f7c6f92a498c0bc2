"""The form of a team: who talks, who may speak when, and when it is over."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from convergio.graphflow.flow.part import Form
from convergio.graphflow.flow.scalars import DOTTED, Label, ModelName, Text, refused
from convergio.graphflow.model import instance

LONGEST_ROLE: Final = 20_000
MOST_AGENTS: Final = 50
HUMAN: Final = "user"
"""Who speaks for the people outside: no agent has this name."""

GRAPH: Final = "graph"
POLICIES: Final = ("round_robin", "scored", "llm", "handoff", GRAPH)
"""Who speaks next, by what ships; any other policy is a function that somebody registered."""


def _member(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _after(value: Any) -> Any:
    return {"to": value} if isinstance(value, str) else value


def _mentions(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _reply(value: Any) -> Any:
    return {"say": value} if isinstance(value, str) else value


def _policy(value: str) -> str:
    if value not in POLICIES and ("." not in value or not DOTTED.fullmatch(value)):
        hint = f"must be one of {', '.join(POLICIES)}, or a function of yours as module.function"
        raise refused("BAD_VALUE", f"is {value[:64]!r}", hint)
    return value


_POLICY_SCHEMA: Final = {
    "anyOf": [{"enum": list(POLICIES)}, {"type": "string", "pattern": f"^{DOTTED.pattern}$"}],
    "description": "who speaks next: one of these, or module.function: a registered policy of yours",
}
PolicyName = Annotated[str, AfterValidator(_policy), WithJsonSchema(_POLICY_SCHEMA)]


class ToolCallForm(Form):
    """A tool that a scripted agent asks for."""

    model_config = ConfigDict(title="Scripted tool call")

    tool: Label
    arguments: dict[str, JsonValue] | str = Field({}, description="by name; text is sent as it is, be it JSON or not")


class ReplyForm(Form):
    """What a scripted agent answers to one call. Plain text is `say`."""

    model_config = ConfigDict(title="Scripted reply")

    say: str = ""
    call: list[ToolCallForm] = Field([], description="tools it asks for instead of ending its turn")
    pace: Annotated[float, Field(ge=0, le=60, description="seconds before each word")] = 0.0
    fail: Literal["rate_limit", "unavailable", "refused", "broken_off"] | None = Field(
        None, description="what goes wrong, on the first `times` attempts of the turn"
    )
    times: Annotated[int, Field(ge=1, le=100)] = 1


Reply = Annotated[ReplyForm, BeforeValidator(_reply, json_schema_input_type=str | ReplyForm)]


class MemberForm(Form):
    """Who is in the team: a name of the roster, or, with a `role`, somebody who is only here."""

    model_config = ConfigDict(title="Member of a team")

    name: Label
    role: str | None = Field(None, min_length=1, max_length=LONGEST_ROLE, description="what it is told to be")
    description: Text = Field("", description="what others are told of it")
    model: ModelName | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2, description="none: the agent's own, or the model's")
    tools: list[Label] = Field([], description="names of tools it may use")
    rounds: int | None = Field(
        None, ge=1, le=100, description="how often it may ask for tools in one turn; its words end it earlier. None: 10"
    )
    reflect: bool = Field(
        False, description="after the last of these rounds the model has a word more; else what tools gave is said"
    )
    handoffs: list[Label] = Field(
        [], max_length=MOST_AGENTS, description="to whom it may hand over, by tools transfer_to_NAME; `user`: to people"
    )
    script: list[Reply] = Field([], description="its answers, in their order, where no model is to be asked")

    @field_validator("name")
    @classmethod
    def _identifier(cls, value: str) -> str:
        if not value.replace("-", "_").isidentifier() or value == HUMAN:
            raise refused(
                "BAD_NAME", f"'{value[:64]}' is no agent's name", "letters, digits, '-' and '_', no digit first"
            )
        return value


class StopForm(Form):
    """When the conversation is over: with the first of these."""

    model_config = ConfigDict(title="When a conversation ends")

    turns: Annotated[
        int, Field(ge=1, le=instance.ROUNDS, description="turns of agents, at most, since people said something")
    ] = 20
    mention: Annotated[list[str], BeforeValidator(_mentions, json_schema_input_type=str | list[str])] = Field(
        [], description="words that end it when an agent says one of them"
    )
    condition: dict[str, JsonValue] | None = Field(
        None, description="a termination condition: AutoGen's component JSON"
    )


class SelectorForm(Form):
    """The model that is asked who speaks next."""

    model_config = ConfigDict(title="Model that chooses the speaker")

    model: ModelName | None = Field(None, description="none: the model of the settings")
    script: list[Reply] = Field([], description="its answers, in their order, where no model is to be asked")
    epsilon: Annotated[
        float, Field(ge=0, le=10, description="`scored` asks where the second is closer to the first than this")
    ] = 0.5
    prompt: str | None = Field(
        None,
        min_length=1,
        max_length=LONGEST_ROLE,
        description="what it is asked, with {roles}, {participants} and {history}; none: what ships",
    )
    repeat: bool = Field(False, description="`llm`: whether who spoke last may be chosen again")
    attempts: Annotated[int, Field(ge=1, le=10, description="`llm`: answers that may name nobody, at most")] = 3
    otherwise: Literal["scored", "same"] = Field(
        "scored", description="`llm`: who it is then: by the factors, or who spoke last, if that may be, else the first"
    )


class AfterForm(Form):
    """Who may speak after somebody. Plain text is `to`."""

    model_config = ConfigDict(title="Who may follow")

    to: Label
    contains: str | None = Field(
        None, min_length=1, max_length=1_000, description="only if what was said last has this in it"
    )
    join: Literal["all", "any"] = Field(
        "all", description="follow: all: who it leads to waits for all the edges of its group that may still be taken"
    )
    group: str = Field("", max_length=200, description="follow: all: edges to one agent that belong together")


class GraphForm(Form):
    """Who may follow whom, in rounds, too. The conversation is over when nobody may follow."""

    model_config = ConfigDict(title="Graph of speakers")

    start: Label | list[Label] | None = Field(
        None, description="who begins; none: the first of the team. Several begin with follow: all"
    )
    follow: Literal["one", "all"] = Field(
        "one", description="one: `among` chooses if several may be next; all: each has a turn, once per round of a loop"
    )
    edges: dict[Label, list[Annotated[AfterForm, BeforeValidator(_after, json_schema_input_type=str | AfterForm)]]] = (
        Field({}, description="for each who speaks: who may be next")
    )
    among: Literal["round_robin", "scored", "llm"] = Field("scored", description="who chooses, if several may be next")


class CompactionForm(Form):
    """When agents are told less than all that was said. No cut divides a turn, or a question from its answer."""

    model_config = ConfigDict(title="Compaction of a thread")

    messages: Annotated[int | None, Field(ge=4, le=100_000, description="with more messages than this")] = None
    tokens: Annotated[int | None, Field(ge=100, le=10_000_000, description="with more tokens, as estimated")] = None
    keep: Annotated[int, Field(ge=1, le=10_000, description="messages that stay as they are, at most")] = 10
    by: Literal["summary", "drop"] = Field("summary", description="what becomes of the others but the first")
    model: Label | None = Field(None, description="the model that sums up; none: the model of the settings")
    script: list[Reply] = Field([], description="its answers, in their order, where no model is to be asked")

    @model_validator(mode="after")
    def _limited(self) -> CompactionForm:
        if self.messages is None and self.tokens is None:
            raise refused("BAD_VALUE", "has no limit", "say with how many messages or tokens: {messages: 40}")
        if self.messages is not None and self.keep >= self.messages:
            raise refused("BAD_VALUE", "keeps as much as it allows", "let `keep` be smaller than `messages`")
        return self


class TeamForm(Form):
    """A team, and how it talks."""

    model_config = ConfigDict(title="Team")

    agents: Annotated[
        list[Annotated[MemberForm, BeforeValidator(_member, json_schema_input_type=str | MemberForm)]],
        Field(min_length=1, max_length=MOST_AGENTS),
    ]
    policy: PolicyName = "round_robin"
    graph: GraphForm | None = Field(None, description="who may follow whom, for the policy `graph`")
    selector: SelectorForm | None = Field(
        None, description="the model of the policy `llm`; `scored` asks it where two are close"
    )
    stop: StopForm = StopForm(turns=20, mention=[], condition=None)
    compaction: CompactionForm | None = Field(
        None, description="what agents are told of a long thread; none: all of it"
    )
    people: Literal["wait", "end"] = Field(
        "wait", description="what a handoff to `user` does: wait, without a worker, until somebody answers; or end"
    )
    if_busy: Literal["enqueue", "reject", "interrupt", "rollback"] = Field(
        "enqueue", description="what becomes of a message that comes while a turn runs"
    )

    @field_validator("agents")
    @classmethod
    def _different(cls, value: list[MemberForm]) -> list[MemberForm]:
        names = [member.name.replace("-", "_") for member in value]
        if len(set(names)) < len(names):
            raise refused("BAD_VALUE", "has two agents of one name", "each of them has a name of its own")
        return value
