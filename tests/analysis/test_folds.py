"""Probes fold by fold: literal features, the same folds for all, and intervals by blocks."""
import numpy as np
import pytest

from amos_fairseq.analysis import folds, linear_probes
from amos_fairseq.finetune.intervals import of_statistic


def write_texts(path, rows):
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    return path


def test_each_example_is_tested_by_a_probe_that_has_not_seen_it(tmp_path, monkeypatch):
    """Beside scikit-learn's own loop over the same folds; of equal texts none is learned from."""
    draw = np.random.default_rng(1)
    rows = [(f"text {number % 50}", "ab"[number % 50 % 2]) for number in range(100)]
    found = folds.read_texts(write_texts(tmp_path / "a.tsv", rows), ["text"], "label", 4)
    assert (found.folds[:50] == found.folds[50:]).all()
    features = draw.normal(size=(100, 3)) + (found.labels == "a")[:, None]
    seen = []
    fit = linear_probes.predict
    monkeypatch.setattr(linear_probes, "predict", lambda *given: seen.append(len(given[0])) or fit(*given))
    result = folds.cross_validate(features, found)
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    split, model = PredefinedSplit(found.folds), make_pipeline(StandardScaler(), LogisticRegression())
    predicted = cross_val_predict(model, features, found.labels, cv=split)
    assert result.accuracy.value == pytest.approx((predicted == found.labels).mean()) and result.commonest == 0.5
    assert seen == [100 - int((found.folds == number).sum()) for number in range(4)]
    assert result.accuracy.low < result.accuracy.value < result.accuracy.high


def test_words_of_a_sentence_are_in_one_fold_and_one_block(tmp_path):
    (tmp_path / "w").write_text("\n\n".join(f"alpha\tx\nbeta{n}\ty\nthe\t_" for n in range(20)) + "\n")
    found = folds.read_words(tmp_path / "w", 3)
    assert found.labels.tolist() == ["x", "y"] * 20 and found.blocks.tolist() == np.repeat(range(20), 2).tolist()
    assert (found.folds[::2] == found.folds[1::2]).all()
    features = np.zeros((40, 2))
    features[::2] = 1.0
    assert folds.cross_validate(features, found).accuracy == (1.0, 1.0, 1.0)


def test_words_are_read_as_finetune_tokens_reads_them(tmp_path):
    """Of CoNLL the first column and the last."""
    sentences = "".join(f"alpha{n} NN B-X\nbeta VB O\n\n" for n in range(20))
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O\n\n" + sentences)
    found = folds.read_words(tmp_path / "a.conll", 3)
    assert found.labels.tolist() == ["B-X", "O"] * 20 and found.blocks.tolist() == np.repeat(range(20), 2).tolist()
    assert [word.text for word in found.source[1]] == ["alpha1", "beta"] and found.source[1][1].line == 6


def test_an_interval_of_blocks_is_wider_than_that_of_examples():
    right = np.repeat([1.0, 0.0] * 10, 10)
    blocks = right.reshape(20, 10).sum(axis=1)
    by_block = of_statistic(lambda rows: blocks[rows].sum() / (10 * len(rows)), 20)
    by_example = of_statistic(lambda rows: right[rows].mean(), 200)
    assert by_block.high - by_block.low > 2 * (by_example.high - by_example.low) > 0
    assert by_block.value == by_example.value == 0.5


@pytest.mark.parametrize(
    "rows, many, message",
    [
        ([("a", "x"), ("b", "y")] * 9, 5, "a.tsv holds too few different texts for 5 folds: give more of them"),
        ([(f"t{n}", "x") for n in range(50)], 5, "a.tsv: a probe needs two labels to tell apart, but without fold 0"),
        ([("a", "x"), ("b", "")], 2, "a.tsv, line 3: there is no label"),
        ([("a", "x"), ("b", "y")], 1, "1 folds leave nothing to learn from: take at least 2"),
    ],
)
def test_files_that_tell_nothing_are_refused(tmp_path, rows, many, message):
    with pytest.raises(ValueError, match=message):
        folds.read_texts(write_texts(tmp_path / "a.tsv", rows), ["text"], "label", many)
