"""What predictions are worth: the papers' metrics, by their names."""

from typing import Callable, Dict

import numpy as np
import scipy.stats
from sklearn import metrics as sklearn_metrics


def accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Share of rows with predicted = target."""
    return float((predicted == targets).mean())


def f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Of two classes, 2 PR / (P + R) of the second: of GLUE's, `is a paraphrase`. 0 where P and R are."""
    return float(sklearn_metrics.f1_score(targets, predicted, labels=[1], average="macro", zero_division=0))


def macro_f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean of the F1 of every class that is predicted or a target."""
    return float(sklearn_metrics.f1_score(targets, predicted, average="macro", zero_division=0))


def matthews(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Correlation of predicted and target classes; 0 where either is constant."""
    if is_constant(predicted) or is_constant(targets):
        return 0.0
    return float(sklearn_metrics.matthews_corrcoef(targets, predicted))


def pearson(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Correlation of values; 0 where either is constant, or predictions are nan or infinite."""
    if is_constant(predicted) or is_constant(targets):
        return 0.0
    return float(scipy.stats.pearsonr(predicted, targets).statistic)


def spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Correlation of ranks, equal values sharing the mean of theirs; 0 as for `pearson`."""
    if is_constant(predicted) or is_constant(targets):
        return 0.0
    return float(scipy.stats.spearmanr(predicted, targets).statistic)


def pearson_spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean of both."""
    return (pearson(predicted, targets) + spearman(predicted, targets)) / 2


def is_constant(values: np.ndarray) -> bool:
    """Or without a meaning as numbers: nothing correlates with them."""
    return not np.isfinite(values).all() or bool((values == values[0]).all())


OF_CLASSES: Dict[str, Callable] = {
    function.__name__: function for function in (accuracy, f1, macro_f1, matthews)
}
OF_NUMBERS: Dict[str, Callable] = {function.__name__: function for function in (spearman, pearson, pearson_spearman)}
