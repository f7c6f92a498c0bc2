"""A model's text on its way in: NUL characters and lone surrogates go, because neither store keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast

UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
REPLACEMENT: Final = "\ufffd"


def storable_text(text: str) -> str:
    """`text` with every unstorable character replaced by U+FFFD."""
    return UNSTORABLE.sub(REPLACEMENT, text)


def storable(value: Any) -> Any:
    """The same for every string inside a JSON value, keys included."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, list):
        return [storable(item) for item in cast(Sequence[Any], value)]
    if isinstance(value, dict):
        return {storable_text(key): storable(item) for key, item in cast(dict[str, Any], value).items()}
    return value


def note(text: str) -> str | None:
    """One sentence on what `storable_text` changes in `text`; None if nothing."""
    count = len(UNSTORABLE.findall(text))
    return f"{count} characters that cannot be stored were replaced by U+FFFD" if count else None
