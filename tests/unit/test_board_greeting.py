"""What is said of a server that does not let us in, or does not say who it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from convergio.graphflow.board import connection
from convergio.graphflow.model import errors


class Wire:
    """A connection whose server answers INFO with what it is given."""

    board_server = ""

    def __init__(self, answer: str | Exception) -> None:
        self.answer = answer
        self.is_open = True

    def connect(self) -> None: ...
    def on_connect(self) -> None: ...

    def disconnect(self) -> None:
        self.is_open = False

    def pack_command(self, *words: Any) -> Sequence[bytes]:
        return [str(words).encode()]

    def send_packed_command(self, command: Sequence[bytes], check_health: bool = True) -> None: ...
    def send_command(self, *words: Any) -> None: ...

    def read_response(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_server_is_known_by_its_run_id() -> None:
    wire = Wire("redis_version:7.2.0\r\nrun_id:abc\r\n")
    connection._greet(wire)
    assert (wire.board_server, wire.is_open) == ("abc", True)


@pytest.mark.parametrize("answer", ["redis_version:7.2.0\r\n", NoPermissionError("no INFO")])
def test_a_server_that_hides_its_run_id_is_refused_in_words(answer: str | Exception) -> None:
    wire = Wire(answer)
    with pytest.raises(errors.UnsupportedServer, match=r"run_id.*\+info"):
        connection._greet(wire)
    assert not wire.is_open


def test_a_wrong_password_is_not_a_server_that_has_to_be_started() -> None:
    said = str(connection.unavailable(redis.AuthenticationError("invalid password")))
    assert "check user and password" in said
    assert "start it" not in said
