"""A user's own files: how they are encoded and split, and mistakes by file and line."""
import numpy as np
import pytest

from amos_fairseq.finetune import labelled, own_files
from amos_fairseq.finetune.kinds import KINDS
from amos_fairseq.finetune.tables import Table


@pytest.fixture
def prepare(tmp_path, tokenizer):
    """prepare(train, suffix, text="text", **options): problem and folder of files with these contents."""

    def prepare(train, suffix="tsv", text="text", others={}, **options):
        files = {}
        for split, content in {"train": train, **others}.items():
            files[split] = tmp_path / f"{split}.{suffix}"
            files[split].write_bytes(content.encode())
        out = tmp_path / "out"
        options = {"label": "label", "max_length": 32, **options}
        return own_files.prepare(out, "own", files, text.split(), tokenizer=tokenizer, **options), out

    return prepare


def test_labels_of_train_are_sorted_and_the_metrics_fit_their_number(prepare):
    valid = "text\tlabel\nbeta\tno\n"
    problem, out = prepare("text\tlabel\nalpha\tno\nbeta\tyes\ngamma\tno\n", others={"valid": valid})
    assert problem.labels == ["no", "yes"] and problem.metrics == ["accuracy", "f1", "macro_f1", "matthews"]
    assert labelled.read_examples(out, "train").targets.tolist() == [0, 1, 0]
    assert labelled.read_examples(out, "valid").targets.tolist() == [0]


def test_f1_of_three_classes_is_refused(prepare):
    rows = "a\tb\tlabel\nalpha\tbeta\tx\nbeta\tgamma\ty\neta\teta\tz\n"
    with pytest.raises(ValueError, match="--metric f1 is of two classes, but there are 3: choose macro_f1"):
        prepare(rows, text="a b", others={"valid": rows}, first_metric="f1")


def test_a_pair_of_three_classes(prepare, tokenizer):
    rows = "a\tb\tlabel\nalpha\tbeta\tx\nbeta\tgamma\ty\neta\teta\tz\n"
    problem, out = prepare(rows, text="a b", others={"valid": rows}, first_metric="matthews")
    assert problem.metrics == ["matthews", "accuracy", "macro_f1"]
    examples = labelled.read_examples(out, "train")
    assert examples.tokens[:6].tolist() == tokenizer.sequence(tokenizer.encode("alpha"), tokenizer.encode("beta"))
    assert examples.lengths.tolist() == [6, 6, 6] and examples.targets.tolist() == [0, 1, 2]


def test_numbers_are_scaled_by_train_and_predictions_scaled_back(prepare, tmp_path):
    train = "text\tlabel\nalpha\t100\nbeta\t300\n"
    problem, out = prepare(train, kind="regression", others={"valid": "text\tlabel\nbeta\t500\n"})
    assert problem.kind == "regression" and problem.metrics == ["spearman", "pearson", "pearson_spearman"]
    assert problem.about["scale"] == {"offset": 200.0, "unit": 100.0}
    assert labelled.read_examples(out, "train").targets.tolist() == [-1.0, 1.0]
    assert labelled.read_examples(out, "valid").targets.tolist() == [3.0]
    KINDS["regression"].write_predictions(tmp_path / "own.tsv", out, problem, "test", np.array([0.5, -2.0]))
    assert (tmp_path / "own.tsv").read_text() == "index\tprediction\n0\t250\n1\t0\n"


def test_a_tenth_is_set_aside_by_the_texts_alone():
    rows = [(f"alpha {number // 2}",) for number in range(2000)]  # each text twice
    table = Table("rows", list(range(2000)), rows, ["x"] * 2000)
    train, valid = own_files.split_by_hash(table)
    assert 140 <= len(valid.texts) <= 260 and len(train.texts) + len(valid.texts) == 2000
    assert not set(train.texts) & set(valid.texts)
    backwards = own_files.split_by_hash(table.part(range(1999, -1, -1)))[1]
    assert backwards.texts == valid.texts[::-1] and backwards.lines == valid.lines[::-1]


def test_a_test_file_may_have_labels_or_not(prepare):
    train = "text\tlabel\nalpha\t0\nbeta\t1\n"
    _, out = prepare(train, others={"valid": train, "test": "text\nbeta\n"})
    assert labelled.read_examples(out, "test").targets is None
    (out / "problem.json").unlink()
    _, out = prepare(train, others={"valid": train, "test": train})
    assert labelled.read_examples(out, "test").targets.tolist() == [0, 1]


TRAIN = "text\tlabel\nalpha\t0\nbeta\t1\n"


@pytest.mark.parametrize("train, valid, options, message", [
    ("text\tlabel\nalpha\t0\nbeta\n", TRAIN, {}, "train.tsv, line 3: 1 fields, but 2 columns"),
    (TRAIN, "text\tlabel\nalpha\t2\n", {}, "valid.tsv, line 2: label '2' is none of 0, 1"),
    ("text\tlabel\nalpha\t0\nbeta\t\n", TRAIN, {}, "train.tsv, line 3: there is no label"),
    (TRAIN.replace("1", "0"), TRAIN, {}, "train.tsv: all labels are '0': there is nothing to learn"),
    (TRAIN.replace("1", "0"), TRAIN, {"kind": "regression"}, "train.tsv: all labels are 0: there is nothing to learn"),
    (TRAIN.replace("1", "nan"), TRAIN, {"kind": "regression"}, "line 3: label 'nan' is no number finite"),
    (TRAIN, TRAIN, {"label": "class"}, "line 2: there is no column 'class', needed are text, class; .*text, label"),
    (TRAIN, TRAIN, {"first_metric": "pearson"}, "--metric pearson is none of classification: choose from accuracy, f1"),
    ("", TRAIN, {}, "train.tsv holds no examples: expected are columns text, label"),
    (TRAIN, None, {}, "train.tsv has 2 rows, too few to set some aside: give --valid"),
    ('{"text": 1, "label": 0}\n', "", {"suffix": "jsonl"}, "train.jsonl, line 1: text is 1, not a text"),
    ('{"text": "a", "label": 0}\n[]\n', "", {"suffix": "jsonl"}, "train.jsonl, line 2: is no JSON object"),
    ('{"text": "a"\n', "", {"suffix": "jsonl"}, "train.jsonl, line 1: is no JSON"),
    ('text,label\n"alpha,0\n', "", {"suffix": "csv"}, "train.csv, line 2: unexpected end of data"),
    ("text,label\nalpha,0,1\n", "", {"suffix": "csv"}, "train.csv, line 2: 3 fields, but 2 columns"),
    (TRAIN, TRAIN, {"suffix": "xls"}, "train.xls is none of .tsv, .txt, .csv, .jsonl: rename or convert it"),
])
def test_mistakes_are_told_by_file_and_line_and_leave_nothing(train, valid, options, message, prepare, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(train, others={} if valid is None else {"valid": valid}, **options)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="none.tsv does not exist"):
        own_files.prepare(tmp_path / "out", "own", {"train": tmp_path / "none.tsv"}, ["text"], "label", tokenizer, 32)
