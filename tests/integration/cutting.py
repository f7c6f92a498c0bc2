"""Cuts a worker process at every place where a turn awaits: its modules are imported with a knife at each of them.

Run as a program it is a process that imports all that a worker needs, once, and forks a worker for each line of its
standard input: {"home", "redis_url", "journal_url", "run", "point", "side"}. That worker answers the doorbells of the
run until it reaches the point, and is killed there by the operating system; what became of it is a line of standard
output.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "convergio."
MODULES: Final = (
    "tasks.turn",
    *(f"tasks.conversation.{path.stem}" for path in sorted((ROOT / "tasks" / "conversation").glob("[!_]*.py"))),
    *(f"tasks.agents.{path.stem}" for path in sorted((ROOT / "tasks" / "agents").glob("*_turn.py"))),
    "tasks.agents.deadline",
    "tasks.tools.tool",
    "workers.loop",
)
"""Where the code of a turn is. A conversation's new module is among them by itself."""

KNIFE: Final = "__knife__"
SHOWN: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Point:
    """A place where a turn awaits something: what is written there, and the how-manieth of this text it is."""

    module: str
    function: str
    text: str
    number: int = 0

    @property
    def name(self) -> str:
        return f"{self.module}:{self.function}: {self.text}" + (f" ({self.number})" if self.number else "")


class _Points(ast.NodeTransformer):
    """Finds the points of a module in their order; with `cut` it puts a knife at each."""

    def __init__(self, module: str, *, cut: bool) -> None:
        self.module = module
        self.cut = cut
        self.found: list[Point] = []
        self._where: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node, node.name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._inside(node, node.name)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._inside(node, f"async {node.name}")

    def visit_Await(self, node: ast.Await) -> ast.AST:
        point = self._point("await", node.value)
        self.generic_visit(node)
        return ast.Await(self._call("awaited", point, node.value)) if self.cut else node

    def visit_Yield(self, node: ast.Yield) -> ast.AST:
        if not self._where or not self._where[-1].startswith("async "):
            return self.generic_visit(node)
        point = self._point("yield", node.value)
        self.generic_visit(node)
        given = node.value or ast.Constant(None)
        return ast.Yield(self._call("passed", point, given)) if self.cut else node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        point = self._point("async for", node.iter)
        self.generic_visit(node)
        if self.cut:
            node.iter = self._call("iterated", point, node.iter)
        return node

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        points = [self._point("async with", item.context_expr) for item in node.items]
        self.generic_visit(node)
        if self.cut:
            for item, point in zip(node.items, points, strict=True):
                item.context_expr = self._call("entered", point, item.context_expr)
        return node

    def _inside(self, node: ast.AST, name: str) -> ast.AST:
        self._where.append(name)
        self.generic_visit(node)
        self._where.pop()
        return node

    def _point(self, kind: str, node: ast.AST | None) -> Point:
        text = f"{kind} {'' if node is None else ast.unparse(node)}".replace("\n", " ")[:SHOWN].strip()
        function = ".".join(name.removeprefix("async ") for name in self._where)
        same = sum((one.function, one.text) == (function, text) for one in self.found)
        self.found.append(Point(module=self.module, function=function, text=text, number=same))
        return self.found[-1]

    def _call(self, how: str, point: Point, value: ast.expr) -> ast.Call:
        knife = ast.Attribute(ast.Name(KNIFE, ast.Load()), how, ast.Load())
        return ast.Call(knife, [ast.Constant(point.name), value], [])


@lru_cache(maxsize=1)
def points() -> tuple[Point, ...]:
    """Every point of a turn, as the sources have them now."""
    found: list[Point] = []
    for module in MODULES:
        seen = _Points(module, cut=False)
        seen.visit(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text()))
        found += seen.found
    return tuple(found)


class Knife:
    """Kills this process at one side of one point, while it is about one run; until then it only counts."""

    def __init__(self) -> None:
        self.point = self.side = self.run = self.now = ""
        self.reached: set[tuple[str, str]] = set()

    def at(self, point: str, side: str) -> None:
        if self.now != self.run:
            return
        self.reached.add((point, side))
        if (point, side) == (self.point, self.side):
            os.kill(os.getpid(), signal.SIGKILL)

    async def awaited(self, point: str, value: Any) -> Any:
        self.at(point, "before")
        found = await value
        self.at(point, "after")
        return found

    def passed(self, point: str, value: Any) -> Any:
        self.at(point, "before")
        return value

    async def iterated(self, point: str, values: Any) -> AsyncIterator[Any]:
        self.at(point, "before")
        async for value in values:
            self.at(point, "after")
            yield value

    def entered(self, point: str, context: Any) -> _Entered:
        return _Entered(self, point, context)


class _Entered(AbstractAsyncContextManager[Any]):
    def __init__(self, knife: Knife, point: str, context: Any) -> None:
        self.knife, self.point, self.context = knife, point, context

    async def __aenter__(self) -> Any:
        self.knife.at(self.point, "before")
        return await self.context.__aenter__()

    async def __aexit__(self, *exception: Any) -> Any:
        done = await self.context.__aexit__(*exception)
        self.knife.at(self.point, "after")
        return done


SIDES: Final = {"yield": ("before",)}
"""Sides of points by their kind; the others have both."""


def cuts() -> list[tuple[Point, str]]:
    """Every place where a process is to be cut."""
    return [(point, side) for point in points() for side in SIDES.get(point.text.split(" ")[0], ("before", "after"))]


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of a turn, with knives in them."""

    def __init__(self, knife: Knife) -> None:
        self.knife = knife

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None, /) -> Any:
        name = fullname.removeprefix(PACKAGE)
        if not fullname.startswith(PACKAGE) or name not in MODULES:
            return None
        file = str(ROOT / f"{name.replace('.', '/')}.py")
        return importlib.util.spec_from_file_location(fullname, file, loader=Loader(fullname, file, self.knife))


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with knives."""

    def __init__(self, fullname: str, path: str, knife: Knife) -> None:
        super().__init__(fullname, path)
        self.knife = knife

    def get_code(self, fullname: str) -> Any:
        tree = _Points(fullname.removeprefix(PACKAGE), cut=True).visit(ast.parse(self.get_data(self.path)))
        return compile(ast.fix_missing_locations(tree), self.path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[KNIFE] = self.knife
        super().exec_module(module)


# --- the process ------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Forks a worker for each line, and says how it ended."""
    knife = Knife()
    sys.meta_path.insert(0, Finder(knife))
    from tests.integration import cut_bodies, engine_rig

    assert cut_bodies.EFFECTS
    asyncio.run(_warmed())
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                _answer(knife, wanted, engine_rig)
            except BaseException:  # noqa: BLE001  # whatever it is, this process must not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed, "status": status}), flush=True)


async def _warmed() -> None:
    """One turn in this process, whose children need not load and compile again what it takes."""
    from convergio.tasks.agents import autogen_turn
    from convergio.tasks.agents.autogen_adapter import AutogenRunner
    from convergio.tasks.agents.model import ModelSettings
    from convergio.tasks.agents.spec import AgentSpec
    from convergio.tasks.agents.turn import TurnRequest
    from convergio.tasks.conversation import speaker
    from convergio.tasks.tools import tool

    class Nothing:
        def get(self, key: str) -> Any:
            return None

        async def keep(self, key: str, fact: Any, *, before_acting: bool) -> None:
            return

    asks = {"say": "", "call": [{"tool": "cut.now", "arguments": {"word": "x"}}], "pace": 0.0, "fail": None, "times": 1}
    script = [asks, {**asks, "say": "done", "call": []}]
    spec = AgentSpec(name="ann", description="", system_message="x", model=None, max_tokens=9, script=tuple(script))
    request = TurnRequest(
        spec=spec,
        model=ModelSettings(name="scripted"),
        thread=[],
        tools=[tool.REGISTERED.get("cut.now")],
        handoffs={"user": ""},
        key="warm",
        calls="warm",
        attempt=1,
        deadline_s=60.0,
    )
    speaker.scored()
    await autogen_turn.speak(
        AutogenRunner(), request, memory=Nothing(), emit=lambda kind, facts: None, on_usage=lambda usage: None
    )


def _answer(knife: Knife, wanted: dict[str, str], rig: Any) -> None:
    """The worker: never comes back."""
    from convergio.workers import boot

    settings = rig.settings_for(wanted["redis_url"], wanted["journal_url"], Path(wanted["home"]))
    worker = rig.Worker(process=boot.worker(settings, name=f"cut-{os.getpid()}"))
    worker.process.beats.stop()  # a turn that outlasts its time is ended by its own watchdog, and not by a beat
    stage = rig.Stage(settings=settings, service=worker.process.core, workers=[worker])
    knife.point, knife.side, knife.run = wanted["point"], wanted["side"], wanted["run"]
    os.environ[CUT] = "1"
    for bell in _bells(stage, wanted["run"]):
        knife.now = bell.args[0]
        worker.answer(bell)
    Path(wanted["home"], REACHED).write_text(json.dumps(sorted(knife.reached)))
    os._exit(0)


REACHED: Final = "reached.json"
"""In the home of a worker that was not killed: the sides of points that it came by."""

CUT: Final = "CONVERGIO_TEST_CUT"
"""Set in a process that is to be cut: what is slow there need not be slow elsewhere."""


def _bells(stage: Any, run: str) -> Iterator[Any]:
    """Doorbells, until the run has nothing to do any more."""
    from convergio.graphflow.model.ids import RunRef
    from tests.waiting import wait_until

    ref = RunRef(tenant="default", run=run)

    def quiet() -> bool:
        words = stage.values(ref)
        parked = any("|JOURNAL|" in word for name, word in words.items() if name.startswith("s:"))
        return bool(stage.bells()) or not (parked or words.get("@state") in (None, ""))

    while True:
        wait_until(quiet, timeout=30)
        bell = stage.take()
        if bell is None:
            return
        yield bell


if __name__ == "__main__":
    serve()
