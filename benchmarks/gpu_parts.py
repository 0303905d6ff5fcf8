"""The parts of `gpu.py`, which starts each in a process of its own.

Every part returns `rows`, its table, and `ok`: whether it is as it should be, None where nothing
was expected.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from arms import BATCH, CUDA, Bench, now
from train import WARM_UP, prepare

from loraens.model import kernels
from loraens.model.dropout import MaskGenerator, attention_coordinates
from loraens.model.routing import Routing
from loraens.store import MemberStore, find_members
from loraens.train.memory import give_back
from loraens.train.runs import quiet, quiet_trainers

ROOT = Path(__file__).parent.parent
SEEDS = (3, 4, 5)


@contextlib.contextmanager
def without_kernels(without: bool = True) -> Iterator[None]:
    """Within it PyTorch's own operators are used on a GPU."""
    usable = kernels.usable
    try:
        if without:
            kernels.usable = lambda device, dtype: False
        yield
    finally:
        kernels.usable = usable


def ways() -> dict[str, bool | None]:
    """Forwards by name: without kernels or with them; None for the stock one."""
    usable = CUDA and kernels.why_not() is None
    return {"stock": None, "fast": True, **({"kernels": False} if usable else {})}


class Parts:
    """All parts, on one device.

    Args:
        bench: Backbone and texts.
        arguments: Of the command line.
    """

    def __init__(self, bench: Bench, arguments: argparse.Namespace) -> None:
        self.bench = bench
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.end = time.monotonic() + 0.9 * arguments.seconds

    def masks(self) -> dict[str, Any]:
        """Masks of the CPU and of the device, and those that kernels make."""
        lengths = [30, 5, 64, 17, 80, 2]
        found = {"CPU": masks_on(torch.device("cpu"), lengths)}
        found[str(self.device)] = masks_on(self.device, lengths)
        if "kernels" in ways():
            found["kernels"] = kernel_masks(self.device, lengths)
        rows = []
        for name, masks in found.items():
            equal = [torch.equal(*pair) for pair in zip(masks, found["CPU"], strict=True)]
            rows.append({"masks of": name, "tokens equal": equal[0], "attention equal": equal[1]})
        return {"rows": rows, "ok": all(all(list(row.values())[1:]) for row in rows)}

    def equality(self) -> dict[str, Any]:
        """Logits and gradients of the fast path, with dropout, against the stock ones."""
        table = []
        for half in (False, True) if CUDA else (False,):
            outputs = {name: self._gradients(half, off) for name, off in ways().items()}
            stock_logits, stock = outputs["stock"]
            for name, (logits, gradients) in list(outputs.items())[1:]:
                apart = (logits - stock_logits).abs().max().item()
                relative = ((gradients - stock).norm() / stock.norm()).item()
                table.append(
                    {
                        "path": name,
                        "precision": "bfloat16" if half else "float32",
                        "logits apart": f"{apart:.1e}",
                        "gradients apart": f"{relative:.1e}",
                        "as expected": apart < (5e-2 if half else 1e-4)
                        and relative < (5e-2 if half else 1e-3),
                    }
                )
        return {"rows": table, "ok": all(row["as expected"] for row in table)}

    def _gradients(self, half: bool, off: bool | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of a batch, and all gradients of the sum of their squares."""
        model = self.bench.population(3).model.to(self.device)
        generator = torch.Generator().manual_seed(0)
        for layer in model.adapters.values():
            start = torch.empty(layer.lora_B.shape).normal_(0, 0.02, generator=generator)
            layer.lora_B.data.copy_(start)
        if off is None:
            model.fast = None
        batch = self.bench.split.batch(self.bench.rows(3, 1, 0)[0]).to(self.device)
        model.train().seed_dropout(0, 0)
        with without_kernels(bool(off)):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                logits = model(batch)
            logits.square().sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return logits.detach().float().cpu(), torch.cat(gradients).float().cpu()

    def packs(self) -> dict[str, Any]:
        """Trained weights of five members in a pack, and of each alone."""
        rows = self.bench.rows(5, 4 if self.arguments.quick else 20, 0)
        together = self.bench.population(5)
        start = [parameter.detach().clone() for parameter in trained(together)]
        self.bench.loraens(rows, module=together)
        table = []
        for index in range(5):
            alone = self.bench.population(1, first=index)
            self.bench.loraens(rows[:, index : index + 1], module=alone)
            apart = moved = 0.0
            for a, b, before in zip(trained(together), trained(alone), start, strict=True):
                apart += (a[index].cpu() - b[0].cpu()).square().sum().item()
                moved += (b[0].cpu() - before[index].cpu()).square().sum().item()
            share = (apart / moved) ** 0.5
            table.append({"member": index, "apart, of the way moved": f"{share:.1e}"})
            table[-1]["as expected"] = share < (0.2 if CUDA else 1e-2)  # type: ignore[assignment]
        return {"rows": table, "ok": all(row["as expected"] for row in table)}

    def memory(self) -> dict[str, Any]:
        """Peaks of two packs, one after the other, and what is left after each."""
        if not CUDA:
            return {"rows": [{"memory": "is measured on a GPU alone"}], "ok": None}
        rows, table = self.bench.rows(32, 4, 0), []
        for pack in (1, 2):
            torch.cuda.reset_peak_memory_stats()
            self.bench.loraens(rows)
            peak = torch.cuda.max_memory_allocated()
            give_back()
            left = torch.cuda.memory_allocated()
            table.append({"pack": pack, "peak, MiB": peak >> 20, "left, MiB": left >> 20})
        first, second = (row["peak, MiB"] for row in table)
        return {"rows": table, "ok": second < 1.1 * first}

    def arms(self) -> dict[str, Any]:
        """Milliseconds a member-step of PEFT and of packs."""
        steps = 3 if self.arguments.quick else 20
        sizes = (1, 4) if self.arguments.quick else (1, 8, 32, 186)
        arms: dict[str, tuple[int, Any]] = {
            "PEFT + Trainer, float32": (1, lambda rows: self._hub(rows, False)),
            **({"PEFT + Trainer, bf16": (1, lambda rows: self._hub(rows, True))} if CUDA else {}),
            **{f"pack of {size}": (size, self.bench.loraens) for size in sizes},
        }
        if "kernels" in ways():
            arms["pack of 32, without kernels"] = (32, self._without_kernels)
        table: list[dict[str, Any]] = []
        for name, (members, arm) in arms.items():
            if time.monotonic() > self.end:
                table.append({"arm": name, "ms a step": "no time left"})
                continue
            rows = self.bench.rows(members, WARM_UP + 1 + steps, 0)
            started = now()
            seconds = sorted(arm(rows)[WARM_UP:])[steps // 2]
            table.append(
                {
                    "arm": name,
                    "ms a step": round(1e3 * seconds, 2),
                    "ms a member-step": round(1e3 * seconds / members, 3),
                    "member-steps a second": round(members / seconds, 1),
                    "all, s": round(now() - started, 1),
                }
            )
            give_back()
        return {"rows": table, "ok": None}

    def _hub(self, rows: Any, half: bool) -> list[float]:
        return self.bench.hub_trainer(rows[:, 0], half=half)[1]

    def _without_kernels(self, rows: Any) -> list[float]:
        with without_kernels():
            return self.bench.loraens(rows)

    def grid(self) -> dict[str, Any]:
        """The paper's grid for STS by `loraens sweep`, for as many epochs as fit."""
        out = Path(os.environ["LORAENS_SCRATCH"]) / "store"
        epochs = self._epochs()
        command = [sys.executable, "-m", "loraens", "sweep"]
        for option, value in {
            "--config": ROOT / "configs" / "sts.yaml",
            "--model.backbone": self.arguments.backbone,
            "--model.pooling": "mean",
            "--model.lr": 3e-4,
            "--data.root": self.bench.root,
            "--store.root": out,
            "--trainer.max_epochs": epochs,
            "--trainer.logger": "false",
            "--trainer.enable_progress_bar": "false",
            "--trainer.accelerator": self.arguments.device,
        }.items():
            command += [option, str(value)]
        if self.arguments.quick:
            command += ["--grid.rank", "[1,4]", "--trainer.limit_train_batches", "4"]
        else:
            command += ["--grid", str(ROOT / "configs" / "grids" / "sts.yaml")]
            command += ["--sweep.pack_size", "186"]
        started = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - started
        manifests = [MemberStore(path).manifest() for path in find_members(out / "sts-sweep")]
        scores = [max(e.dev["sts"]["pearson"] for e in m.history) for m in manifests]
        row = {
            "members": len(manifests),
            "epochs": epochs,
            "seconds": round(seconds, 1),
            "best Pearson's r on dev": round(max(scores), 4),
        }
        return {"rows": [row], "ok": None}

    def _epochs(self) -> int:
        """Epochs that fit, by the steps that were timed."""
        if self.arguments.quick:
            return 1
        seen = json.loads((Path(os.environ["LORAENS_SCRATCH"]) / "seen.json").read_text())
        rows = seen.get("arms", {}).get("rows", [])
        timed = [row["ms a step"] for row in rows if row["arm"] == "pack of 186"]
        if not timed or isinstance(timed[0], str):
            return 1
        epoch = 1.3e-3 * timed[0] * (len(self.bench.split) // BATCH)  # with evaluation and writing
        return max(1, min(10, int((self.arguments.seconds - 40) / epoch)))


def trained(module: Any) -> list[torch.Tensor]:
    """The trained parameters of a population."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def seeded(device: torch.device, lengths: list[int]) -> tuple[MaskGenerator, int]:
    """Masks of a routed batch on a device, and a site."""
    routing = Routing()
    masks = MaskGenerator(routing)
    site = masks.site("layer")
    masks.seed(SEEDS, 0, 1)
    each = len(lengths) // len(SEEDS)
    tokens = [sum(lengths[start : start + each]) for start in range(0, len(lengths), each)]
    positions = torch.cat([torch.arange(length) for length in lengths])
    routing.route(tokens, torch.tensor(lengths).to(device), positions.to(device))
    return masks, site


def masks_on(device: torch.device, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether values are kept, of token vectors and of attention weights of the longest."""
    masks, site = seeded(device, lengths)
    longest = lengths.index(max(lengths))
    grid = attention_coordinates(2, max(lengths), max(lengths), device)
    sequence = torch.tensor([longest], device=device)
    of_tokens = masks.token_mask(site, 96, 0.3)
    of_attention = masks.attention_mask(site, grid, sequence, 0.3)[0]
    return (of_tokens != 0).cpu(), (of_attention != 0).cpu()


def kernel_masks(device: torch.device, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, made by kernels: of ones, and of equal weights of the rows of the identity."""
    from loraens.model.kernels import operators

    masks, site = seeded(device, lengths)
    ones = torch.ones(sum(lengths), 96, device=device)
    out = torch.empty_like(ones)
    operators.drop_tokens(ones, out, *masks.keys(site), *masks.rows(), 0.3)
    longest = max(lengths)
    place = lengths.index(longest)
    q = torch.zeros(longest, 2 * longest, device=device)
    v = torch.eye(longest, device=device).repeat(1, 2)
    mixed, lse = torch.empty_like(q), torch.empty(longest, 2, device=device)
    ends = torch.tensor([0, longest], dtype=torch.int32, device=device)
    keys = [key[place : place + 1].contiguous() for key in masks.keys(site)]
    operators.attend(q, q, v, mixed, lse, ends, ends, longest, 2, *keys, 0.3, longest)
    kept = mixed.view(longest, 2, longest).transpose(0, 1) != 0
    return (out != 0).cpu(), kept.cpu()


def described(device: str) -> dict[str, str]:
    """The machine and the versions."""
    names = ("torch", "triton", "lightning", "transformers", "peft")
    versions = [f"{name} {version(name)}" for name in names if find_spec(name)]
    reason = kernels.why_not() if CUDA else "there is no GPU"
    return {
        "machine": torch.cuda.get_device_name() if CUDA else f"{device}, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}; kernels:"
        f" {reason or 'used'}",
    }


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if (arguments.device == "cuda") != CUDA:
        sys.exit(f"device {arguments.device} is not what PyTorch finds here")
    quiet()
    warnings.filterwarnings("ignore")
    part, _, bert = arguments.part.partition("-")
    scratch = Path(os.environ["LORAENS_SCRATCH"])
    if bert and arguments.quick:
        result: dict[str, Any] = {"rows": [{"arms": "not in a quick run"}], "ok": None}
    else:
        model = "bert-base" if bert else "minilm"
        bench = prepare(model, arguments.data, scratch, arguments.backbone)
        with quiet_trainers():
            result = getattr(Parts(bench, arguments), part)()
    arguments.result.write_text(json.dumps({**result, **described(arguments.device)}))


if __name__ == "__main__":
    main()
