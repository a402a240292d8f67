"""What predictions are worth: the papers' metrics, by their names."""

from typing import Callable, Dict, Mapping, Sequence, Set, Tuple

import numpy as np


def accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Share of rows with predicted = target."""
    return float((predicted == targets).mean())


def f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Of classes 0 and 1, 2 PR / (P + R) of the second: of GLUE's, `is a paraphrase`. 0 where P and R are."""
    from sklearn import metrics as sklearn_metrics  # which takes a second, and pre-training does without

    return float(sklearn_metrics.f1_score(targets, predicted, labels=[1], average="macro", zero_division=0))


def macro_f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Mean of the F1 of every class that is predicted or a target; of sets (N, L), of every label."""
    if targets.ndim == 2:  # one label alone scikit-learn would take for two classes
        return float(np.mean([f1(*of_label) for of_label in zip(predicted.T, targets.T)]))
    from sklearn import metrics as sklearn_metrics

    return float(sklearn_metrics.f1_score(targets, predicted, average="macro", zero_division=0))


def micro_f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Of sets (N, L) of 0 and 1, 2 PR / (P + R) of all labels together; 0 where P and R are."""
    return float(2 * (predicted * targets).sum() / max(1, predicted.sum() + targets.sum()))


def subset_accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Share of sets (N, L) that are the target in every label."""
    return float((predicted == targets).all(axis=1).mean())


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


def records(fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) of arrays (N, ..) by name."""
    found = np.empty(
        len(next(iter(fields.values()))), [(name, array.dtype, array.shape[1:]) for name, array in fields.items()]
    )
    for name, array in fields.items():
        found[name] = array
    return found


# Of tags, a list for each sentence


Tags = Sequence[Sequence[str]]


def spans(sentences: Tags) -> Set[Tuple[int, int, int, str]]:
    """(sentence, first word, last word, type) of each span that tags tell, in IOB1, IOB2, BIOES and BILOU alike.

    B or I with I, E or L of the same type behind it go on with a span; all other tags but O begin one. So do the
    script conlleval and the package seqeval read tags, those that no scheme allows, too.
    """
    found = set()
    for sentence, tags in enumerate(sentences):
        first, last_prefix, last_type = 0, "O", ""
        for place, tag in enumerate([*tags, "O"]):
            prefix, _, type_ = tag.partition("-")
            if not (last_prefix in ("B", "I") and prefix in ("I", "E", "L") and type_ == last_type):
                if last_prefix != "O":
                    found.add((sentence, first, place - 1, last_type))
                first = place
            last_prefix, last_type = prefix, type_
    return found


def words(sentences: Tags) -> Set[Tuple[int, int, int, str]]:
    """Each word as a span of its own."""
    return {(number, place, place, tag) for number, tags in enumerate(sentences) for place, tag in enumerate(tags)}


def compared_tags(predicted: Tags, targets: Tags) -> np.ndarray:
    """(N,) records of sentences: the predicted `tags`, and of each type how many are right, predicted and there:
    `spans` (types, 3), `words` (tags, 3)."""
    fields = {"tags": np.array([" ".join(tags) for tags in predicted], np.str_)}
    for name, units in (("spans", spans), ("words", words)):
        found, there = units(predicted), units(targets)
        place = {type_: number for number, type_ in enumerate(sorted({unit[-1] for unit in found | there}))}
        fields[name] = np.zeros((len(targets), len(place), 3), np.int32)
        for column, chosen in enumerate((found & there, found, there)):
            for sentence, *_, type_ in chosen:
                fields[name][sentence, place[type_], column] += 1
    return records(fields)


def span_f1(compared: np.ndarray, targets: np.ndarray) -> float:
    """2 PR / (P + R) of all sentences and types together; 0 where P and R are."""
    right, found, there = compared["spans"].sum(axis=(0, 1))
    return float(2 * right / max(1, found + there))


def span_precision(compared: np.ndarray, targets: np.ndarray) -> float:
    """Share of the predicted spans that are right in both ends and type; 0 without any."""
    right, found, _ = compared["spans"].sum(axis=(0, 1))
    return float(right / max(1, found))


def span_recall(compared: np.ndarray, targets: np.ndarray) -> float:
    """Share of the spans that are found; 0 without any."""
    right, _, there = compared["spans"].sum(axis=(0, 1))
    return float(right / max(1, there))


def word_accuracy(compared: np.ndarray, targets: np.ndarray) -> float:
    right, _, there = compared["words"].sum(axis=(0, 1))
    return float(right / there)


def word_macro_f1(compared: np.ndarray, targets: np.ndarray) -> float:
    """Mean of the F1 of every tag that is predicted or a target."""
    right, found, there = compared["words"].sum(axis=0).T
    return float(np.mean(2 * right[found + there > 0] / (found + there)[found + there > 0]))


OF_CLASSES: Dict[str, Callable] = {function.__name__: function for function in (accuracy, f1, macro_f1, matthews)}
OF_SETS: Dict[str, Callable] = {function.__name__: function for function in (micro_f1, macro_f1, subset_accuracy)}
OF_NUMBERS: Dict[str, Callable] = {function.__name__: function for function in (spearman, pearson, pearson_spearman)}
OF_TAGS: Dict[str, Callable] = {
    **{function.__name__: function for function in (span_f1, span_precision, span_recall)},
    "accuracy": word_accuracy, "macro_f1": word_macro_f1,
}
