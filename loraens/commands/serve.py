"""`loraens serve`: a member or an ensemble behind HTTP, and a page to try it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from loraens.commands.parser import call
from loraens.errors import InputError
from loraens.records import Epoch


def serve(
    model: str,
    port: int = 8000,
    host: str = "127.0.0.1",
    workers: int = 1,
    device: str | None = None,
    task: str | None = None,
    epoch: Epoch = "best",
    backbone: str | None = None,
    queue: int = 256,
    max_texts: int = 256,
    max_characters: int = 20000,
    max_bytes: int = 8388608,
    timeout: float = 30.0,
) -> None:
    """Answer requests for predictions until it is stopped (Ctrl-C, SIGTERM), when the requests that
    are there are still answered.

    POST /predict takes {"texts": ["..."]}, and gives the columns of `loraens predict`; / is a page
    to try texts, /docs describes the requests, /info the model, and /health says whether it is
    ready.

    Args:
        model: Directory of a member, of a run with one member, or of an ensemble; or the file
            RUN/ensembles/recommended.
        port: Port to listen on.
        host: Address to listen on: 127.0.0.1, this machine alone, or 0.0.0.0 or ::, all that reach
            it. There are no accounts: put a proxy before it that asks who is there.
        workers: Processes that compute, each with the model.
        device: Where to compute, such as cpu or cuda:0; a GPU if there is one, by default.
        task: The task, where the member was trained on several.
        epoch: Best or last epoch of a member; an ensemble names its members' epochs itself.
        backbone: Where the backbone is now, if it was moved: a directory or hub name of the same
            weights.
        queue: Requests that may wait or be computed at once; further ones are refused (503).
        max_texts: Texts of a request; more are refused (413).
        max_characters: Characters of a text; more are refused (413).
        max_bytes: Bytes of a request; more are refused (413).
        timeout: Seconds that a request may wait for its turn.

    Raises:
        InputError: The model or an option cannot be used, or the package litserve is missing.
    """
    if find_spec("litserve") is None:
        raise InputError("serve needs the package litserve: pip install 'loraens[serve]'")
    from loraens.serve.server import ServeOptions, make_server, run

    options = ServeOptions(
        host=host,
        port=port,
        workers=workers,
        device=device,
        queue=queue,
        max_texts=max_texts,
        max_characters=max_characters,
        max_bytes=max_bytes,
        timeout=timeout,
    )
    server = make_server(model, options, task, epoch, backbone)
    shown = "127.0.0.1" if host != "::" else "[::1]"
    print(f"http://{shown}:{port} is a page to try it, /docs describes requests", flush=True)
    lost = run(server, options)
    print(f"stopped: {lost or 'no'} requests were left unanswered", file=sys.stderr)


def main(args: list[str]) -> None:
    """Run `serve` with the options of the command line."""
    call(serve, "serve", args)
