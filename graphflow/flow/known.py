"""What exists outside a definition, for the checks of what it names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a function takes: the names of its arguments; `open_ended` if it takes any (`**kwargs`)."""

    names: frozenset[str]
    open_ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Functions, agents and workflows that exist. None: not known here, so not checked.

    `functions`: parameters by function name, None where the parameters are not known. `agents`: names of the roster.
    `policies`: names of registered functions that choose who speaks next.
    """

    functions: Mapping[str, Parameters | None] | None = None
    agents: Collection[str] | None = None
    workflows: Collection[str] | None = None
    policies: Collection[str] | None = None
