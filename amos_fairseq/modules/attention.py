"""Multi-head self-attention with an additive bias."""

from torch import Tensor, nn
from torch.nn import functional as F


def materialised_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """The meaning of `F.scaled_dot_product_attention`: softmax(query key^T / sqrt(D) + attn_mask) value, in float32.

    query, key, value: (B, H, T, D)   attn_mask: broadcasts to (B, H, T, T)
    """
    scores = (query @ key.transpose(-2, -1)).float() * query.size(-1) ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p).to(value.dtype) @ value


class SelfAttention(nn.Module):
    """One fused projection to query, key and value (in this order), attention, output projection."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, attention_bias: Tensor | None = None) -> Tensor:
        """hidden: (B, T, C)   attention_bias: (1 or B, 1 or H, T, T), -inf where a key is hidden."""
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2) for projected in self.in_proj(hidden).chunk(3, -1)
        )
        if attention_bias is not None:
            attention_bias = attention_bias.expand(query.size(0), self.heads, -1, -1)  # stride 0, no copy
        dropout_p = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_bias, dropout_p=dropout_p)
        return self.out_proj(attended.transpose(1, 2).flatten(2))
