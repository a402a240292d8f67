"""Gumbel noise, draws without replacement and the Gumbel-Softmax by name."""

from typing import Optional, Union

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from amos_fairseq.ops import compiled, pytorch
from amos_fairseq.ops.implementation import row_functions
from amos_fairseq.ops.noise import Noise, check_draw
from amos_fairseq.ops.precision import full_precision


def gumbel_noise(noise: Noise, vocabulary_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(M, V) Gumbel(0, 1): a function of `noise.seed`, of a row's sample id and position, and of the token.

    dtype: fp32 or, for logits of that type, fp64. Never half precision, whose noise has so few values near its maximum
    that sampling collapses to low ids.
    """
    return row_functions(noise.rows.new_empty(0, dtype=dtype)).gumbel_noise(noise, vocabulary_size, dtype)


@torch.no_grad()
def top_tokens(
    logits: Tensor, bias: Tensor, left_out: Tensor, excluded: Optional[Tensor], noise: Optional[Noise], count: int
) -> Tensor:
    """(M, K) ids of the K = `count` largest of logits + bias + noise in each row, the largest first, in one pass.

    With noise: draws from softmax(logits + bias) without replacement, by Gumbel top-k.

    logits: (M, V)   bias: (V,)   left_out: (M,) a token of each row that does not count   excluded: (V,) bool, those
    that never do
    """
    functions = row_functions(logits) if count <= compiled.MOST else pytorch
    return functions.top_tokens(logits, full_precision(bias), left_out, excluded, noise, count)


class _GumbelSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, noise, temperature, hard):
        if isinstance(noise, Noise):
            soft = row_functions(logits).gumbel_softmax(logits, noise, temperature)
        else:
            soft = ((full_precision(logits) + noise) / temperature).softmax(dim=-1).to(logits.dtype)
        ctx.save_for_backward(soft)
        ctx.temperature = temperature
        return torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0) if hard else soft

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (soft,) = ctx.saved_tensors
        soft, gradient = full_precision(soft), full_precision(gradient)
        logits = soft * (gradient - (soft * gradient).sum(dim=-1, keepdim=True)) / ctx.temperature
        return logits.to(ctx.saved_tensors[0].dtype), None, None, None


def gumbel_softmax(
    logits: Tensor, temperature: float = 1.0, noise: Optional[Union[Noise, Tensor]] = None, hard: bool = False
) -> Tensor:
    """softmax((logits + g) / temperature), computed in fp32 (fp64 stays fp64), returned in the type of `logits`.

    `hard` returns the one-hot of its argmax with the soft sample's gradient (Jang et al., 2017): straight-through.
    Where the draw is looked up in a table afterwards, `straight_through_gumbel_softmax` gives the same gradient
    without anything of the size of `logits`; that, not this, is what the methods use.

    logits: (M, V)   noise: g itself, (M, V), or `Noise`, which makes it here; drawn from torch's generator if absent
    """
    check_draw(temperature)
    if logits.dim() != 2:
        raise ValueError(f"logits are {tuple(logits.shape)}: they must be (M, V)")
    if noise is None:
        noise = torch.empty_like(full_precision(logits)).exponential_().clamp_(min=1e-38).log_().neg_()
    shape = (len(noise.rows), logits.size(1)) if isinstance(noise, Noise) else noise.shape
    if shape != logits.shape:
        raise ValueError(f"noise is for {tuple(shape)}, logits are {tuple(logits.shape)}: they must be alike")
    return _GumbelSoftmax.apply(logits, noise, temperature, hard)
