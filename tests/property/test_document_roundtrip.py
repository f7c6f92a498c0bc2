"""Random workflows: one canonical form however they are written, and a plan that agrees with the graph. Random rubbish:
always a typed answer."""

from __future__ import annotations

import contextlib
import json
import random
import time
from typing import Any

import cel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convergio.graphflow.flow import document, expressions, graph, schema, syntax, validate, values
from convergio.graphflow.flow.build import EdgeRef, WorkflowBuilder
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Workflow

BOUNDED = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

texts = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Cn", "Co"), exclude_characters="\ufeff{}\u2028\u2029"), max_size=30
)
durations = st.one_of(
    st.integers(1, 3600),
    st.floats(0.001, 86_400, allow_nan=False),
    st.sampled_from(["1ms", "250ms", "1s", "30s", "5m", "1.5h", "2h", "1d"]),
)
constants = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
retries = st.one_of(
    st.integers(0, 100),
    st.fixed_dictionaries(
        {},
        optional={
            "max": st.integers(0, 100),
            "backoff": st.one_of(st.just(0), durations),
            "factor": st.floats(1, 100),
            "cap": durations,
            "jitter": st.floats(0, 1),
        },
    ),
)
schemas = st.sampled_from([{}, {"type": "object"}, {"properties": {"a": {"enum": [1, "b", None]}}, "required": ["a"]}])


@st.composite
def conditions(draw: st.DrawFn, names: list[str]) -> str:
    """A condition on some of `names` that is not constant."""
    name = draw(st.sampled_from(["input", *names]))
    return draw(
        st.sampled_from(
            [
                f"{name} != null && {name}.ok",
                f"{name}.total > 500.0",
                f"{name}.items.exists(x, x.price > 3)",
                f"has({name}.a) || {name}.b.all({name}, {name} != null)",
                f"size({name}.text) in [1, 2, 3]",
            ]
        )
    )


@st.composite
def steps(draw: st.DrawFn, seen: list[str], needs: list[Any]) -> dict[str, Any]:
    """A step that waits for `needs`, and so sees the results of `seen`."""
    extras = {"when": conditions(seen), "queue": st.sampled_from(["steps", "tools", "my.queue-1"])}
    common: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=extras))
    if needs or len(seen) % 2:
        common["needs"] = needs
    name = draw(st.sampled_from(["input", *seen]))
    prompt = draw(texts) + f"{{{{ {name}.text }}}}" + draw(texts)
    kind = draw(st.sampled_from(["task", "agent", "approval", "workflow", "map"]))
    if kind == "approval":
        details = {
            "title": texts,
            "risk": st.sampled_from(["low", "medium", "high", "critical"]),
            "description": st.just(prompt),
        }
        return {**common, "approval": draw(st.fixed_dictionaries({}, optional=details))}
    urgency = st.sampled_from([None, "low", "high"])
    keyed = st.sampled_from([None, "k", {"key": "a-{{ input.x }}"}, {"key": "k", "limit": 3}])
    optional: dict[str, Any] = {"retry": retries}
    optional["compensate"] = st.one_of(st.none(), st.just({"task": "m.undo", "retry": 1, "with": {"x": f"{name}.id"}}))
    arguments = st.one_of(
        constants, st.just(f"{name}.total"), texts.map(lambda text: json.dumps(text, ensure_ascii=False))
    )
    given = st.dictionaries(st.sampled_from(["a", "b", "after", "timeout", "name_1"]), arguments)
    if kind == "workflow":
        common.pop("queue", None)
        optional |= {"with": given, "timeout": st.one_of(st.none(), durations)}
        return {**common, "workflow": "other", **draw(st.fixed_dictionaries({}, optional=optional))}
    idle = st.fixed_dictionaries({}, optional={"idle": durations})
    optional |= {"priority": urgency, "concurrency_key": keyed, "timeout": st.one_of(st.none(), durations, idle)}
    if kind == "map":
        common.pop("queue", None)
        optional.pop("compensate")
        each: dict[str, Any] = draw(
            st.fixed_dictionaries({}, optional={**optional, "with": given, "cache": st.none() | durations})
        )
        how: dict[str, Any] = {
            "item": st.just("row"),
            "max_concurrency": st.integers(1, 9),
            "join": st.sampled_from(["all", "any", {"quorum": 2}, {"tolerate": 1}]),
        }
        details = draw(st.fixed_dictionaries({}, optional=how))
        return {**common, "map": {**details, "over": f"{name}.rows", "each": {"task": "market.research", **each}}}
    if kind == "agent":
        optional |= {"max_tokens": st.one_of(st.none(), st.integers(1, 4096)), "output": st.one_of(st.none(), schemas)}
        return {**common, "agent": "amy-cfo", "prompt": prompt, **draw(st.fixed_dictionaries({}, optional=optional))}
    optional |= {"with": given, "durability": st.sampled_from(["step", "stream"])}
    if draw(st.booleans()):  # what can be undone is not cached
        optional.pop("compensate")
        optional["cache"] = st.one_of(st.none(), durations, st.fixed_dictionaries({"ttl": durations, "version": texts}))
    return {**common, "task": "market.research", **draw(st.fixed_dictionaries({}, optional=optional))}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A valid document as a person may write it, its steps in any order."""
    names = [f"s{number}" for number in range(draw(st.integers(1, 12)))]
    made: dict[str, Any] = {}
    above: dict[str, set[str]] = {}
    for place, name in enumerate(names):
        wanted = draw(st.lists(st.sampled_from(names[:place]), unique=True, max_size=4)) if place else []
        above[name] = set(wanted).union(*(above[need] for need in wanted))
        needs: list[Any] = []
        for need in wanted:
            condition = draw(st.one_of(st.none(), conditions(sorted({need, *above[need]}))))
            needs.append(need if condition is None else {"step": need, "when": condition})
        made[name] = draw(steps(sorted(above[name]), needs))
    order = draw(st.permutations(names))
    header: dict[str, Any] = {
        "title": texts,
        "description": texts,
        "priority": st.sampled_from(["low", "medium", "high", "critical"]),
        "sla": st.one_of(st.none(), durations),
        "input": schemas,
        "output": st.one_of(
            st.none(), st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from([f"{names[0]}.v", "1"]))
        ),
    }
    fixed = {"workflow": "random", "version": draw(st.integers(1, 9)), "steps": {name: made[name] for name in order}}
    return {**draw(st.fixed_dictionaries({}, optional=header)), **fixed}


def whole(workflow: Workflow) -> tuple[Any, ...]:
    """All by which two workflows may differ, also the order of their steps."""
    return workflow, workflow.document, workflow.digest, list(workflow.steps)


def shuffled(value: Any, chance: random.Random) -> Any:
    """The same JSON with the keys of every mapping in another order."""
    if values.is_map(value):
        pairs = [(key, shuffled(part, chance)) for key, part in value.items()]
        chance.shuffle(pairs)
        return dict(pairs)
    return [shuffled(part, chance) for part in value] if values.is_list(value) else value


@BOUNDED
@given(documents(), st.randoms(use_true_random=False))
def test_a_workflow_has_one_canonical_form(written: dict[str, Any], chance: random.Random) -> None:
    workflow = document.parse_document(written)
    again = [
        document.parse_document(workflow.document),
        document.parse_document(json.loads(json.dumps(workflow.document, sort_keys=True))),
        document.parse_document(shuffled(written, chance)),
        document.parse_yaml(json.dumps(written, ensure_ascii=False)),
        document.parse_yaml(json.dumps(workflow.document, ensure_ascii=False, indent=1)),
    ]
    assert list(map(whole, again)) == [whole(workflow)] * len(again)


@BOUNDED
@given(documents())
def test_the_published_schema_accepts_what_the_parser_accepts(written: dict[str, Any]) -> None:
    published = document.json_schema()
    assert schema.violations(published, written) == []
    assert schema.violations(published, document.parse_document(written).document) == []


@BOUNDED
@given(documents())
def test_the_builder_makes_the_same_workflow(written: dict[str, Any]) -> None:
    header = {name: value for name, value in written.items() if name not in ("workflow", "version", "steps")}
    flow = WorkflowBuilder("random", version=written["version"], **header)
    for name, step in written["steps"].items():
        fields = {field: value for field, value in step.items() if field != "needs"}
        after = [
            need if isinstance(need, str) else EdgeRef(need["step"], need["when"]) for need in step.get("needs", [])
        ]
        if "task" in fields:
            flow.task(name, fields.pop("task"), after=after, with_=fields.pop("with", None), **fields)
        elif "agent" in fields:
            flow.agent(name, fields.pop("agent"), after=after, **fields)
        elif "workflow" in fields:
            flow.workflow(name, fields.pop("workflow"), after=after, with_=fields.pop("with", None), **fields)
        elif "map" in fields:
            details = {("items" if field == "join" else field): value for field, value in fields.pop("map").items()}
            each = dict(details.pop("each"))
            mapped = flow.map(name, after=after, **details, **fields)
            mapped.task(each.pop("task"), with_=each.pop("with", None), **each)
        else:
            details = fields.pop("approval")
            flow.approval(name, after=after, **details, **fields)
    assert whole(flow.build()) == whole(document.parse_document(written))


@BOUNDED
@given(documents())
def test_a_plan_agrees_with_the_graph(written: dict[str, Any]) -> None:
    workflow = document.parse_document(written)
    plan = Plan.of(workflow)
    assert Plan.from_json(json.dumps(workflow.document)) == plan
    edges = [(name, edge.target) for name, out in plan.successors.items() for edge in out]
    assert sorted(edges) == sorted((edge.step, name) for name, step in workflow.steps.items() for edge in step.needs)
    assert sum(plan.indegree.values()) == len(edges)
    assert set(plan.roots) == {name for name, step in workflow.steps.items() if not step.needs}
    assert set(plan.leaves) == set(workflow.steps) - {source for source, _ in edges}
    place = {name: at for at, name in enumerate(workflow.steps)}
    assert all(place[source] < place[target] for source, target in edges)
    ancestry = graph.Ancestry({name: [edge.step for edge in step.needs] for name, step in workflow.steps.items()})
    for name in workflow.steps:
        read = {*plan.references[name], *plan.when_references[name]}
        assert ancestry.mask(read) & ~(ancestry.above(name) or 0) == 0


# --- rubbish ------------------------------------------------------------------------------------------------------


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["s0", "input", "1 +"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs: list[tuple[Any, Any]] = []
    if values.is_map(value):
        pairs += value.items()
    elif values.is_list(value):
        pairs += enumerate(value)
    return [path, *(found for key, part in pairs for found in places(part, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy: Any = dict(value) if values.is_map(value) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def parsed(written: Any) -> Workflow | errors.InvalidWorkflow:
    try:
        return document.parse_document(written)
    except errors.InvalidWorkflow as error:
        return error


@BOUNDED
@given(documents(), st.data())
def test_a_broken_document_is_always_answered_in_problems(written: dict[str, Any], data: st.DataObject) -> None:
    broken: Any = written
    for _ in range(data.draw(st.integers(1, 4))):
        broken = replaced(broken, data.draw(st.sampled_from(places(broken))), data.draw(json_values))
    answer = parsed(broken)
    if isinstance(answer, Workflow):
        assert validate.problems(answer) == []
        assert whole(document.parse_document(answer.document)) == whole(answer)
    else:
        assert answer.problems
        assert all(problem.code.isupper() and problem.line() for problem in answer.problems)


@BOUNDED
@given(st.text(max_size=200))
def test_any_text_is_answered_as_yaml(text: str) -> None:
    steps, refusals = 0, 0
    try:
        steps = len(document.parse_yaml(text).steps)
    except errors.InvalidWorkflow as error:
        refusals = len(error.problems)
    assert bool(steps) != bool(refusals), "a whole workflow, or why it is none"


# --- expressions --------------------------------------------------------------------------------------------------


def operations(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(inner, inner)
    variables = st.sampled_from(["x", "y", "a", "input"])
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "%", "==", "<", "in", "&&", "||"]), inner).map(" ".join),
        two.map(lambda pair: f"({pair[0]})[{pair[1]}]"),
        two.map(lambda pair: f"[{pair[0]}, {pair[1]}]"),
        two.map(lambda pair: f"{{'k': {pair[0]}, 'l': {pair[1]}}}"),
        st.tuples(inner, inner, inner).map(lambda three: f"({three[0]} ? {three[1]} : {three[2]})"),
        inner.map(lambda text: f"size({text})"),
        inner.map(lambda text: f"({text}).name"),
        inner.map(lambda text: f"-({text}) // a comment with b\n"),
        st.tuples(inner, st.sampled_from(["map", "filter", "all", "exists", "exists_one"]), variables, inner).map(
            lambda four: f"({four[0]}).{four[1]}({four[2]}, {four[3]})"
        ),
        st.tuples(inner, variables, inner, inner).map(lambda four: f"({four[0]}).map({four[1]}, {four[2]}, {four[3]})"),
    )


leaves = st.sampled_from(
    ["a", "b", "x", "input.list", "input['list']", "1", "2.5", "'a + b'", '"x"', "r'\\'", "true", "null", "[]"]
)
texts_of_cel = st.recursive(leaves, operations, max_leaves=12)
VALUES: dict[str, Any] = {
    "a": list(range(300)),
    "b": {"name": "b", "list": [{"name": str(n), "list": [n] * 20} for n in range(60)]},
    "x": "text" * 500,
    "y": 3,
    "input": {"list": [[n] * 50 for n in range(50)]},
}


@settings(BOUNDED, max_examples=400)
@given(texts_of_cel)
def test_no_name_that_the_binding_sees_is_missed(text: str) -> None:
    try:
        compiled = expressions.compile_expression(text)
    except errors.ExpressionFailed:
        return
    found = syntax.parse(syntax.measured(text))
    bound = {node.variable for node in syntax.walk(found)}
    assert set(cel.compile(text).variables()) - bound - syntax.TYPES <= compiled.references
    # and none is made up: all are in the text, outside of texts and comments
    words = {token.text for token in syntax.tokens(text) if token.kind == "name"}
    assert compiled.references <= words


@settings(BOUNDED, max_examples=300)
@given(texts_of_cel)
def test_evaluation_is_json_or_a_typed_failure_within_bounds(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(errors.ExpressionFailed):
        json.dumps(expressions.compile_expression(text).evaluate(VALUES), allow_nan=False)
    assert time.process_time() - started < 3


@settings(BOUNDED, max_examples=300)
@given(st.one_of(st.text(max_size=60), st.text(st.sampled_from("ab.([{}])?:,'\"\\|&!-+0x \nmapin"), max_size=60)))
def test_any_text_is_answered_as_an_expression_or_a_template(text: str) -> None:
    with contextlib.suppress(errors.ExpressionFailed):
        assert isinstance(expressions.condition(text, VALUES), bool)
    with contextlib.suppress(errors.ExpressionFailed):
        assert isinstance(expressions.render(text, VALUES), str)
