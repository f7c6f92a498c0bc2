"""The local model as a process: llama.cpp's own HTTP server (OpenAI's API) on loopback, out of the xllamacpp wheel.

`python -m convergio.workers.embedded.model_server --model FILE --port PORT`, its API key in the environment (a command
line is readable by every user of the machine).
"""

from __future__ import annotations

import argparse
import http.client
import importlib
import importlib.util
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

from convergio.graphflow.model import errors
from convergio.workers.embedded import model_endpoint, model_file
from convergio.workers.embedded import port as ports
from convergio.workers.embedded.child import Child

ENGINE = "xllamacpp"
PROBE_TIMEOUT_S = 0.4


class Options(TypedDict, total=False):
    """What may be chosen about a model server; see `ModelServer`."""

    name: str
    threads: int
    context: int
    parallel: int


@dataclass(frozen=True, kw_only=True)
class ModelServer:
    """One model to serve.

    `context` is the number of tokens each of the `parallel` requests may hold; it takes about 23 KB of memory per token
    of SmolLM2. `threads`: llama.cpp's threads wait for each other by spinning, so on a machine that does other work too
    one is the fastest.
    """

    path: Path
    port: int
    key: str = field(repr=False)
    name: str = "smollm2-135m-instruct"
    threads: int = 1
    context: int = 4096
    parallel: int = 2

    @classmethod
    def open(cls, cache: Path, *, path: Path | None = None, **options: Unpack[Options]) -> ModelServer:
        """Chooses a port and a key, and checks engine and weights before anything is started.

        Without `path` it is the shipped model, whose checksum is remembered in the file `cache`. Raises
        `ModelUnavailable`.
        """
        check_engine()
        if path is None:
            path = model_file.find()
            model_file.verify(path, cache=cache)
        elif not path.is_file():
            raise errors.ModelUnavailable(f"There is no model file {path}.", hint=model_file.HINT, path=path)
        return cls(path=path, port=ports.free(), key=secrets.token_urlsafe(24), **options)

    @property
    def url(self) -> str:
        """The base URL for OpenAI clients."""
        return f"http://{ports.LOOPBACK}:{self.port}/v1"

    @property
    def endpoint(self) -> model_endpoint.ModelEndpoint:
        """What its users are told."""
        return model_endpoint.ModelEndpoint(url=self.url, key=self.key, name=self.name)

    def child(self, name: str = "model") -> Child:
        """The server as a supervised process."""
        module = "convergio.workers.embedded.model_server"
        options = {
            "--model": self.path,
            "--port": self.port,
            "--name": self.name,
            "--threads": self.threads,
            "--context": self.context,
            "--parallel": self.parallel,
        }
        return Child(
            name=name,
            argv=(sys.executable, "-m", module, *(str(part) for option in options.items() for part in option)),
            env=self.endpoint.env,
            ready=lambda _pid: ready(self.url, self.key),
            ready_timeout_s=60,
        )


def ready(url: str, key: str) -> bool:
    """Whether the server at this base URL has loaded its model and takes this key. Answers within half a second."""
    # http.client, because urllib and httpx would ask a proxy for a loopback address when the user has one.
    host = url.removeprefix("http://").partition("/")[0]
    connection = http.client.HTTPConnection(host, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check_engine() -> None:
    """Raises `ModelUnavailable` when llama.cpp's wheel is not installed."""
    if importlib.util.find_spec(ENGINE) is None:
        raise errors.ModelUnavailable(
            "The local model's engine is not installed.",
            hint=f"Run `make install` or `pip install {ENGINE}`; or name another model by CONVERGIO_MODEL_BASE_URL.",
        )


def missing() -> errors.ModelUnavailable | None:
    """Why the shipped model cannot be served on this machine; None when it can. Does not read the weights."""
    try:
        check_engine()
        model_file.find()
    except errors.ModelUnavailable as error:
        return error
    return None


def serve(server: ModelServer) -> None:
    """Loads the model and serves it until a signal ends this process. Raises `ModelUnavailable`."""
    check_engine()
    engine = importlib.import_module(ENGINE)
    params = engine.CommonParams()
    params.model.path = str(server.path)
    params.model_alias = {server.name}
    params.hostnames = [ports.LOOPBACK]
    params.port = server.port
    params.api_keys = [server.key]
    params.n_parallel = server.parallel
    params.n_ctx = server.context * server.parallel  # llama.cpp divides it among the requests
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = server.threads
    params.endpoint_metrics = True
    params.use_jinja = True
    params.ui = False
    params.verbosity = 1
    try:
        running = engine.Server(params)
    except RuntimeError as error:
        raise errors.ModelUnavailable(
            f"The local model could not be started: {error}", hint="The lines above say why.", path=server.path
        ) from error
    print(f"{server.name} is served at {running.listening_address}", flush=True)
    while True:
        signal.pause()


def main(arguments: Sequence[str] | None = None) -> int:
    """The process: exits 1 with the error's text when the model cannot be served."""
    parser = argparse.ArgumentParser(prog="model_server", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default=ModelServer.name)
    parser.add_argument("--threads", type=int, default=ModelServer.threads)
    parser.add_argument("--context", type=int, default=ModelServer.context)
    parser.add_argument("--parallel", type=int, default=ModelServer.parallel)
    given = vars(parser.parse_args(arguments))
    key = os.environ.get(model_endpoint.KEY_VARIABLE)
    if not key:
        # Without a key every user and every web page of this machine could spend its processor.
        print(f"{model_endpoint.KEY_VARIABLE} is not set", file=sys.stderr)
        return 1
    try:
        serve(ModelServer(path=given.pop("model"), key=key, **given))
    except errors.ModelUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
