"""What predictions are worth: the papers' metrics, by their names."""

from typing import Callable, Dict

import numpy as np


def accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Share of rows with predicted = target."""
    return float((predicted == targets).mean())


def f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Of two classes, 2 PR / (P + R) of the second: of GLUE's, `is a paraphrase`. 0 where P and R are."""
    from sklearn import metrics as sklearn_metrics  # which takes a second, and pre-training does without

    return float(sklearn_metrics.f1_score(targets, predicted, labels=[1], average="macro", zero_division=0))


def macro_f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean of the F1 of every class that is predicted or a target."""
    from sklearn import metrics as sklearn_metrics

    return float(sklearn_metrics.f1_score(targets, predicted, average="macro", zero_division=0))


def matthews(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Correlation of predicted and target classes; 0 where either is constant."""
    from sklearn import metrics as sklearn_metrics

    return correlation(sklearn_metrics.matthews_corrcoef, predicted, targets)


def pearson(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Correlation of values; 0 where either is constant, or predictions are nan or infinite."""
    import scipy.stats

    return correlation(lambda *values: scipy.stats.pearsonr(*values).statistic, predicted, targets)


def spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Correlation of ranks, equal values sharing the mean of theirs; 0 as for `pearson`."""
    import scipy.stats

    return correlation(lambda *values: scipy.stats.spearmanr(*values).statistic, predicted, targets)


def pearson_spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean of both."""
    return (pearson(predicted, targets) + spearman(predicted, targets)) / 2


def correlation(function: Callable, predicted: np.ndarray, targets: np.ndarray) -> float:
    """0 where either is constant, or has no meaning as numbers: nothing correlates with them."""
    if any(not np.isfinite(values).all() or (values == values[0]).all() for values in (predicted, targets)):
        return 0.0
    return float(function(predicted, targets))


OF_CLASSES: Dict[str, Callable] = {function.__name__: function for function in (accuracy, f1, macro_f1, matthews)}
OF_NUMBERS: Dict[str, Callable] = {function.__name__: function for function in (spearman, pearson, pearson_spearman)}
