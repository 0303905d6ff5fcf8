"""How the members of a sweep are trained together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loraens.cluster import check_workers
from loraens.errors import InputError

HalvingBy = Literal["score", "ensemble"]


@dataclass
class SweepOptions:
    """How the members are trained together.

    Args:
        pack_size: Members that share each forward and backward pass, or "auto": measured. The folds
            of a configuration are never separated.
        patience: Stop a member after so many epochs without a better dev score; with folds, a
            configuration by its out-of-fold score.
        halving_factor: Successive halving: after `halving_epochs`, and that times the factor, and
            so on, keep the best 1 / factor of the members on dev; with folds, of the configurations
            out of fold.
        halving_epochs: Epochs before the first halving.
        halving_by: Which are the best at a halving: "score", those with the best last scores, or
            "ensemble", those that greedy forward selection, on the logits of that epoch, adds first
            to an ensemble of all. The latter keeps members that correct each other's errors, where
            scores alone would keep near copies of the best one.
        engine: Name of the executor that trains the packs: "in_process", one after the other, or
            "ray", several at a time, on several GPUs or machines.
        workers: Packs that are trained at a time, each on one GPU, or on some cores of a CPU.
        address: Address of a running Ray cluster, such as auto or HOST:6379; by default Ray is
            started on this machine.
        cpus: Cores of each worker; by default its part of those of this machine.
        shared: Whether all workers see the sweep's directory, and the files of the texts. If not,
            they get the texts through Ray, and send their members back.
    """

    pack_size: int | Literal["auto"] = "auto"
    patience: int | None = None
    halving_factor: float | None = None
    halving_epochs: int = 1
    halving_by: HalvingBy = "score"
    engine: str = "in_process"
    workers: int = 1
    address: str | None = None
    cpus: int | None = None
    shared: bool = True

    def __post_init__(self) -> None:
        minima = {"pack_size": 1, "patience": 1, "halving_epochs": 1}
        for name, least in minima.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise InputError(
                    f"{name} {value} is too small: at least {least} is expected",
                    option=f"sweep.{name}",
                )
        check_workers(self.engine, self.workers, self.address, self.cpus, "sweep.")
        if not self.shared and self.engine == "in_process":
            raise InputError(
                "shared false is of engine ray: give --sweep.engine ray too", option="sweep.shared"
            )
        if self.halving_factor is not None and not 1.01 <= self.halving_factor < math.inf:
            raise InputError(
                f"halving_factor {self.halving_factor:g} must be above 1, at least 1.01",
                option="sweep.halving_factor",
            )
        if self.halving_by != "score" and self.halving_factor is None:
            raise InputError(
                f"halving_by {self.halving_by} is of successive halving, and there is none: give"
                " halving_factor too",
                option="sweep.halving_by",
            )

    def rungs(self, epochs: int) -> list[int]:
        """Epochs after which members are compared; the last is the end."""
        ends = []
        rung = float(self.halving_epochs)
        while self.halving_factor is not None and round(rung) < epochs:
            ends.append(round(rung))
            rung *= self.halving_factor
        return [*dict.fromkeys(ends), epochs]
