"""Members on one backbone that give logits and features of texts: all of one adapter kind and
targets in one packed pass.

Shape letters: M members, N texts, C outputs, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loraens.errors import InputError
from loraens.inference.loading import Part
from loraens.tasks import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from loraens.data.long_texts import Long
    from loraens.model.batch import PackedBatch
    from loraens.model.population import MemberModel


@dataclass
class Runner:
    """Runs members on texts.

    Args:
        model: The model with the members' weights, in evaluation mode; where there are several, the
            first of them.
        tasks: Its tasks, by name.
        tokenizer: The backbone's tokenizer.
        max_length: Longest sequence in tokens.
        batch_size: Texts in one batch, those of all members together; None for what suits the
            device.
        precision: Lightning's precision that the members were trained in, and are run in; float32
            where they were trained in different ones.
        long: How longer sequences are shortened.
        several: The models of all members, where these have several adapter kinds or targets.
    """

    model: MemberModel
    tasks: dict[str, Task]
    tokenizer: Tokenizer
    max_length: int
    batch_size: int | None
    precision: str = "32-true"
    long: Long = "cut"
    several: Sequence[Part] = ()

    @property
    def parts(self) -> Sequence[Part]:
        """The models, each with the indices of its members."""
        return self.several or [Part(self.model, list(range(len(self.model.members))))]

    @property
    def members(self) -> int:
        """M."""
        return sum(len(part.indices) for part in self.parts)

    def task(self, name: str | None = None) -> Task:
        """The task of that name, or the only one.

        Raises:
            InputError: There is no such task, or there are several and none was named.
        """
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name not in self.tasks:
            raise InputError(
                f"task {name or 'is missing'}: give one of the member's tasks"
                f" {', '.join(self.tasks)}",
                option="task",
            )
        return self.tasks[name]

    def logits(self, texts: Sequence[tuple[str, ...]], task: Task) -> np.ndarray:
        """Logits `(M, N, C)` of texts, in their order."""
        return self._run(texts, task, lambda model: model, task.num_outputs)

    def features(self, texts: Sequence[tuple[str, ...]], task: Task) -> np.ndarray:
        """Pooled features of texts, which the heads read, `(M, N, D)`, in their order."""
        width = self.model.encoder.config.hidden_size
        return self._run(texts, task, lambda model: model.pooled, width)

    def _run(
        self,
        texts: Sequence[tuple[str, ...]],
        task: Task,
        forward: Callable[[MemberModel], Callable[[PackedBatch], Tensor]],
        width: int,
    ) -> np.ndarray:
        """Outputs of a part of each model for texts, `(M, N, width)`, in packed passes over texts
        of similar length.
        """
        import torch

        from loraens.data.tokens import tokenise
        from loraens.model.batch import pack
        from loraens.model.device import computing_in, records_together

        outputs = np.zeros((self.members, len(texts), width), np.float32)
        if not texts:
            return outputs
        tokens = tokenise(list(texts), self.tokenizer, self.max_length, self.long)
        order = np.argsort(tokens.lengths, kind="stable")
        device = next(self.model.parameters()).device
        longest = int(tokens.lengths.max())
        together = self.batch_size or records_together(self.model.encoder.config, longest, device)
        with torch.inference_mode(), computing_in(self.precision, device):
            for model, members in self.parts:
                size = max(1, together // len(members))
                for start in range(0, len(order), size):
                    indices = order[start : start + size]
                    batch = pack(
                        tokens=tokens.ids,
                        types=tokens.types,
                        offsets=tokens.offsets,
                        indices=np.tile(indices, (len(members), 1)),
                        labels=None,
                        task=task.name,
                        split="predict",
                        starts=tokens.starts,
                    )
                    found = forward(model)(batch.to(device)).float().cpu().numpy()
                    outputs[np.array(members)[:, None], indices] = found
        return outputs


def checked_texts(texts: Sequence[str | Sequence[str]], task: Task) -> list[tuple[str, ...]]:
    """Texts, or pairs of them, as a task takes them.

    Raises:
        InputError: They are one bare string, or one of them is not what the task takes.
    """
    if isinstance(texts, (str, bytes)):
        raise InputError("texts is one string: give a list of texts")
    return [_checked(text, task) for text in texts]


def _checked(text: str | Sequence[str], task: Task) -> tuple[str, ...]:
    """One text or a pair of them, as the task takes."""
    parts: tuple[str, ...] = ()
    if isinstance(text, str):
        parts = (text,)
    elif isinstance(text, Iterable):
        parts = tuple(text)
    if len(parts) != len(task.text_columns) or not all(isinstance(part, str) for part in parts):
        expected = "one text" if len(task.text_columns) == 1 else "a pair of texts"
        raise InputError(
            f"task {task.name} takes {expected} ({', '.join(task.text_columns)}), got {text!r}"
        )
    return parts
