"""The wheel holds everything, and every module has one name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "config", "graphflow", "tasks", "workers")
CARD = {
    "celery",
    "flower",
    "kombu",
    "opentelemetry-instrumentation-celery",
    "pyautogen",
    "pytest",
    "redis",
    "sqlalchemy",
}
"""The packages that the design card names."""

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS: dict[str, Any] = PYPROJECT["tool"]["setuptools"]


def files_of(folder: str) -> Iterator[Path]:
    for path in sorted((ROOT / folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT)


def package_of(directory: Path) -> str:
    return ".".join(["convergio", *directory.parts])


def folder_of(package: str) -> Path:
    return ROOT.joinpath(*package.split(".")[1:])


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0] for requirement in requirements}


def test_the_package_list_is_complete() -> None:
    """setuptools cannot find packages and add a prefix; one missing from the list is missing from the wheel only."""
    in_tree = {package_of(path.parent) for folder in FOLDERS for path in files_of(folder) if path.suffix == ".py"}
    listed: list[str] = SETUPTOOLS["packages"]
    assert sorted(in_tree) == listed, "add to (or remove from) [tool.setuptools] packages in pyproject.toml, sorted"


def test_every_package_is_a_regular_one() -> None:
    for package in SETUPTOOLS["packages"]:
        assert (folder_of(package) / "__init__.py").is_file(), f"{package} has no __init__.py"


def test_every_data_file_is_in_the_wheel() -> None:
    patterns: dict[str, list[str]] = SETUPTOOLS["package-data"]
    taken = {
        path
        for package in SETUPTOOLS["packages"]
        for pattern in [*patterns["*"], *patterns.get(package, [])]
        for path in folder_of(package).glob(pattern)
    }
    data = [path for folder in FOLDERS for path in files_of(folder) if path.suffix != ".py"]
    left_out = [str(path) for path in data if ROOT / path not in taken]
    assert left_out == [], "add a pattern to [tool.setuptools.package-data] in pyproject.toml"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_second_import_under_the_short_name_is_refused(folder: str) -> None:
    """From the repository's root `import tasks` would make a second Celery app beside `convergio.tasks`."""
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"import convergio.{folder}, not {folder}" in done.stderr


def test_the_packages_of_the_card_are_declared() -> None:
    groups: dict[str, list[str]] = PYPROJECT["dependency-groups"]
    declared = names_of(PYPROJECT["project"]["dependencies"])
    assert CARD - {"pytest"} <= declared
    assert "pytest" in names_of(groups["test"])
    assert "pytest" not in declared


@pytest.mark.parametrize("lock", ["run.lock", "dev.lock"])
def test_the_lock_has_every_declared_package_with_hashes_and_no_address(lock: str) -> None:
    groups: dict[str, list[str]] = PYPROJECT["dependency-groups"]
    wanted = names_of(PYPROJECT["project"]["dependencies"])
    for group in ("build", "model", "data", *(("test", "lint") if lock == "dev.lock" else ())):
        wanted |= names_of(groups[group])
    text = (ROOT / "requirements" / lock).read_text()
    entries = re.findall(r"^([a-z0-9.-]+)==\S+ .*\\\n    --hash=sha256:", text, re.MULTILINE)
    pinned = re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE)
    assert entries == pinned, "a pin without a hash"
    assert wanted <= set(pinned), "run `make lock`"
    assert "://" not in text


def test_the_run_time_pins_are_the_same_in_both_locks() -> None:
    def pins(lock: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9.-]+==\S+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE))

    assert pins("run.lock") <= pins("dev.lock")


@pytest.mark.slow
def test_the_wheel_has_every_file(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {f"convergio/{path.as_posix()}" for folder in FOLDERS for path in files_of(folder)}
    assert any(name.endswith(".lua") for name in packed)
    assert "convergio/graphflow/py.typed" in packed
