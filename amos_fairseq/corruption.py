"""From a generator's logits to corrupted sequences: noise, draws, and the one place that makes the labels.

Shapes: B batch, T time, M selected positions of the batch, V vocabulary.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from amos_fairseq.ops import Noise, top_tokens


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


def check_negatives(num_negatives: int, vocabulary_size: int, num_excluded: int) -> None:
    """Raise ValueError unless there are as many tokens that are neither excluded nor the original, and at least one."""
    others = vocabulary_size - 1 - num_excluded
    if not 1 <= num_negatives <= others:
        raise ValueError(f"num_negatives is {num_negatives}, but the vocabulary allows 1 to {others}: change it")


def sample_candidates(
    logits: Tensor, bias: Tensor, original_tokens: Tensor, num_negatives: int, noise: Optional[Noise],
    excluded_tokens: Optional[Tensor] = None,
) -> Tensor:
    """The original among K others, (M, 1 + K): column 0 the original, column k the k-th draw  (TEAMS, Sec. 3.2).

    The K = `num_negatives` others are distinct draws from softmax(logits + bias) without replacement, without gradient.
    Neither the original nor `excluded_tokens` are among them. There must be as many: see `check_negatives`.

    logits: (M, V)   bias: (V,)   original_tokens: (M,)   noise: of M rows, or None for the K likeliest tokens
    excluded_tokens: (V,) bool
    """
    negatives = top_tokens(logits, bias, original_tokens, excluded_tokens, noise, num_negatives)
    return torch.cat([original_tokens.unsqueeze(-1), negatives], dim=-1)
