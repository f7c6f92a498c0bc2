"""Whose signatures count, and what a definition's file is found to be.

A folder holds the public keys that are trusted, each as `ID.pub` (PEM), several at once where one takes over from
another, and perhaps `revoked.yaml`: ids of keys, and digests of files, that count no more. It is looked at whenever a
definition is used and read again when anything in it changed. Processes that see another folder are reached by the
revocations of their journal, `journal/revoked.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

import pydantic

from convergio.graphflow import signature
from convergio.graphflow.flow import reader
from convergio.graphflow.model import errors
from convergio.graphflow.signature import Revoked, Signature

logger = logging.getLogger(__name__)

REVOKED: Final = "revoked.yaml"
KEYS: Final = ".pub"
WARNING: Final = timedelta(days=30)
"""So long before a signature ends it is said that it will."""

SKEW: Final = timedelta(hours=1)
"""How far the clock of whoever signed may be ahead of ours."""


class State(StrEnum):
    """What a definition's file is found to be."""

    SHIPPED = "shipped"
    SIGNED = "signed"
    EXPIRING = "expiring"
    UNSIGNED = "unsigned"
    UNREADABLE = "unreadable"
    TAMPERED = "tampered"
    UNKNOWN_KEY = "unknown key"
    REVOKED = "revoked"
    EXPIRED = "expired"


SOUND: Final = frozenset({State.SHIPPED, State.SIGNED, State.EXPIRING})

HINTS: Final[Mapping[State, str]] = {
    State.UNSIGNED: "sign it: convergio agents sign --key FILE.key {path}",
    State.UNREADABLE: "sign it anew: convergio agents sign --key FILE.key {path}",
    State.TAMPERED: "restore what was signed, or read it and sign it anew: convergio agents sign --key FILE.key {path}",
    State.UNKNOWN_KEY: "put the signer's public key into CONVERGIO_TRUSTED_KEYS, or let a key that is there sign it",
    State.REVOKED: "convergio agents revoked says why; another key may sign it, or it has to say something else",
    State.EXPIRED: "look at it and sign it anew: convergio agents sign --key FILE.key {path}",
}
"""What to do about a file that is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a file is found to be: why, by whose key, and until when."""

    state: State
    why: str = ""
    signature: Signature | None = None

    @property
    def sound(self) -> bool:
        """Whether a signature that counts covers the file, or it is part of the package."""
        return self.state in SOUND


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A definition's file as it was read: its content's digest, and the signature beside it. `path` None: it is part of
    the package, and trusted as its code is."""

    path: Path | None
    sha256: str = ""
    sealed: str | None = None

    @classmethod
    def of(cls, path: Path, content: bytes) -> Definition:
        """The definition that this content of this file is. Raises OSError if its signature cannot be read."""
        try:
            sealed = signature.beside(path).read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            sealed = None
        return cls(path=path, sha256=signature.digest(content), sealed=sealed)


SHIPPED: Final = Definition(path=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """The folder as it was read: public keys by id, and what was revoked."""

    keys: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    revoked_keys: frozenset[str] = frozenset()
    revoked_files: frozenset[str] = frozenset()


class Trust:
    """The folder of trusted keys. If there is one, or if signatures are required, nothing else counts than what is
    signed by one of its keys, and what is part of the package. Otherwise everything does.

    `revoked`: what else counts no more; asked whenever a signature is looked at, so it should not take long.
    """

    def __init__(
        self,
        keys: Path | None = None,
        *,
        required: bool = False,
        revoked: Callable[[], Revoked] = Revoked,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = keys
        self._required = required
        self._revoked = revoked
        self._now = now
        self._ring = Ring()
        self._stamp: object = None
        self._proven: dict[tuple[bytes, bytes, bytes], bool] = {}
        self._told: set[Path] = set()

    def check(self, definition: Definition) -> None:
        """Does nothing if the definition counts. Raises DefinitionRefused, and says what to do."""
        if definition.path is None or not (self._required or self._folder):
            return
        verdict = self.verdict(definition)
        if verdict.state is State.EXPIRING and definition.path not in self._told:
            self._told.add(definition.path)
            logger.warning("%s", verdict.why)
        if verdict.sound:
            return
        hint = HINTS[verdict.state].format(path=definition.path)
        raise errors.DefinitionRefused(verdict.why, hint=hint)

    def verdict(self, definition: Definition) -> Verdict:
        """What this definition is found to be now. Raises DefinitionRefused if the folder of keys cannot be read."""
        path = definition.path
        if path is None:
            return Verdict(state=State.SHIPPED, why="part of the package")
        if definition.sealed is None:
            return Verdict(state=State.UNSIGNED, why=f"{path} is not signed")
        try:
            found = signature.read(definition.sealed)
        except ValueError as error:
            return Verdict(state=State.UNREADABLE, why=f"the signature of {path} cannot be read: {error}")
        state, why = self._judged(definition.sha256, found)
        return Verdict(state=state, why=f"{path} {why}", signature=found)

    def _judged(self, sha256: str, found: Signature) -> tuple[State, str]:
        ring, journaled = self._read(), self._revoked()
        revoked, unknown = found.key in ring.revoked_keys | journaled.keys, found.key not in ring.keys
        if found.sha256 != sha256:
            return State.TAMPERED, "is not what was signed: it was changed since"
        if revoked or sha256 in ring.revoked_files | journaled.files:
            return State.REVOKED, f"is signed by the key '{found.key}', {'which' if revoked else 'but'} was revoked"
        if unknown:
            return State.UNKNOWN_KEY, f"is signed by the key '{found.key}', which is not trusted here"
        if not self._signed(found, ring.keys[found.key]):
            return State.TAMPERED, f"has a signature that the key '{found.key}' did not make"
        return _dated(found, self._now())

    def _signed(self, found: Signature, key: bytes) -> bool:
        case = (key, found.signature, found.statement)
        if case not in self._proven:
            try:
                self._proven[case] = signature.signed_by(found, key)
            except ValueError as error:
                raise self._unreadable(f"the key '{found.key}' is none: {error}") from error
        return self._proven[case]

    def _read(self) -> Ring:
        """The folder as it is now."""
        folder = self._folder
        if folder is None:
            return self._ring
        try:
            with os.scandir(folder) as entries:
                listed = [entry for entry in entries if entry.name.endswith(KEYS) or entry.name == REVOKED]
                facts = {entry.name: entry.stat() for entry in listed}
            stamp = sorted((name, one.st_mtime_ns, one.st_size, one.st_ino) for name, one in facts.items())
            if stamp != self._stamp:
                self._ring = _ring(folder, facts)
                self._stamp = stamp
        except (OSError, ValueError, errors.InvalidWorkflow) as error:
            raise self._unreadable(str(error)) from error
        return self._ring

    def _unreadable(self, said: str) -> errors.DefinitionRefused:
        hint = f"mend it: it has public keys (ID{KEYS}), and perhaps {REVOKED} with the lists `keys` and `sha256`"
        return errors.DefinitionRefused(f"the trusted keys in {self._folder} cannot be read: {said}", hint=hint)


def _dated(found: Signature, now: datetime) -> tuple[State, str]:
    """What a signature that was made by whom it says is worth now."""
    if found.signed_at > now + SKEW or found.expires_at - found.signed_at > signature.VALID:
        return State.EXPIRED, "has a signature for another time than the year from now"
    if now >= found.expires_at:
        return State.EXPIRED, f"has a signature that ended on {found.expires_at:%Y-%m-%d}"
    if found.expires_at - now <= WARNING:
        return State.EXPIRING, f"has a signature that ends in {(found.expires_at - now).days} days: sign it anew"
    return State.SIGNED, f"is signed by '{found.key}' until {found.expires_at:%Y-%m-%d}"


class _Revoked(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    keys: list[str] = []
    sha256: list[str] = []


def _ring(folder: Path, names: Collection[str]) -> Ring:
    keys = {name.removesuffix(KEYS): (folder / name).read_bytes() for name in names if name.endswith(KEYS)}
    if REVOKED not in names:
        return Ring(keys=keys)
    found, problems = reader.read_file(folder / REVOKED)
    try:
        revoked = _Revoked.model_validate({} if found is None else found)
    except pydantic.ValidationError as error:
        raise ValueError(f"{REVOKED} has the lists `keys` (ids) and `sha256` (digests), and nothing else") from error
    if problems:
        raise ValueError(f"{REVOKED}: {problems[0].message}")
    return Ring(keys=keys, revoked_keys=frozenset(revoked.keys), revoked_files=frozenset(revoked.sha256))
