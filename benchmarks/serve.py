"""How fast `loraens serve` answers many clients, and that it loses no request.

    python benchmarks/serve.py [--model ENSEMBLE] [--data DIR] [--quick]

Requests of one text each, over connections that stay open, from a process of its own:

    one by one        `loraens serve`, one client, whose next request waits for the last answer
    clients           `loraens serve`, 64 such clients
    FastAPI + PEFT    64 clients of a plain server: FastAPI, PEFT on transformers, one member after
                      another on each text
    overload          `loraens serve`, requests sent at 10 times the rate that `clients` measured,
                      if this machine can send so many; 503 is an answer

First the gate: both servers must give the same classes. The table has percentiles of the time to an
answer, and texts answered a second; the times of an overload are those of all answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from loraens.data import modules
from loraens.data.made_up import write_corpus
from loraens.inference.predictor import Predictor

PRETRAINED = Path(__file__).parent.parent / "checkpoints" / "pretrained" / "sst"
CLIENTS = 64
TIMES = 10  # of the load that can be taken
CONNECTIONS = 640
PATIENCE = 120.0  # seconds until a request without an answer is lost


class Texts(BaseModel):
    """A request to the plain server."""

    texts: list[str]


@dataclass
class Answers:
    """What clients were answered.

    Args:
        seconds: That each answer took.
        statuses: How often each status was given; "lost" where there was no answer.
        elapsed: Seconds from the first request to the last answer.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    elapsed: float = 0.0


class Client:
    """One connection, over which requests go one after another.

    Args:
        port: The server's.
        bodies: Requests as JSON, each sent in turn.
        first: Index of the first one.
        answers: Is told each answer.
    """

    def __init__(self, port: int, bodies: list[bytes], first: int, answers: Answers) -> None:
        self.port = port
        self.bodies = bodies
        self.index = first
        self.answers = answers
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        """Send one request, and count its answer."""
        started = time.perf_counter()
        try:
            status = await asyncio.wait_for(self._ask(), PATIENCE)
        except (OSError, EOFError, asyncio.TimeoutError, ValueError):
            status, self.streams = "lost", None
        self.answers.seconds.append(time.perf_counter() - started)
        self.answers.statuses[status] += 1

    async def _ask(self) -> str:
        if self.streams is None or self.streams[0].at_eof():  # closed by the server, as it was idle
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        body = self.bodies[self.index % len(self.bodies)]
        self.index += 1
        head = (
            "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        headers = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(line for line in headers.split("\r\n") if line.startswith("content-length:"))
        await reader.readexactly(int(length.partition(":")[2]))
        if "connection: close" in headers:
            writer.close()
            self.streams = None
        return headers.split()[1]


async def _closed(port: int, bodies: list[bytes], clients: int, seconds: float) -> Answers:
    """Clients that wait for each answer before they ask again."""
    answers = Answers()
    started = time.perf_counter()

    async def run(number: int) -> None:
        client = Client(port, bodies, number * 7919, answers)
        while time.perf_counter() - started < seconds:
            await client.ask()

    await asyncio.gather(*map(run, range(clients)))
    answers.elapsed = time.perf_counter() - started
    return answers


async def _open(port: int, bodies: list[bytes], rate: float, seconds: float) -> Answers:
    """Requests at a rate, whether or not the ones before are answered; at most as many at a time as
    there are connections.
    """
    answers = Answers()
    free = [Client(port, bodies, number * 7919, answers) for number in range(CONNECTIONS)]
    under_way: set[asyncio.Task[None]] = set()
    started = time.perf_counter()

    async def run(client: Client) -> None:
        await client.ask()
        free.append(client)

    sent = 0
    while (now := time.perf_counter() - started) < seconds:
        due = min(int(now * rate) - sent, len(free))
        for _ in range(due):
            task = asyncio.create_task(run(free.pop()))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        sent += due
        await asyncio.sleep(0.001)
    await asyncio.gather(*under_way)
    answers.elapsed = time.perf_counter() - started
    return answers


def load(kind: str, *options: Any) -> Answers:
    """Answers to clients in a process of their own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_load, kind, *options).result()


def _load(kind: str, *options: Any) -> Answers:
    return asyncio.run({"closed": _closed, "open": _open}[kind](*options))


@contextmanager
def server(command: list[str], port: int) -> Iterator[None]:
    """A server in a process of its own, which is asked to stop at the end.

    Raises:
        SystemExit: It does not start, or does not stop.
    """
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                    if reply.status == 200:
                        break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"{' '.join(command)} did not start")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def free_port() -> int:
    """A port that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def classes(port: int, bodies: list[bytes]) -> list[str]:
    """The predicted classes of some requests."""
    found = []
    for body in bodies:
        url = f"http://127.0.0.1:{port}/predict"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            found.append(json.loads(reply.read())["predictions"][0]["prediction"])
    return found


def plain_server(model: str, port: int) -> None:
    """FastAPI and PEFT as one writes it at first: each request in turn, each member in turn."""
    import uvicorn
    from fastapi import FastAPI
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    from loraens.ensemble.record import EnsembleRecord
    from loraens.model.backbone import local_directory

    directory = Path(model)
    record = EnsembleRecord.read(directory)
    stored = [record.member_store(directory, member) for member in record.members]
    settings = stored[0][1].settings
    if record.rule != "logits" or settings.pooling not in ("mean", "cls"):
        raise SystemExit(f"{model}: the plain server is of the rule logits, and of mean or cls")
    backbone = local_directory(settings.backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    paths = [path / member.epoch for (path, _), member in zip(stored, record.members, strict=True)]
    encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(backbone), paths[0], "0")
    for number, path in enumerate(paths[1:], start=1):
        encoder.load_adapter(path, str(number))
    encoder.eval()
    files = [load_file(path / "heads.safetensors") for path in paths]
    heads = [{key: tensor.float() for key, tensor in file.items()} for file in files]
    name = record.task.name

    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/predict")
    async def predict(request: Texts) -> dict[str, Any]:
        batch = tokenizer(
            request.texts,
            padding=True,
            truncation=True,
            max_length=settings.max_length,
            return_tensors="pt",
        )
        logits = torch.zeros(len(request.texts), record.task.num_outputs)
        with torch.inference_mode():
            for number, member in enumerate(record.members):
                encoder.set_adapter(str(number))
                hidden = encoder(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None]
                mean = (hidden * mask).sum(1) / mask.sum(1)
                pooled = hidden[:, 0] if settings.pooling == "cls" else mean
                head = heads[number]
                logits += member.weight * (pooled @ head[f"{name}.weight"].T + head[f"{name}.bias"])
        outcome = record.task.outcome(logits.numpy())
        labels = map(record.task.format_label, outcome.predictions)
        return {"predictions": [{"prediction": label} for label in labels]}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def row(arm: str, answers: Answers) -> dict[str, Any]:
    """A row of the table."""
    total = sum(answers.statuses.values())
    answered = answers.statuses["200"]
    return {
        "arm": arm,
        "milliseconds": [1000 * float(p) for p in np.percentile(answers.seconds, [50, 95, 99])],
        "texts_per_second": answered / answers.elapsed,
        "requests_per_second": total / answers.elapsed,
        "answered": answered,
        "refused": answers.statuses["503"],
        "lost": total - answered - answers.statuses["503"],
    }


def as_table(result: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    rows = result["table"]
    plain = next(row for row in rows if row["arm"].startswith("FastAPI"))
    sent = rows[-1]["requests_per_second"] / rows[1]["texts_per_second"]
    lines = [
        (
            f"{result['members']} members, {result['machine']}, clients on the same machine,"
            f" {result['seconds']:g} s; the overload was {sent:.1f} times what 64 clients got"
        ),
        "",
        "| arm | p50 ms | p95 ms | p99 ms | texts a second | times plain | answered | 503 | lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in rows:
        times = one["texts_per_second"] / plain["texts_per_second"]
        cells = [f"{value:,.1f}" for value in one["milliseconds"]]
        cells += [f"{one['texts_per_second']:,.1f}", f"{times:.1f}"]
        cells += [f"{one[name]:,}" for name in ("answered", "refused", "lost")]
        lines.append(f"| {one['arm']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(model: str, bodies: list[bytes], seconds: float, clients: int) -> list[dict[str, Any]]:
    """Rows of the table.

    Raises:
        SystemExit: The servers do not give the same classes.
    """
    port = free_port()
    command = [sys.executable, "-m", "loraens", "serve", "--model", model, "--port", str(port)]
    gate = bodies[:20]
    with server(command, port):
        ours = classes(port, gate)
        rows = [row("one by one", load("closed", port, bodies, 1, seconds / 2))]
        rows.append(row(f"{clients} clients", load("closed", port, bodies, clients, seconds)))
        rate = TIMES * rows[1]["texts_per_second"]
        overload = row("overload", load("open", port, bodies, rate, seconds / 2))
    port = free_port()
    command = [sys.executable, __file__, "--plain", str(port), "--model", model]
    with server(command, port):
        if classes(port, gate) != ours:
            raise SystemExit("the servers do not give the same classes")
        plain = load("closed", port, bodies, clients, seconds)
        rows.append(row(f"FastAPI + PEFT, {clients} clients", plain))
    return [*rows, overload]


def texts_of(data: str | None) -> list[str]:
    """Sentences of the course's SST test set, or made-up ones."""
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            write_corpus(Path(scratch))
        source = modules.SST(data or scratch).sources[0]
        split = source.read("test")
    assert split is not None
    return [text for (text,) in split.texts]


def main() -> None:
    """Run the benchmark, and write its table and its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=str(PRETRAINED), help="an ensemble of SST members by the rule logits"
    )
    parser.add_argument(
        "--data",
        default=os.environ.get("LORAENS_DATA"),
        help="the course's files; without them, made-up texts",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of 64 clients")
    parser.add_argument("--quick", action="store_true", help="8 clients for two seconds")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("benchmarks/results"),
        help="where serve.json and serve.md go",
    )
    parser.add_argument("--plain", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain is not None:
        plain_server(arguments.model, arguments.plain)
        return
    bodies = [json.dumps({"texts": [text]}).encode() for text in texts_of(arguments.data)]
    seconds, clients = (2.0, 8) if arguments.quick else (arguments.seconds, CLIENTS)
    result = {
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "members": len(Predictor.load(arguments.model).model.members),
        "seconds": seconds,
        "table": measure(arguments.model, bodies, seconds, clients),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "serve.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.out / "serve.md").write_text(as_table(result) + "\n")
    print(as_table(result))
    if lost := sum(one["lost"] for one in result["table"]):
        raise SystemExit(f"{lost} requests were lost")


if __name__ == "__main__":
    main()
