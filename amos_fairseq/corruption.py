"""From a generator's logits to corrupted sequences: noise, draws, and the one place that makes the labels.

Shapes: B batch, T time, M selected positions of the batch, V vocabulary.
"""

from typing import NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from amos_fairseq.ops import full_precision


class Corruption(NamedTuple):
    """Corrupted tokens and where they differ from the original; made together so that no caller recomputes a label."""

    corrupted_tokens: Tensor  # (B, T) the original with the draws filled in
    replaced_positions: Tensor  # (B, T) bool, corrupted != original


def corrupt(original_tokens: Tensor, masked_positions: Tensor, sampled_tokens: Tensor) -> Corruption:
    """Put `sampled_tokens` at the selected positions of the original sequence.

    A draw that equals the original leaves its position original.

    original_tokens: (B, T)   masked_positions: (B, T) bool with M True   sampled_tokens: (M,) in row-major order
    """
    corrupted_tokens = original_tokens.masked_scatter(masked_positions, sampled_tokens)
    return Corruption(corrupted_tokens, corrupted_tokens != original_tokens)


def gumbel_noise(
    vocabulary_size: int, seeds: Sequence[int], counts: Sequence[int], device: Optional[torch.device] = None
) -> Tensor:
    """Gumbel(0, 1) noise (M, V) in fp32, one random stream per sequence.

    Sequence b owns `counts[b]` consecutive rows drawn from a generator seeded with `seeds[b]`, so a draw depends on
    its sequence's seed alone: not on the other sequences of the batch, nor on how many processes share it. fairseq
    seeds the default generators alike on every rank, hence generators of our own. Always fp32: half-precision noise
    has so few values near its maximum that sampling collapses to low ids.
    """
    noise = torch.empty(sum(counts), vocabulary_size, device=device)
    generator = torch.Generator(device=noise.device)
    for seed, rows in zip(seeds, noise.split(list(counts))):
        rows.exponential_(generator=generator.manual_seed(seed))
    return _gumbel(noise)


def sample_tokens(
    logits: Tensor, noise: Optional[Tensor] = None, excluded_tokens: Optional[Tensor] = None
) -> Tensor:
    """Draw (M,) ids from softmax(logits) without gradient, by the Gumbel-max trick: argmax(logits + noise).

    logits: (M, V)   noise: (M, V) Gumbel(0, 1), drawn from torch's default generator when absent
    excluded_tokens: ids that are never drawn (specials, `<mask>`, padding, the vocabulary's fillers)
    """
    return _perturbed(logits, noise, excluded_tokens).argmax(dim=-1)


def check_negatives(num_negatives: int, vocabulary_size: int, num_excluded: int) -> None:
    """Raise ValueError unless there are as many tokens that are neither excluded nor the original, and at least one."""
    others = vocabulary_size - 1 - num_excluded
    if not 1 <= num_negatives <= others:
        raise ValueError(f"num_negatives is {num_negatives}, but the vocabulary allows 1 to {others}: change it")


def sample_candidates(
    logits: Tensor,
    original_tokens: Tensor,
    num_negatives: int,
    noise: Optional[Tensor] = None,
    excluded_tokens: Optional[Tensor] = None,
) -> Tensor:
    """The original among K others, (M, 1 + K): column 0 the original, column k the k-th draw  (TEAMS, Sec. 3.2).

    The K = `num_negatives` others are distinct draws from softmax(logits) without replacement, by Gumbel top-k, without
    gradient. Neither the original nor `excluded_tokens` are among them. Raises ValueError if there are fewer others.

    logits: (M, V)   original_tokens: (M,)   noise: (M, V) Gumbel(0, 1), drawn from torch's default generator when
    absent; zeros of any shape that broadcasts give the K likeliest tokens
    """
    check_negatives(num_negatives, logits.size(-1), 0 if excluded_tokens is None else excluded_tokens.numel())
    perturbed = _perturbed(logits, noise, excluded_tokens)
    perturbed.scatter_(-1, original_tokens.unsqueeze(-1), float("-inf"))
    negatives = perturbed.topk(num_negatives, dim=-1).indices
    return torch.cat([original_tokens.unsqueeze(-1), negatives], dim=-1)


def _perturbed(logits: Tensor, noise: Optional[Tensor], excluded_tokens: Optional[Tensor]) -> Tensor:
    """logits + noise, a tensor of its own; -inf at the excluded tokens."""
    if noise is None:
        noise = _gumbel(torch.empty(logits.shape, device=logits.device).exponential_())
    perturbed = full_precision(logits.detach()) + noise
    if excluded_tokens is not None:
        perturbed.index_fill_(-1, excluded_tokens, float("-inf"))
    return perturbed


def _gumbel(exponential: Tensor) -> Tensor:
    """Gumbel(0, 1) from Exponential(1) in place; a draw that rounded to 0 would have an infinite logarithm."""
    return exponential.clamp_(min=torch.finfo(exponential.dtype).tiny).log_().neg_()
