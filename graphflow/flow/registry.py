"""Functions that steps call, by name.

`REGISTRY` is the one place where importing a module has an effect, as with Celery's own tasks: decorating a function
with `@step` registers it there. Everything that looks functions up takes a registry, so that tests bring their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from convergio.graphflow.flow.known import Parameters
from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.model import errors

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A function that steps may call, with what its author wants for steps that do not say otherwise.

    `retry`: a number or a policy as in a document; `timeout`: as in a document; None: the system's default.
    """

    name: str
    function: Callable[..., Any]
    retry: int | Mapping[str, Any] = 0
    timeout: str | float | None = None
    queue: str | None = None

    @property
    def parameters(self) -> Parameters | None:
        """What it takes by name; None if Python cannot tell (some built-in functions)."""
        try:
            found = inspect.signature(self.function).parameters.values()
        except ValueError:
            return None
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names = frozenset(parameter.name for parameter in found if parameter.kind in by_name)
        return Parameters(names=names, open_ended=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found))


class Registry:
    """Functions by name, and names by function."""

    def __init__(self) -> None:
        self._by_name: dict[str, Registered] = {}

    def add(self, entry: Registered) -> None:
        """Registers a function. NameTaken if another one has the name; the same one again (a reload) replaces
        itself."""
        other = self._by_name.get(entry.name)
        if other is not None and _place(other.function) != _place(entry.function):
            said = f"'{entry.name}' is {_place(other.function)} already, so it cannot be {_place(entry.function)} too"
            raise errors.NameTaken(said, hint="give one of them a name: @step(name=...)")
        self._by_name[entry.name] = entry

    def get(self, name: str) -> Registered:
        """The function of this name. UnknownFunction if there is none."""
        if name not in self._by_name:
            hint = did_you_mean(name, self._by_name) or "register it with @step, or include the module that does"
            raise errors.UnknownFunction(f"no function is registered as '{name}'", hint=hint)
        return self._by_name[name]

    def of(self, function: Callable[..., Any]) -> Registered | None:
        """The entry of a function; None if it is not registered.

        A Celery task has its own name: it is registered after the module that defines it was imported.
        """
        entry = next((entry for entry in self._by_name.values() if entry.function is function), None)
        if entry is not None or not hasattr(function, "apply_async"):
            return entry
        name = str(getattr(function, "name", ""))
        return self._by_name.get(name) or Registered(name=name, function=function)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._by_name)

    def functions(self) -> dict[str, Parameters | None]:
        """What `known.Known` wants to know."""
        return {name: entry.parameters for name, entry in self._by_name.items()}


REGISTRY: Final = Registry()


@overload
def step(function: Function, /) -> Function: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: int | Mapping[str, Any] = 0,
    timeout: str | float | None = None,
    queue: str | None = None,
    registry: Registry = REGISTRY,
) -> Callable[[Function], Function]: ...
def step(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    retry: int | Mapping[str, Any] = 0,
    timeout: str | float | None = None,
    queue: str | None = None,
    registry: Registry = REGISTRY,
) -> Function | Callable[[Function], Function]:
    """Makes a function, sync or async, callable by steps; the function itself stays as it is.

    Its name is `module.function` with the module's last part ("billing.load_invoice") unless `name` says otherwise.
    `retry`, `timeout` and `queue` are taken over by workflows built in Python; a YAML document states its own.
    """

    def register(function: Function) -> Function:
        entry = Registered(
            name=name or _default_name(function), function=function, retry=retry, timeout=timeout, queue=queue
        )
        registry.add(entry)
        return function

    return register if function is None else register(function)


def _default_name(function: Callable[..., Any]) -> str:
    module = function.__module__.rpartition(".")[2]
    if module == "__main__":
        # run as a script; workers import the same file by its name
        module = Path(inspect.getfile(function)).stem
    return f"{module}.{function.__name__}"


def _place(function: Callable[..., Any]) -> str:
    function = inspect.unwrap(function)
    return f"{function.__module__}.{function.__qualname__}"
