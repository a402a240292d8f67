"""The precision in which probabilities, losses and noise are computed."""

import contextlib

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 if it is that already: half precision loses the tails of softmax and of Gumbel noise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a product with `x` returns: autocast's type where it is on ("meta" has none), else its own."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Inside, products on the device of `x` have the type of what they multiply ("meta" has no autocast)."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()
