"""On a terminal: a live table, a question below it, and colour unless NO_COLOR says otherwise."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.acceptance.town import COMMAND, Place, environment

SIGNED = """
workflow: signed
version: 1
steps:
  first: {task: demo.echo, with: {value: 1}}
  sign: {approval: {title: Go on?, risk: high}, needs: [first]}
"""
TALKING = """
workflow: talking
version: 1
steps:
  talk:
    prompt: Talk
    conversation:
      agents: [{name: ann, role: You talk., script: [{say: one two three four, pace: 0.2}]}]
      stop: {turns: 1}
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
REDRAWN = "\x1b[2K"


def on_a_terminal(*arguments: str, env: Mapping[str, str], answers: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and screen of a call; `answers` are typed when their prompt stands there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env={**environment(env), "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    screen, left = "", dict(answers)
    try:
        while chunk := _read(ours):
            screen += chunk
            for prompt in [prompt for prompt in left if prompt in screen]:
                os.write(ours, f"{left.pop(prompt)}\n".encode())
    finally:
        os.close(ours)
    return process.wait(timeout=60), screen


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # the other side is gone
        return ""


@pytest.mark.parametrize("no_colour", [False, True])
def test_a_watched_run_is_drawn_live_and_asks_below_the_table(town: Place, tmp_path: Path, no_colour: bool) -> None:
    path = tmp_path / "signed.yaml"
    path.write_text(SIGNED)
    env = {**town.env, **({"NO_COLOR": "1"} if no_colour else {})}
    code, screen = on_a_terminal(
        "run", str(path), "--watch", env=env, answers={"approve? [y/n]": "y", "reason (may be empty)": "fine"}
    )
    assert code == 0
    assert "sign_off" not in screen
    assert "⏸ Go on?" in screen
    assert "step sign · risk high" in screen
    assert "● succeeded" in screen
    assert REDRAWN in screen
    assert bool(COLOUR.search(screen)) is not no_colour


def test_what_an_agent_says_grows_below_the_table_word_by_word(town: Place, tmp_path: Path) -> None:
    path = tmp_path / "talking.yaml"
    path.write_text(TALKING)
    code, screen = on_a_terminal("run", str(path), "--watch", env=town.env, answers={})
    assert code == 0
    assert "ann: one two three four" in screen
    assert screen.count("ann: one") > screen.count("ann: one two three four")


def test_a_list_on_a_terminal_has_icons_words_and_colour(town: Place) -> None:
    code, screen = on_a_terminal("workflows", "list", env=town.env, answers={})
    assert code == 0
    assert "market_entry" in screen
    code, screen = on_a_terminal("doctor", env=town.env, answers={})
    assert code == 0
    assert "● OK" in screen
    assert COLOUR.search(screen)
