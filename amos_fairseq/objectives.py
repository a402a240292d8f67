"""Pre-training objectives: pure functions from logits to a `LossTerm`.

Shapes: B batch, T time, M selected positions of the batch, V vocabulary. Losses are natural-log units in fp32.
"""

from typing import NamedTuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from amos_fairseq.ops import full_precision

# What a term's mean is taken over: selected positions, non-padding positions, or sequences.
COUNTED = SELECTED, VALID, SEQUENCES = "selected", "valid", "sequences"


class Mean(NamedTuple):
    """A sum and its denominator, kept apart so that sums over processes and micro-batches stay exact."""

    total: Tensor
    count: Union[int, Tensor]

    @property
    def mean(self) -> Tensor:
        return self.total / self.count


class LossTerm(NamedTuple):
    """One term of a training loss: `weight * total / count`, where `count` counts the elements named by `over`."""

    total: Tensor
    count: Union[int, Tensor]
    weight: float = 1.0
    over: str = SELECTED

    @property
    def mean(self) -> Tensor:
        return self.total / self.count


def mlm_loss(mlm_logits: Tensor, original_tokens: Tensor, weight: float = 1.0) -> LossTerm:
    """Masked language modelling over the selected positions  (AMOS Eq. 2, COCO-LM Eq. 1).

    L = - sum_i log softmax(mlm_logits_i)[original_tokens_i]

    mlm_logits: (M, V)   original_tokens: (M,) ids at the selected positions
    """
    total = F.cross_entropy(full_precision(mlm_logits), original_tokens, reduction="sum")
    return LossTerm(total, original_tokens.numel(), weight, SELECTED)


def rtd_loss(
    rtd_logits: Tensor, replaced_positions: Tensor, valid_positions: Tensor, weight: float = 1.0
) -> LossTerm:
    """Replaced token detection over the valid positions  (AMOS Eq. 1, COCO-LM Eq. 2, TEAMS Eq. 4).

    L = - sum_t [(1 - r_t) log p_t + r_t log(1 - p_t)],   p_t = sigmoid(rtd_logits_t) = P(original)

    rtd_logits: (B, T)   r = replaced_positions: (B, T) bool   valid_positions: (B, T) bool, True = not padding
    """
    rtd_logits = full_precision(rtd_logits)
    is_original = (~replaced_positions).to(rtd_logits.dtype)
    per_position = F.binary_cross_entropy_with_logits(rtd_logits, is_original, reduction="none")
    total = torch.where(valid_positions, per_position, 0.0).sum()
    return LossTerm(total, valid_positions.sum(), weight, VALID)
