"""Log-sum-exp, maximum and cross-entropy of a linear layer's outputs, without ever holding all of them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from amos_fairseq.ops.chunks import row_chunks
from amos_fairseq.ops.implementation import row_functions
from amos_fairseq.ops.masked_lm import masked_lm
from amos_fairseq.ops.precision import compute_dtype, full_precision

REDUCTIONS = ("sum", "mean", "none")


class LinearReading(NamedTuple):
    """Of logits = hidden @ table.T + bias; only `logsumexp` has a gradient."""

    logsumexp: Tensor  # (...)
    largest: Tensor  # (...) max over the vocabulary
    likeliest: Tensor  # (...) its id


class _ReadLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, table: Tensor, bias: Tensor):
        rows = row_functions(table)
        offset = full_precision(bias)
        readings = [rows.logsumexp_rows(hidden[chunk] @ table.T, offset) for chunk in _chunks(hidden, table)]
        logsumexp, largest, likeliest = map(torch.cat, zip(*readings))
        ctx.save_for_backward(hidden, table, bias, logsumexp)
        ctx.mark_non_differentiable(largest, likeliest)
        return logsumexp, largest, likeliest

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_):
        hidden, table, bias, logsumexp = ctx.saved_tensors
        rows = row_functions(table)
        offset = full_precision(bias)
        hidden_gradient = torch.empty_like(hidden)
        table_gradient = torch.zeros_like(table, dtype=offset.dtype)
        bias_gradient = torch.zeros_like(offset)
        for chunk in _chunks(hidden, table):
            # d logsumexp / d logits = softmax(logits). The incoming gradient, small, multiplies sums rather than
            # probabilities, for its product with a probability may be too small for fp16.
            probabilities = hidden[chunk] @ table.T
            rows.softmax_rows_(probabilities, offset, logsumexp[chunk])
            scale = gradient[chunk]
            bias_gradient += scale.to(table.dtype) @ probabilities
            hidden_gradient[chunk] = (full_precision(probabilities @ table) * scale[:, None]).to(hidden.dtype)
            scaled = (full_precision(hidden[chunk]) * scale[:, None]).to(hidden.dtype)
            table_gradient += probabilities.T @ scaled
        return hidden_gradient, table_gradient.to(table.dtype), bias_gradient.to(bias.dtype)


def _chunks(hidden: Tensor, table: Tensor):
    return row_chunks(len(hidden), len(table) * table.element_size(), hidden.device)


def read_linear(hidden: Tensor, table: Tensor, bias: Tensor) -> LinearReading:
    """Log-sum-exp, maximum and argmax of `hidden @ table.T + bias` in fp32 (fp64 stays fp64), logits held by chunks.

    The product is taken in the type of `hidden` (of autocast, where it is on), all that follows in full precision.
    The backward pass computes the logits anew and gives the gradient of `logsumexp` to `hidden`, `table` and `bias`.

    hidden: (..., E)   table: (V, E)   bias: (V,)   ->   (...)
    """
    if hidden.size(-1) != table.size(-1) or bias.shape != table.shape[:1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, table {tuple(table.shape)} and bias {tuple(bias.shape)} must be (..., E), "
            "(V, E) and (V,)"
        )
    dtype = compute_dtype(hidden)
    results = _ReadLinear.apply(hidden.reshape(-1, hidden.size(-1)).to(dtype), table.to(dtype), bias)
    return LinearReading(*(result.view(hidden.shape[:-1]) for result in results))


def linear_logsumexp(hidden: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    """`(hidden @ table.T + bias).logsumexp(dim=-1)`, see `read_linear`."""
    return read_linear(hidden, table, bias).logsumexp


def linear_logits(hidden: Tensor, table: Tensor, bias: Tensor, tokens: Tensor) -> Tensor:
    """`(hidden @ table.T + bias).gather(-1, tokens[..., None])` in full precision; tokens: (...), one for each row."""
    vectors = F.embedding(tokens, table)
    return (full_precision(hidden) * full_precision(vectors)).sum(dim=-1) + full_precision(bias[tokens])


def linear_cross_entropy(
    hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor, reduction: str = "sum"
) -> Tensor:
    """`F.cross_entropy(hidden @ table.T + bias, targets, reduction=reduction)` in full precision, logits by chunks.

    "sum" and "mean" make the gradient in the forward pass, "none" computes the logits twice.

    hidden: (N, E)   table: (V, E)   bias: (V,)   targets: (N,)   ->   () or (N,)
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}: choose {', '.join(REDUCTIONS)}")
    if reduction == "none":
        return linear_logsumexp(hidden, table, bias) - linear_logits(hidden, table, bias, targets)
    loss = masked_lm(hidden, table, bias, targets).loss
    return loss if reduction == "sum" else loss / len(targets)
