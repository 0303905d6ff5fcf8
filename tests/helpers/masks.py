"""The dropout masks of a model's forward."""

from contextlib import nullcontext

import torch

from helpers.batches import batch_of
from helpers.encoders import ARCHITECTURES
from loraens.members import Member
from loraens.model import fast_run, kernels
from loraens.model.backbone import load_encoder
from loraens.model.dropout import MaskGenerator
from loraens.model.packed import layout_of
from loraens.model.population import MemberModel
from loraens.tasks import SST

MEMBERS = [Member(2, 3.0, seed=5), Member(4, 1.0, seed=6, head_dropout=0.1), Member(1, 10.0)]


def masked_model(directory):
    """A small BERT with three members, on the CPU."""
    kind, config, _ = ARCHITECTURES["bert"]
    torch.manual_seed(1)
    kind(config).save_pretrained(directory)
    return MemberModel(load_encoder(str(directory), pooler=False), [SST], MEMBERS, pooling="mean")


def masks_of(monkeypatch, model, device, context=None):
    """All masks of one training forward on a device, in their order, on the CPU; attention is
    grouped as on a GPU everywhere.
    """
    masks = []
    make = MaskGenerator._mask

    def noted(self, **options):
        mask = make(self, **options)
        masks.append(mask.detach().clone().to("cpu"))
        return mask

    with monkeypatch.context() as patch, context or nullcontext():
        patch.setattr(kernels, "usable", lambda device, dtype: False)  # which store no masks
        patch.setattr(MaskGenerator, "_mask", noted)
        patch.setattr(fast_run, "layout_of", lambda *args: layout_of(*args, 2.0))
        model.train().seed_dropout(1, 2)
        model(batch_of(len(MEMBERS)).to(device))
    return masks
