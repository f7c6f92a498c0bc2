"""What bodies wrote down is read back whole, also from processes that died while they wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from convergio.benchmarks import doomed
from convergio.benchmarks.effects import Effects, Log


def begin(log: Log, nonce: str, **changes: Any) -> None:
    facts = {"run": "r1", "step": "s1", "attempt": 1, "pid": os.getpid(), "saw": {"s0": "n0"}, "early": ["s0"]}
    log.write("began", nonce, **{**facts, **changes})


def test_an_execution_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = Log(tmp_path)
    begin(log, "n1")
    log.write("ended", "n1", succeeded=True)
    begin(log, "n2", step="s2")
    log.write("fenced", "n2")
    first, second = Effects(tmp_path).all()
    assert (first.nonce, first.step, first.saw, first.early) == ("n1", "s1", {"s0": "n0"}, ("s0",))
    assert first.succeeded
    assert first.ended is not None
    assert first.began <= first.ended <= second.began
    assert (second.ended, second.fenced is not None) == (None, True)


def test_only_what_neither_ended_nor_was_refused_runs(tmp_path: Path) -> None:
    log, effects = Log(tmp_path), Effects(tmp_path)
    for nonce in ("n1", "n2", "n3"):
        begin(log, nonce)
    assert [one.nonce for one in effects.running()] == ["n1", "n2", "n3"]
    log.write("ended", "n1", succeeded=False)
    log.write("fenced", "n2")
    assert [one.nonce for one in effects.running()] == ["n3"]


def test_a_line_that_was_cut_off_is_read_when_it_is_whole(tmp_path: Path) -> None:
    begin(Log(tmp_path), "n1")
    (written,) = tmp_path.iterdir()
    line = written.read_bytes()
    written.write_bytes(line[:-20])
    effects = Effects(tmp_path)
    assert effects.all() == []
    written.write_bytes(line)
    assert [one.nonce for one in effects.all()] == ["n1"]


# --- orders to service processes ----------------------------------------------------------------------------------


def test_an_order_is_carried_out_once_and_only_in_its_phase(tmp_path: Path) -> None:
    orders = doomed.Orders(tmp_path)
    orders.give(doomed.KILL, "commit")
    assert orders.take("release") is None
    assert orders.take("commit") == doomed.KILL
    assert orders.take("commit") is None


def test_an_order_that_was_withdrawn_is_not_carried_out(tmp_path: Path) -> None:
    orders = doomed.Orders(tmp_path)
    orders.give(doomed.WIPE, "written")
    orders.withdraw()
    assert orders.take("written") is None


def test_a_deed_is_reported_until_the_next_order(tmp_path: Path) -> None:
    orders = doomed.Orders(tmp_path)
    assert orders.done() is None
    orders.tell(doomed.KILL, "commit")
    done = orders.done()
    assert done is not None
    assert (done.deed, done.phase, done.pid) == (doomed.KILL, "commit", os.getpid())
    orders.give(doomed.KILL, "sweep")
    assert orders.done() is None


@pytest.mark.parametrize("phase", [*doomed.PHASES, *doomed.REBUILD_PHASES])
def test_the_service_process_says_when_a_phase_begins(phase: str) -> None:
    """The names are those that the service really uses: an order for another one would wait for ever."""
    root = Path(__file__).parents[2]
    told = "".join((root / name).read_text() for name in _SPEAKERS)
    assert f'phase("{phase}")' in told or f'between("{phase}")' in told


_SPEAKERS = ("workers/service.py", "graphflow/engine/journaler.py", "graphflow/engine/rebuild.py")
