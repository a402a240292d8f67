"""Intervals of 95 % by the bootstrap: what the same figures would be of examples drawn anew, with replacement.

Draws are always the same, so that a table is.
"""

from typing import Callable, Dict, NamedTuple, Sequence

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


def of_difference(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], targets: np.ndarray,
    metric: Callable[[np.ndarray, np.ndarray], float],
) -> Estimate:
    """Of two models the mean of metric(predicted, targets) over seeds, the first's less the second's.

    first (S, N, ..), second (R, N, ..): predictions of the same N examples by seed   targets: (N, ..)
    Each draw takes the same examples for both models, and of each model as many of its seeds as it has, each whole.
    """
    draw = np.random.default_rng(SEED)

    def drawn_mean(predicted: Sequence[np.ndarray], rows: np.ndarray) -> float:
        seeds = draw.integers(len(predicted), size=len(predicted))
        values: Dict[int, float] = {seed: metric(predicted[seed][rows], targets[rows]) for seed in set(seeds.tolist())}
        return float(np.mean([values[seed] for seed in seeds.tolist()]))

    differences = []
    for _ in range(DRAWS // 2):
        rows = draw.integers(len(targets), size=len(targets))
        differences.append(drawn_mean(first, rows) - drawn_mean(second, rows))
    means = (np.mean([metric(of_seed, targets) for of_seed in predicted]) for predicted in (first, second))
    value = float(next(means) - next(means))
    return Estimate(value, *np.percentile(differences, PERCENTILES).tolist())
