"""Signatures of definitions: Ed25519 over a file's digest, in a file of its own beside it (`NAME.yaml.sig`).

What is signed is the signature's own words without the signature itself, so that neither its key nor its dates can be
changed. Who may sign is not said here (see `graphflow.trust`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from convergio.graphflow.model import errors

FORMAT: Final = "convergio-signature/1"
VALID: Final = timedelta(days=365)
"""How long a signature counts, at most."""

SUFFIX: Final = ".sig"
LARGEST: Final = 4096
"""Characters of a signature's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What counts no more: ids of keys, and digests of files."""

    keys: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Who signed what, and until when that counts. `key`: the key's id; `sha256`: of the definition's file, as hex."""

    key: str
    sha256: str
    signed_at: datetime
    expires_at: datetime
    signature: bytes = b""

    @property
    def statement(self) -> bytes:
        """What is signed."""
        return json.dumps(self._words(), sort_keys=True, separators=(",", ":")).encode()

    def text(self) -> str:
        """The signature's file."""
        made = {**self._words(), "signature": base64.b64encode(self.signature).decode()}
        return json.dumps(made, indent=2) + "\n"

    def _words(self) -> dict[str, str]:
        return {
            "format": FORMAT,
            "key": self.key,
            "sha256": self.sha256,
            "signed_at": _written(self.signed_at),
            "expires_at": _written(self.expires_at),
        }


def beside(path: Path) -> Path:
    """Where the signature of a definition's file is."""
    return path.with_name(path.name + SUFFIX)


def digest(content: bytes) -> str:
    """What a signature names a file by."""
    return hashlib.sha256(content).hexdigest()


def read(text: str) -> Signature:
    """The signature that a file holds. Raises ValueError, in words."""
    if len(text) > LARGEST:
        raise ValueError("it is too long")
    try:
        found: Any = json.loads(text)
        words = cast("dict[str, Any]", found)
        if words["format"] != FORMAT:
            raise ValueError("it is of another format")
        key, sha256 = words["key"], words["sha256"]
        if not isinstance(key, str) or not isinstance(sha256, str):
            raise ValueError("its key and its digest are text")
        return Signature(
            key=key,
            sha256=sha256,
            signed_at=_moment(words["signed_at"]),
            expires_at=_moment(words["expires_at"]),
            signature=base64.b64decode(words["signature"], validate=True),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("it is no signature of ours") from error


def sign(content: bytes, private_pem: bytes, key: str, *, now: datetime, passphrase: str = "") -> Signature:
    """The signature of a file's content by a private key (PEM, PKCS8), for `VALID`. Raises InvalidSetting."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    hint = "`convergio agents key NAME` makes one; CONVERGIO_SIGNING_PASSPHRASE opens one that is encrypted"
    try:
        loaded = load_pem_private_key(private_pem, passphrase.encode() or None)
    except (ValueError, TypeError) as error:
        raise errors.InvalidSetting(f"the private key '{key}' cannot be read: {error}", hint=hint) from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise errors.InvalidSetting(f"the private key '{key}' is none of Ed25519", hint=hint)
    began = now.astimezone(UTC).replace(microsecond=0)
    made = Signature(key=key, sha256=digest(content), signed_at=began, expires_at=began + VALID)
    return replace(made, signature=loaded.sign(made.statement))


def signed_by(signature: Signature, public_pem: bytes) -> bool:
    """Whether the holder of this key made the signature. Raises ValueError for what is no public key of Ed25519."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        loaded = load_pem_public_key(public_pem)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(loaded, Ed25519PublicKey):
        raise ValueError("it is no key of Ed25519")
    try:
        loaded.verify(signature.signature, signature.statement)
    except InvalidSignature:
        return False
    return True


def new_key(passphrase: str = "") -> tuple[bytes, bytes]:
    """A new pair of keys as PEM: the private one, encrypted if there is a passphrase, and the public one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate()
    closed: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    private = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closed)
    public = made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


def _written(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: Any) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
