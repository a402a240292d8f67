"""Multi-head self-attention with an additive bias."""

import warnings
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from amos_fairseq import ops
from amos_fairseq.modules.queries import Queries


def aligned(attention_bias: Tensor) -> Tensor:
    """The same values in the layout that CUDA's memory-efficient kernel reads.

    It takes a bias, and alone gives its gradient, but only with keys next to each other: of another order PyTorch makes
    (B, H, T, T) matrices of its own. Rows that start at no multiple of 8 elements it copies, in every layer.
    """
    length = attention_bias.size(-1)
    attention_bias = attention_bias.contiguous()
    return attention_bias if length % 8 == 0 else F.pad(attention_bias, (0, -length % 8))[..., :length]


def warn_if_materialised(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> None:
    """Warn, which Python shows once, that PyTorch has no fused kernel for this call of scaled_dot_product_attention."""
    if torch._fused_sdp_choice(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p) == SDPBackend.MATH.value:
        warnings.warn(
            f"attention of {query.size(-1)} channels per head in {query.dtype} has no fused kernel here and is slow: "
            "take a multiple of 8 channels, and fp16 on a GPU older than A100",
            stacklevel=2,
        )


class DropoutKey(NamedTuple):
    """Of one layer in one pass, what attention kernels draw its dropout mask from: see `ops.AttentionDropout`."""

    seed: Tensor  # (1,) int64
    sample_ids: Optional[Tensor]  # (B,) int64


class SelfAttention(nn.Module):
    """One fused projection to query, key and value (in this order), attention, output projection."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, hidden: Tensor, attention_bias: Tensor | ops.RelativeBias | None = None, queries: Queries | None = None,
        key: DropoutKey | None = None,
    ) -> Tensor:
        """hidden: (B, T, C)   attention_bias: (1 or B, 1 or H, T, T), -inf where a key is hidden   ->   (B, T, C)

        With `queries` only they ask, of the same keys and values: (M, C). A RelativeBias and dropout need a `key`;
        PyTorch's attention draws by its own generator instead, so there a mask depends on the batch.
        """
        query, packed = None, self.in_proj(hidden) if queries is None else None
        if queries is not None:
            dim = hidden.size(-1)
            query_weight, key_value_weight = self.in_proj.weight.split([dim, 2 * dim])
            query_offset, key_value_offset = self.in_proj.bias.split([dim, 2 * dim])
            query = queries.pad(F.linear(queries.rows(hidden), query_weight, query_offset))
            packed = F.linear(hidden, key_value_weight, key_value_offset)
        dropout = self.dropout if self.training else 0.0
        if isinstance(attention_bias, ops.RelativeBias):
            attended = self._by_distance(query, packed, attention_bias, queries, dropout, key)
        else:
            attended = self._with_matrix(query, packed, attention_bias, queries, dropout)
        return self.out_proj(attended if queries is None else queries.unpad(attended))

    def _by_distance(self, query, packed, bias, queries, dropout: float, key: DropoutKey | None) -> Tensor:
        drops = positions = None
        if dropout:
            assert key is not None, "an encoder gives its layers one each"
            drops = ops.AttentionDropout(dropout, *key)
        if queries is not None:
            query, positions = query.unflatten(-1, (self.heads, -1)), queries.positions
        packed = packed.unflatten(-1, (3 if queries is None else 2, self.heads, -1))
        return ops.relative_attention(packed, bias, query, positions, drops).flatten(2)

    def _with_matrix(self, query, packed, attention_bias, queries, dropout: float) -> Tensor:
        query, key, value = packed.chunk(3, -1) if query is None else (query, *packed.chunk(2, -1))
        if queries is not None and attention_bias is not None:
            attention_bias = queries.bias(attention_bias)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        if attention_bias is not None:
            attention_bias = attention_bias.expand(query.size(0), self.heads, -1, -1)  # stride 0, no copy
        if query.is_cuda and query.element_size() == 2 and not torch.compiler.is_compiling():
            warn_if_materialised(query, key, value, attention_bias, dropout)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_bias, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)
