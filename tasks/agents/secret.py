"""Secrets by reference: `env:NAME` or `file:PATH`. A definition names where a secret is, never the secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from convergio.graphflow.model import errors

ENV: Final = "env:"
FILE: Final = "file:"
HINT: Final = "write env:NAME, or file:PATH"


def is_reference(text: str) -> bool:
    """Whether this names a place and is no secret itself."""
    return text.startswith((ENV, FILE)) and len(text) > len(FILE)


def resolved(reference: str) -> str:
    """The secret there. A file is read anew each time, so a new key counts at once.

    Raises: errors.InvalidSetting, which names the place and nothing of what is there.
    """
    if reference.startswith(ENV):
        name = reference.removeprefix(ENV)
        found = os.environ.get(name, "")
        if not found:
            raise errors.InvalidSetting(f"the environment has no {name}", hint=f"set {name} where the workers run")
        return found
    if not reference.startswith(FILE):
        raise errors.InvalidSetting("a secret is written where only its place belongs", hint=HINT)
    path = Path(reference.removeprefix(FILE))
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = type(error).__name__
        raise errors.InvalidSetting(f"the secret in {path} cannot be read ({why})", hint="see its rights") from error
    if not found:
        raise errors.InvalidSetting(f"there is no secret in {path}", hint="write the key into it, and nothing else")
    return found
