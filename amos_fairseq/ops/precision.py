"""The precision in which probabilities, losses and noise are computed."""

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 if it is that already: half precision loses the tails of softmax and of Gumbel noise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
