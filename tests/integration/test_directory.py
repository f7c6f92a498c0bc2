"""The data directory: one stack at a time, and a file that tells others what runs."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from convergio.graphflow.model import errors
from convergio.workers.embedded.directory import DataDirectory, Running, read_json, write_atomically

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from convergio.workers.embedded.directory import DataDirectory, Running
directory = DataDirectory.open(Path(sys.argv[1]))
with directory.lock():
    directory.publish(Running(pid=0, started_at=1.0, urls={"redis": "redis://there"}, pids={"worker": 7}))
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    return DataDirectory.open(tmp_path / "data")


def holder(directory: DataDirectory) -> subprocess.Popen[bytes]:
    """Another process that holds the lock and has published what it runs."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_THE_LOCK, str(directory.root)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    process.stdout.close()
    return process


def running(pids: dict[str, int]) -> Running:
    return Running(pid=os.getpid(), started_at=5.0, urls={"redis": "redis://:secret@here"}, pids=pids)


def test_a_second_stack_is_told_who_has_the_directory_and_what_to_do(directory: DataDirectory) -> None:
    other = holder(directory)
    try:
        with pytest.raises(errors.DirectoryInUse) as caught, directory.lock():
            pass
        assert str(other.pid) in caught.value.message
        assert "stop it" in (caught.value.hint or "")
    finally:
        other.kill()
        other.wait()


def test_a_second_stack_of_the_same_process_is_refused_too(directory: DataDirectory) -> None:
    with directory.lock(), pytest.raises(errors.DirectoryInUse), DataDirectory.open(directory.root).lock():
        pass
    with directory.lock():
        pass


def test_a_killed_stack_leaves_the_directory_free_and_nothing_counts_as_running(directory: DataDirectory) -> None:
    other = holder(directory)
    seen = directory.running()
    assert seen is not None
    assert seen.urls == {"redis": "redis://there"}
    other.kill()
    other.wait()
    assert (directory.root / "run.json").exists()
    assert directory.running() is None
    with directory.lock():
        assert directory.running() is None, "what the killed one left must not pass for ours"


def test_another_terminal_sees_what_runs_until_it_ends(directory: DataDirectory) -> None:
    assert directory.running() is None
    with directory.lock():
        directory.publish(running({"worker": 11}))
        directory.publish(running({"worker": 12}))
        assert directory.running() == running({"worker": 12})
    assert directory.running() is None


def test_asking_what_runs_never_refuses_a_starting_stack(directory: DataDirectory) -> None:
    program = (
        "import sys; from pathlib import Path; from convergio.workers.embedded.directory import DataDirectory\n"
        "d = DataDirectory.open(Path(sys.argv[1])); print('asking', flush=True)\n"
        "while True: d.running()"
    )
    asking = subprocess.Popen([sys.executable, "-c", program, str(directory.root)], stdout=subprocess.PIPE)
    assert asking.stdout is not None
    try:
        assert asking.stdout.readline() == b"asking\n"
        for _ in range(200):
            with directory.lock():
                pass
    finally:
        asking.kill()
        asking.wait()
        asking.stdout.close()


def test_only_the_owner_may_read_it_and_git_does_not_see_it(directory: DataDirectory) -> None:
    with directory.lock():
        directory.publish(running({}))
        for path in (directory.root, directory.valkey, directory.logs):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for path in (directory.root / "run.json", directory.root / "lock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (directory.root / ".gitignore").read_text() == "*\n"


def test_a_directory_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InvalidSetting, match="cannot be the data directory") as caught:
        DataDirectory.open(tmp_path / "file" / "data")
    assert caught.value.hint


def test_a_failed_write_leaves_the_old_content_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, b'{"a": 1}')

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b'{"a": 2}')
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_small_file_counts_as_missing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.json").write_bytes(content)
    assert read_json(tmp_path / "file.json") is None


def test_what_is_published_is_plain_json(directory: DataDirectory) -> None:
    with directory.lock():
        directory.publish(running({"worker": 3}))
        assert json.loads((directory.root / "run.json").read_text()) == dataclasses.asdict(running({"worker": 3}))
