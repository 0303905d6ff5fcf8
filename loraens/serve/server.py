"""The HTTP server: LitServe, with limits, a page, and a stop that loses no request."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import FrameType
from typing import Any

import litserve
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute

from loraens import __version__
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.records import Epoch
from loraens.serve.api import Api, Limits, OverLimitError, PredictRequest
from loraens.tasks import Task

PREDICT = "/predict"
KEEP_ALIVE = 75  # seconds until an idle connection is closed; proxies mostly do so after 60
DRAIN = 60.0  # seconds in which the requests that are there are answered when the server stops
HOSTS = ("127.0.0.1", "0.0.0.0", "::")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served.

    Args:
        host: Address to listen on: this machine alone, by default.
        port: Port to listen on.
        workers: Processes that compute, each with the model.
        device: Where to compute, such as "cpu" or "cuda:0"; a GPU if there is one, by default.
        queue: Requests that may wait or be computed at once; further ones are refused (503).
        max_texts: Texts of a request.
        max_characters: Characters of a text.
        max_bytes: Bytes of a request.
        timeout: Seconds that a request may wait.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    device: str | None = None
    queue: int = 256
    max_texts: int = 256
    max_characters: int = 20_000
    max_bytes: int = 8 * 2**20
    timeout: float = 30.0

    def check(self) -> None:
        """Refuse what cannot be served.

        Raises:
            InputError: It names the option.
        """
        if self.host not in HOSTS:
            raise InputError(
                f"host {self.host}: one of {', '.join(HOSTS)} is expected", option="host"
            )
        if not 1024 <= self.port <= 65535:
            raise InputError(f"port {self.port}: 1024 to 65535 is expected", option="port")
        for name in ("workers", "queue", "max_texts", "max_characters", "max_bytes", "timeout"):
            value = getattr(self, name)
            if not value > 0:
                raise InputError(f"{name} {value:g}: a number above 0 is expected", option=name)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise InputError(
                    f"port {self.port} cannot be used ({error.strerror}): give another one",
                    option="port",
                ) from None


class Gate:
    """Counts the requests that are there, and refuses more than the queue takes, or any once the
    server stops.

    Args:
        app: The application behind it.
        active: Number of requests that are there.
        stopping: Set once the server stops.
        queue: Requests that may be there.
    """

    def __init__(self, app: Any, active: Any, stopping: Any, queue: int) -> None:
        self.app = app
        self.active = active
        self.stopping = stopping
        self.queue = queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != PREDICT:
            await self.app(scope, receive, send)
            return
        with self.active.get_lock():
            full = self.active.value >= self.queue
            self.active.value += not full
        if full:
            detail = f"{self.queue} requests are waiting: try again later"
            await _refusal(503, detail)(scope, receive, send)
            return
        try:
            if self.stopping.is_set():
                detail = "the server is stopping: try another one"
                await _refusal(503, detail)(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            with self.active.get_lock():
                self.active.value -= 1


def _refusal(status: int, detail: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"detail": detail}, status_code=status, headers=headers)


class Server(litserve.LitServer):  # type: ignore[misc]
    """LitServe's server, which answers the requests that are there before it stops."""

    def __init__(self, api: Api, options: ServeOptions, about: Mapping[str, Any]) -> None:
        self.active = multiprocessing.Value("i", 0)
        self.stopping = multiprocessing.Event()
        self.unanswered = 0  # requests, when the server had stopped
        gate = {"active": self.active, "stopping": self.stopping, "queue": options.queue}
        accelerator, _, index = (options.device or "auto").partition(":")
        super().__init__(
            api,
            accelerator=accelerator,
            devices=[int(index)] if index else 1,
            workers_per_device=options.workers,
            timeout=options.timeout,
            max_payload_size=options.max_bytes,
            middlewares=[(Gate, gate)],
            model_metadata=dict(about),
            restart_workers=True,
        )
        # before LitServe's own page
        self.app.router.routes.insert(0, APIRoute("/", _page, include_in_schema=False))
        self.app.add_exception_handler(RequestValidationError, _invalid)

    def _init_manager(self, num_api_servers: int) -> Any:
        # a signal to all processes must leave the queues' one until the end
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            return super()._init_manager(num_api_servers)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _start_server(self, *args: Any, **kwargs: Any) -> Any:
        started = super()._start_server(*args, **kwargs)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        return started

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """End `run`. The event is of another process, with which the main thread talks, waiting for
        this very event, so another thread sets it.
        """
        threading.Thread(target=self._shutdown_event.set).start()

    def _perform_graceful_shutdown(self, *args: Any, **kwargs: Any) -> None:
        self.stopping.set()
        end = time.monotonic() + DRAIN
        while self.active.value and time.monotonic() < end:
            time.sleep(0.02)
        self.unanswered = int(self.active.value)
        # which would start killed workers again, and asks a manager that ends
        for thread in threading.enumerate():
            if thread.name == "litserve-monitoring":
                thread.join(DRAIN)
        for worker in self.inference_workers:
            worker.kill()  # which leaves signals to the server
        super()._perform_graceful_shutdown(*args, **kwargs)


async def _page() -> HTMLResponse:
    page = files("loraens.serve").joinpath("page.html").read_text(encoding="utf-8")
    policy = "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """One sentence on the first thing that is wrong with a request."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    too_much = isinstance(first.get("ctx", {}).get("error"), OverLimitError)
    reason = first["msg"].removeprefix("Value error, ")
    return _refusal(413 if too_much else 422, f"{'.'.join(place) or 'the body'}: {reason}")


def about(predictor: Predictor, task: Task, model: str) -> dict[str, Any]:
    """What `/info` tells of a model."""
    combination = predictor.combined(task)
    return {
        "model": os.path.basename(os.path.abspath(model)),
        "loraens": __version__,
        "task": task.name,
        "kind": task.kind,
        "text_columns": list(task.text_columns),
        "classes": list(task.class_names),
        "members": predictor.members,
        "rule": combination.rule,
        "columns": predictor.columns(task),
        "max_length": predictor.max_length,
    }


def make_server(
    model: str,
    options: ServeOptions,
    task: str | None = None,
    epoch: Epoch = "best",
    backbone: str | None = None,
) -> Server:
    """The server of a member or an ensemble, not started.

    Args:
        model: As `Predictor.load` takes it.
        options: How it is served.
        task: Name of the task, where there are several.
        epoch: Epoch of a member.
        backbone: Where the backbone is now, if it was moved.

    Raises:
        InputError: The model or an option cannot be used.
    """
    options.check()
    predictor = Predictor.load(model, epoch, device=options.device, backbone=backbone)
    chosen = predictor.task(task)
    try:
        assert predictor.conformal is not None
        highest = predictor.conformal(chosen).highest
    except InputError:  # no held-out scores: a request that asks for them is told so
        highest = None
    PredictRequest.limits = Limits(
        texts_each=len(chosen.text_columns),
        texts=options.max_texts,
        characters=options.max_characters,
        coverage=highest,
    )
    api = Api(model, chosen.name, epoch, backbone, options.workers)
    return Server(api, options, about(predictor, chosen, model))


def run(server: Server, options: ServeOptions) -> int:
    """Serve until a signal, SIGINT or SIGTERM, ends it.

    Returns:
        Number of requests that were there and could not be answered any more.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes
    # that semaphores of a killed worker are left, which Python then removes
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    try:
        server.run(
            host=options.host,
            port=options.port,
            num_api_servers=1,
            generate_client_file=False,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
    finally:
        for child in multiprocessing.active_children():  # where it was stopped while it started
            child.kill()
    return server.unanswered
