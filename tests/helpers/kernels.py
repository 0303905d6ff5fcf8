"""A routed batch with dropout masks, for the kernels."""

import torch

from loraens.model.dropout import MaskGenerator
from loraens.model.routing import Routing

LENGTHS = [9, 70, 1, 33, 16, 2]  # three members of two sequences


def seeded(lengths=LENGTHS):
    """Masks of a routed batch of three members, and a site."""
    routing = Routing()
    masks = MaskGenerator(routing)
    masks.site("embeddings.dropout")
    site = masks.site("layer.0.dropout")
    masks.seed([3, 4, 5][: len(lengths)], 0, 1)
    positions = torch.cat([torch.arange(length) for length in lengths])
    each = len(lengths) // 3
    tokens = [sum(lengths[start : start + each]) for start in range(0, len(lengths), each)]
    routing.route(tokens, torch.tensor(lengths), positions)
    return masks, site
