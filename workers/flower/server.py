"""Flower's configuration, and its start.

Without a password Flower answers its own machine only, and changes nothing: any web page in a browser there could ask
it to. With one (FLOWER_BASIC_AUTH, or OAuth by FLOWER_AUTH) it may listen elsewhere and offers its controls. Every
other FLOWER_* variable counts as always.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
from typing import Final

from celery import Celery

from convergio.graphflow.model import errors

LOOPBACK: Final = "127.0.0.1"
PROBE_TIMEOUT: Final = 0.4

COLUMNS: Final = "name,state,uuid,args,result,received,started,runtime,worker"
"""Of the task list: the step's readable name and state first; arguments never hold more than step and ring."""

CREDENTIALS: Final = ("FLOWER_BASIC_AUTH", "FLOWER_AUTH")


def serve(app: Celery, *, address: str = LOOPBACK, port: int) -> None:
    """Runs Flower until SIGTERM or Ctrl-C. Raises InvalidSetting for an open address without a password."""
    guarded = any(os.environ.get(name) for name in CREDENTIALS)
    if not guarded and not is_loopback(address):
        hint = "set FLOWER_BASIC_AUTH=user:password, or leave --address on loopback"
        raise errors.InvalidSetting(f"Flower on {address} would be open to everybody who reaches it", hint=hint)
    app.start(["--quiet", "flower", *options(address=address, port=port, guarded=guarded)])


def options(*, address: str, port: int, guarded: bool) -> list[str]:
    """Flower's command line. Sets what Flower reads from the environment only."""
    if not guarded:
        os.environ["FLOWER_UNAUTHENTICATED_API"] = "true"
    columns = os.environ.get("FLOWER_TASKS_COLUMNS", COLUMNS)
    read_only = [] if guarded else ["--read_only=True"]
    return [f"--address={address}", f"--port={port}", f"--tasks_columns={columns}", *read_only]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def healthy(port: int) -> bool:
    """Whether a Flower answers on this port of this machine. Takes half a second at most."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PROBE_TIMEOUT)
    try:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
