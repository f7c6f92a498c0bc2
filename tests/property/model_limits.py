"""Concurrency keys on the model board: who may run, who waits for a turn, and from when on a new board grants."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class ModelKey:
    """One key. `waiters`: member/limit in their order; `closed_ms`: nothing is granted before."""

    holders: dict[str, float] = field(default_factory=dict[str, float])
    waiters: list[str] = field(default_factory=list[str])
    closed_ms: int | None = None

    def grant(self, timers: dict[str, float], now_ms: int) -> None:
        """As `admit` in shared/limits.lua."""
        if self.closed_ms is not None and now_ms >= self.closed_ms:
            self.closed_ms = None
        while self.closed_ms is None and self.waiters:
            member, _, limit = self.waiters[0].rpartition("/")
            if len(self.holders) >= int(limit):
                return
            self.waiters.pop(0)
            self.holders[member] = timers[f"{member}/LIMIT"] = now_ms

    def ask(self, member: str, limit: int, timers: dict[str, float], now_ms: int) -> None:
        """One more waits, unless it does or may run. If nothing is granted yet, it asks again then."""
        if self.closed_ms is not None and now_ms < self.closed_ms:
            timers[f"{member}/ASK"] = self.closed_ms
        if member in self.holders:
            timers[f"{member}/LIMIT"] = now_ms
        elif f"{member}/{limit}" not in self.waiters:
            self.waiters.append(f"{member}/{limit}")

    def free(self, member: str, timers: dict[str, float], now_ms: int) -> None:
        """Somebody needs it no more."""
        self.holders.pop(member, None)
        self.grant(timers, now_ms)

    def leave(self, member: str, limit: int, timers: dict[str, float]) -> None:
        """Somebody neither has it nor waits for it, if it still is to leave."""
        if timers.pop(f"{member}/LEAVE", None) is None:
            return
        self.holders.pop(member, None)
        if f"{member}/{limit}" in self.waiters:
            self.waiters.remove(f"{member}/{limit}")
        timers.pop(f"{member}/LIMIT", None)

    def reassert(self, member: str, limit: int, now_ms: int) -> bool:
        """Whether who ran before still may; then it has the key."""
        if self.closed_ms is None or now_ms >= self.closed_ms:
            return False
        if f"{member}/{limit}" in self.waiters:
            self.waiters.remove(f"{member}/{limit}")
        self.holders[member] = now_ms
        return True
