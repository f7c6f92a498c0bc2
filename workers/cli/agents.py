"""`convergio agents`: who is there, and the signatures of definitions."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Group
from convergio.workers.cli.session import Session, as_json, with_session

if TYPE_CHECKING:
    from convergio.graphflow.trust import Verdict
    from convergio.tasks.agents.profile import Profile

FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.group(cls=Group)
def agents() -> None:
    """List and show agents; sign, verify and revoke definitions, of agents, workflows and teams."""


@agents.command("list")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def list_agents(session: Session, json_wanted: bool) -> int:
    """Every agent of the roster, and whether its definition counts."""
    from convergio.workers import boot

    roster = boot.roster(session.settings, session.revoked)
    found = [(profile, roster.verdict(profile)) for profile in roster]
    if json_wanted:
        click.echo(as_json([_told(*one) for one in found]))
        return exits.OK
    from convergio.workers.cli import look

    table = look.table("AGENT", "WHO", "DOMAINS", "TOOLS", "MODEL", "DEFINITION")
    for profile, verdict in found:
        named = f"{profile.spec.name} ({', '.join(profile.aliases)})" if profile.aliases else profile.spec.name
        model = profile.spec.model or profile.model_tier
        domains, tools = ", ".join(profile.domains), ", ".join(profile.spec.tools)
        table.add_row(named, profile.title, domains, tools, model, _state(verdict))
    look.show(table)
    return exits.OK


@agents.command("show")
@click.argument("name")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def show(session: Session, name: str, json_wanted: bool) -> int:
    """One agent, whole."""
    from convergio.workers import boot

    roster = boot.roster(session.settings, session.revoked)
    profile = roster.look(name)
    told = _told(profile, roster.verdict(profile))
    if json_wanted:
        click.echo(as_json(told))
        return exits.OK
    for what, value in told.items():
        if value not in (None, "", []):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            click.echo(f"{what.replace('_', ' ')}: {shown}")
    return exits.OK


@agents.command("key")
@click.argument("name")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Folder to write to.")
@with_session
def key(session: Session, name: str, out: Path) -> int:
    """Make a pair of keys: NAME.key signs and stays with you, NAME.pub is for CONVERGIO_TRUSTED_KEYS."""
    from convergio.graphflow import signature
    from convergio.graphflow.model import errors

    if not name.replace("-", "_").replace(".", "_").isidentifier():
        raise errors.InvalidInput(f"'{name}' is no name of a key", hint="letters, digits, '-', '.' and '_'")
    out.mkdir(parents=True, exist_ok=True)
    passphrase = session.settings.signing_passphrase.get_secret_value()
    private, public = signature.new_key(passphrase)
    try:
        _write(out / f"{name}.key", private, mode=0o600)
        _write(out / f"{name}.pub", public, mode=0o644)
    except FileExistsError as error:
        raise errors.NameTaken(f"{error.filename} is there already", hint="take another name") from error
    closed = "closed by the passphrase" if passphrase else "not encrypted: CONVERGIO_SIGNING_PASSPHRASE would close it"
    click.echo(f"{out / name}.key signs ({closed})\n{out / name}.pub is for CONVERGIO_TRUSTED_KEYS")
    return exits.OK


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """A new file that has these rights from its beginning."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


@agents.command("sign")
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--key", "key_file", required=True, type=FILE, help="Private key of Ed25519 (PEM): ID.key")
@click.option("--key-id", help="The key's id among the trusted ones; else the name of its file.")
@with_session
def sign(session: Session, files: tuple[Path, ...], key_file: Path, key_id: str | None) -> int:
    """Sign FILES, definitions of agents, workflows or teams, for 365 days: FILE.sig beside each."""
    from convergio.graphflow import signature

    private, named = key_file.read_bytes(), key_id or key_file.stem
    passphrase = session.settings.signing_passphrase.get_secret_value()
    read = [(path, _valid(path)) for path in files]
    now = datetime.now(UTC)
    made = [(path, signature.sign(content, private, named, now=now, passphrase=passphrase)) for path, content in read]
    for path, signed in made:
        signature.beside(path).write_text(signed.text(), encoding="utf-8")
        click.echo(f"{path}: signed by '{named}' until {signed.expires_at:%Y-%m-%d}")
    return exits.OK


def _valid(path: Path) -> bytes:
    """The content of a definition. Nobody signs what cannot be read. Raises InvalidWorkflow, InvalidSetting."""
    from convergio.graphflow.flow import component_team, document, reader, teamfile
    from convergio.tasks.agents import roster

    content = path.read_bytes()
    found, _ = reader.read_content(content, path)
    if component_team.is_component(found):
        pass  # AutoGen's: what is wrong with it is said where it is read, with the tools that are given there
    elif teamfile.is_team(found):
        teamfile.parse(found, path.name)
    elif isinstance(found, dict) and "agents" in found:
        roster.read(content, path)
    else:
        document.parse_content(content, path)
    return content


@agents.command("revoke")
@click.argument("files", nargs=-1, type=FILE)
@click.option("--key", "keys", multiple=True, metavar="ID", help="All that this key signed, whenever it did.")
@click.option("--sha256", "digests", multiple=True, metavar="HEX", help="A definition's digest: an old version, say.")
@click.option("--reason", required=True, help="Why, for whoever asks later.")
@with_session
def revoke(
    session: Session, files: tuple[Path, ...], keys: tuple[str, ...], digests: tuple[str, ...], reason: str
) -> int:
    """Let FILES as they are now, or what a key signed, count no more: for every worker of the journal, in a second.

    Nothing takes it back. What is to count again is signed by another key, or has another content."""
    from convergio.graphflow import signature
    from convergio.graphflow.journal.revoked import RevokedSignatures

    found = [*(signature.digest(path.read_bytes()) for path in files), *map(_digest, digests)]
    if not (found or keys):
        raise click.UsageError("give FILES, --key ID or --sha256 HEX")
    _tell_unknown(session, keys)
    revoked = RevokedSignatures(session.database)
    new = revoked.revoke("key", keys, reason=reason, by=session.submitter)
    new += revoked.revoke("sha256", found, reason=reason, by=session.submitter)
    click.echo(f"{new} revoked, {len({*keys}) + len({*found}) - new} were before: workers know within a second")
    if not (session.settings.trusted_keys or session.settings.require_signed):
        click.echo(
            "note: signatures are looked at where CONVERGIO_TRUSTED_KEYS or CONVERGIO_REQUIRE_SIGNED is set", err=True
        )
    return exits.OK


def _tell_unknown(session: Session, keys: tuple[str, ...]) -> None:
    """A key's id that is written wrong protects nobody. Raises UsageError for the name of a file."""
    folder = session.settings.trusted_keys
    for one in keys:
        if one.endswith((".pub", ".key")):
            raise click.UsageError(f"'{one}' is a file: the key's id is '{one[:-4]}'")
        if folder and not (Path(folder) / f"{one}.pub").exists():
            click.echo(f"note: no key '{one}' is trusted here: is it written right?", err=True)


def _digest(text: str) -> str:
    """A SHA-256 as it is kept. Raises UsageError."""
    if len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef"):
        raise click.UsageError(f"'{text}' is no SHA-256: 64 hexadecimal digits")
    return text.lower()


@agents.command("revoked")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def list_revoked(session: Session, json_wanted: bool) -> int:
    """What was revoked in this journal, by whom and why."""
    from convergio.graphflow.journal.revoked import RevokedSignatures

    found = RevokedSignatures(session.database).all()
    if json_wanted:
        click.echo(as_json([asdict(one) for one in found]))
        return exits.OK
    from convergio.workers.cli import look

    table = look.table("WHAT", "VALUE", "BY", "AT", "WHY")
    for one in found:
        at = datetime.fromtimestamp(one.at_ms / 1000, UTC)
        table.add_row(one.kind, one.value, one.by, f"{at:%Y-%m-%d %H:%M:%S}Z", one.reason)
    look.show(table)
    return exits.OK


@agents.command("verify")
@click.argument("files", nargs=-1, type=FILE)
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def verify(session: Session, files: tuple[Path, ...], json_wanted: bool) -> int:
    """Look at the signatures of FILES; without any, of your roster and your workflows. Ends with 3 if one is bad."""
    from convergio.workers import boot

    files = files or tuple(boot.definitions(session.settings))
    verdicts = boot.verdicts(session.settings, files, session.revoked)
    if json_wanted:
        click.echo(as_json([{"file": str(path), **_found(verdict)} for path, verdict in verdicts.items()]))
    for verdict in () if json_wanted else verdicts.values():
        click.echo(f"{verdict.state.upper()}  {verdict.why}")
    if not verdicts and not json_wanted:
        click.echo("nothing of yours to verify: CONVERGIO_AGENTS and CONVERGIO_WORKFLOWS are not set")
    return exits.OK if all(verdict.sound for verdict in verdicts.values()) else exits.INVALID


def _told(profile: Profile, verdict: Verdict) -> dict[str, object]:
    spec = profile.spec
    return {
        "name": spec.name,
        "version": profile.version,
        "aliases": list(profile.aliases),
        "title": profile.title,
        "tier": profile.tier,
        "domains": list(profile.domains),
        "description": spec.description,
        "system_message": spec.system_message,
        "model_tier": profile.model_tier,
        "model": spec.model,
        "max_tokens": spec.max_tokens,
        "tools": list(spec.tools),
        "phases": list(profile.phases),
        "partners": list(profile.partners),
        "depth": profile.depth,
        "seconds": profile.seconds,
        "file": None if profile.definition.path is None else str(profile.definition.path),
        **{"definition" if name == "state" else name: value for name, value in _found(verdict).items()},
    }


def _found(verdict: Verdict) -> dict[str, object]:
    signed = verdict.signature
    return {
        "state": str(verdict.state),
        "why": verdict.why,
        "key": None if signed is None else signed.key,
        "expires_at": None if signed is None else signed.expires_at.isoformat(),
    }


def _state(verdict: Verdict) -> str:
    signed = verdict.signature
    return str(verdict.state) if signed is None else f"{verdict.state} ({signed.key}, {signed.expires_at:%Y-%m-%d})"
