"""Images in messages: checked whole before anybody pays for them, and sent in each provider's own form."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

from convergio.graphflow.model import errors
from convergio.tasks.conversation import image
from convergio.workers.cli import chat


def picture(kind: str = "PNG", size: tuple[int, int] = (3, 2)) -> str:
    kept = io.BytesIO()
    Picture.new("RGB", size, "red").save(kept, format=kind)
    return base64.b64encode(kept.getvalue()).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_an_image_is_what_it_is_whatever_was_said(kind: str) -> None:
    data = picture(kind)
    expected = [{"media_type": f"image/{kind.lower()}", "data": data}]
    for given in (f"data:image/x;base64,{data}", {"data": data}, [data], {"media_type": "text/html", "data": data}):
        assert image.images_of(given) == expected
    assert image.images_of(None) == image.images_of([]) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param("https://example.org/a.png", "address", id="address"),
        pytest.param({"url": "x"}, "no data", id="no data"),
        pytest.param("%%%", "no base64", id="no base64"),
        pytest.param(base64.b64encode(b"<svg/>").decode(), "cannot be read", id="another format"),
        pytest.param(
            base64.b64encode(base64.b64decode(picture(size=(90, 90)))[:-60]).decode(), "cannot be read", id="truncated"
        ),
        pytest.param("A" * 14_000_000, "MB", id="10 MB"),
        pytest.param(picture(size=(8_001, 1)), "pixels", id="too long"),
        pytest.param(picture(size=(6_000, 5_000)), "pixels", id="too many pixels"),
        pytest.param([picture()] * 11, "11 images", id="too many"),
    ],
)
def test_an_image_that_no_provider_takes_is_refused_in_words(given: Any, said: str) -> None:
    with pytest.raises(errors.ImageRefused, match=said) as caught:
        image.images_of(given)
    assert caught.value.hint
    assert not caught.value.retryable


def test_a_message_of_ten_megabytes_is_refused() -> None:
    image.check_length("x" * image.LONGEST_MESSAGE)
    with pytest.raises(errors.MessageTooLarge, match="10000000 characters"):
        image.check_length("x" * 10_000_000)


def test_a_file_that_chat_is_given_is_what_it_is_whatever_its_name_says(tmp_path: Path) -> None:
    path = tmp_path / "seen.txt"
    path.write_bytes(base64.b64decode(picture("WEBP")))
    assert image.images_of([chat._image(path)]) == [{"media_type": "image/webp", "data": picture("WEBP")}]
