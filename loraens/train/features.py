"""Features of a frozen backbone, computed once for all epochs.

Shape letters: N examples of a split, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm import tqdm

from loraens.data.sampling import eval_loader
from loraens.data.tokens import TokenSplit
from loraens.model.population import MemberModel

SplitName = tuple[str, str]  # task, split


@torch.no_grad()
def frozen_features(
    model: MemberModel,
    splits: Mapping[SplitName, TokenSplit],
    records: Callable[[TokenSplit], int],
    trainer: Trainer,
    dtype: torch.dtype,
) -> dict[SplitName, Tensor]:
    """Pooled features `(N, D)` of every split, without dropout.

    Args:
        model: The model, of one member; it is left in evaluation mode.
        splits: Tokenised splits.
        records: Gives the examples of a split in a batch.
        trainer: Gives device and precision.
        dtype: Type of the features.
    """
    model.eval()
    device = trainer.strategy.root_device
    features = {}
    for name, split in splits.items():
        indices = []
        pooled = []
        loader = eval_loader(split, records(split), members=1)
        for batch in tqdm(loader, f"features of {' '.join(name)}", disable=None):
            with trainer.precision_plugin.forward_context():
                pooled.append(model.pooled(batch.to(device))[0].float())
            indices.append(batch.indices[0])
        order = torch.cat(indices).argsort().to(device)
        features[name] = torch.cat(pooled)[order].to(dtype)
    return features
