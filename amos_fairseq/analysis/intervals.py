"""Intervals of means, by the bootstrap: what the same means would be of examples drawn anew, with replacement.

Draws are always the same, so that a table is.
"""

from typing import NamedTuple, Sequence

import numpy as np

DRAWS, SEED = 2000, 1
PERCENTILES = 2.5, 97.5


class Estimate(NamedTuple):
    value: float
    low: float  # of the 95 % interval
    high: float


def resampled_means(values: np.ndarray) -> np.ndarray:
    """(N,) -> (DRAWS,) means of N values drawn with replacement."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(values), counts / len(values), size=DRAWS)
    return drawn @ distinct / len(values)


def mean(values: np.ndarray) -> Estimate:
    return Estimate(float(np.mean(values)), *np.percentile(resampled_means(values), PERCENTILES).tolist())


def mean_of_strata(strata: Sequence[np.ndarray], weights: Sequence[float]) -> Estimate:
    """sum_s w_s mean(values_s) / sum_s w_s, each stratum drawn from by itself."""
    shares = np.array(weights) / np.sum(weights)
    drawn = sum(share * resampled_means(values) for share, values in zip(shares, strata))
    value = sum(share * np.mean(values) for share, values in zip(shares, strata))
    return Estimate(float(value), *np.percentile(drawn, PERCENTILES).tolist())
