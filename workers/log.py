"""Logs of our processes: plain lines on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Final

from convergio.config.settings import Settings

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


def to_stderr(settings: Settings) -> None:
    """Sets the root logger up; Celery is told to leave it alone."""
    logging.basicConfig(stream=sys.stderr, level=settings.log_level, format=FORMAT)
