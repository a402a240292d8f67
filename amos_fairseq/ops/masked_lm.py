"""A masked LM's vocabulary part in one pass: losses with their gradient, predictions, and a draw to fill in."""

from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor

from amos_fairseq.ops.chunks import row_chunks
from amos_fairseq.ops.implementation import row_functions
from amos_fairseq.ops.noise import Noise, check_draw
from amos_fairseq.ops.precision import compute_dtype, full_precision
from amos_fairseq.ops.pytorch import RowReading


class MaskedLMReading(NamedTuple):
    """Of M rows with G heads over one vocabulary; only `loss` has a gradient. The rest: see `RowReading`."""

    loss: Tensor  # () sum of all losses
    losses: Tensor  # (M, G)
    predicted: Tensor  # (M, G)
    ranks: Tensor  # (M, G)
    sampled: Tensor  # (M,)
    likeliest: Tensor  # (M,)
    candidates: Tensor  # (M, C)
    tail: Tensor  # (M,)
    looked: Optional[Tensor] = None  # (M, ..) what `look` returned
    margins: Optional[Tensor] = None  # (M,) what PEER adds: the draw's logit less the original's


class _MaskedLM(torch.autograd.Function):
    """The gradient is made while the logits exist and scaled in the backward pass, for it is linear in the loss's."""

    @staticmethod
    def forward(ctx, hidden, table, bias, targets, weights, excluded, noise, temperature, candidates, look, learns):
        rows = row_functions(table)
        offset = full_precision(bias)
        if learns:
            hidden_gradient = torch.empty_like(hidden)
            table_gradient = torch.zeros_like(table, dtype=offset.dtype)
            bias_gradient = torch.zeros_like(offset)
        readings, looked = [], []
        heads, vocabulary_size = hidden.size(1), table.size(0)
        for chunk in row_chunks(len(hidden), heads * vocabulary_size * table.element_size(), hidden.device):
            states = hidden[chunk].flatten(0, 1)
            logits = states @ table.T
            by_head = logits.view(-1, heads, vocabulary_size)
            if look is not None:
                looked.append(look(chunk, by_head))
            reading = rows.read_rows(
                by_head, offset, targets[chunk], None if weights is None else weights[chunk], excluded,
                None if noise is None else noise[chunk], temperature, candidates, learns,
            )
            readings.append(reading)
            if learns:
                hidden_gradient[chunk] = (logits @ table).view_as(hidden[chunk])
                _add_product(table_gradient, logits.T, states)
                bias_gradient += logits.sum(dim=0, dtype=offset.dtype)
        reading = RowReading(*map(torch.cat, zip(*readings)))
        looked = torch.cat(looked) if looked else None
        ctx.mark_non_differentiable(*reading, *([] if looked is None else [looked]))
        if learns:
            ctx.save_for_backward(hidden_gradient, table_gradient, bias_gradient)
            ctx.dtypes = hidden.dtype, table.dtype, bias.dtype
        return (reading.losses.sum(), *reading, looked)

    @staticmethod
    def backward(ctx, gradient, *_):
        scaled = [(saved * gradient).to(dtype) for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes)]
        return *scaled, *[None] * 8


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a temporary where the types allow."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def masked_lm(
    hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor, weights: Optional[Tensor] = None,
    excluded: Optional[Tensor] = None, noise: Optional[Noise] = None, temperature: float = 1.0,
    candidates: bool = False, look: Optional[Callable[[slice, Tensor], Tensor]] = None, draw_temperature: float = 1.0,
) -> MaskedLMReading:
    """Losses, predictions and draws of G heads on one vocabulary, logits held by chunks of rows.

        z = hidden @ table.T + bias                                   (M, G, V), never all at once
        losses = -z.log_softmax(-1)[targets],   loss = losses.sum()
        zbar = sum_g weights_g z_g / draw_temperature
        sampled = argmax(zbar + gumbel_noise(noise)) over the tokens not `excluded`

    With `candidates` the tokens that carry the gradient of the soft draw softmax((zbar + noise) / temperature) are
    listed for `straight_through_gumbel_softmax`, and what their list leaves out. The products are taken in the type of
    `hidden` (of autocast, where it is on), all that follows in full precision. The gradient of `loss` is computed
    here, if anything needs one, and kept in place of the logits: (M, G, E), (V, E), (V,).

    hidden: (M, G, E), or (M, E) for one head   table: (V, E)   bias: (V,)   targets: (M,)   weights: (M, G), no
    gradient; none for one head   excluded: (V,) bool   noise: of M rows; without, nothing is drawn
    look: called as look(rows, logits (m, G, V) without bias) with each chunk, which it must leave as it is; what it
    returns, (m, ..) without gradient, is `looked`
    """
    hidden = hidden.unsqueeze(1) if hidden.dim() == 2 else hidden
    _check(hidden, table, bias, targets, weights, excluded, noise, temperature)
    check_draw(draw_temperature)
    dtype = compute_dtype(hidden)
    weights = None if weights is None else full_precision(weights.detach()).contiguous()
    if draw_temperature != 1.0:  # to read_rows a mixture whose weights do not add up to 1
        weights = (full_precision(hidden).new_ones(hidden.shape[:2]) if weights is None else weights) / draw_temperature
    learned = hidden.to(dtype), table.to(dtype), bias
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learned)
    targets = targets.contiguous()
    outputs = _MaskedLM.apply(*learned, targets, weights, excluded, noise, temperature, candidates, look, learns)
    return MaskedLMReading(*outputs)


def _check(hidden, table, bias, targets, weights, excluded, noise, temperature) -> None:
    """One line for a wrong argument; CUDA cannot be asked for values, there a target out of range makes loss NaN."""
    if hidden.dim() != 3 or table.dim() != 2 or hidden.size(-1) != table.size(-1):
        raise ValueError(
            f"hidden {tuple(hidden.shape)} must be (M, G, E) or (M, E), and table {tuple(table.shape)} (V, E)"
        )
    rows, heads, _ = hidden.shape
    if not len(table):
        raise ValueError("table has no rows")
    for name, tensor, shape in (
        ("bias", bias, (len(table),)),
        ("targets", targets, (rows,)),
        ("weights", weights, (rows, heads)),
        ("excluded", excluded, (len(table),)),
        ("noise.rows", None if noise is None else noise.rows, (rows, 2)),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, hidden and table ask for {shape}")
        if tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}: move one of them")
    check_draw(temperature, noise, weights, heads)
    if targets.device.type == "cpu" and rows and not (0 <= targets.min() and targets.max() < len(table)):
        raise ValueError(f"targets must lie in 0..{len(table) - 1}, got {targets.min()}..{targets.max()}")
