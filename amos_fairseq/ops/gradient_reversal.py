"""Gradient reversal: identity forward, `-scale` times the gradient backward."""

import torch
from torch import Tensor


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return -ctx.scale * gradient, None


def gradient_reversal(x: Tensor, scale: float = 1.0) -> Tensor:
    """`x` forward, `-scale * gradient` backward (Ganin et al., 2016; AMOS Sec. 3.3). `scale` is positive."""
    if scale <= 0:
        raise ValueError(f"gradient_reversal scale must be positive, the sign is in the name; got {scale}")
    return _GradientReversal.apply(x, scale)
