"""Bodies that need more than their arguments, and what they may ask for instead of giving a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from convergio.graphflow.model import errors

if TYPE_CHECKING:  # definitions are checked where no Celery is needed
    from convergio.tasks.app import FlowTask


class Body(ABC):
    """A registered function that is performed with the claim at hand. `inspect.signature` tells what it takes."""

    __name__: str
    __qualname__: str

    @abstractmethod
    def perform(self, task: FlowTask, arguments: Mapping[str, Any]) -> Any:
        """The step's output. Raises Later, Again, or why the step failed."""

    def __call__(self, **arguments: Any) -> NoReturn:
        raise TypeError(f"{self.__qualname__} is performed by a step, and cannot be called")


class Later(Exception):
    """Not ended yet: the step waits without a slot, then the same attempt is performed once more."""

    def __init__(self, seconds: float, reason: str) -> None:
        """`reason`: for people who ask why the step does not run."""
        self.seconds = seconds
        self.reason = reason
        super().__init__(reason)


class Again(Exception):
    """The attempt failed, and its body asks for another one. Its own limits count, not the step's retry policy."""

    def __init__(self, seconds: float, error: errors.ConvergioError) -> None:
        """`error`: why it failed."""
        self.seconds = seconds
        self.error = error
        super().__init__(str(error))
