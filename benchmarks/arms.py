"""The arms of `train.py`: what is compared, on the same batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers import Trainer as HubTrainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from loraens.data.modules import TextData
from loraens.data.tokens import TokenSplit
from loraens.members import Member
from loraens.model.packaged import locate
from loraens.model.population import Pooling
from loraens.train.module import Population

RANK = 8
SCALE = 1.0
LR = 1e-4
BATCH = 8
WARM_UP = 2  # steps that are not timed
CUDA = torch.cuda.is_available()


class Bench:
    """One backbone and the training texts.

    Args:
        backbone: Name or directory.
        texts: The texts, set up.
        root: The directory that they are from.
    """

    def __init__(self, backbone: str, texts: TextData, root: str) -> None:
        self.backbone = backbone
        self.texts = texts
        self.root = root
        (self.split,) = texts.of("train")

    def rows(self, members: int, steps: int, start: int) -> np.ndarray:
        """Rows `(steps, M, B)` of the members' own orders, from a step on."""
        size = len(self.split) // BATCH * BATCH
        orders = [
            np.random.default_rng(seed).permutation(len(self.split))[:size]
            for seed in range(members)
        ]
        steps_of = np.stack(orders).reshape(members, -1, BATCH).transpose(1, 0, 2)
        return steps_of[(start + np.arange(steps)) % len(steps_of)]

    def grouped_rows(self, turn: int) -> np.ndarray:
        """Rows `(steps, 1, B)` of one mega-batch of transformers' `group_by_length`, after as many
        as are not timed: its first batches, which are the longest.
        """
        lengths = self.split.tokens.lengths.tolist()
        generator = torch.Generator().manual_seed(turn)
        order = np.array(get_length_grouped_indices(lengths, BATCH, generator=generator))
        rows = order[: min(50, len(order) // (4 * BATCH)) * BATCH].reshape(-1, 1, BATCH)
        return np.concatenate([rows[: WARM_UP + 1], rows])

    def tokens(self, rows: np.ndarray) -> int:
        """Real tokens of rows."""
        return int(self.split.tokens.lengths[rows].sum())

    # Arms A and B

    def peft_model(self, dropout: bool, seed: int) -> Any:
        """PEFT's model, its start that of our member."""
        rates = {} if dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = AutoConfig.from_pretrained(
            locate(self.backbone), num_labels=1, classifier_dropout=0.3 if dropout else 0.0, **rates
        )
        model = AutoModelForSequenceClassification.from_pretrained(
            locate(self.backbone), config=config, attn_implementation="sdpa"
        )
        lora = LoraConfig(
            task_type="SEQ_CLS", r=RANK, lora_alpha=RANK * SCALE, target_modules=["query", "value"]
        )
        model = get_peft_model(model, lora)
        ours = self.population(1, dropout, first=seed).model
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(ours_of(ours, name, 0))
        return model.train()

    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Tokenised records of `(steps, B)` rows, in order."""
        return self.records_of(self.split, rows.flatten())

    @staticmethod
    def records_of(split: TokenSplit, rows: np.ndarray) -> list[dict[str, Any]]:
        """Tokenised records of `(N,)` rows of a split."""
        tokens = split.tokens
        labels = split.split.labels
        assert labels is not None
        found = []
        for row in rows:
            part = slice(tokens.offsets[row], tokens.offsets[row + 1])
            found.append(
                {
                    "input_ids": torch.from_numpy(tokens.ids[part].astype(np.int64)),
                    "token_type_ids": torch.from_numpy(tokens.types[part].astype(np.int64)),
                    "labels": torch.tensor(labels[row], dtype=torch.float32),
                }
            )
        return found

    def hub_trainer(
        self,
        rows: np.ndarray,
        dropout: bool = True,
        seed: int = 0,
        decay: float = 0.01,
        compiled: bool = False,
        half: bool = CUDA,
    ) -> tuple[Any, list[float]]:
        """Arm A: the trained model, and the seconds of each step."""
        clock = _HubClock()
        with tempfile.TemporaryDirectory() as directory:
            arguments = TrainingArguments(
                output_dir=directory,
                per_device_train_batch_size=BATCH,
                max_steps=len(rows),
                learning_rate=LR,
                lr_scheduler_type="constant",
                weight_decay=decay,
                max_grad_norm=0.0,
                optim="adamw_torch_fused",
                bf16=half,
                tf32=True if CUDA and not half else None,
                torch_compile=compiled,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=not CUDA,
            )
            trainer = _InOrder(
                self.peft_model(dropout, seed),
                arguments,
                train_dataset=self.records(rows),
                data_collator=collate,
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return trainer.model, np.diff(clock.times).tolist()

    def bare_loop(
        self,
        rows: np.ndarray,
        compiled: bool = False,
        half: bool = CUDA,
        warm: Callable[[], Any] = lambda: None,
    ) -> list[float]:
        """Arm B: the seconds of each step.

        Args:
            rows: `(steps, B)`.
            compiled: Whether the model is compiled by torch.compile, for any length.
            half: Whether products are in bfloat16, by autocast.
            warm: Called when the steps begin that are timed.
        """
        device = torch.device("cuda" if CUDA else "cpu")
        model = self.peft_model(True, 0).to(device)
        if compiled:
            model = torch.compile(model, dynamic=True)
        records = self.records(rows)
        times = []
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=LR, fused=True
        )
        for start in range(0, len(records), BATCH):
            if start == (WARM_UP + 1) * BATCH:
                warm()
                times[-1] = now()
            batch = {
                key: value.to(device)
                for key, value in collate(records[start : start + BATCH]).items()
            }
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(now())
        return np.diff(times).tolist()

    # Arms C, D and E

    def population(
        self,
        members: int,
        dropout: bool = True,
        first: int = 0,
        decay: float = 0.01,
        pooling: Pooling = "pooler",
    ) -> Population:
        """Our members, built."""
        rate = 0.3 if dropout else 0.0
        chosen = [
            Member(RANK, SCALE, seed, LR, decay, rate) for seed in range(first, first + members)
        ]
        module = Population(
            chosen,
            self.texts.tasks,
            backbone=self.backbone,
            pooling=pooling,
            encoder_dropout=dropout,
        )
        module.build(self.texts.max_length)
        return module

    def loraens(
        self,
        rows: np.ndarray,
        fast: bool = True,
        module: Population | None = None,
        half: bool = CUDA,
        watch: Callable[[], Any] = lambda: None,
    ) -> list[float]:
        """The seconds of each step of a pack, through Lightning's Trainer, as a sweep trains it."""
        module = module or self.population(rows.shape[1])
        if not fast:
            module.model.fast = None
        clock = _Clock(watch)
        trainer = Trainer(
            max_steps=len(rows),
            limit_val_batches=0,
            precision="bf16-mixed" if half else "32-true",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        batches = torch.utils.data.DataLoader(_Batches(self.split, rows), batch_size=None)
        trainer.datamodule = self.texts  # type: ignore[attr-defined]
        trainer.fit(module, batches)
        return np.diff(clock.times).tolist()

    # Arithmetic

    def useful(self, rows: np.ndarray, config: Any) -> float:
        """Floating point operations that one pass over `(steps, M, B)` rows needs."""
        lengths = self.split.tokens.lengths[rows].astype(float)
        n = lengths.sum()
        s = lengths.size
        squares = (lengths**2).sum()
        width = config.hidden_size
        wide = config.intermediate_size
        layers = config.num_hidden_layers
        total = 0.0
        for layer in range(layers):
            last = layer == layers - 1
            first = layer == 0
            q = (
                s if last else n
            )  # the last layer is asked for the first token of each sequence alone
            inputs = 2 * q * width**2 + 4 * n * width**2
            rest = 2 * q * width**2 + 4 * q * width * wide
            attention = 4 * width * (n if last else squares)
            adapters = 4 * (q + n) * width * RANK
            total += (
                inputs * (1 if first else 2)
                + 2 * rest
                + 3 * attention
                + adapters * (2.5 if first else 3)
            )
        return total


def ours_of(model: Any, name: str, index: int) -> torch.Tensor:
    """The tensor of our member that PEFT calls by this name."""
    if "lora_" in name:
        key = name.split("bert.", 1)[1].rsplit(".lora_", 1)[0]
        layer = model.adapters[key]
        return layer.lora_A[index] if "lora_A" in name else layer.lora_B[index]
    head = model.heads["sts"]
    return head.weight[index] if name.endswith("weight") else head.bias[index]


def collate(records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch padded to its longest record."""
    batch = {
        name: pad_sequence([r[name] for r in records], batch_first=True)
        for name in ("input_ids", "token_type_ids")
    }
    mask = pad_sequence(
        [torch.ones_like(record["input_ids"]) for record in records], batch_first=True
    )
    return {
        **batch,
        "attention_mask": mask,
        "labels": torch.stack([record["labels"] for record in records]),
    }


def now() -> float:
    """Seconds, when all that was asked of the device is done."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


class _InOrder(HubTrainer):
    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class _HubClock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(now())


class _Clock(Callback):
    def __init__(self, watch: Callable[[], Any]) -> None:
        self.times: list[float] = []
        self.watch = watch

    def on_after_backward(self, *args: Any) -> None:
        self.watch()

    def on_train_batch_end(self, *args: Any) -> None:
        self.times.append(now())


class _Batches(torch.utils.data.Dataset[Any]):
    def __init__(self, split: Any, rows: np.ndarray) -> None:
        self.split = split
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.split.batch(self.rows[index])
