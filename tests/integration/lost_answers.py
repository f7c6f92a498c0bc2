"""Answers of the board that get lost: the server did what it was told, the connection broke before it could say so."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from convergio.graphflow.board import connection


def lose_next_answer(patch: pytest.MonkeyPatch) -> list[str]:
    """Loses the answer of the next script. The list says whether it happened."""
    ask = connection._ask
    lost: list[str] = []

    def asked(wire: Any, command: tuple[Any, ...]) -> list[Any]:
        answer = ask(wire, command)
        if not lost:
            lost.append("lost")
            raise redis.ConnectionError("the connection broke")
        return answer

    patch.setattr(connection, "_ask", asked)
    return lost
