"""Images that people show to a team: read from a run's input, checked whole, and kept with their message."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from convergio.graphflow.model import errors

MOST: Final = 10
"""Images in one message."""

LARGEST: Final = 5 * 1024 * 1024
"""Bytes of one image: what all of the providers take."""

LONGEST_SIDE: Final = 8_000
MOST_PIXELS: Final = 25_000_000
"""Decoded, so many take 75 MB."""

LONGEST_MESSAGE: Final = 1_000_000
"""Characters of what is said: more than the context of any model, and it is sent anew with each turn."""

FORMATS: Final = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
DATA: Final = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,")


def check_length(text: str) -> None:
    """Raises: errors.MessageTooLarge."""
    if len(text) > LONGEST_MESSAGE:
        hint = "say what it is about, and let a tool or the knowledge base give the team what it needs of it"
        raise errors.MessageTooLarge(f"a message has {len(text)} characters, and may have {LONGEST_MESSAGE}", hint=hint)


def images_of(value: Any) -> list[dict[str, str]]:
    """The images of a message as it keeps them: {media_type, data}. `value`: a data URI, {data: base64}, a list of
    these, or null. The media type is what the image is, whatever was said.

    Raises: errors.ImageRefused, which names the image by its place.
    """
    given: Sequence[Any] = [] if value is None else value if isinstance(value, list) else [value]
    if len(given) > MOST:
        raise errors.ImageRefused(f"there are {len(given)} images", hint=f"show {MOST} at most in one message")
    return [_checked(one, number) for number, one in enumerate(given, start=1)]


def _checked(value: Any, number: int) -> dict[str, str]:
    found = cast("Mapping[str, Any]", value).get("data") if isinstance(value, Mapping) else value
    if not isinstance(found, str):
        raise _refused(number, "is no data", "give a data URI, or {data: base64}")
    if found.startswith(("http://", "https://")):
        raise _refused(number, "is an address, and nothing is fetched from there", "give what is there as a data URI")
    text = DATA.sub("", found, count=1)
    if len(text) * 3 // 4 > LARGEST + 3:
        size = f"has {len(text) * 3 // 4 / 1024 / 1024:.1f} MB"
        raise _refused(number, size, f"make it smaller than {LARGEST // 1024 // 1024} MB")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _refused(number, "is no base64", "give a data URI, or {data: base64}") from None
    return {"media_type": _media_type(content, number), "data": base64.b64encode(content).decode()}


def _media_type(content: bytes, number: int) -> str:
    """What the image is. It is decoded once, here, so that no turn meets one that is broken."""
    from PIL import Image  # only here: few conversations have images

    hint = f"give one of {', '.join(FORMATS)} with {LONGEST_SIDE} pixels a side and {MOST_PIXELS} in all, at most"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=tuple(FORMATS)) as image:
                if max(image.size) > LONGEST_SIDE or image.width * image.height > MOST_PIXELS:
                    raise _refused(number, f"has {image.width} x {image.height} pixels", hint)
                image.load()
                return FORMATS[str(image.format)]
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _refused(number, "has too many pixels", hint) from None
    except (OSError, ValueError, SyntaxError, EOFError):  # Pillow's own, for what is broken
        raise _refused(number, "cannot be read", hint) from None


def _refused(number: int, what: str, hint: str) -> errors.ImageRefused:
    return errors.ImageRefused(f"image {number} {what}", hint=hint)
