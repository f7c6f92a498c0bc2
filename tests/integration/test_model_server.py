"""The local model: the real weights in the real server, through the client that agents use. No key, no network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from openai.types.shared_params import ResponseFormatJSONSchema

from convergio.graphflow.model import errors
from convergio.workers.embedded import model_file, model_server
from convergio.workers.embedded.model_server import ModelServer
from convergio.workers.embedded.supervisor import Supervisor
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    directory = tmp_path_factory.mktemp("model")
    server = ModelServer.open(directory / "model.json", context=1024)
    with Supervisor([server.child()], logs=directory):
        yield server


@pytest.fixture
def client(server: ModelServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0) as client:
        yield client


# --- what it answers ------------------------------------------------------------------------------------------------


def test_it_answers_a_question_and_counts_the_tokens(client: openai.OpenAI, server: ModelServer) -> None:
    question = "What is the capital of France?"
    short, long = (
        client.chat.completions.create(
            model=server.name, messages=[{"role": "user", "content": content}], max_tokens=24
        )
        for content in (question, " ".join([question] * 5))
    )
    assert len((short.choices[0].message.content or "").split()) > 2, "some words; a model of this size may be wrong"
    assert short.usage is not None
    assert long.usage is not None
    assert short.usage.prompt_tokens + 4 * 7 == long.usage.prompt_tokens, "the question has seven tokens"
    assert 0 < short.usage.completion_tokens <= 24


def test_a_streamed_answer_comes_in_parts_and_ends_with_its_usage(client: openai.OpenAI, server: ModelServer) -> None:
    stream = client.chat.completions.create(
        model=server.name,
        messages=[{"role": "user", "content": "Count from one to five."}],
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(texts) > 3
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 16


def test_a_schema_is_kept_to(client: openai.OpenAI, server: ModelServer) -> None:
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted: ResponseFormatJSONSchema = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": schema, "strict": True},
    }
    answer = client.chat.completions.create(
        model=server.name,
        messages=[{"role": "user", "content": "Bob is 42 years old. Give his name and age as JSON."}],
        response_format=wanted,
        max_tokens=60,
        temperature=0,
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"name", "age"}


def test_requests_overlap(client: openai.OpenAI, server: ModelServer) -> None:
    def first_words(prompt: str) -> str:
        answer = client.chat.completions.create(
            model=server.name, messages=[{"role": "user", "content": prompt}], max_tokens=8
        )
        return answer.choices[0].message.content or ""

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(first_words, ["Say hello.", "Say goodbye."]))


def test_each_of_the_parallel_requests_has_the_whole_context(server: ModelServer) -> None:
    slots = json.loads(get(server, "/slots"))
    assert [slot["n_ctx"] for slot in slots] == [1024, 1024]


def get(server: ModelServer, path: str) -> bytes:
    request = urllib.request.Request(server.url.removesuffix("/v1") + path)
    request.add_header("Authorization", f"Bearer {server.key}")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
        content: bytes = response.read()
        return content


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused(server: ModelServer) -> None:
    with (
        openai.OpenAI(base_url=server.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        stranger.chat.completions.create(model=server.name, messages=[{"role": "user", "content": "Hello"}])
    assert caught.value.status_code == 401


def test_its_key_is_in_no_command_line_and_no_repr(server: ModelServer) -> None:
    assert server.key not in " ".join(server.child().argv)
    assert server.key not in repr(server)


def test_it_is_ready_for_the_right_key_only(server: ModelServer) -> None:
    assert model_server.ready(server.url, server.key)
    assert not model_server.ready(server.url, "wrong")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not model_server.ready(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", server.key)


def test_a_killed_model_server_is_back_at_its_address(tmp_path: Path) -> None:
    server = ModelServer.open(tmp_path / "model.json", name="mine", context=256, parallel=1)
    with Supervisor([server.child()], logs=tmp_path) as supervisor:
        killed = supervisor.kill("model")
        assert supervisor.wait_ready("model").pid != killed
        assert json.loads(get(server, "/v1/models"))["data"][0]["id"] == "mine"


# --- what is missing ------------------------------------------------------------------------------------------------


def test_no_weights_are_a_typed_error_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "PACKAGE", "no_such_package")
    assert model_server.missing() is not None
    with pytest.raises(errors.ModelUnavailable, match="file is not installed") as caught:
        ModelServer.open(tmp_path / "model.json")
    assert "make install" in (caught.value.hint or "")


def test_no_engine_is_a_typed_error_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_server, "ENGINE", "no_such_engine")
    with pytest.raises(errors.ModelUnavailable, match="engine is not installed") as caught:
        ModelServer.open(tmp_path / "model.json")
    assert "make install" in (caught.value.hint or "")


def test_a_file_of_the_users_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelUnavailable, match=r"no model file .*mine\.gguf"):
        ModelServer.open(tmp_path / "model.json", path=tmp_path / "mine.gguf")


def test_the_weights_are_found_without_importing_their_package() -> None:
    assert model_file.find().stat().st_size > 50_000_000
    assert model_server.missing() is None
    assert model_file.PACKAGE not in sys.modules


def test_damaged_weights_are_refused_and_good_ones_are_read_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, cache = tmp_path / "model.gguf", tmp_path / "model.json"
    shutil.copyfile(model_file.find(), weights)
    model_file.verify(weights, cache=cache)
    good = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"XXXX")
    os.utime(weights, ns=(good.st_atime_ns, good.st_mtime_ns))
    model_file.verify(weights, cache=cache)  # same size and time: taken for the same file, unread
    os.utime(weights)
    with pytest.raises(errors.ModelUnavailable, match="damaged") as caught:
        model_file.verify(weights, cache=cache)
    assert caught.value.hint


def test_a_file_that_is_no_model_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_bytes(b"not a model")
    server = ModelServer.open(tmp_path / "model.json", path=tmp_path / "mine.gguf")
    with (
        pytest.raises(errors.ProcessNotReady, match="exit 1") as caught,
        Supervisor([server.child()], logs=tmp_path),
    ):
        pass
    assert "MODEL_UNAVAILABLE" in (caught.value.hint or "")
    assert "Traceback" not in (caught.value.hint or "")


def test_it_does_not_start_without_a_key() -> None:
    argv = [sys.executable, "-m", "convergio.workers.embedded.model_server", "--model", "x", "--port", "1"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert ended.stderr == "CONVERGIO_EMBEDDED_MODEL_KEY is not set\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process when its parent dies")
def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from convergio.workers.embedded.model_server import ModelServer
from convergio.workers.embedded.supervisor import Supervisor
directory = Path(sys.argv[1])
server = ModelServer.open(directory / "model.json", context=256, parallel=1)
with Supervisor([server.child()], logs=directory):
    print(server.url, server.key, flush=True)
    time.sleep(60)
"""
    host = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    url, key = host.stdout.readline().split()
    assert model_server.ready(url, key)
    host.kill()
    host.wait()
    host.stdout.close()
    wait_until(lambda: not model_server.ready(url, key))
