"""A Celery project of somebody else's: what it has is used as steps, and knows nothing of us, but for one task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, NoReturn

from celery import Celery, Task, current_app, shared_task
from celery.exceptions import Ignore, Reject, Retry

from convergio.graphflow import step

URL: Final = os.environ.get("SHOP_URL", "memory://")
FOLDER: Final = "PROBE_FOLDER"
"""The variable that names the folder in which bodies note that they ran."""

app = Celery("shop", broker=URL, backend=URL if URL.startswith("redis") else None, set_as_current=False)
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)


class Noted(Task[Any, Any]):
    """A base class with a life of its own, as many projects have."""

    abstract = True
    heard: Final[list[tuple[str, str]]] = []

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.heard.append(("before_start", task_id))

    def after_return(self, status: Any, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.heard.append((f"after_return {status}", task_id))

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.heard.append(("on_retry", task_id))


@app.task
def load_invoice(invoice_id: str) -> dict[str, str]:
    return {"id": invoice_id}


@app.task(name="shop.renamed")
def named_otherwise() -> str:
    return "renamed"


@app.task(bind=True, base=Noted)
def look_around(self: Any, word: str = "") -> dict[str, Any]:
    request = self.request
    told = {"id": request.id, "retries": request.retries, "called_directly": request.called_directly}
    return {**told, "headers": request.headers, "word": word, "app": current_app.main, "root": request.root_id}


@app.task(bind=True, base=Noted, max_retries=2)
def asks_again(self: Any, countdown: float, until: int = 99) -> int:
    retries = int(self.request.retries)
    if retries >= until:
        return retries
    raise self.retry(countdown=countdown, exc=ConnectionError("the till is closed"))


@app.task(bind=True, autoretry_for=(ConnectionError,), retry_kwargs={"max_retries": 1, "countdown": 7})
def again_by_itself(self: Any) -> int:
    if not self.request.retries:
        raise ConnectionError("the till is closed")
    return int(self.request.retries)


@app.task(bind=True)
def changes_its_arguments(self: Any, number: int = 0) -> int:
    if number < 2:
        raise self.retry(kwargs={"number": number + 1}, countdown=0)
    if self.request.retries < 3:
        raise self.retry(countdown=0)  # with what it was given this time
    return number


@step(name="shop.decorated", retry=2)
@app.task(bind=True)
def decorated(self: Any) -> int:
    if not self.request.retries:
        raise self.retry(countdown=5)
    return int(self.request.retries)


@app.task
def retries_by_hand() -> NoReturn:
    raise Retry("by hand", when=3)  # type: ignore[arg-type]  # as Celery's documentation does


@app.task(bind=True)
def is_replaced(self: Any) -> Any:
    return self.replace(load_invoice.s("1"))


@app.task
def ignores() -> NoReturn:
    raise Ignore("nothing to do")


@app.task
def rejects(requeue: bool = False) -> NoReturn:
    raise Reject("not mine", requeue=requeue)


@app.task
def breaks() -> NoReturn:
    raise ValueError("bad invoice")


@app.task
def gives_an_object() -> object:
    return object()


@shared_task
def shared(a: int, b: int = 2) -> dict[str, Any]:
    return {"sum": a + b, "app": current_app.main}


@shared_task(bind=True)
def calls_shared(self: Any) -> str:
    return str(shared.app.main)


@app.task(name="shop.charge")
def charge(name: str, seconds: float = 0.0) -> dict[str, str]:
    """Notes that it was executed: a customer pays once for each line."""
    import time

    with (Path(os.environ[FOLDER]) / name).open("a") as file:
        file.write(f"began {os.getpid()} {time.monotonic()}\n")
    time.sleep(seconds)
    return {"charged": name}


@app.task(name="shop.declines")
def declines() -> NoReturn:
    raise ValueError("card declined")
