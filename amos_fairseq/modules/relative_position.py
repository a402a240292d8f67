"""Learned relative position bias: distances share buckets, each bucket has one scalar per head."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.ops.attention import RelativeBias, relative_bias


def t5_buckets(relative_position: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's bidirectional buckets; `relative_position` = key - query, any shape of integers.

    d = |key - query| < exact: a bucket of its own; from there to max_distance logarithmic; beyond, the last bucket.
    Rows [0, num_buckets / 2) hold keys at and before the query, the other half keys after it.
    """
    side = num_buckets // 2
    exact = side // 2
    distance = relative_position.abs()
    log_ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (log_ratio * (side - exact)).long()).clamp(max=side - 1)
    return torch.where(distance < exact, distance, far) + side * (relative_position > 0)


def released_buckets(relative_position: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """The buckets of the released AMOS and COCO-LM checkpoints; `relative_position` = key - query.

    Unlike T5: rounds up, reaches its last bucket at max_distance - 1, and mirrors the two sides around row
    num_buckets / 2 - 1 (distance 0). The last row is never used.
    """
    side = num_buckets // 2
    exact = side // 2
    distance = relative_position.abs()
    log_ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log((max_distance - 1) / exact)
    far = (exact + torch.ceil(log_ratio * (side - 1 - exact)).long()).clamp(max=side - 1)
    return torch.where(distance < exact, distance, far) * relative_position.sign() + side - 1


BUCKETINGS = {"t5": t5_buckets, "released": released_buckets}


class RelativePositionBias(nn.Embedding):
    """A (num_buckets, heads) table, read as the additive attention bias that all layers of an encoder share."""

    buckets: Tensor

    def __init__(self, num_buckets: int, heads: int, max_distance: int, max_positions: int, bucketing: str = "t5"):
        super().__init__(num_buckets, heads)
        self.max_positions = max_positions
        # Computed on the CPU: another device's logarithm, one ulp off, would move a distance into the next bucket.
        offsets = torch.arange(1 - max_positions, max_positions, device="cpu")
        buckets = BUCKETINGS[bucketing](offsets, num_buckets, max_distance).to(self.weight.device)
        self.register_buffer("buckets", buckets, persistent=False)

    def by_distance(self, length: int, hidden_keys: Tensor | None = None) -> RelativeBias:
        """The same bias as `forward`'s, for `ops.relative_attention`; hidden_keys: (B, T) bool."""
        return relative_bias(self.weight, self.buckets_of(length), hidden_keys)

    def buckets_of(self, length: int) -> Tensor:
        """(2 * length - 1,) by distance key - query, from 1 - length on."""
        return self.buckets[self.max_positions - length : self.max_positions + length - 1]

    def forward(self, length: int) -> Tensor:  # type: ignore[override]
        """(1, H, length, length), at least float32."""
        buckets = self.buckets_of(length)
        # A half-precision table is read as float32: the gradient of a row sums over very many (query, key) pairs.
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        by_offset = F.embedding(buckets, weight).t()  # (H, 2 * length - 1), column j: key - query = j - (length - 1)
        # Window i starts at column i and is the row of query length - 1 - i.
        return by_offset.unfold(1, length, 1).flip(1).unsqueeze(0)
