"""Signatures of definitions: which count, which are refused, and what whoever is refused is told."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow import signature, trust
from convergio.graphflow.model import errors
from convergio.graphflow.trust import Definition, State, Trust

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
CONTENT = b"agents: {}\n"


class Office:
    """A folder of trusted keys, private keys, a definition, and a clock."""

    def __init__(self, root: Path) -> None:
        self.keys = root / "trusted"
        self.keys.mkdir()
        self.file = root / "amy.yaml"
        self.file.write_bytes(CONTENT)
        self.now = NOW
        self.private: dict[str, bytes] = {}
        self.trust = Trust(self.keys, now=lambda: self.now)

    def key(self, name: str, *, trusted: bool = True) -> None:
        self.private[name], public = signature.new_key()
        if trusted:
            (self.keys / f"{name}.pub").write_bytes(public)

    def sign(self, key: str = "ops") -> None:
        made = signature.sign(self.file.read_bytes(), self.private[key], key, now=self.now)
        self.seal(made.text())

    def seal(self, text: str) -> None:
        signature.beside(self.file).write_text(text)

    def definition(self) -> Definition:
        return Definition.of(self.file, self.file.read_bytes())

    def state(self) -> State:
        return self.trust.verdict(self.definition()).state


@pytest.fixture
def office(tmp_path: Path) -> Office:
    made = Office(tmp_path)
    made.key("ops")
    made.sign()
    return made


def test_a_file_that_is_signed_by_a_trusted_key_counts(office: Office) -> None:
    office.trust.check(office.definition())
    assert office.state() is State.SIGNED


def changed(office: Office) -> None:
    office.file.write_bytes(CONTENT + b"# and more\n")


def unsealed(office: Office) -> None:
    signature.beside(office.file).unlink()


def by_a_stranger(office: Office) -> None:
    office.key("other", trusted=False)
    office.sign("other")


def under_a_false_name(office: Office) -> None:
    office.key("other", trusted=False)
    made = signature.sign(CONTENT, office.private["other"], "ops", now=NOW)
    office.seal(made.text())


def stretched(office: Office) -> None:
    words = json.loads(signature.beside(office.file).read_text())
    office.seal(json.dumps({**words, "expires_at": "2027-11-24T12:00:00Z"}))


def a_year_later(office: Office) -> None:
    office.now = NOW + timedelta(days=365)


def postdated(office: Office) -> None:
    office.now = NOW - timedelta(hours=2)


def key_revoked(office: Office) -> None:
    (office.keys / "revoked.yaml").write_text("keys: [ops]\n")


def file_revoked(office: Office) -> None:
    (office.keys / "revoked.yaml").write_text(f"sha256: [{signature.digest(CONTENT)}]\n")


def garbled(office: Office) -> None:
    office.seal("{")


@pytest.mark.parametrize(
    ("happens", "state"),
    [
        (changed, State.TAMPERED),
        (unsealed, State.UNSIGNED),
        (by_a_stranger, State.UNKNOWN_KEY),
        (under_a_false_name, State.TAMPERED),
        (stretched, State.TAMPERED),
        (a_year_later, State.EXPIRED),
        (postdated, State.EXPIRED),
        (key_revoked, State.REVOKED),
        (file_revoked, State.REVOKED),
        (garbled, State.UNREADABLE),
    ],
)
def test_what_does_not_hold_is_refused_with_what_to_do(
    office: Office, happens: Callable[[Office], None], state: State
) -> None:
    happens(office)
    assert office.state() is state
    with pytest.raises(errors.DefinitionRefused) as caught:
        office.trust.check(office.definition())
    assert str(office.file) in caught.value.message
    assert caught.value.hint
    assert "{" not in caught.value.hint


def test_every_state_that_is_refused_says_what_to_do() -> None:
    assert set(trust.HINTS) == set(State) - trust.SOUND


def test_a_signature_for_longer_than_a_year_is_none(office: Office) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(office.private["ops"], None)
    assert isinstance(key, Ed25519PrivateKey)
    short = signature.sign(CONTENT, office.private["ops"], "ops", now=NOW)
    long = dataclasses.replace(short, expires_at=NOW + timedelta(days=366))
    office.seal(dataclasses.replace(long, signature=key.sign(long.statement)).text())
    assert office.state() is State.EXPIRED


def test_a_signature_lasts_365_days_and_warns_in_the_last_30(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    office.now = NOW + timedelta(days=335) - timedelta(seconds=1)
    assert office.state() is State.SIGNED
    office.now = NOW + timedelta(days=335)
    assert office.state() is State.EXPIRING
    with caplog.at_level(logging.WARNING):
        office.trust.check(office.definition())
        office.trust.check(office.definition())
    assert [record.getMessage() for record in caplog.records] == [
        f"{office.file} has a signature that ends in 30 days: sign it anew"
    ]


def test_keys_take_over_from_one_another(office: Office) -> None:
    """Rotation: both count, then what is signed anew by the new one, then only that."""
    old = office.definition()
    office.key("next")
    office.trust.check(old)
    office.sign("next")
    office.trust.check(office.definition())
    (office.keys / "ops.pub").unlink()
    office.trust.check(office.definition())
    with pytest.raises(errors.DefinitionRefused, match="'ops', which is not trusted"):
        office.trust.check(old)


def test_a_revocation_counts_at_once_for_all_that_share_the_folder(office: Office) -> None:
    definition, other = office.definition(), Trust(office.keys, now=lambda: NOW)
    for one in (office.trust, other):
        one.check(definition)
    key_revoked(office)
    for one in (office.trust, other):
        with pytest.raises(errors.DefinitionRefused, match="revoked"):
            one.check(definition)


@pytest.mark.parametrize("text", ["keys: ops\n", "keys: [1]\n", "kyes: [ops]\n", "[ops]\n", "a: [\n"])
def test_a_list_of_revocations_that_cannot_be_read_refuses_everything(office: Office, text: str) -> None:
    (office.keys / "revoked.yaml").write_text(text)
    with pytest.raises(errors.DefinitionRefused, match="cannot be read"):
        office.trust.check(office.definition())


def test_a_key_that_is_none_is_named(office: Office) -> None:
    (office.keys / "ops.pub").write_text("no key")
    with pytest.raises(errors.DefinitionRefused, match="'ops' is none"):
        office.trust.check(office.definition())


def test_a_folder_that_is_not_there_refuses_everything(office: Office, tmp_path: Path) -> None:
    with pytest.raises(errors.DefinitionRefused, match="cannot be read"):
        Trust(tmp_path / "none").check(office.definition())


def test_nothing_need_be_signed_where_nobody_asked_for_it(office: Office) -> None:
    changed(office)
    Trust().check(office.definition())
    with pytest.raises(errors.DefinitionRefused):
        Trust(required=True).check(office.definition())


def test_what_is_part_of_the_package_counts_without_a_signature(office: Office) -> None:
    office.trust.check(trust.SHIPPED)
    assert office.trust.verdict(trust.SHIPPED).state is State.SHIPPED


@pytest.mark.parametrize(
    "change",
    [{"format": "convergio-signature/2"}, {"key": 1}, {"sha256": None}, {"signed_at": "now"}, {"signature": "??"}],
)
def test_a_signature_of_another_shape_is_none(office: Office, change: dict[str, Any]) -> None:
    words = json.loads(signature.beside(office.file).read_text())
    office.seal(json.dumps({**words, **change}))
    assert office.state() is State.UNREADABLE


def test_a_private_key_may_need_a_passphrase(office: Office) -> None:
    private, public = signature.new_key("secret")
    (office.keys / "ops.pub").write_bytes(public)
    assert b"ENCRYPTED" in private
    for wrong in ("", "other"):
        with pytest.raises(errors.InvalidSetting, match="cannot be read"):
            signature.sign(CONTENT, private, "ops", now=NOW, passphrase=wrong)
    office.seal(signature.sign(CONTENT, private, "ops", now=NOW, passphrase="secret").text())
    assert office.state() is State.SIGNED
