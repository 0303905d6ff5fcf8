"""The device of a training, and the precision that it computes in unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer

from loraens.errors import InputError
from loraens.model import kernels
from loraens.model.device import HALF


def accelerator_of(options: Mapping[str, Any]) -> Any:
    """The accelerator for Lightning's `Trainer`: as given, and for "auto" a CUDA GPU if there is
    one, else the CPU: Apple's GPU has no float64, in which labels are read.

    Args:
        options: Options of the trainer.
    """
    given = options.get("accelerator") or "auto"
    if given != "auto":
        return given
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_gpu(options: Mapping[str, Any]) -> bool:
    """Whether a trainer of these options computes on a GPU."""
    return accelerator_of(options) in ("cuda", "gpu")


def check_device(options: Mapping[str, Any]) -> None:
    """Refuse several devices, for which Lightning would start further processes, and devices on
    which no member can be trained.

    Args:
        options: Options of Lightning's `Trainer`; those that are not there have their defaults.

    Raises:
        InputError: It names the option.
    """
    accelerator = accelerator_of(options)
    if isinstance(accelerator, str) and accelerator not in ("cpu", "cuda", "gpu"):
        raise InputError(
            f"accelerator {accelerator}: members are trained on a CUDA GPU or on the CPU, give cpu",
            option="trainer.accelerator",
        )
    if on_gpu(options) and not torch.cuda.is_available():
        raise InputError(
            f"accelerator {accelerator}: there is no CUDA GPU that PyTorch can use, give cpu",
            option="trainer.accelerator",
        )
    devices = options.get("devices")
    if _count(devices, accelerator) > 1:
        raise InputError(
            f"devices {devices}: members are trained side by side on one device, give 1; `sweep`"
            " trains packs on several by --sweep.engine ray --sweep.workers N",
            option="trainer.devices",
        )
    nodes = options.get("num_nodes") or 1
    if nodes > 1:
        raise InputError(
            f"num_nodes {nodes}: members are trained side by side on one device, give 1; `sweep`"
            " trains packs on several by --sweep.engine ray --sweep.workers N",
            option="trainer.num_nodes",
        )


def _count(devices: Any, accelerator: Any) -> int:
    """Devices that Lightning would take: their number, a list of them, or "0,1"."""
    if devices in ("auto", -1, "-1", [-1]):
        return 1 if accelerator == "cpu" else torch.cuda.device_count()
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if isinstance(devices, (list, tuple)):
        return len(devices)
    return int(devices) if isinstance(devices, int) or str(devices).isdecimal() else 1


def default_precision(options: Mapping[str, Any]) -> str | None:
    """Lightning's precision where none is given: bf16-mixed on a GPU that computes in bfloat16,
    else 32-true; None where a plugin of the trainer may choose.

    Args:
        options: Options of the trainer.
    """
    if options.get("plugins"):
        return None
    bf16 = on_gpu(options) and torch.cuda.is_bf16_supported(including_emulation=False)
    return HALF if bf16 else "32-true"


def in_words(trainer: Trainer) -> str | None:
    """The GPU of a trainer, the precision, and whether kernels are used, in one line; None on the
    CPU.
    """
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    other = " (--trainer.precision 32-true for float32)" if trainer.precision == HALF else ""
    reason = kernels.why_not()
    by = "with Triton kernels" if reason is None else f"without kernels: {reason}"
    return f"on {torch.cuda.get_device_name(device)}, precision {trainer.precision}{other}, {by}"
