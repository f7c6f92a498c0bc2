"""Every kind of fault, in the order in which rounds take them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from convergio.benchmarks import callers, kills, outages, tampering, wipes
from convergio.benchmarks.faults import Inject

KINDS: Final[Mapping[str, Inject]] = MappingProxyType(
    {
        inject.__name__: inject
        for inject in (
            kills.worker_killed,
            wipes.flushed,
            kills.worker_frozen,
            wipes.flushed_before_commit,
            kills.service_killed,
            wipes.flushed_before_wakeup,
            tampering.duplicated,
            callers.signal_without_wakeup,
            wipes.flushed_in_rebuild,
            tampering.dropped,
            callers.run_without_start,
            outages.valkey_killed,
            kills.service_killed_in_phase,
            outages.rolled_back,
            outages.disconnected,
            wipes.service_killed_in_rebuild,
            outages.valkey_frozen,
            outages.demoted,
            outages.journal_away,
            outages.scripts_flushed,
            kills.worker_stopped,
            kills.child_killed,
        )
    }
)

NEED_APPROVALS: Final = frozenset({wipes.flushed_before_wakeup.__name__, callers.signal_without_wakeup.__name__})
"""Kinds that must find approvals nobody has answered yet."""
