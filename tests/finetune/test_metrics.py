"""Metrics against literal numbers, and against their formulas in float64 on random predictions."""
import warnings

import numpy as np
import pytest
from scipy.stats import rankdata

from amos_fairseq.finetune.kinds import KINDS

CLASSES = ["accuracy", "f1", "macro_f1", "matthews"]
NUMBERS = ["spearman", "pearson", "pearson_spearman"]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def compute(names, kind, outputs, targets):
    return KINDS[kind].measure(names, KINDS[kind].predicted(outputs), targets)


def logits(*predicted, classes=2):
    return np.eye(classes, dtype=np.float32)[list(predicted)]


def test_of_three_true_one_false_positive():
    """Predicted 1 1 1 0, targets 1 1 0 0: precision 2/3, recall 1; mcc = (2*1 - 1*0) / sqrt(3 * 2 * 2 * 1)."""
    found = compute(CLASSES, "classification", logits(1, 1, 1, 0), np.array([1, 1, 0, 0]))
    assert found == pytest.approx({"accuracy": 0.75, "f1": 0.8, "macro_f1": (0.8 + 2 / 3) / 2, "matthews": 2 / 12**0.5})


def test_of_prompts_the_same():
    assert compute(["accuracy"], "prompt", logits(2, 1, 0, classes=3), np.array([2, 1, 1])) == {"accuracy": 2 / 3}


def test_correlations_of_four_numbers():
    """x 1 2 3 4, y 1 2 4 3: ranks differ in the last two, rho = 1 - 6 * 2 / (4 * 15); x 0 0 1 against y 0 2 2."""
    found = compute(NUMBERS, "regression", np.array([1, 2, 3, 4], np.float32), np.array([1, 2, 4, 3], np.float32))
    assert found == pytest.approx({"spearman": 0.8, "pearson": 0.8, "pearson_spearman": 0.8})
    found = compute(NUMBERS, "regression", np.array([0.0, 0.0, 1.0]), np.array([0.0, 2.0, 2.0]))
    assert found == pytest.approx({"spearman": 0.5, "pearson": 0.5, "pearson_spearman": 0.5})


def test_of_random_predictions_are_the_formulas():
    draw = np.random.default_rng(1)
    for _ in range(20):
        predicted, targets = draw.integers(0, 2, (2, 50))
        tp, tn = (predicted & targets).sum(), ((1 - predicted) & (1 - targets)).sum()
        fp, fn = (predicted & (1 - targets)).sum(), ((1 - predicted) & targets).sum()
        expected = {
            "accuracy": (tp + tn) / 50, "f1": 2 * tp / (2 * tp + fp + fn),
            "matthews": (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        }
        assert compute(list(expected), "classification", logits(*predicted), targets) == pytest.approx(expected)
        values, wanted = draw.normal(size=50).round(1), draw.integers(0, 6, 50)
        expected = {
            "pearson": np.corrcoef(values, wanted)[0, 1],
            "spearman": np.corrcoef(rankdata(values), rankdata(wanted))[0, 1],
        }
        assert compute(list(expected), "regression", values, wanted) == pytest.approx(expected)


def test_scores_of_sets():
    outputs, targets = np.array([[2.0, -1.0], [1.0, 0.5], [-1.0, -2.0]]), np.array([[1, 1], [1, 1], [0, 1]])
    found = compute(["micro_f1", "macro_f1", "subset_accuracy"], "multi_label", outputs, targets)
    # of the first label 2 are right of 2 and 2, of the second 1 of 1 and 3
    assert found == pytest.approx({"micro_f1": 2 * 3 / (3 + 5), "macro_f1": (1 + 0.5) / 2, "subset_accuracy": 1 / 3})
    # of one label alone: 1 is right of 1 and 3
    found = compute(["micro_f1", "macro_f1"], "multi_label", outputs[:, 1:], targets[:, 1:])
    assert found == pytest.approx({"micro_f1": 0.5, "macro_f1": 0.5})


def test_constant_predictions_are_worth_0_without_a_warning():
    targets = np.array([0, 1, 1])
    assert compute(CLASSES, "classification", logits(0, 0, 0), targets) == pytest.approx(
        {"accuracy": 1 / 3, "f1": 0.0, "macro_f1": 0.25, "matthews": 0.0}
    )
    for value in (0.3, np.nan, np.inf):
        assert compute(NUMBERS, "regression", np.full(3, value), targets) == dict.fromkeys(NUMBERS, 0.0)
    assert compute(["matthews"], "classification", logits(0, 1, 1), np.array([1, 1, 1])) == {"matthews": 0.0}
    assert compute(NUMBERS, "regression", np.array([1.0]), np.array([2.0])) == dict.fromkeys(NUMBERS, 0.0)


@pytest.mark.parametrize("names, kind, outputs, targets, message", [
    (["matthews"], "regression", np.zeros(2), np.zeros(2), "'matthews' is none of regression"),
    (["accuracy"], "classification", logits(0, 1), np.zeros(3, int), "2 predictions for 3 targets"),
])
def test_what_cannot_be_computed_is_refused(names, kind, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        compute(names, kind, outputs, targets)
