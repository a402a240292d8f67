"""A user's own files: how they are encoded and split, and mistakes by file and line."""
import csv
import io
import json
import re

import numpy as np
import pytest

from amos_fairseq.finetune import labelled, own_files, tables
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
    with pytest.raises(ValueError, match="--metric f1 does not measure these labels: choose from accuracy, macro"):
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
    train, valid = tables.split_by_hash(table)
    assert 140 <= len(valid.texts) <= 260 and len(train.texts) + len(valid.texts) == 2000
    assert not set(train.texts) & set(valid.texts)
    backwards = tables.split_by_hash(table.part(range(1999, -1, -1)))[1]
    assert backwards.texts == valid.texts[::-1] and backwards.lines == valid.lines[::-1]


def test_a_test_file_may_have_labels_or_not(prepare):
    train = "text\tlabel\nalpha\t0\nbeta\t1\n"
    _, out = prepare(train, others={"valid": train, "test": "text\nbeta\n"})
    assert labelled.read_examples(out, "test").targets is None
    (out / "problem.json").unlink()
    _, out = prepare(train, others={"valid": train, "test": train})
    assert labelled.read_examples(out, "test").targets.tolist() == [0, 1]


def test_a_test_file_whose_labels_are_all_empty_is_one_without(prepare):
    train = "text\tlabel\nalpha\t0\nbeta\t1\n"
    problem, out = prepare(train, others={"valid": train, "test": "text\tlabel\nbeta\t\nalpha\t\n"})
    assert labelled.read_examples(out, "test").targets is None and problem.about["unlabelled"] == ["test"]


def test_a_class_whose_only_examples_are_set_aside_is_one_all_the_same(prepare):
    words = "alpha beta gamma delta epsilon zeta eta theta".split()
    texts = [f"{first} {second} {third}" for first in words for second in words for third in words[:2]]
    table = Table("rows", list(range(len(texts))), [(text,) for text in texts], ["x"] * len(texts))
    aside = tables.split_by_hash(table)[1].texts[0][0]
    rows = [f"{text}\t{'rare' if text == aside else ('no', 'yes')[number % 2]}" for number, text in enumerate(texts)]
    problem, out = prepare("\n".join(["text\tlabel", *rows]))
    assert problem.labels == ["no", "rare", "yes"]
    assert labelled.read_examples(out, "valid").targets[0] == 1 not in labelled.read_examples(out, "train").targets


def test_sets_of_labels_are_lists_of_json_or_have_commas_between(prepare, tmp_path):
    train = "text\tlabel\nalpha\tjoy, awe\nbeta\t\neta\tawe\n"
    problem, out = prepare(train, kind="multi_label", others={"valid": train})
    assert (problem.labels, problem.metrics) == (["awe", "joy"], ["micro_f1", "macro_f1", "subset_accuracy"])
    assert labelled.read_examples(out, "train").targets.tolist() == [[1, 1], [0, 0], [1, 0]]
    outputs = np.array([[1.0, 2.0], [-1.0, -1.0]])
    KINDS["multi_label"].write_predictions(tmp_path / "own.tsv", out, problem, "test", outputs)
    assert (tmp_path / "own.tsv").read_text() == "index\tprediction\n0\tawe,joy\n1\t\n"
    (told,) = KINDS["multi_label"].told(problem, None, None, np.array([[np.log(3), 0.0]], np.float32))
    assert told == {"labels": ["awe"], "probabilities": {"awe": pytest.approx(0.75), "joy": 0.5}}
    (out / "problem.json").unlink()
    train = '{"text": "a", "label": ["joy", "awe"]}\n{"text": "b", "label": []}\n'
    problem, out = prepare(train, "jsonl", kind="multi_label", others={"valid": train})
    assert labelled.read_examples(out, "valid").targets.tolist() == [[1, 1], [0, 0]]
    (out / "problem.json").unlink()
    with pytest.raises(ValueError, match="valid.jsonl, line 1: label 'x' is none of awe, joy"):
        prepare(train, "jsonl", kind="multi_label", others={"valid": train.replace('"awe"', '"x"')})
    with pytest.raises(ValueError, match=r"train.tsv, line 3: labels \"\['awe'\]\" are no list of JSON: write a,b or"):
        prepare("text\tlabel\nalpha\tjoy\nbeta\t['awe']\n", kind="multi_label")
    with pytest.raises(ValueError, match="train.jsonl: there is no label in any row"):
        prepare('{"text": "a", "label": []}\n', "jsonl", kind="multi_label", others={"valid": train})


# SuperGLUE's own files, a line of each
SUPER_GLUE = {
    "BoolQ": ("question passage", {"question": "is it", "passage": "It is.", "idx": 0, "label": True}, "true"),
    "CB": ("premise hypothesis", {"premise": "a", "hypothesis": "b", "label": "neutral", "idx": 5}, "neutral"),
    "WiC": (
        "word+sentence1 sentence2",
        {"word": "place", "sentence1": "a place", "sentence2": "to place", "idx": 0, "label": False, "start1": 2,
         "start2": 3, "end1": 7, "end2": 8, "version": 1.1}, "false",
    ),
}


@pytest.mark.parametrize("task", SUPER_GLUE)
def test_tasks_of_superglue_are_read_by_their_columns(prepare, tokenizer, task):
    columns, record, label = SUPER_GLUE[task]
    other = {**record, "label": "entailment" if task == "CB" else type(record["label"])(not record["label"])}
    train = json.dumps(record) + "\n" + json.dumps(other) + "\n"
    test = json.dumps({name: value for name, value in record.items() if name != "label"}) + "\n"
    problem, out = prepare(train, "jsonl", text=columns, others={"valid": train, "test": test}, max_length=64)
    examples = labelled.read_examples(out, "train")
    assert problem.labels[examples.targets[0]] == label and len(problem.labels) == 2
    pair = [" ".join(record[name] for name in column.split("+")) for column in columns.split()]
    assert examples.tokens[: examples.lengths[0]].tolist() == tokenizer.sequence(*map(tokenizer.encode, pair))
    assert labelled.read_examples(out, "test").targets is None


def test_multirc_has_a_row_for_each_answer_to_a_question_of_a_passage(prepare, tokenizer):
    answers = [[{"text": "beta", "idx": 0, "label": 0}, {"text": "eta", "idx": 1, "label": 1}],
               [{"text": "zeta", "idx": 2, "label": 1}]]
    questions = [{"question": asked, "idx": 0, "answers": of} for asked, of in zip(("alpha ", "alpha eta"), answers)]
    train = json.dumps({"idx": 0, "version": 1.1, "passage": {"text": "gamma delta", "questions": questions}}) + "\n"
    test = re.sub(', "label": .', "", train)
    columns = "passage.text passage.questions.question+passage.questions.answers.text"
    options = dict(label="passage.questions.answers.label", first_metric="f1", others={"valid": train, "test": test})
    problem, out = prepare(train, "jsonl", text=columns, **options)
    examples = labelled.read_examples(out, "train")
    pairs = [("gamma delta", other) for other in ("alpha beta", "alpha eta", "alpha eta zeta")]
    expected = [token for pair in pairs for token in tokenizer.sequence(*map(tokenizer.encode, pair))]
    assert examples.tokens.tolist() == expected and examples.targets.tolist() == [0, 1, 1]
    assert (problem.labels, problem.metrics[0], problem.about["unlabelled"]) == (["0", "1"], "f1", ["test"])


# COPA's lines, SWAG's, and HellaSwag's, whose choices are a list
CHOICES = {
    "COPA": ("jsonl", "premise+question choice1 choice2", [
        {"premise": "alpha", "choice1": "beta", "choice2": "eta zeta", "question": "cause", "label": 1, "idx": 0},
    ], [["alpha cause", "beta"], ["alpha cause", "eta zeta"]]),
    "SWAG": ("csv", "sent1 sent2+ending0 sent2+ending1 sent2+ending2 sent2+ending3", [
        {"": 0, "video-id": "anetv_x", "fold-ind": 3416, "startphrase": "alpha, beta gamma", "sent1": "alpha, beta",
         "sent2": "gamma", "gold-source": "gold", **{f"ending{place}": "delta" for place in range(4)}, "label": 1},
    ], [["alpha, beta", "gamma delta"]] * 4),
    "HellaSwag": ("jsonl", "ctx endings.0 endings.1 endings.2 endings.3", [
        {"ind": 4, "ctx_a": "alpha", "ctx": "alpha", "endings": ["beta", "eta", "zeta", "x"], "label": "1"},
    ], [["alpha", ending] for ending in ("beta", "eta", "zeta", "x")]),
}


@pytest.mark.parametrize("layout", CHOICES)
def test_choices_are_pairs_with_the_first_text(prepare, tokenizer, layout):
    suffix, columns, rows, pairs = CHOICES[layout]
    if suffix == "csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        train = stream.getvalue()
    else:
        train = "".join(json.dumps(row) + "\n" for row in rows)
    problem, out = prepare(train, suffix, text=columns, kind="choice", others={"valid": train})
    examples = labelled.read_examples(out, "train")
    sequences = [tokenizer.sequence(*map(tokenizer.encode, pair)) for pair in pairs]
    assert examples.lengths.tolist() == [list(map(len, sequences))] and examples.targets.tolist() == [1]
    assert examples.tokens.tolist() == [token for sequence in sequences for token in sequence]
    assert problem.labels == [str(place) for place in range(len(pairs))] and problem.metrics == ["accuracy"]
    KINDS["choice"].write_predictions(out / "own.tsv", out, problem, "valid", np.eye(len(pairs))[[1]])
    assert (out / "own.tsv").read_text() == "index\tprediction\n0\t1\n"
    (out / "problem.json").unlink()
    with pytest.raises(ValueError, match=f"label '{len(pairs)}' is none of 0, 1"):
        wrong = train.replace(",1\r", ",4\r").replace('"1"', '"4"').replace('"label": 1', '"label": 2')
        prepare(wrong, suffix, text=columns, kind="choice", others={"valid": train})


def test_columns_with_a_plus_between_are_one_text(prepare, tokenizer):
    """WiC's word and sentence; a column may have a plus in its name, too."""
    rows = '{"word": "alpha", "sentence1": "beta eta", "a+b": "zeta", "label": %s}\n'
    train = rows % "true" + rows % "false"
    problem, out = prepare(train, "jsonl", text="word+sentence1 a+b", others={"valid": train})
    expected = tokenizer.sequence(tokenizer.encode("alpha beta eta"), tokenizer.encode("zeta"))
    assert labelled.read_examples(out, "train").tokens.tolist() == 2 * expected
    assert problem.labels == ["false", "true"] and labelled.read_examples(out, "train").targets.tolist() == [1, 0]
    with pytest.raises(ValueError, match="there is no column 'c', needed are word, c, a\\+b, label"):
        tables.read(out.parent / "train.jsonl", ["word+c", "a+b"], "label")


TRAIN = "text\tlabel\nalpha\t0\nbeta\t1\n"


@pytest.mark.parametrize("train, valid, options, message", [
    ("text\tlabel\nalpha\t0\nbeta\n", TRAIN, {}, "train.tsv, line 3: 1 fields, but 2 columns"),
    (TRAIN, "text\tlabel\nalpha\t2\n", {}, "valid.tsv, line 2: label '2' is none of 0, 1"),
    ("text\tlabel\nalpha\t0\nbeta\t\n", TRAIN, {}, "train.tsv, line 3: there is no label"),
    (TRAIN.replace("1", "0"), TRAIN, {}, "train.tsv: all labels are '0': there is nothing to learn"),
    (TRAIN.replace("1", "0"), TRAIN, {"kind": "regression"}, "train.tsv: all labels are 0: there is nothing to learn"),
    (TRAIN.replace("1", "nan"), TRAIN, {"kind": "regression"}, "line 3: label 'nan' is no number finite"),
    (TRAIN, TRAIN, {"label": "class"}, "line 2: there is no column 'class', needed are text, class; .*text, label"),
    (TRAIN, TRAIN, {"first_metric": "pearson"}, "--metric pearson does not measure these labels: choose from acc"),
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
