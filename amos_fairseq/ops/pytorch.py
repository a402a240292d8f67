"""The row functions in PyTorch, for every device and type; `ops/compiled.py` has the same in one kernel each.

Logits come without their bias, z = logits + bias, and everything is computed from z in full precision.
"""

import math
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from amos_fairseq.ops.noise import WORD, Noise, gumbel, philox
from amos_fairseq.ops.precision import full_precision

CAPACITY = 128  # candidates of a row; at temperature 0.3 they hold all but 2e-5 of the soft sample
LEAST = math.log(1e6)  # candidates are at least a millionth as probable as the likeliest
IN_CACHE = 2**13  # counters at a time on a CPU, where their intermediate words should not leave the cache
GATHERED = 2**24  # elements of the token table that are gathered at a time


class RowReading(NamedTuple):
    """What a pass over logits tells of M rows with G heads, so that the logits need not be kept.

    The fields from `sampled` on have no rows where nothing was sampled or listed.
    """

    losses: Tensor  # (M, G) fp32, -log softmax(z_g)[target]
    predicted: Tensor  # (M, G) argmax z_g, the lowest id among ties
    ranks: Tensor  # (M, G) 1 + how many logits exceed the target's
    sampled: Tensor  # (M,) argmax over the tokens that may be drawn of zbar + noise; zbar: the heads' mixture
    likeliest: Tensor  # (M,) argmax of zbar over the same tokens
    candidates: Tensor  # (M, C) int32 ids of the tokens that hold the soft sample's probability, -1 after the last
    tail: Tensor  # (M,) fp32, share of that probability which the others hold


def gumbel_noise(noise: Noise, vocabulary_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(M, V) Gumbel(0, 1) in fp32 or fp64."""
    result = torch.empty(len(noise.rows), vocabulary_size, dtype=dtype, device=noise.rows.device)
    blocks = torch.arange(-(-vocabulary_size // 4), device=noise.rows.device)
    rows = max(1, IN_CACHE // len(blocks) if noise.rows.device.type == "cpu" else len(noise.rows))
    for chunk in map(slice, range(0, len(noise.rows), rows), range(rows, len(noise.rows) + rows, rows)):
        words = philox(noise.seed, (blocks, *_counters(noise[chunk])))
        result[chunk] = gumbel(torch.stack(words, dim=-1).flatten(1))[:, :vocabulary_size]
    return result


def _counters(noise: Noise) -> Tuple[Tensor, Tensor, Tensor]:
    """(M, 1) each: position, and the sample id's lower and upper half."""
    sample, position = noise.rows.unsqueeze(-1).unbind(1)
    return position, sample & WORD, sample >> 32 & WORD


def read_rows(
    logits: Tensor, bias: Tensor, targets: Tensor, weights: Optional[Tensor], excluded: Optional[Tensor],
    noise: Optional[Noise], temperature: float, candidates: bool, write_gradient: bool,
) -> RowReading:
    """Read (M, G, V) logits, then overwrite them with d losses / d logits if `write_gradient`; see `RowReading`."""
    z = full_precision(logits) + bias
    index = targets[:, None, None].expand(-1, z.size(1), 1)
    of_target = z.gather(-1, index)
    logsumexp = z.logsumexp(dim=-1, keepdim=True)
    losses = (logsumexp - of_target).squeeze(-1)
    predicted, ranks = z.argmax(dim=-1), 1 + (z > of_target).sum(dim=-1)
    drawn = _draw(z, weights, excluded, noise, temperature, candidates)
    if write_gradient:
        z.sub_(logsumexp).exp_().scatter_add_(-1, index, torch.full_like(of_target, -1.0))
        logits.copy_(z)
    return RowReading(losses, predicted, ranks, *drawn)


def _draw(z, weights, excluded, noise, temperature, candidates) -> Tuple[Tensor, ...]:
    empty = z.new_empty(0, dtype=torch.long)
    listed, tail = empty.view(0, 0).int(), z.new_empty(0)
    if noise is None:
        return empty, empty, listed, tail
    mixed = z.squeeze(1) if weights is None else torch.einsum("mg,mgv->mv", weights.to(z.dtype), z)
    allowed = mixed if excluded is None else mixed.masked_fill(excluded, float("-inf"))
    perturbed = allowed + gumbel_noise(noise, z.size(-1), z.dtype)
    sampled = perturbed.argmax(dim=-1)
    if candidates:
        probabilities, listed = perturbed.topk(min(CAPACITY, z.size(-1)), dim=-1)
        largest = probabilities[:, :1].clone()
        probabilities = probabilities.sub_(largest).div_(temperature)
        left_out = probabilities <= -LEAST
        whole = perturbed.sub_(largest).div_(temperature).exp_().sum(dim=-1)
        tail = 1 - probabilities.exp_().masked_fill_(left_out, 0.0).sum(dim=-1) / whole
        listed = listed.masked_fill_(left_out, -1).int()
    return sampled, allowed.argmax(dim=-1), listed, tail


def logsumexp_rows(logits: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """logsumexp, largest and its id of each row of (R, V) logits."""
    z = full_precision(logits) + bias
    largest, likeliest = z.max(dim=-1)
    return z.logsumexp(dim=-1), largest, likeliest


def softmax_rows_(logits: Tensor, bias: Tensor, logsumexp: Tensor) -> None:
    """Overwrite (R, V) logits with exp(z - logsumexp), their softmax; logsumexp: (R,)."""
    z = full_precision(logits) + bias
    logits.copy_(z.sub_(logsumexp[:, None]).exp_())


def gumbel_softmax(logits: Tensor, noise: Noise, temperature: float) -> Tensor:
    """(M, V) softmax((logits + noise) / temperature), in the type of `logits`."""
    logits_dtype, logits = logits.dtype, full_precision(logits)
    perturbed = logits + gumbel_noise(noise, logits.size(-1), logits.dtype)
    return perturbed.div_(temperature).softmax(dim=-1).to(logits_dtype)


def top_tokens(
    logits: Tensor, bias: Tensor, left_out: Tensor, excluded: Optional[Tensor], noise: Optional[Noise], count: int
) -> Tensor:
    """(M, K) ids of the K = `count` largest of logits + bias + noise in each row, the largest first.

    left_out: (M,) a token of each row that does not count   excluded: (V,) bool, those that never do
    """
    offset = bias if excluded is None else bias.masked_fill(excluded, float("-inf"))  # of one row, not of all logits
    perturbed = full_precision(logits) + offset
    if noise is not None:
        perturbed += gumbel_noise(noise, logits.size(-1), perturbed.dtype)
    return perturbed.scatter_(-1, left_out.unsqueeze(-1), float("-inf")).topk(count, dim=-1).indices


def soft_sample_gradient(
    gradient: Tensor, hidden: Tensor, table: Tensor, bias: Tensor, candidates: Tensor, noise: Noise, temperature: float
) -> Tensor:
    """d (gradient . sum_t p_t x_t) / d hidden, (M, E), over each row's candidates t: x_t = table[t],

        p = softmax((x . hidden + bias + noise) / temperature)
        sum_t p_t (s_t - sum_u p_u s_u) x_t / temperature,   s_t = x_t . gradient
    """
    dtype = full_precision(hidden).dtype
    result = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    rows = max(1, GATHERED // max(1, candidates.size(1) * hidden.size(1)))
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        tokens, listed = candidates[chunk].clamp(min=0).long(), candidates[chunk] >= 0
        vectors = table[tokens].to(dtype)  # (m, C, E)
        scores = torch.einsum("mce,me->mc", vectors, gradient[chunk].to(dtype))
        logits = torch.einsum("mce,me->mc", vectors, hidden[chunk].to(dtype)) + bias[tokens]
        perturbed = (logits + _noise_of(noise[chunk], tokens).to(dtype)) / temperature
        # A finite floor: rows without any candidate are 0, not NaN.
        p = perturbed.masked_fill(~listed, torch.finfo(dtype).min).softmax(dim=-1) * listed
        mean = (p * scores).sum(dim=-1, keepdim=True)
        result[chunk] = torch.einsum("mc,mce->me", p * (scores - mean), vectors) / temperature
    return result


def _noise_of(noise: Noise, tokens: Tensor) -> Tensor:
    """(M, C) the noise of chosen tokens of each row."""
    words = philox(noise.seed, (tokens // 4, *_counters(noise)))
    return gumbel(torch.stack(words, dim=-1).gather(-1, (tokens % 4).unsqueeze(-1)).squeeze(-1))
