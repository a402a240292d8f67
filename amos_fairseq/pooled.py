"""Figures of a whole validation set, from sums that add up over batches and processes, however these share it.

Shapes: N words, C channels.
"""

from typing import Callable, Dict, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

LOWEST, HIGHEST, BINS = -32.0, 32.0, 2**16  # of logits; what shares a bin counts as tied


class Pooled(NamedTuple):
    """Sums of some words, and the name in READINGS of what they say."""

    sums: Tensor
    reading: str

    @property
    def value(self) -> Optional[float]:
        """None if it is not defined."""
        return READINGS[self.reading](self.sums)


def ranking(logits: Tensor, replaced: Tensor) -> Pooled:
    """How well (N,) logits, positive = original, tell originals from replaced ones, (N,) bool: histograms of both."""
    places = (logits.double() - LOWEST) * (BINS / (HIGHEST - LOWEST))
    bins = places.long().clamp(0, BINS - 1) + BINS * replaced.long()
    counts = torch.zeros(2 * BINS, dtype=torch.double, device=logits.device)
    return Pooled(counts.index_add_(0, bins, torch.ones_like(places)).view(2, BINS), "auc")


def auc(histograms: Tensor) -> Optional[float]:
    """Area under the ROC curve: the share of (original, replaced) pairs ranked rightly, ties counting half."""
    originals, replaced = histograms.double()
    pairs = originals.sum() * replaced.sum()
    replaced_below = replaced.cumsum(0) - replaced / 2
    return float((originals * replaced_below).sum() / pairs) if pairs else None


def similarity(hidden: Tensor) -> Pooled:
    """How alike hidden states (N, C) are: the sum of their directions, and N."""
    directions = F.normalize(hidden.double(), dim=-1)
    return Pooled(torch.cat([directions.sum(0), directions.new_tensor([len(hidden)])]), "cosine")


def mean_cosine(sums: Tensor) -> Optional[float]:
    """Over all pairs of different words: (|sum_i u_i|^2 - N) / (N (N - 1)), u_i of length 1."""
    total, number = sums[:-1].double(), sums[-1].double()
    return float((total.square().sum() - number) / (number * (number - 1))) if number > 1 else None


def spread(hidden: Tensor) -> Pooled:
    """How many directions hidden states (N, C) take: second moments of (hidden, 1), (C + 1, C + 1)."""
    extended = F.pad(hidden.double(), (0, 1), value=1.0)
    return Pooled(extended.T @ extended, "rank")


def effective_rank(moments: Tensor) -> Optional[float]:
    """exp of the entropy of the covariance's eigenvalues, which are made to add up to 1: from 1 to C."""
    moments = moments.double()
    number = moments[-1, -1]
    if number < 2:
        return None
    mean = moments[-1, :-1] / number
    eigenvalues = torch.linalg.eigvalsh(moments[:-1, :-1] / number - torch.outer(mean, mean)).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(shares).sum().exp()) if eigenvalues.sum() > 0 else 1.0


READINGS: Dict[str, Callable[[Tensor], Optional[float]]] = {
    "auc": auc, "cosine": mean_cosine, "rank": effective_rank,
}
