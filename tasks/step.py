"""The doorbell tasks: what a worker does when it is rung for a step of each kind."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Protocol, cast

from celery import Celery
from celery.exceptions import Ignore, WorkerShutdown, WorkerTerminate

from convergio.graphflow.board import scripts
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.flow import inputs, registry
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.workflow import Step
from convergio.tasks.agents import tables
from convergio.tasks.agents.step import AgentRequest, AgentResult, Agents, Ledger
from convergio.tasks.agents.tables import MODEL_CALLS
from convergio.tasks.app import FlowTask, Worker
from convergio.tasks.body import Again, Body, Later
from convergio.tasks.conversation.voice import Voice
from convergio.tasks.liveness import heard

logger = logging.getLogger(__name__)

DEFAULT_DEADLINE = 600.0
"""Seconds an agent step may take when its definition names no timeout."""

JOURNAL_PAUSE = 2.0
"""Seconds until a step looks again whether SQL answers, of which it needs a blob."""

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
        answer(self, lambda: call(self))

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
        with heard(task.claim):
            body()
    except errors.StaleFence:
        task.fenced()
    except errors.WorkerStopping:
        task.give_back()
    except (Settled, WorkerShutdown, WorkerTerminate):
        raise
    except errors.ModelBusy as error:  # its own limits: no attempt has failed
        look_again(task, Later(error.retry_after or JOURNAL_PAUSE, error.message))
    except errors.JournalUnavailable as error:
        look_again(task, Later(JOURNAL_PAUSE, f"SQL, which has what is too large for Redis: {error.message}"))
    except BaseException as error:  # sys.exit() and a coroutine's own cancellation are no Exceptions
        failure, steps = failure_of(error), task.worker.steps
        say(task.claim, error, failure)
        try:
            if isinstance(error, Again):
                steps.retry(task.claim, failure, seconds=error.seconds)
            else:
                steps.fail(task.claim, failure)
        except errors.StaleFence:
            task.fenced()
        raise failure from error


def look_again(task: FlowTask, later: Later) -> NoReturn:
    """The step waits without a slot, and its body runs once more in the same attempt."""
    try:
        task.worker.steps.look_again(task.claim, seconds=later.seconds, awaits=later.reason)
    except errors.StaleFence:
        task.fenced()
    task.send_event("task-blocked", reason=later.reason)
    raise Settled from None


class Settled(Ignore):
    """The step waits, or is another worker's to take: nothing is left for this task to do, and it has no outcome."""


def say(claim: Claim, error: BaseException, failure: errors.ConvergioError) -> None:
    """Logs a failed attempt. An error of ours says what happened; anybody else's needs its traceback."""
    ours = isinstance(error, errors.ConvergioError | Again)
    told = traceback.format_exception_only(failure) if ours else ["\n", *traceback.format_exception(error)]
    # Neither a __str__ that fails nor half a surrogate pair may keep the step from its end, or break a log's file.
    safe = "".join(told).rstrip().encode("utf-8", "backslashreplace").decode()
    logger.warning("step %s, attempt %d: %s %s", claim.member, claim.held.attempt, failure.code, safe)


def failure_of(error: BaseException) -> errors.ConvergioError:
    """An exception of a body as one of ours; a foreign one is retried by the step's policy."""
    if isinstance(error, Again):
        return error.error
    if isinstance(error, errors.ConvergioError):
        return error
    try:
        said = str(error)
    except Exception:  # noqa: BLE001  # somebody else's __str__ may do anything
        said = "(it cannot be shown)"
    failed = errors.StepFailed(f"{type(error).__name__}: {said}", hint="the worker's log has the traceback")
    failed.__cause__ = error  # its classes decide, with the step's policy, whether there is another attempt
    return failed


def call(task: FlowTask) -> None:
    """A `task` step: its function with the values of its `with`."""
    worker, claim = cast(StepWorker, task.worker), task.claim
    steps = worker.steps
    try:
        function = registry.REGISTRY.get(steps.step(claim).spec["function"]).function
    except errors.UnknownFunction as error:
        decline(task, error)
    arguments = steps.arguments(claim)
    digest = inputs.call_digest(steps.step(claim), arguments)
    if digest is not None and steps.recall(claim, digest):
        task.send_event("task-cached")
        return
    try:
        result = perform(task, function, arguments)
        if inspect.isawaitable(result):
            result = worker.loop.run(result, claim)
    except Later as later:
        look_again(task, later)
    steps.succeed(claim, result, cache=digest)


def perform(task: FlowTask, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What the function gives: a result, or something to await."""
    return function.perform(task, arguments) if isinstance(function, Body) else function(**arguments)


def decline(task: FlowTask, missing: errors.UnknownFunction) -> NoReturn:
    """This worker lacks a module that another one may include: the step stays READY."""
    logger.warning("step %s: %s", task.claim.member, missing)
    task.worker.steps.decline(task.claim, missing=missing.message)
    task.send_event("task-declined", reason=missing.message)
    raise Settled


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
        result = worker.loop.run(_heard(worker, claim, request, ledger), claim)
    except errors.ConvergioError as error:
        spend(steps, claim, ledger, error)
        raise
    bought = {"output": result.output, "rows": list(result.rows)}
    try:
        steps.record(claim, ANSWER, bought)
    except (errors.InvalidPayload, errors.PayloadTooLarge):  # nothing can keep this answer, and it was paid for
        steps.spend(claim, {MODEL_CALLS: result.rows})
        raise
    return bought


async def _heard(worker: StepWorker, claim: Claim, request: AgentRequest, ledger: Ledger) -> AgentResult:
    """The agent answers, and the run's readers hear it. Items of a map are too many to be listened to: the map's list
    has what they say."""
    if instance.index_of(claim.held.step) is not None:
        return await worker.agents.run_agent_step(request, ledger=ledger)
    async with Voice(worker.steps.link, claim, speaker=request.agent) as voice:
        says = partial(_say_on, voice)
        result = await worker.agents.run_agent_step(request, on_delta=says, ledger=ledger)
        voice.answered(result.output["text"])
    return result


def _say_on(voice: Voice, text: str) -> None:
    voice.emit("delta", {"text": text})


def spend(steps: Steps, claim: Claim, ledger: Ledger, error: errors.ConvergioError) -> None:
    """What a failed attempt has cost goes along with the step's outcome; of an attempt that has none, as its run was
    cancelled or its step is another's, into SQL at once."""
    if not ledger:
        return
    try:
        if not isinstance(error, errors.StaleFence):
            steps.spend(claim, {MODEL_CALLS: ledger})
            return
    except errors.StaleFence:
        pass
    try:
        assert steps.history is not None, "a worker has a journal"
        tables.book(steps.history.database, ledger)
    except errors.JournalUnavailable:
        logger.exception("what step %s has cost is not on the ledger: %s", claim.member, ledger)


def request_of(claim: Claim, definition: Step, prompt: str) -> AgentRequest:
    """The attempt as the agents know it."""
    held = claim.held
    step, iteration = instance.split(held.step)
    return AgentRequest(
        tenant=held.ref.tenant,
        submitter=held.submitter,
        run_id=held.ref.run,
        step=step,
        iteration=iteration,
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
    steps.block(claim, signal=instance.step_of(claim.held.step), data=data)
    task.send_event("task-blocked", reason="SIGNAL")
