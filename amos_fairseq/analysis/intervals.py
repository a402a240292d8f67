"""Intervals of means, by the bootstrap: what the same means would be of examples drawn anew, with replacement.

Draws are always the same, so that a table is.
"""

from typing import Callable, NamedTuple, Sequence

import numpy as np

DRAWS, SEED = 2000, 1
PERCENTILES = 2.5, 97.5


class Estimate(NamedTuple):
    value: float
    low: float  # of the 95 % interval
    high: float

    def __str__(self) -> str:
        """In per cent."""
        return f"{100 * self.value:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


def resampled_means(values: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(N,) -> (DRAWS,) means of N values drawn with replacement."""
    distinct, counts = np.unique(values, return_counts=True)
    return draw.multinomial(len(values), counts / len(values), size=DRAWS) @ distinct / len(values)


def mean(values: np.ndarray) -> Estimate:
    return mean_of_strata([values], [1])


def of_statistic(statistic: Callable[[np.ndarray], float], examples: int) -> Estimate:
    """A function of the rows that it is given, of all of them and of rows drawn with replacement."""
    draw = np.random.default_rng(SEED)
    drawn = [statistic(draw.integers(examples, size=examples)) for _ in range(DRAWS)]
    return Estimate(statistic(np.arange(examples)), *np.percentile(drawn, PERCENTILES).tolist())


def mean_of_strata(strata: Sequence[np.ndarray], weights: Sequence[float]) -> Estimate:
    """sum_s w_s mean(values_s) / sum_s w_s, each stratum drawn from by itself."""
    shares, draw = np.array(weights) / np.sum(weights), np.random.default_rng(SEED)
    drawn = sum(share * resampled_means(values, draw) for share, values in zip(shares, strata))
    value = sum(share * np.mean(values) for share, values in zip(shares, strata))
    return Estimate(float(value), *np.percentile(drawn, PERCENTILES).tolist())
