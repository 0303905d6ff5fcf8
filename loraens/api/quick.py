"""The sweeps of the quick start, at a size that fits into a time.

What was asked for and the size are in `quickstart.json`, the made-up corpus is in `data/` beside
it, and each task is a sweep, as `loraens sweep` writes it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from loraens.api.sweep import Sweep
from loraens.data import modules
from loraens.data.made_up import write_corpus
from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.members import Grid
from loraens.records import Record, read_signed, signed
from loraens.train.options import SweepOptions
from loraens.train.sizing import Size, largest, seconds

STATE = "quickstart.json"
FORMAT = 1
KINDS: dict[str, type[modules.TextData]] = {
    "sst": modules.SST,
    "quora": modules.Quora,
    "sts": modules.STS,
}
RATES = {8: 3e-3, 16: 2e-3}  # by rank; twice as high, some members do not learn
MEMBERS: list[dict[str, float]] = [  # about equally good; the first few of them are a pool, too
    {"rank": rank, "lr": lr, "seed": seed} for seed in (0, 1, 2) for rank, lr in RATES.items()
]
BATCH = 8
SHARES = {"sst": 0.75, "quora": 1.0, "sts": 0.5}  # of a size's texts: some tasks are easier
SIZES = (  # members, epochs, training texts; texts before epochs, as new texts teach more
    *((6, 3, 1280), (6, 2, 1280), (4, 2, 1280), (4, 1, 1280), (4, 1, 1120), (4, 1, 960)),
    *((4, 1, 720), (3, 1, 720), (3, 1, 480), (2, 1, 480), (2, 1, 240), (2, 1, 120)),
)
TRAINING = 0.85  # share of the time that is left for training; proofs and tables need the rest


@dataclass(frozen=True)
class Asked(Record):
    """What was asked for: the same again is resumed.

    Args:
        root: Directory of the texts; None for made-up ones.
        limit: Most records of a split.
        backbone: The backbone.
        minutes: Time to fit into.
    """

    root: str | None
    limit: int
    backbone: str
    minutes: float


class QuickStart:
    """A sweep for each of the three tasks.

    Args:
        root: Directory of all runs.
        asked: What was asked for.
        report: Is told in sentences what is done.

    Raises:
        InputError: The state of a quick start cannot be read.
    """

    def __init__(self, root: Path, asked: Asked, report: Callable[[str], None]) -> None:
        self.asked = asked
        self.report = report
        self.directory, self.size = _directory(root, asked)
        self.source = self.directory / "data" if asked.root is None else Path(asked.root)

    def prepare(self, time_left: float) -> None:
        """Write the made-up texts where they are missing, and choose the size, once.

        Args:
            time_left: Seconds that there are for all.

        Raises:
            InputError: The texts cannot be used.
        """
        started = time.monotonic()
        if self.asked.root is None:
            write_corpus(self.source)
            self.report(f"The texts are made up, by a seeded grammar: they are in {self.source}.")
            self.report("Real ones: --data.root DIR")
        if self.size is not None:
            self.report(f"Resuming {self.directory}: {_in_words(self.size)}.")
            return
        self.report("Timing some training steps on this machine ...")
        limit = self.asked.limit
        sizes = [Size(members, epochs, min(texts, limit)) for members, epochs, texts in SIZES]
        plans = {name: self._sweep(name, sizes[0]).plan() for name in KINDS}
        left = TRAINING * (time_left - (time.monotonic() - started))
        self.size, needed = largest(
            sizes,
            lambda size: sum(
                seconds(_of_task(name, size), plan, BATCH) for name, plan in plans.items()
            ),
            left,
        )
        self.report(f"{_in_words(self.size)}; about {needed / TRAINING / 60:.1f} min.")
        if needed > left:
            self.report("That is more than was asked for, and the least that there is.")
        self.report("Interrupted, the same command resumes.")
        content = {"asked": self.asked.to_json(), "size": self.size.to_json()}
        write_atomically(self.directory / STATE, signed({"format": FORMAT, **content}))

    def sweep(self, name: str) -> Sweep:
        """The sweep of a task; the size is chosen."""
        assert self.size is not None
        return self._sweep(name, self.size)

    def _sweep(self, name: str, size: Size) -> Sweep:
        size = _of_task(name, size)
        return Sweep(
            KINDS[name](
                str(self.source),  # type: ignore[arg-type]
                backbone=self.asked.backbone,
                batch_size=BATCH,
                limit=size.texts,
            ),
            Grid(members=MEMBERS[: size.members]),
            self.directory / name,
            backbone=self.asked.backbone,
            epochs=size.epochs,
            scale=3.0,
            pooling="mean",
            schedule="linear",
            warmup=0.1,
            options=SweepOptions(pack_size=size.members),
        )


def _directory(root: Path, asked: Asked) -> tuple[Path, Size | None]:
    """The directory of what was asked for, and its size; one that is free, and None, where it was
    not begun.

    Raises:
        InputError: A state cannot be read.
    """
    names = ("quickstart" if number == 1 else f"quickstart-{number}" for number in count(1))
    for directory in (root / name for name in names):
        state = directory / STATE
        if not state.is_file():
            # killed while steps were timed, it has its texts
            if not directory.exists() or {path.name for path in directory.iterdir()} <= {"data"}:
                break
            continue
        fix = f"delete {directory} to begin again"
        fields = read_signed(state.read_bytes(), state, fix)
        if fields.get("format") != FORMAT:
            raise InputError(f"{state} is not one that this version reads: {fix}")
        if Asked.from_json(fields.get("asked"), state, fix) == asked:
            return directory, Size.from_json(fields.get("size"), state, fix)
    return directory, None


def _of_task(name: str, size: Size) -> Size:
    return replace(size, texts=math.ceil(SHARES[name] * size.texts))


def _in_words(size: Size) -> str:
    epochs = "1 epoch" if size.epochs == 1 else f"{size.epochs} epochs"
    texts = ", ".join(f"{_of_task(name, size).texts} of {name}" for name in KINDS)
    return f"{size.members} members a task, {epochs} of at most so many texts: {texts}"
