"""Tools that agents may use: functions with a name, a description and a schema, which agents refer to by name."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, get_type_hints

import pydantic

from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.model import errors

Function = TypeVar("Function", bound=Callable[..., Any])

KEY: Final = "idempotency_key"
"""A parameter of this name is not the model's to fill: it gets the same text however often one call is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that agents may call."""

    name: str
    description: str
    function: Callable[..., Any]
    arguments: type[pydantic.BaseModel]
    keyed: bool

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments."""
        return self.arguments.model_json_schema()

    async def call(self, arguments: Mapping[str, Any], *, key: str) -> Any:
        """What the function gives. A function that is not async gets a thread.

        Raises what the function raises, and InvalidInput for arguments that do not fit.
        """
        try:
            given = self.arguments.model_validate(dict(arguments))
        except pydantic.ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise errors.InvalidInput(f"the arguments of '{self.name}' do not fit: {said}") from error
        values = {name: getattr(given, name) for name in self.arguments.model_fields}
        if self.keyed:
            values[KEY] = key
        if inspect.iscoroutinefunction(self.function):
            return await self.function(**values)
        return await asyncio.to_thread(self.function, **values)


class Tools:
    """Tools by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Tool] = {}

    def add(self, function: Callable[..., Any], name: str | None = None) -> Tool:
        """Registers a function: its docstring and its annotations are what a model is told."""
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters
        fields: dict[str, Any] = {
            one.name: (hints.get(one.name, Any), ... if one.default is inspect.Parameter.empty else one.default)
            for one in parameters.values()
            if one.name != KEY
        }
        named = name or function.__name__
        made = Tool(
            name=named,
            description=inspect.getdoc(function) or "",
            function=function,
            arguments=pydantic.create_model(named, __config__=pydantic.ConfigDict(extra="forbid"), **fields),
            keyed=KEY in parameters,
        )
        self._by_name[named] = made
        return made

    def get(self, name: str) -> Tool:
        """The tool of this name. Raises UnknownFunction."""
        if name not in self._by_name:
            hint = did_you_mean(name, self._by_name) or "register it with @tool, or include the module that does"
            raise errors.UnknownFunction(f"no tool is registered as '{name}'", hint=hint)
        return self._by_name[name]


REGISTERED: Final = Tools()
"""Where `@tool` puts tools while modules are imported."""


def tool(*, name: str | None = None) -> Callable[[Function], Function]:
    """Registers a function as a tool. One that takes `idempotency_key` is told which call it is."""

    def register(function: Function) -> Function:
        REGISTERED.add(function, name)
        return function

    return register
