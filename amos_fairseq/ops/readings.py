"""What one pass over logits tells of each row, so that the logits need not be kept."""

from typing import NamedTuple

from torch import Tensor


class RowReading(NamedTuple):
    """Of M rows with G heads. The fields from `sampled` on have no rows where nothing was sampled or listed."""

    losses: Tensor  # (M, G) fp32, -log softmax(z_g)[target]
    predicted: Tensor  # (M, G) argmax z_g, the lowest id among ties
    ranks: Tensor  # (M, G) 1 + how many logits exceed the target's
    sampled: Tensor  # (M,) argmax over the tokens that may be drawn of zbar + noise; zbar: the heads' mixture
    likeliest: Tensor  # (M,) argmax of zbar over the same tokens
    margins: Tensor  # (M,) fp32, zbar[sampled] - zbar[target]
    candidates: Tensor  # (M, C) int32 ids of the tokens that hold the soft sample's probability, -1 after the last
    tail: Tensor  # (M,) fp32, share of that probability which the others hold
