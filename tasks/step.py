"""The doorbell tasks: what a worker does when it is rung for a step of each kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol, cast

from celery import Celery
from celery.exceptions import Ignore, WorkerShutdown, WorkerTerminate

from convergio.graphflow.board import scripts
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.flow import inputs, registry
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Step
from convergio.tasks.agents.step import AgentRequest, Agents, Ledger
from convergio.tasks.agents.tables import MODEL_CALLS
from convergio.tasks.app import FlowTask, Worker

DEFAULT_DEADLINE = 600.0
"""Seconds an agent step may take when its definition names no timeout."""

ANSWER = "answer"
"""Key of the recorded model answer: a step that was cut off after it is not paid for again."""


class Loop(Protocol):
    """The process's event loop."""

    def run(self, coroutine: Any, claim: Claim) -> Any:
        """Runs the coroutine on the loop while the task's thread waits; cancelled when the claim is lost."""
        ...


class StepWorker(Worker, Protocol):
    """What the step tasks need beside the claim."""

    loop: Loop
    agents: Agents


def register(app: Celery) -> None:
    """Adds the doorbell tasks to the app."""

    @app.task(base=FlowTask, bind=True, shared=False, name="convergio.step")
    def step(self: FlowTask, run: str, step: str, ring: str) -> None:
        answer(self, lambda: call(cast(StepWorker, self.worker), self.claim))

    @app.task(base=FlowTask, bind=True, shared=False, name="convergio.agent")
    def agent(self: FlowTask, run: str, step: str, ring: str) -> None:
        answer(self, lambda: ask(cast(StepWorker, self.worker), self.claim))

    @app.task(base=FlowTask, bind=True, shared=False, name="convergio.approval")
    def approval(self: FlowTask, run: str, step: str, ring: str) -> None:
        answer(self, lambda: wait(self, self.claim))
        raise Ignore  # the task goes on: its result is the decision, when there is one

    @app.task(bind=True, shared=False, name="convergio.canary", send_events=False, acks_late=True, ignore_result=True)
    def canary(self: Any, run: str, step: str, ring: str) -> None:
        scripts.eat(self.app.worker.steps.link, queue_list=step, canary=ring)


def answer(task: FlowTask, body: Callable[[], None]) -> None:
    """Runs a body and turns what it raises into the step's outcome.

    A lost claim ends quietly: it is another's step now. Nothing but the end of this process may leave the claim
    unsettled: it would be beaten for ever.
    """
    try:
        body()
    except errors.StaleFence:
        task.fenced()
    except (WorkerShutdown, WorkerTerminate):
        raise
    except BaseException as error:  # sys.exit() and a coroutine's own cancellation are no Exceptions
        failure = error if isinstance(error, errors.ConvergioError) else foreign(error)
        try:
            task.worker.steps.fail(task.claim, failure)
        except errors.StaleFence:
            task.fenced()
        raise failure from error


def foreign(error: BaseException) -> errors.ConvergioError:
    """An exception of a user's function as one of ours: retried by the step's policy."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001  # somebody else's __str__ may do anything
        said = "(it cannot be shown)"
    return errors.StepFailed(f"{type(error).__name__}: {said}", hint="the worker's log has the traceback")


def call(worker: StepWorker, claim: Claim) -> None:
    """A `task` step: its function with the values of its `with`."""
    steps = worker.steps
    definition = steps.step(claim)
    function = registry.REGISTRY.get(definition.spec["function"]).function
    arguments = steps.arguments(claim)
    result = function(**arguments)
    if inspect.isawaitable(result):
        result = worker.loop.run(result, claim)
    steps.succeed(claim, result)


def ask(worker: StepWorker, claim: Claim) -> None:
    """An `agent` step: the model's answer, bought at most once per step as far as anybody can know."""
    steps = worker.steps
    bought = claim.held.records.get(ANSWER) or buy(worker, claim)
    claim.owe({MODEL_CALLS: bought["rows"]})
    usage = bought["output"]["usage"]
    steps.succeed(claim, bought["output"], tokens=usage["input_tokens"] + usage["output_tokens"])


def buy(worker: StepWorker, claim: Claim) -> dict[str, Any]:
    """Asks the agent, and records what came of it: the answer, or what a failed attempt has cost."""
    steps = worker.steps
    definition, ledger = steps.step(claim), Ledger()
    request = request_of(claim, definition, inputs.prompt(definition, steps.names(claim)))
    try:
        result = worker.loop.run(worker.agents.run_agent_step(request, ledger=ledger), claim)
    except errors.ConvergioError:
        if ledger:
            steps.spend(claim, {MODEL_CALLS: ledger})
        raise
    bought = {"output": result.output, "rows": list(result.rows)}
    steps.record(claim, ANSWER, bought)
    return bought


def request_of(claim: Claim, definition: Step, prompt: str) -> AgentRequest:
    """The attempt as the agents know it."""
    held = claim.held
    return AgentRequest(
        tenant=held.ref.tenant,
        submitter=held.submitter,
        run_id=held.ref.run,
        step=held.step,
        iteration=0,
        attempt=held.attempt,
        claim=claim.nonce,
        agent=definition.spec["agent"],
        prompt=prompt,
        output_schema=definition.spec.get("output"),
        max_tokens=definition.spec.get("max_tokens"),
        deadline_s=definition.timeout or DEFAULT_DEADLINE,
    )


def wait(task: FlowTask, claim: Claim) -> None:
    """An `approval` step: it holds neither a slot nor a message while it waits for its signal."""
    steps = task.worker.steps
    definition = steps.step(claim)
    description = inputs.prompt(definition, steps.names(claim))
    data = {"task_id": task.request.id, "node": task.request.hostname, **definition.spec, "description": description}
    steps.block(claim, signal=claim.held.step, data=data)
    task.send_event("task-blocked", reason="SIGNAL")
