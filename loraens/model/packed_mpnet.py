"""MPNet on packed batches: its attention adds a bias by relative position, and does not go through
`transformers.AttentionInterface`.

Shape letters: N tokens, H heads, L tokens of the longest sequence, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import MPNetModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from loraens.model.dropout import MaskGenerator
from loraens.model.packed import Layout, packed_attention


class PackedMPNet(MPNetModel):
    """MPNet whose layers attend within each sequence."""

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, masks: MaskGenerator, layout: Layout
    ) -> BaseModelOutput:
        """`(1, N)` each -> hidden states `(1, N, D)`."""
        hidden = self.embeddings(input_ids=input_ids, position_ids=position_ids)
        longest = max(group.length for group in layout.groups)
        bias = self.encoder.compute_position_bias(hidden[:, :longest])
        # layers hand nothing but the bias to attention
        context = {"position_bias": bias, "masks": masks, "layout": layout}
        for layer in self.encoder.layer:
            hidden = layer(hidden, position_bias=context)[0]
        return BaseModelOutput(last_hidden_state=hidden)


class PackedMPNetAttention(MPNetSelfAttention):
    """Attention within each sequence."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None = None,
        position_bias: Any = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor]:
        """`(1, N, D)` -> `(1, N, D)`."""
        shape = (*hidden_states.shape[:2], self.num_attention_heads, self.attention_head_size)
        q, k, v = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q, self.k, self.v)
        )
        mixed, _ = packed_attention(self, q, k, v, attention_mask, **position_bias)
        return (self.o(mixed.flatten(2)),)


def make_packed(encoder: Any) -> None:
    """Change the classes of a loaded model and of its attention."""
    encoder.__class__ = PackedMPNet
    for layer in encoder.encoder.layer:
        layer.attention.attn.__class__ = PackedMPNetAttention
