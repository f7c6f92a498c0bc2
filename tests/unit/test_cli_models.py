"""`convergio models`: which models there are, and whether they answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convergio.workers import cli
from convergio.workers.cli import exits
from tests.dialects import DIALECTS
from tests.failing_provider import FailingProvider, serving


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "models.yaml"
    for name in ("OPENAI_API_KEY", "MODEL_NAME", "MODEL_BASE_URL", "MODEL_API_KEY"):
        monkeypatch.delenv(f"CONVERGIO_{name}", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("CONVERGIO_MODELS", str(path))
    monkeypatch.setenv("CONVERGIO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KEY_OF_A_TEST", "hush")
    return path


def write(path: Path, server: FailingProvider) -> None:
    path.write_text(
        f"""
default: here/m
providers:
  here: {{url: "http://127.0.0.1:{server.server_port}/v1", api_key: env:KEY_OF_A_TEST}}
models:
  here/m: {{limits: {{concurrent: 2}}, fallback: {{to: [here/other]}}, vision: true}}
  openai/gpt-4o: {{}}
"""
    )


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_list_says_where_models_are_and_what_is_missing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        write(file, server)
        assert cli.main(["models", "list", "--json"]) == exits.OK
    here, there = printed(capsys)[:2]
    assert (here["model"], here["kind"], here["vision"]) == ("here/m", "openai", True)
    assert (here["limits"], here["fallbacks"], here["problem"]) == ({"concurrent": 2}, ["here/other"], None)
    assert there["problem"]["code"] == "INVALID_SETTING"
    assert "OPENAI_API_KEY" in there["problem"]["message"]
    assert cli.main(["models", "list"]) == exits.OK
    assert "hush" not in capsys.readouterr().out


def test_a_check_asks_each_model_and_nobody_answers_instead(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    openai = DIALECTS["openai"]
    with serving(openai.says("Yes", "."), openai.refuses(429)) as server:
        write(file, server)
        assert cli.main(["models", "check", "here/m", "--json"]) == exits.OK
        assert printed(capsys)[0]["output_tokens"] == 7
        assert cli.main(["models", "check", "here/m"]) == exits.AWAY
        assert "FAILED  here/m  RATE_LIMITED" in capsys.readouterr().out
        assert len(server.requests) == 2
        assert cli.main(["models", "check", "nowhere/m"]) == exits.UNKNOWN
        assert "UNKNOWN_MODEL" in capsys.readouterr().out
