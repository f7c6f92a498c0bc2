"""The form of a workflow document, as pydantic models: fields, defaults, and the shorthands they accept.

Only form: whether names exist and expressions hold is for `validate`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from convergio.graphflow.flow import values
from convergio.graphflow.flow.awaited import ApprovalDetails, WaitDetails
from convergio.graphflow.flow.part import Form
from convergio.graphflow.flow.scalars import (
    Condition,
    Duration,
    Expressions,
    FunctionName,
    JsonSchema,
    Label,
    Name,
    Pause,
    Priority,
    Text,
    refused,
    some_time,
)
from convergio.graphflow.flow.team import TeamForm
from convergio.graphflow.model import ids, instance
from convergio.graphflow.model.workflow import (
    DEFAULT_DURABILITY,
    DEFAULT_PRIORITY,
    DEFAULT_QUEUE,
    Durability,
    OnMax,
    Retry,
    StepKind,
)

LONGEST_PROMPT: Final = 20_000
LONGEST_KEY: Final = 500

_RETRY: Final = Retry()


def _edge(value: Any) -> Any:
    if isinstance(value, str):
        return {"step": value}
    if not isinstance(value, dict | EdgeForm):
        raise refused("BAD_VALUE", "is not a step's name", "write a name, or {step: name, when: CEL}")
    return value  # pyright: ignore[reportUnknownVariableType] -- checked by the form


def _retry(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"max": value}
    if not isinstance(value, dict | RetryForm):
        raise refused("BAD_VALUE", "is not a retry policy", "write a number of retries, or {max: 3, backoff: 1s}")
    return value  # pyright: ignore[reportUnknownVariableType] -- checked by the form


def _compensate(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


def _timeout(value: Any) -> Any:
    if value is None:
        return {}
    if isinstance(value, dict | TimeoutForm):
        return value  # pyright: ignore[reportUnknownVariableType] -- checked by the form
    return {"run": some_time(value)}


def _cached(value: Any) -> Any:
    if value is None or isinstance(value, dict | CacheForm):
        return value  # pyright: ignore[reportUnknownVariableType] -- checked by the form
    return {"ttl": some_time(value)}


def _limited(value: Any) -> Any:
    return {"key": value} if isinstance(value, str) else value


def _join(value: Any) -> Any:
    if isinstance(value, str):
        return {"policy": value, "count": 0}
    if isinstance(value, dict) and len(value) == 1 and "policy" not in value:  # pyright: ignore[reportUnknownArgumentType]
        ((policy, count),) = value.items()  # pyright: ignore[reportUnknownVariableType]
        return {"policy": policy, "count": count}
    return value  # pyright: ignore[reportUnknownVariableType] -- a canonical one, or for the form to refuse


def _kind_of_each(value: Any) -> str:
    """Which form the body of a map has; what is neither is refused as a task."""
    named = isinstance(value, EachAgent) or (values.is_map(value) and "agent" in value)
    return "[agent]" if named else "[task]"


class EdgeForm(Form):
    """A step to wait for; with `when`, the way from it is taken only if the condition holds, else it counts as
    skipped."""

    model_config = ConfigDict(title="A need with a condition")

    step: str
    when: Condition | None = None


class RetryForm(Form):
    """How often and how soon a failed attempt is tried again: after backoff * factor**(attempt-1), at most cap."""

    model_config = ConfigDict(title="Retry policy")

    max: Annotated[int, Field(ge=0, le=100, description="tries after the first")] = _RETRY.max
    backoff: Pause = _RETRY.backoff
    factor: Annotated[float, Field(ge=1, le=100)] = _RETRY.factor
    cap: Duration = _RETRY.cap
    jitter: Annotated[float, Field(ge=0, le=1, description="share of the pause drawn by lot")] = _RETRY.jitter
    on: list[Label] = Field(
        default=[], description="codes of errors, names of exception classes; none: all that may pass"
    )


class TimeoutForm(Form):
    """How long a step may take, in its parts. A plain duration is `run`."""

    model_config = ConfigDict(title="Timeouts")

    run: Duration | None = Field(None, description="one attempt, from its claim to its end")
    queue: Duration | None = Field(None, description="until a worker takes it for the first time")
    idle: Duration | None = Field(None, description="without a sign of life of its body: a heartbeat, a recorded fact")


class ConcurrencyForm(Form):
    """How many steps of one key run at once, over all runs of a tenant. Plain text is a key of which one runs."""

    model_config = ConfigDict(title="Concurrency key")

    key: str = Field(min_length=1, max_length=LONGEST_KEY, description="text with {{ CEL }} pieces")
    limit: Annotated[int, Field(ge=1, le=1_000)] = 1


class CacheForm(Form):
    """A success of the same function with the same arguments counts for this step, too. A plain duration is `ttl`."""

    model_config = ConfigDict(title="Cache")

    ttl: Duration = Field(description="how old the success may be")
    version: str = Field("", max_length=100, description="of the function: another one is another call")


class JoinForm(Form):
    """When a step with several needs starts."""

    model_config = ConfigDict(title="Join policy")

    policy: Literal["all", "any", "quorum", "tolerate"]
    count: Annotated[int, Field(ge=0, le=100_000)] = 0

    @model_validator(mode="after")
    def _counted(self) -> JoinForm:
        if self.policy == "quorum" and self.count == 0:
            raise refused("BAD_VALUE", "needs a number", "write {quorum: 2}")
        if self.policy in ("all", "any") and self.count:
            raise refused("BAD_VALUE", f"'{self.policy}' takes no number", f"write join: {self.policy}")
        return self


Needs = list[Annotated[EdgeForm, BeforeValidator(_edge, json_schema_input_type=str | EdgeForm)]]
_EXPECTED: Final = (
    "how long it usually takes: of steps that are ready together, "
    "the one with the longest way to the run's end behind it is rung first"
)
_JOIN_INPUT: Final = Literal["all", "any"] | dict[Literal["quorum", "tolerate"], int] | JoinForm
TimeoutField = Annotated[TimeoutForm, BeforeValidator(_timeout, json_schema_input_type=Duration | TimeoutForm | None)]
CacheField = Annotated[
    CacheForm | None,
    BeforeValidator(_cached, json_schema_input_type=Duration | CacheForm | None),
    Field(description="use a success of the same function with the same arguments, if it is not too old"),
]
ConcurrencyField = Annotated[
    ConcurrencyForm | None,
    BeforeValidator(_limited, json_schema_input_type=str | ConcurrencyForm | None),
    Field(description="at most so many steps of this key run at once, over all runs; the others wait for their turn"),
]
RetryField = Annotated[RetryForm, BeforeValidator(_retry, json_schema_input_type=int | RetryForm)]


class LoopForm(Form):
    """Going back: after the step, the way from an earlier one to it is gone once more."""

    model_config = ConfigDict(title="Loop")

    back_to: str = Field(description="the step to begin with again: this one, or one that it needs, directly or not")
    until: Condition | None = Field(None, description="CEL that ends the loop; without it, it makes all its rounds")
    max: int = Field(ge=1, le=instance.ROUNDS, description="rounds, at most, the first one included")
    on_max: Literal["fail", "continue"] = Field(
        OnMax.FAIL.value, description="what to do when all rounds are made, and `until` still does not hold"
    )


class CompensateForm(Form):
    """What undoes a step that succeeded: a function, called when the run is undone."""

    model_config = ConfigDict(title="Compensation")

    task: FunctionName = Field(description="the function, as module.function")
    with_: Expressions = Field(
        {}, alias="with", description="its arguments by name; CEL that may use the step's own result"
    )
    retry: RetryField = RetryForm()
    timeout: Duration | None = None
    queue: Label = DEFAULT_QUEUE[StepKind.TASK]


class StepForm(Form):
    """What every kind of step has."""

    needs: Needs = Field([], description="steps that must be resolved before this one")
    when: Condition | None = Field(None, description="CEL; if it is false the step is skipped, and its result is null")
    join: Annotated[JoinForm, BeforeValidator(_join, json_schema_input_type=_JOIN_INPUT)] = Field(
        JoinForm(policy="all", count=0),
        description="when it starts: all (resolved), any (taken), {quorum: n} (taken), {tolerate: n} (not taken)",
    )
    loop: LoopForm | None = Field(None, description="after this step, go back to an earlier one")


class AwaitingForm(StepForm):
    """What a step has that does nothing itself: it waits, or others work for it."""

    on_failure: Literal["fail", "continue", "compensate"] = Field(
        "fail",
        description="continue: the run goes on when the step fails for good, with null as its result; "
        "compensate: the steps that succeeded are undone, then the run has failed",
    )


class DoingForm(StepForm):
    """What a step has that may do something to the world."""

    on_failure: Literal["fail", "continue", "compensate", "ask"] = Field(
        "fail",
        description="continue: the run goes on when the step fails for good, with null as its result; "
        "compensate: the steps that succeeded are undone, then the run has failed; "
        "ask: the step waits until somebody says what to do",
    )
    compensate: Annotated[
        CompensateForm | None, BeforeValidator(_compensate, json_schema_input_type=str | CompensateForm | None)
    ] = Field(None, description="what undoes it, when the run is undone; a function alone is called without arguments")


class TaskBody(Form):
    """What a step says that calls a registered function."""

    task: FunctionName = Field(description="the function, as module.function")
    with_: Expressions = Field({}, alias="with", description="its arguments by name; text is CEL")
    retry: RetryField = RetryForm()
    timeout: TimeoutField = TimeoutForm(run=None, queue=None, idle=None)
    expected: Duration | None = Field(None, description=_EXPECTED)
    durability: Literal["stream", "step"] = Field(
        DEFAULT_DURABILITY[StepKind.TASK].value,
        description="step: successors start only after the result is in the journal",
    )
    queue: Label = DEFAULT_QUEUE[StepKind.TASK]
    priority: Priority | None = Field(None, description="which steps workers take first; none: as urgent as the run")
    concurrency_key: ConcurrencyField = None
    cache: CacheField = None


class AgentBody(Form):
    """What a step says in which one agent gives one answer."""

    agent: Label = Field(description="a name of the roster")
    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT, description="text with {{ CEL }} pieces")
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    output: JsonSchema | None = None
    retry: RetryField = RetryForm()
    timeout: TimeoutField = TimeoutForm(run=None, queue=None, idle=None)
    expected: Duration | None = Field(None, description=_EXPECTED)
    durability: Literal["step"] = Durability.STEP.value
    queue: Label = DEFAULT_QUEUE[StepKind.AGENT]
    priority: Priority | None = Field(None, description="which steps workers take first; none: as urgent as the run")
    concurrency_key: ConcurrencyField = None


class TaskForm(TaskBody, DoingForm):
    """A step that calls a registered function."""

    model_config = ConfigDict(title="Task step")


class AgentForm(AgentBody, DoingForm):
    """A step in which one agent gives one answer."""

    model_config = ConfigDict(title="Agent step")


class ConversationForm(AwaitingForm):
    """A step in which a team talks, one turn after the other; each turn is a task, and the last one is its result."""

    model_config = ConfigDict(title="Conversation step")

    conversation: TeamForm
    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT, description="what it is about; {{ CEL }} pieces")
    after: Condition | None = Field(
        None, description="CEL that gives {run, turn}: an earlier conversation that goes on, behind that turn; or null"
    )
    images: Condition | None = Field(
        None, description="CEL that gives images to talk about: data URIs, or {data: base64}; or null"
    )
    hears: list[Name] = Field(
        [], max_length=1_000, description="conversations before it, in their order, that its agents have heard"
    )
    retry: RetryField = RetryForm()
    timeout: TimeoutField = TimeoutForm(run=None, queue=None, idle=None)
    durability: Literal["step"] = Durability.STEP.value
    queue: Label = DEFAULT_QUEUE[StepKind.CONVERSATION]
    priority: Priority | None = Field(None, description="which turns workers take first; none: as urgent as the run")

    @field_validator("loop")
    @classmethod
    def _no_loop(cls, value: LoopForm | None) -> None:
        if value is not None:
            raise refused("BAD_LOOP", "is of a conversation, which repeats itself", "say in `stop` when it ends")


class ApprovalForm(AwaitingForm):
    """A step in which a person decides."""

    model_config = ConfigDict(title="Approval step")

    approval: ApprovalDetails
    durability: Literal["step"] = Durability.STEP.value
    queue: Label = DEFAULT_QUEUE[StepKind.APPROVAL]
    priority: Priority | None = Field(None, description="which steps workers take first; none: as urgent as the run")


class WaitForm(AwaitingForm):
    """A step that waits, without a worker."""

    model_config = ConfigDict(title="Wait step")

    wait: WaitDetails


class EachTask(TaskBody):
    """A function that is called for each item."""

    model_config = ConfigDict(title="Task of a map")


class EachAgent(AgentBody):
    """An agent that is asked for each item."""

    model_config = ConfigDict(title="Agent of a map")


class MapDetails(Form):
    """One thing done for every item of a list. Its result is the list of the results, null for items that failed."""

    model_config = ConfigDict(title="Map")

    over: Condition = Field(description="CEL that gives a list, when the step's turn comes")
    each: Annotated[
        Annotated[EachTask, Tag("[task]")] | Annotated[EachAgent, Tag("[agent]")], Discriminator(_kind_of_each)
    ] = Field(description="a task or an agent step; `item` and `index` are names in its expressions")
    item: Name = Field("item", description="the item's name in expressions")
    max_concurrency: Annotated[int, Field(ge=1, le=instance.WIDEST)] | None = Field(
        None, description="how many items at once; without it all of them"
    )
    join: Annotated[JoinForm, BeforeValidator(_join, json_schema_input_type=_JOIN_INPUT)] = Field(
        JoinForm(policy="all", count=0),
        description="what must succeed: all items, any, {quorum: n}, or all but n: {tolerate: n}",
    )


class MapForm(AwaitingForm):
    """A step that is done once for each item of a list."""

    model_config = ConfigDict(title="Map step")

    map: MapDetails


class ChildForm(DoingForm):
    """A step that is a run of another workflow: its input is `with`, its result the child's output."""

    model_config = ConfigDict(title="Workflow step")

    workflow: Name = Field(description="the workflow, as the catalog of who submits knows it")
    with_: Expressions = Field({}, alias="with", description="the child's input by name; text is CEL")
    retry: RetryField = RetryForm()
    timeout: Duration | None = Field(None, description="how long the child may take; then it is cancelled")


class HeaderForm(Form):
    """A document without its steps."""

    workflow: Name
    version: int = Field(ge=1, le=2**31 - 1)
    title: str = Field("", max_length=200)
    description: Text = ""
    priority: Priority = DEFAULT_PRIORITY
    sla: Duration | None = None
    on_failure: Literal["fail", "compensate"] = Field(
        "fail", description="compensate: when the run fails or is cancelled, the steps that succeeded are undone first"
    )
    input: JsonSchema = Field(default={})
    output: Expressions | None = Field(
        None, description="the run's result; without it the result of the last step, if only one is last, else null"
    )


_STEPS: Final[dict[str, JsonValue]] = {"propertyNames": {"pattern": f"^{ids.NAME.pattern}$"}, "minProperties": 1}


AnyStep = TaskForm | AgentForm | ApprovalForm | WaitForm | ChildForm | MapForm | ConversationForm


class WorkflowForm(HeaderForm):
    """A workflow: steps that need each other."""

    model_config = ConfigDict(title="Workflow")

    steps: Annotated[dict[str, AnyStep], Field(json_schema_extra=_STEPS)]


KINDS: Final[dict[str, type[AnyStep]]] = {
    StepKind.TASK.value: TaskForm,
    StepKind.AGENT.value: AgentForm,
    StepKind.APPROVAL.value: ApprovalForm,
    StepKind.WAIT.value: WaitForm,
    StepKind.WORKFLOW.value: ChildForm,
    StepKind.MAP.value: MapForm,
    StepKind.CONVERSATION.value: ConversationForm,
}
