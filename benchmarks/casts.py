"""Generated teams and graphs as AutoGen's ComponentModel JSON, with models that replay what they say.

A case is a document, a task and nothing else: it goes to AutoGen's own runtime and through our import. Every turn's
answers are generated together, so that each turn takes as many as it needs, whoever speaks and how often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from convergio.benchmarks import lookups

NAMES: Final = ("ann", "bob", "cem", "dora", "emil", "fay", "gus")
WORDS: Final = ("apples", "boats", "clocks", "drums", "elms", "flutes", "gates", "hats")
SIGNS: Final = ("YES", "NO", "AGAIN", "DONE")
MOST_TURNS: Final = 12
"""Of one agent, that have answers."""

MODEL_INFO: Final = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": "unknown",
}
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A team and what it is asked. `kind`: of team; `form`: of the generator that made it."""

    number: int
    kind: str
    form: str
    document: Document
    task: str

    @property
    def name(self) -> str:
        return f"{self.number}:{self.form}"


def cases(seed: int, count: int) -> list[Case]:
    """So many cases, every form in turn; the same for the same seed."""
    forms = list(FORMS.items())
    made: list[Case] = []
    for number in range(count):
        form, make = forms[number % len(forms)]
        rng = random.Random(f"{seed}/{number}")
        task = " ".join(rng.sample(WORDS, 3)) + (f" {rng.choice(SIGNS)}" if rng.random() < 0.08 else "")
        document = make(rng)
        made.append(Case(number=number, kind=form.split("/")[0], form=form, document=document, task=task))
    return made


# --- parts of documents -----------------------------------------------------------------------------------------------


def component(provider: str, config: Mapping[str, Any], **more: Any) -> Document:
    """A component of AutoGen's."""
    return {"provider": provider, "version": 1, "component_version": 1, "config": dict(config), **more}


def replaying(answers: Sequence[Any]) -> Document:
    """A model that gives these answers: text, or a list of calls (name, arguments)."""
    given: list[Any] = []
    for place, answer in enumerate(answers):
        if isinstance(answer, str):
            given.append(answer)
            continue
        calls = [
            {"id": f"c{place}_{number}", "name": name, "arguments": arguments}
            for number, (name, arguments) in enumerate(answer)
        ]
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        given.append({"finish_reason": "function_calls", "content": calls, "usage": usage, "cached": False})
    config = {"chat_completions": given, "model_info": MODEL_INFO}
    return component("autogen_ext.models.replay.ReplayChatCompletionClient", config)


def assistant(name: str, answers: Sequence[Any], **more: Any) -> Document:
    """An agent."""
    config = {
        "name": name,
        "description": f"{name.capitalize()} knows {WORDS[NAMES.index(name)]}.",
        "system_message": f"You are {name}.",
        "model_client": replaying(answers),
        "model_client_stream": False,
        "reflect_on_tool_use": False,
        "tool_call_summary_format": "{result}",
        **more,
    }
    return component(
        "autogen_agentchat.agents.AssistantAgent", config, component_type="agent", version=2, component_version=2
    )


def talker(rng: random.Random, name: str, signs: Callable[[int], str], hands_to: Sequence[str] = ()) -> Document:
    """An agent with answers for twelve turns. `signs`: what is said in a turn beside words; `hands_to`: others, whom
    it may hand over to."""
    uses = [one.__name__ for one in lookups.ALL] if rng.random() < 0.35 else []
    rounds, reflects = rng.randint(1, 3), rng.random() < 0.5
    answers: list[Any] = []
    for turn in range(MOST_TURNS):
        text = f"{name} {turn}: {rng.choice(WORDS)} {signs(turn)}".strip()
        asked = rng.randint(1, rounds) if uses and rng.random() < 0.5 else 0
        answers += [_calls(rng, uses) for _ in range(asked)]
        if hands_to and asked < rounds and rng.random() < 0.6:
            answers.append([(f"transfer_to_{rng.choice(hands_to)}", "{}")])
        elif asked < rounds or reflects:
            answers.append(text)
    bench = component("autogen_core.tools.StaticStreamWorkbench", {"tools": [lookups.component(one) for one in uses]})
    return assistant(
        name,
        answers,
        workbench=[bench],
        handoffs=[{"target": other} for other in hands_to],
        max_tool_iterations=rounds,
        reflect_on_tool_use=reflects,
    )


def _calls(rng: random.Random, uses: Sequence[str]) -> list[tuple[str, str]]:
    """Calls of one answer: one, or two at once; sometimes of a tool that is not there, or with broken arguments."""
    made = list[tuple[str, str]]()
    for _ in range(rng.choice((1, 1, 2))):
        name, item = rng.choice(uses), rng.choice(WORDS)
        luck = rng.random()
        arguments = '{"item": ' if luck < 0.05 else f'{{"item": "{item}"}}'
        made.append(("nothing_there" if luck > 0.95 else name, arguments))
    return made


def condition(name: str, **config: Any) -> Document:
    """A condition that ends it."""
    return component(f"autogen_agentchat.conditions.{name}", config)


def group(name: str, *conditions: Document) -> Document:
    """And, Or."""
    return component(f"autogen_agentchat.base.{name}TerminationCondition", {"conditions": list(conditions)})


def bounds(rng: random.Random, names: Sequence[str], *, swarm: bool = False) -> Document:
    """What ends a team: after twelve turns at the latest, so that answers last."""
    first = condition("MaxMessageTermination", max_messages=rng.randint(1, 11), include_agent_event=rng.random() < 0.3)
    other = _ending(rng, names)
    kind = rng.choice(("turns", "messages", "or", "and", "both"))
    people = condition("HandoffTermination", target="user")
    turns = rng.randint(1, 9)
    if kind == "turns":
        ends = people if swarm else None
    elif kind == "and":
        ends = group("And", first, other)
        ends = group("Or", ends, people) if swarm else ends
    else:
        ends = group("Or", *([people] if swarm else []), first, *([other] if kind == "or" else []))
    needed = kind in ("turns", "both", "and")
    found: Document = {} if ends is None else {"termination_condition": ends}
    return {**found, **({"max_turns": turns} if needed else {})}


def _ending(rng: random.Random, names: Sequence[str]) -> Document:
    match rng.randint(0, 4):
        case 0:
            return condition("TextMentionTermination", text=rng.choice(SIGNS))
        case 1:
            return condition("SourceMatchTermination", sources=[rng.choice(names)])
        case 2:
            return condition("TextMessageTermination", source=rng.choice(names))
        case 3:
            return condition("FunctionCallTermination", function_name=rng.choice(lookups.ALL).__name__)
        case _:
            return group("Or", condition("StopMessageTermination"), condition("TextMentionTermination", text="boats"))


def team(provider: str, agents: Sequence[Document], **config: Any) -> Document:
    """A team."""
    given = {"name": provider, "description": "Generated.", "participants": list(agents), **config}
    return component(f"autogen_agentchat.teams.{provider}", given, component_type="team")


# --- teams ------------------------------------------------------------------------------------------------------------


def _sometimes(rng: random.Random) -> Callable[[int], str]:
    return lambda turn: rng.choice(SIGNS) if rng.random() < 0.15 else ""


def round_robin(rng: random.Random) -> Document:
    """One after the other."""
    names = rng.sample(NAMES, rng.randint(1, 4))
    agents = [talker(rng, name, _sometimes(rng)) for name in names]
    return team("RoundRobinGroupChat", agents, **bounds(rng, names))


def selecting(rng: random.Random) -> Document:
    """A model chooses, and errs."""
    names = rng.sample(NAMES, rng.randint(2, 4))
    repeat, attempts = rng.random() < 0.4, rng.randint(2, 3)
    agents = [talker(rng, name, _sometimes(rng)) for name in names]
    answers = _choices(rng, names, repeat=repeat, attempts=attempts)
    return team(
        "SelectorGroupChat",
        agents,
        model_client=replaying(answers),
        selector_prompt="{roles}\nOne of {participants} is next.\n{history}",
        allow_repeated_speaker=repeat,
        max_selector_attempts=attempts,
        **bounds(rng, names),
    )


def _choices(rng: random.Random, names: Sequence[str], *, repeat: bool, attempts: int) -> list[str]:
    """What a selector's model answers, choice after choice. Where nobody may speak twice it names one in time: then
    AutoGen would let the last speaker go on all the same."""
    answers: list[str] = []
    last: str | None = None
    for _ in range(4 * MOST_TURNS):
        allowed = [name for name in names if repeat or name != last] or list(names)
        if len(allowed) == 1:
            last = allowed[0]
            continue
        wrong = rng.choice((0, 0, 0, 1, attempts - 1, attempts if repeat else 0))
        for _ in range(wrong):
            nobody = ["somebody else", " or ".join(rng.sample(list(names), 2)), "x" + names[0]]
            answers.append(rng.choice(nobody + ([] if repeat or last is None else [last])))
        if wrong == attempts:
            last = last or allowed[0]
            continue
        last = rng.choice(allowed)
        answers.append(rng.choice((last, f"{last}.", f"I choose {last} now", f'"{last}"')))
    return answers or ["nobody is asked"]


def swarm(rng: random.Random) -> Document:
    """Agents hand over, to each other and to people."""
    names = rng.sample(NAMES, rng.randint(2, 4))
    agents: list[Document] = []
    for place, name in enumerate(names):
        others = [other for other in names if other != name]
        hands = rng.sample(others, rng.randint(1 if place == 0 else 0, len(others)))
        if rng.random() < 0.2:
            hands.append("user")
        agents.append(talker(rng, name, _sometimes(rng), hands))
    return team("Swarm", agents, **bounds(rng, names, swarm=True))


# --- graphs -----------------------------------------------------------------------------------------------------------


def _graph(
    rng: random.Random,
    names: Sequence[str],
    edges: Sequence[tuple[str, Document]],
    signs: Mapping[str, Callable[[int], str]],
    *,
    start: str | None = None,
    eager: Sequence[str] = (),
    **config: Any,
) -> Document:
    nodes: dict[str, Document] = {
        name: {"name": name, "edges": list[Document](), "activation": "any" if name in eager else "all"}
        for name in names
    }
    for source, edge in edges:
        nodes[source]["edges"].append(edge)
    agents = [talker(rng, name, signs.get(name, lambda turn: "")) for name in names]
    graph = {"nodes": nodes, "default_start_node": start}
    return team("GraphFlow", agents, graph=graph, **config)


def edge(target: str, contains: str | None = None, *, join: str = "all", group: str | None = None) -> Document:
    """An edge of a DiGraph."""
    found = {"target": target, "condition": contains, "activation_condition": join}
    return {**found, "activation_group": group or target}


def acyclic(
    rng: random.Random,
) -> tuple[list[str], list[tuple[str, Document]], dict[str, Callable[[int], str]], list[str]]:
    """Layers with branches and joins; who decides says one sign, or none."""
    names = rng.sample(NAMES, rng.randint(3, 7))
    joins = {name: "any" if rng.random() < 0.25 else "all" for name in names}
    edges: list[tuple[str, Document]] = []
    signs: dict[str, Callable[[int], str]] = {}
    for place, name in enumerate(names[:-1]):
        later = names[place + 1 :]
        targets = rng.sample(later, rng.randint(1 if place == 0 else 0, min(3, len(later))))
        decides = rng.random() < 0.45
        for number, target in enumerate(targets):
            text = ("YES", "NO", "AGAIN")[number] if decides else None
            edges.append((name, edge(target, text, join=joins[target])))
        if decides:
            signs[name] = _one_of(rng, ("YES", "NO", "YES NO", "nothing"))
    eager = [name for name in names if rng.random() < 0.06 and joins[name] == "all"]
    return names, edges, signs, eager


def _one_of(rng: random.Random, signs: Sequence[str]) -> Callable[[int], str]:
    return lambda turn: rng.choice(signs)


def steps(rng: random.Random) -> Document:
    """A graph without cycles that nothing ends early."""
    names, edges, signs, eager = acyclic(rng)
    return _graph(rng, names, edges, signs, eager=eager)


def ended(rng: random.Random) -> Document:
    """A graph without cycles that a condition may end."""
    names, edges, signs, eager = acyclic(rng)
    return _graph(rng, names, edges, signs, eager=eager, **bounds(rng, names))


def loop(rng: random.Random) -> Document:
    """Somebody writes, others look at it, and it begins again until it is done."""
    names = rng.sample(NAMES, rng.randint(4, 7))
    first, back, *looking, judge, last = names
    kind = rng.choice(("any", "groups", "together"))
    join = "any" if kind == "any" else "all"
    edges = [(first, edge(back, join=join, group="in" if kind == "groups" else None))]
    hasty = "any" if rng.random() < 0.3 else "all"
    picks = rng.random() < 0.4
    for place, name in enumerate(looking):
        edges += [(back, edge(name, SIGNS[place] if picks else None)), (name, edge(judge, join=hasty))]
    if not looking:
        edges.append((back, edge(judge)))
    edges.append((judge, edge(back, "AGAIN", join=join, group="again" if kind == "groups" else None)))
    edges.append((judge, edge(last, "DONE")))
    rounds = rng.randint(0, 3)
    signs = {judge: lambda turn: "AGAIN" if turn < rounds else "DONE"}
    if picks:
        signs[back] = _one_of(rng, ("YES", "NO", "YES NO", "YES AGAIN"))
    return _graph(rng, names, edges, signs, start=first, **_long(rng, names))


def _long(rng: random.Random, names: Sequence[str]) -> Document:
    """What AutoGen wants of a graph with cycles; it seldom ends it early."""
    if rng.random() < 0.3:
        return bounds(rng, names)
    return (
        {"max_turns": 30}
        if rng.random() < 0.5
        else {"termination_condition": condition("MaxMessageTermination", max_messages=40)}
    )


FORMS: Final[Mapping[str, Callable[[random.Random], Document]]] = {
    "round_robin": round_robin,
    "graph/steps": steps,
    "swarm": swarm,
    "graph/loop": loop,
    "selector": selecting,
    "graph/ended": ended,
}
