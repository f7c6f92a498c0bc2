"""Where the server is: one address, or Sentinels that know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from convergio.graphflow.model import errors

MASTER: Final = "master_name"
"""The query field of a `sentinel://` URL that names the server: `sentinel://a:26379;sentinel://b:26379/0?master_name=m`."""

PORT: Final = 26379


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentinels:
    """Sentinels, and what the server that they watch is called. `options`: for connections to that server."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    options: dict[str, Any]


def without_master(url: str) -> tuple[str, str | None]:
    """The URL as kombu and Celery take it, and the server's name for Sentinel, which they take apart from it."""
    if not url.startswith("sentinel"):
        return url, None
    plain, _, _ = url.partition("?")
    return plain, sentinels_of(url).master


def sentinels_of(url: str) -> Sentinels:
    """What a `sentinel://` URL says. Raises InvalidSetting if it does not name the server."""
    plain, _, query = url.partition("?")
    parts = [urlsplit(part) for part in plain.split(";")]
    master = parse_qs(query).get(MASTER, [""])[0]
    if not master:
        hint = f"add it: sentinel://host:{PORT}/0?{MASTER}=mymaster"
        raise errors.InvalidSetting("the sentinel:// URL does not say what Sentinel calls the server", hint=hint)
    hosts = tuple((part.hostname or "127.0.0.1", part.port or PORT) for part in parts)
    last = parts[-1]
    options: dict[str, Any] = {"db": int(last.path.strip("/") or 0)}
    if last.password is not None:
        options["password"] = unquote(last.password)
    if last.username:
        options["username"] = unquote(last.username)
    return Sentinels(hosts=hosts, master=master, options=options)
