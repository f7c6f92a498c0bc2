"""`provider/model` finds a client's settings; a file of models holds no secret and is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from convergio.config import settings
from convergio.graphflow.model import errors
from convergio.tasks.agents import registry, secret
from convergio.tasks.agents.model import Limits, ModelSettings
from convergio.tasks.agents.registry import Registry
from convergio.workers import boot
from convergio.workers.cli import local

FILE = """
default: fast/meta-llama/Llama-3
providers:
  fast: {url: "http://gpu:8000/v1", api_key: "file:%s", timeout: 9}
  house: {kind: azure, url: "https://house.openai.azure.com", api_version: "2025-01-01"}
models:
  fast/meta-llama/Llama-3:
    temperature: 0.3
    limits: {concurrent: 2, requests_per_minute: 60, tokens_per_minute: 9000}
    fallback: {to: [house/gpt-4o, anthropic/claude-x], when: [RATE_LIMITED, CONTEXT_TOO_LONG]}
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "hush-anthropic")
    key = tmp_path / "key"
    key.write_text("hush-fast\n")
    path = tmp_path / "models.yaml"
    path.write_text(FILE % key)
    return registry.of(path, timeout_s=50)


def test_a_name_finds_its_provider_its_key_its_limits_and_its_fallbacks(models: Registry) -> None:
    found = models.named("fast/meta-llama/Llama-3")
    assert (found.name, found.title, found.kind) == ("meta-llama/Llama-3", "fast/meta-llama/Llama-3", "openai")
    assert (found.base_url, found.api_key, found.timeout_s) == ("http://gpu:8000/v1", "hush-fast", 9)
    assert found.limits == Limits(concurrent=2, requests_per_minute=60, tokens_per_minute=9000)
    assert (found.temperature, found.vision) == (0.3, False)
    azure, claude = found.fallbacks
    assert (azure.title, azure.kind, azure.api_version, azure.vision) == ("house/gpt-4o", "azure", "2025-01-01", True)
    assert (claude.title, claude.kind, claude.api_key) == ("anthropic/claude-x", "anthropic", "hush-anthropic")
    assert found.fall_on == {"RATE_LIMITED", "CONTEXT_TOO_LONG"}
    assert "hush" not in repr(found)


def test_the_providers_that_ship_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Registry(default=ModelSettings(name="big", base_url="http://x/v1"))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OLLAMA_HOST", "10.0.0.1:11434")
    assert known.named("openai/gpt-4o").place == "gpt-4o at OpenAI"
    assert known.named("ollama/llama3").base_url == "http://10.0.0.1:11434"
    assert known.named("scripted").scripted
    assert known.named("small").place == known.named(None).place.replace("big", "small"), "the default one's endpoint"
    assert known.named("org/small").name == "org/small", "without providers of one's own a slash is part of the name"


def test_where_the_scripted_model_is_wanted_nobody_else_answers() -> None:
    assert Registry(default=ModelSettings(), closed=True).named("anthropic/claude-x").scripted


def test_a_provider_that_nobody_knows_is_refused_with_the_nearest_name(models: Registry) -> None:
    with pytest.raises(errors.UnknownModel) as caught:
        models.named("anthropc/claude-x")
    assert "anthropic" in (caught.value.hint or "")


def test_a_key_that_is_not_there_says_where_it_should_be(models: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(errors.InvalidSetting, match="no ANTHROPIC_API_KEY"):
        models.named("anthropic/claude-x")


def test_a_key_in_a_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for key in ("first", "second"):
        path.write_text(key)
        assert secret.resolved(f"file:{path}") == key
    path.write_text("")
    for wrong in (f"file:{path}", f"file:{tmp_path / 'none'}", "hush"):
        with pytest.raises(errors.InvalidSetting) as caught:
            secret.resolved(wrong)
        assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("providers: {a: {api_key: hush}}", "providers.a.api_key"),
        ("providers: {a: {url: 'http://u:hush@x'}}", "providers.a.url"),
        ("providers: {a: {kind: azure}}", "providers.a"),
        ("providers: {a: {kind: hush}}", "providers.a.kind"),
        ("models: {a/b: {fallback: {to: [c/d], when: [STEP_FAILED]}}}", "models.a/b.fallback.when"),
        ("models: {a/b: {limits: {concurrent: 0}}}", "models.a/b.limits.concurrent"),
        ("hush: 1", "hush"),
        ("providers: [", "no YAML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_place_and_no_value(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(errors.InvalidSetting) as caught:
        registry.of(path, timeout_s=1)
    assert place in caught.value.message
    assert text.startswith("hush") or "hush" not in str(caught.value)


def test_the_settings_name_the_default_or_the_file_does(
    models: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file, here = str(tmp_path / "models.yaml"), tmp_path / "home"
    for given, title in (
        ({"models": file}, "fast/meta-llama/Llama-3"),
        ({"models": file, "model_name": "house/gpt-4o"}, "house/gpt-4o"),
        ({"model_name": "anthropic/claude-x"}, "anthropic/claude-x"),
        ({"models": file, "model_name": "scripted"}, "scripted"),
        ({"model_base_url": "http://x/v1", "model_name": "org/m"}, "org/m"),
    ):
        made = settings.load(home=here, **given)
        assert boot.models(made).default.title == title
        assert title.rpartition("/")[2] in local.brain(made).words
    monkeypatch.setenv("SOME_KEY", "hush")
    asked = settings.load(home=here, model_base_url="http://x/v1", model_api_key="env:SOME_KEY")
    assert boot.models(asked).default.api_key == "hush"
