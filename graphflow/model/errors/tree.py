"""The root of the error tree, and the kinds that others are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

LISTED_PROBLEMS: Final = 50
"""So many problems an error's text lists; its attribute `problems` has all."""


class ConvergioError(Exception):
    """Something went wrong in Convergio."""

    code: ClassVar[str] = "ERROR"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, hint: str | None = None, **where: Any) -> None:
        """`message` says what happened, `hint` what to do now, `where` names run, step or path."""
        self.message = message or (type(self).__doc__ or "").strip()
        self.hint = hint
        self.where = where
        super().__init__(self.message)

    def __str__(self) -> str:
        place = " ".join(f"{name}={value}" for name, value in self.where.items())
        said = " ".join(part for part in (f"{self.code}  {self.message}", f"({place})" if place else "") if part)
        return f"{said.removesuffix('.')}. {self.hint}" if self.hint else said

    def as_dict(self) -> dict[str, Any]:
        """The shape in which an error crosses a process: code, message, hint, retryable."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in what a person wrote: where, what, and what to do. `code` is stable and public."""

    code: str
    path: str
    message: str
    hint: str = ""

    def line(self, source: str = "") -> str:
        """`CODE  source: path message; hint`, the form in which people meet it."""
        where = " ".join(part for part in (f"{source}:" if source else "", self.path) if part)
        said = " ".join(part for part in (where, self.message) if part)
        return f"{self.code}  {said}; {self.hint}" if self.hint else f"{self.code}  {said}"


class ProblemsError(ConvergioError):
    """What a person wrote has problems."""

    code = "PROBLEMS"

    def __init__(
        self,
        message: str | None = None,
        *,
        problems: Sequence[Problem] = (),
        source: str = "",
        hint: str | None = None,
        **where: Any,
    ) -> None:
        """`problems`: everything that is wrong, in document order; `source`: the file, or its name to people."""
        self.problems = tuple(problems)
        self.source = source
        lines = [problem.line(source) for problem in self.problems[:LISTED_PROBLEMS]]
        if len(self.problems) > LISTED_PROBLEMS:
            lines.append(f"... and {len(self.problems) - LISTED_PROBLEMS} more problems")
        listed = "\n".join(lines)
        super().__init__(message or listed or None, hint=hint, **where)

    def __str__(self) -> str:
        return self.message if self.problems else super().__str__()


class Transient(ConvergioError):
    """A fault that may pass: the step is tried again by its retry policy."""

    code = "TRANSIENT"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after: float | None = None, **where: Any) -> None:
        """`retry_after`: seconds to wait at least, as the other side asked."""
        self.retry_after = retry_after
        super().__init__(message, **where)


class Permanent(ConvergioError):
    """A fault that will not pass: the step is not tried again."""

    code = "PERMANENT"


class Overloaded(ConvergioError):
    """Nothing new is taken on now; what runs goes on."""

    code = "OVERLOADED"
    retryable = True

    def __init__(
        self,
        message: str | None = None,
        *,
        hint: str | None = "what runs goes on meanwhile",
        retry_after: float | None = None,
        **where: Any,
    ) -> None:
        """`retry_after`: seconds to wait at least before it is worth to ask again."""
        self.retry_after = retry_after
        again = "" if retry_after is None else f"ask again in {retry_after:.0f} s; "
        super().__init__(message, hint=f"{again}{hint or ''}" or None, **where)
