"""The progress bar of a sweep: member-steps of the current rung."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loraens.train.packs import Pack, PackResult

# the bar first and of fixed length: what does not fit a narrow terminal is cut at the end
FORMAT = (
    "{desc}{percentage:3.0f}%|{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining},"
    " {rate_fmt}{postfix}]"
)


class SweepBar:
    """Member-steps of a rung, those that are done and those to do.

    Executors report steps as they are made, or not at all; a pack's result sets them right.

    Args:
        shown: Whether to show it.
        steps_of_epoch: Batches of one member and epoch.
        description: What is trained, in words.
    """

    def __init__(self, shown: bool, steps_of_epoch: int, description: str = "") -> None:
        self.shown = shown
        self.description = description
        self.steps_of_epoch = steps_of_epoch
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._reported: Counter[Path] = Counter()

    def open(self, packs: Iterable[Pack], done: int, to_do: int) -> None:
        """Begin a rung.

        Args:
            packs: Those that are under way.
            done: Epochs until its end, of all members that have ended.
            to_do: The same, of members that have not begun.
        """
        epochs_done = done
        epochs = done + to_do
        for pack in packs:
            epochs_done += len(pack.members) * pack.epochs_done
            epochs += len(pack.members) * pack.until
        pause = 0.2 if sys.stderr.isatty() else 30  # seconds between two lines of a log
        self.close()
        self._bar = tqdm(
            total=epochs * self.steps_of_epoch,
            desc=f"{self.description}: " if self.description else None,
            initial=epochs_done * self.steps_of_epoch,
            unit=" member-steps",
            dynamic_ncols=True,
            bar_format=FORMAT,
            mininterval=pause,
            disable=not self.shown,
        )

    def begin(self, pack: Pack) -> None:
        """Name the pack that begins."""
        more = f" and {len(pack.members) - 1} more" if len(pack.members) > 1 else ""
        self._bar.set_postfix_str(pack.members[0].name + more)

    def report(self, pack: Pack, steps: int) -> None:
        """Count member-steps that a pack has just done."""
        self._reported[pack.checkpoint] += steps
        self._bar.update(steps)

    def settle(self, result: PackResult) -> None:
        """Count what a pack has done, and leave out what its members will not do."""
        pack = result.pack
        epochs = sum(member.epochs - pack.epochs_done for member in result.members)
        steps = epochs * self.steps_of_epoch
        self._bar.update(steps - self._reported.pop(pack.checkpoint, 0))
        if self._bar.total is not None:
            left_out = sum(
                pack.until - member.epochs
                for member in result.members
                if member.status != "out_of_memory"
            )
            self._bar.total -= left_out * self.steps_of_epoch

    def write(self, message: str) -> None:
        """Print a line above the bar."""
        self._bar.write(message)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
