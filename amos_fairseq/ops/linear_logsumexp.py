"""Log-sum-exp of a linear layer's outputs, without ever holding all of them."""

from typing import Iterator, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from amos_fairseq.ops.precision import compute_dtype, full_precision

MAX_LOGITS = 2**25  # logits held at a time: 128 MiB in fp32, 1024 rows of a 32,768-word vocabulary


class _LinearLogsumexp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        result = full_precision(hidden.new_empty(hidden.size(0)))
        for rows, logits in _chunks(hidden, table, bias):
            result[rows] = logits.logsumexp(dim=-1)
        ctx.save_for_backward(hidden, table, bias, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        hidden, table, bias, result = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden)
        table_gradient = full_precision(torch.zeros_like(table))
        bias_gradient = full_precision(torch.zeros_like(bias))
        for rows, logits in _chunks(hidden, table, bias):
            # d logsumexp / d logits = softmax(logits). The incoming gradient, small, multiplies sums rather than
            # probabilities, for its product with a probability may be too small for fp16.
            probabilities = logits.sub_(result[rows, None]).exp_()
            scale = gradient[rows]
            bias_gradient += scale @ probabilities
            probabilities = probabilities.to(table.dtype)
            hidden_gradient[rows] = (full_precision(probabilities @ table) * scale[:, None]).to(hidden.dtype)
            scaled = (full_precision(hidden[rows]) * scale[:, None]).to(hidden.dtype)
            table_gradient += probabilities.T @ scaled
        return hidden_gradient, table_gradient.to(table.dtype), bias_gradient.to(bias.dtype)


def _chunks(hidden: Tensor, table: Tensor, bias: Tensor) -> Iterator[Tuple[slice, Tensor]]:
    """(rows, their logits in full precision) for at most MAX_LOGITS logits, but one row at least, at a time."""
    rows = max(1, MAX_LOGITS // table.size(0))
    for start in range(0, hidden.size(0), rows):
        chunk = slice(start, start + rows)
        yield chunk, full_precision(hidden[chunk] @ table.T).add_(bias)


def linear_logsumexp(hidden: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    """`(hidden @ table.T + bias).logsumexp(dim=-1)` in fp32 (fp64 stays fp64), logits held by chunks of rows.

    The product is taken in the type of `hidden` (of autocast, where it is on), all that follows in full precision.
    The backward pass computes the logits anew and gives gradients to `hidden`, `table` and `bias`.

    hidden: (..., E)   table: (V, E)   bias: (V,)   ->   (...)
    """
    dtype = compute_dtype(hidden)
    result = _LinearLogsumexp.apply(hidden.reshape(-1, hidden.size(-1)).to(dtype), table.to(dtype), bias)
    return result.view(hidden.shape[:-1])
