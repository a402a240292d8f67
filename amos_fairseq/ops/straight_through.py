"""The straight-through Gumbel-Softmax: a hard draw forward, the soft sample's gradient backward."""

from typing import Iterator, Optional, Tuple

import torch
from torch import Tensor

from amos_fairseq.ops.chunks import row_chunks
from amos_fairseq.ops.implementation import row_functions
from amos_fairseq.ops.noise import Noise
from amos_fairseq.ops.precision import full_precision

# Up to this temperature a short list of candidates holds nearly all of the soft sample; above, it is too flat: the 256
# likeliest tokens leave out 0.4 % of it at 0.5, a quarter at 1.
SPARSE_TEMPERATURE = 0.5


class _StraightThroughGumbelSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, hidden, table, bias, positions, noise, temperature, candidates, excluded, looked_up):
        ctx.save_for_backward(hidden, table, bias, positions, candidates, excluded, looked_up)
        ctx.noise, ctx.temperature = noise, temperature
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx, gradient):
        hidden, table, bias, positions, candidates, excluded, looked_up = ctx.saved_tensors
        of_rows, width = gradient.flatten(0, 1)[positions], hidden.size(1)
        if looked_up is not None:  # products with one table of both: [x, y] . [h, 0] and [x, y] . [0, g]
            table, no_rows = torch.cat([table, looked_up.to(table.dtype)], dim=1), torch.zeros_like(hidden)
            hidden = torch.cat([hidden, no_rows], dim=1)
            of_rows = torch.cat([no_rows.to(of_rows.dtype), of_rows], dim=1)
        if candidates is None:
            result = _dense_gradient(of_rows, hidden, table, bias, ctx.noise, ctx.temperature, excluded)
        else:
            result = row_functions(table).soft_sample_gradient(
                of_rows, hidden, table, full_precision(bias), candidates, ctx.noise, ctx.temperature
            )
        return gradient, result[:, :width].to(hidden.dtype), *[None] * 8


def _dense_gradient(of_rows, hidden, table, bias, noise, temperature, excluded) -> Tensor:
    """The same over all tokens: s_t = x_t . g is the gradient with respect to the soft one-hot; through the softmax it
    becomes p_t (s_t - sum_u p_u s_u) / temperature at the logits, and one more product with the table at hidden."""
    result = torch.empty_like(full_precision(hidden))
    for rows, p in _soft_samples(hidden, table, bias, noise, temperature, excluded):
        scores = full_precision(of_rows[rows].to(table.dtype) @ table.T)
        scores -= (p * scores).sum(dim=-1, keepdim=True)
        result[rows] = p.mul_(scores) @ full_precision(table) / temperature
    return result


def _soft_samples(hidden, table, bias, noise, temperature, excluded) -> Iterator[Tuple[slice, Tensor]]:
    """(rows, their softmax((hidden @ table.T + bias + noise) / temperature) in full precision) by chunks."""
    dtype = full_precision(hidden).dtype
    for rows in row_chunks(len(hidden), len(table) * dtype.itemsize, hidden.device):
        logits = (hidden[rows].to(table.dtype) @ table.T).to(dtype).add_(bias)
        if excluded is not None:
            logits.masked_fill_(excluded, float("-inf"))
        logits += row_functions(logits).gumbel_noise(noise[rows], len(table), dtype)
        yield rows, logits.div_(temperature).softmax(dim=-1)


def straight_through_gumbel_softmax(
    embeddings: Tensor, hidden: Tensor, table: Tensor, bias: Tensor, positions: Tensor, noise: Noise,
    temperature: float, candidates: Optional[Tensor] = None, excluded: Optional[Tensor] = None,
    looked_up: Optional[Tensor] = None,
) -> Tensor:
    """Return `embeddings`, whose gradient at `positions` also flows into `hidden` as if the draw had been soft.

    Forward: the identity. Backward: besides the identity, `hidden` receives the gradient of p @ table with table, bias
    and noise held constant:

        p = softmax((hidden @ table.T + bias + gumbel_noise(noise)) / temperature), 0 at the tokens `excluded`
        dL/dhidden = sum_t p_t (s_t - sum_u p_u s_u) x_t / temperature,   s_t = y_t . g,   g = dL/dembeddings

    for x_t the rows of `table` and y_t those of `looked_up` (V, E), the table that `embeddings` are rows of, if it is
    another one: then p @ looked_up is the soft draw, and the two tables are put side by side in the backward pass.
    Neither a one-hot nor the product p @ table is made, and nothing of size (M, V) kept.
    The table gets no gradient from here: it gets the ordinary one of the lookup that made `embeddings`.

    With `candidates` (M, C), from `masked_lm` with the same noise and temperature, the sum runs over a row's candidates
    alone, which at temperature 0.3 hold all but 2e-5 of p; without, over all tokens, by chunks of rows. Lists are
    refused above a temperature of 0.5, where they would leave out too much.

    embeddings: (B, T, E)   hidden: (M, E)   table: (V, E)   bias: (V,)   positions: (M,) flat indices into B * T
    """
    if candidates is not None and temperature > SPARSE_TEMPERATURE:
        raise ValueError(
            f"candidates hold too little of a soft sample of temperature {temperature}, above {SPARSE_TEMPERATURE}: "
            "leave them out"
        )
    return _StraightThroughGumbelSoftmax.apply(
        embeddings, hidden, table.detach(), bias.detach(), positions, noise, temperature, candidates, excluded,
        None if looked_up is None else looked_up.detach(),
    )


@torch.no_grad()
def soft_embedding(
    hidden: Tensor, table: Tensor, bias: Tensor, noise: Noise, temperature: float, excluded: Optional[Tensor] = None
) -> Tensor:
    """(M, E): p @ table, the soft draw itself, p as in `straight_through_gumbel_softmax`; by chunks, no gradient."""
    result = torch.empty_like(hidden)
    for rows, p in _soft_samples(hidden, table, bias, noise, temperature, excluded):
        result[rows] = (p.to(table.dtype) @ table).to(hidden.dtype)
    return result
