"""Tags of words: what files hold, windows, span scores against their definition, and a tagger from file to file."""

import json
import random
import re

import numpy as np
import pytest
import torch

from amos_fairseq.cli import main
from amos_fairseq.finetune import labelled, metrics, results, tagged
from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.kinds import KINDS
from amos_fairseq.finetune.labelled import IGNORED
from amos_fairseq.finetune.model import load_finetuned

CONLL = """\
-DOCSTART- -X- -X- O

alpha NNP B-NP B-PER
beta VBZ B-VP O

gamma NN B-NP O
delta NN I-NP B-LOC
eta NN I-NP I-LOC
"""
FIRST, SECOND = ("alpha", "beta"), ("gamma", "delta", "eta")


@pytest.fixture
def prepare(tmp_path, tokenizer):
    """prepare({"train.conll": text, ..}, **options): problem and folder."""

    def prepare(contents, max_length=32, **options):
        files = {}
        for name, text in contents.items():
            files[name.partition(".")[0]] = tmp_path / name
            (tmp_path / name).write_text(text)
        return tagged.prepare(tmp_path / "out", "own", files, tokenizer, max_length, **options), tmp_path / "out"

    return prepare


# Files


def read(tmp_path, name, text, words=None, tags=None):
    path = tmp_path / name
    path.write_text(text)
    table = tagged.read(path, *tagged.columns_of(path, words, tags))
    return list(zip(table.texts, table.labels))


@pytest.mark.parametrize("tags, expected", [
    (None, [["B-PER", "O"], ["O", "B-LOC", "I-LOC"]]), ("-1", [["B-PER", "O"], ["O", "B-LOC", "I-LOC"]]),
    ("2", [["NNP", "VBZ"], ["NN", "NN", "NN"]]), ("-2", [["B-NP", "B-VP"], ["B-NP", "I-NP", "I-NP"]]),
])
def test_any_column_of_conll_is_read_and_docstart_is_left_out(tmp_path, tags, expected):
    for text in (CONLL, CONLL.replace(" ", "\t"), CONLL.replace(" ", "  ").replace("\n", "\r\n"), CONLL.rstrip()):
        assert read(tmp_path, "eng.train", text, tags=tags) == [(FIRST, expected[0]), (SECOND, expected[1])]


def test_conllu_is_read_without_comments_words_in_one_and_empty_words(tmp_path):
    rows = ["# text = alpha beta", "1-2\talphabeta\t_\t_", "1\talpha\tx\tNOUN", "2\tbeta\ty\tVERB", "2.1\teta\t_\tADJ"]
    assert read(tmp_path, "a.conllu", "\n".join(rows)) == [(FIRST, ["NOUN", "VERB"])]


def test_lists_of_json_are_read_and_tags_may_be_numbers(tmp_path):
    lines = [{"tokens": ["New York", "is"], "tags": ["B-LOC", "O"], "ner_tags": [5, 0]}, {"tokens": [], "tags": []}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert read(tmp_path, "a.jsonl", text) == [(("New York", "is"), ["B-LOC", "O"]), ((), [])]
    assert read(tmp_path, "b.jsonl", text.splitlines()[0], None, "ner_tags") == [(("New York", "is"), ["5", "0"])]


def test_a_word_may_be_a_hash_or_hold_a_space_that_is_none_of_ascii(tmp_path):
    assert read(tmp_path, "a.conll", "# O\n10\u00a0000 B-NUM\n") == [(("#", "10\u00a0000"), ["O", "B-NUM"])]


@pytest.mark.parametrize("contents, options, message", [
    ({"train.conll": "a O\nb\n"}, {}, "train.conll, line 2: 1 columns, but 2 before"),
    ({"train.conll": CONLL}, {"tags": "5"}, "train.conll, line 3: there is no column '5', needed are 1, 5"),
    ({"train.conll": "a O\nb O\n"}, {}, "train.conll: all tags are O: there is nothing to learn"),
    ({"train.conll": "\n\n"}, {"tags": "2"}, "train.conll holds no words"),
    ({"train.conll": CONLL}, {}, "train.conll has 2 rows, too few to set some aside: give --valid"),
    ({"train.jsonl": '{"tokens": ["a"], "tags": ["O", "O"]}\n'}, {}, "train.jsonl, line 1: 2 tags for 1 words"),
    ({"train.jsonl": '{"tokens": ["a"], "tags": [""]}\n'}, {}, "train.jsonl, line 1: 0 tags for 1 words"),
    ({"train.jsonl": '{"tokens": [1], "tags": ["O"]}\n'}, {}, "train.jsonl, line 1: tokens has what is no text"),
    ({"train.jsonl": '{"tokens": "a b", "tags": ["O"]}\n'}, {}, 'train.jsonl, line 1: tokens is "a b", not a list'),
    ({"train.conll": CONLL, "valid.conll": CONLL}, {"first_metric": "f1"}, "--metric f1 does not measure"),
    ({"train.conll": CONLL, "valid.conll": CONLL}, {"tags": "2", "first_metric": "span_f1"},
     "--metric span_f1 does not measure these labels: choose from accuracy, macro_f1"),
])
def test_mistakes_are_told_by_file_and_line_and_leave_nothing(contents, options, message, prepare, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        prepare(contents, **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


# Examples


def test_a_tag_is_asked_of_the_first_token_of_its_word(prepare, tokenizer):
    problem, out = prepare({"train.conll": CONLL.replace("eta NN", "alphabet NN"), "valid.conll": CONLL})
    assert (problem.kind, problem.labels) == ("token", ["B-LOC", "B-PER", "I-LOC", "O"])
    assert problem.metrics == ["span_f1", "span_precision", "span_recall", "accuracy"]
    examples, inside = labelled.read_examples(out, "train"), len(tokenizer.encode("alphabet"))
    assert inside > 1 and examples.lengths.tolist() == [4, 4 + inside]
    words = [[0], tokenizer.encode("gamma"), tokenizer.encode("delta"), tokenizer.encode("alphabet"), [2]]
    assert examples.tokens[4:].tolist() == [token for word in words for token in word]
    others = [IGNORED] * (inside - 1)
    assert examples.targets.tolist() == [IGNORED, 1, 3, IGNORED, IGNORED, 3, 0, 2, *others, IGNORED]
    assert (examples.candidates == (examples.targets != IGNORED)).all()
    assert json.loads((out / "train.words.json").read_text())[0] == list(FIRST)


def test_classes_of_words_are_measured_by_accuracy(prepare):
    problem, _ = prepare({"train.conll": CONLL, "valid.conll": CONLL}, tags="2")
    assert problem.metrics == ["accuracy", "macro_f1"] and problem.labels == ["NN", "NNP", "VBZ"]


def test_tags_that_only_other_files_have_are_labels_too_and_told(prepare):
    valid, test = CONLL.replace("PER", "ORG"), CONLL.replace("PER", "X")
    problem, _ = prepare({"train.conll": CONLL, "valid.conll": valid, "test.conll": test})
    assert problem.labels == ["B-LOC", "B-ORG", "B-PER", "B-X", "I-LOC", "O"]
    assert problem.about["notes"] == ["tags that train lacks: B-ORG, B-X"]


@pytest.mark.parametrize("test", ["alpha\nbeta\n", "alpha NNP B-NP\nbeta VBZ B-VP\n"])
def test_a_test_file_with_fewer_columns_is_to_predict(prepare, tmp_path, test):
    problem, out = prepare({"train.conll": CONLL, "valid.conll": CONLL, "test.conll": test})
    examples = labelled.read_examples(out, "test")
    assert examples.targets is None and problem.about["unlabelled"] == ["test"] and len(problem.labels) == 4
    outputs = np.zeros((4, 4))
    outputs[1, 1] = outputs[2, 3] = 1.0
    KINDS["token"].write_predictions(tmp_path / "p/own.conll", out, problem, "test", outputs)
    assert (tmp_path / "p/own.conll").read_text() == "alpha B-PER\nbeta O\n\n"


def test_no_word_of_a_long_sentence_is_lost_and_each_is_asked_where_it_has_most_context(prepare, tokenizer):
    draw = random.Random(1)
    sentences = [
        [(draw.choice(["alpha", "beta", "alphabets", "\u200b", "x"]), draw.choice("ab")) for _ in range(length)]
        for length in (3, 60, 14, 15, 137)
    ]
    text = "\n\n".join("\n".join(" ".join(row) for row in sentence) for sentence in sentences)
    problem, out = prepare({"train.conll": text, "valid.conll": CONLL}, max_length=16, words="1", tags="2")
    examples = labelled.read_examples(out, "train")
    assert examples.lengths.max() == 16 and len(examples.lengths) > 25
    assert problem.about["notes"][1:] == [f"longer sentences are read in windows: train {len(examples.lengths)} in all"]
    asked = examples.targets[examples.candidates]
    assert [problem.labels[place] for place in asked] == [tag for sentence in sentences for _, tag in sentence]
    firsts = examples.tokens[examples.candidates]
    expected = [tagged.tokens_of(word, place > 0, tokenizer)[0] for s in sentences for place, (word, _) in enumerate(s)]
    assert firsts.tolist() == expected
    # Within the sentence, an asked token has 3 tokens and more on either side in its window of 14.
    starts, window = examples.starts, np.repeat(np.arange(len(examples.lengths)), examples.lengths)
    (places,) = np.nonzero(examples.candidates)
    before = places - starts[window[places]] - 1
    behind = examples.lengths[window[places]] - 2 - before - 1
    of_longest = places > len(examples.tokens) - 137
    assert np.minimum(before, behind)[of_longest][4:-14].min() >= 3


def test_a_word_that_is_nothing_to_the_vocabulary_still_has_a_token(tokenizer):
    assert tokenizer.encode("\u00ad") == [] or tokenizer.encode("") == []
    assert tagged.tokens_of("", False, tokenizer) == [tokenizer.unk]


# Scores


@pytest.mark.parametrize("tags, expected", [
    ("I-X I-X O I-Y", [(0, 1, "X"), (3, 3, "Y")]),  # IOB1
    ("I-X B-X I-X", [(0, 0, "X"), (1, 2, "X")]),
    ("B-X I-X B-X O", [(0, 1, "X"), (2, 2, "X")]),  # IOB2
    ("B-X I-X E-X S-X B-X E-X", [(0, 2, "X"), (3, 3, "X"), (4, 5, "X")]),  # BIOES
    ("B-X I-X L-X U-X B-X L-X", [(0, 2, "X"), (3, 3, "X"), (4, 5, "X")]),  # BILOU
    ("B-X I-Y E-X O E-X I-X", [(0, 0, "X"), (1, 1, "Y"), (2, 2, "X"), (4, 4, "X"), (5, 5, "X")]),  # of no scheme
    ("B-a-b I-a-b I-a", [(0, 1, "a-b"), (2, 2, "a")]),
    ("O O", []),
])
def test_spans_of_every_scheme(tags, expected):
    assert metrics.spans([tags.split()]) == {(0, *span) for span in expected}


def test_spans_end_with_their_sentence():
    assert metrics.spans([["B-X"], ["I-X"]]) == {(0, 0, 0, "X"), (1, 0, 0, "X")}


def test_scores_of_literal_tags():
    targets = [["B-X", "I-X", "O", "B-Y"], ["O", "B-X"]]
    predicted = [["B-X", "I-X", "B-Y", "I-Y"], ["O", "B-Y"]]  # 1 of 3 spans is right; 1 of 3 is found
    compared = metrics.compared_tags(predicted, targets)
    assert compared["tags"].tolist() == ["B-X I-X B-Y I-Y", "O B-Y"]
    scores = {name: function(compared, None) for name, function in metrics.OF_TAGS.items()}
    # of words B-X is right 1 of 1 and 2, B-Y 0 of 2 and 1, I-X 1 of 1 and 1, I-Y 0 of 1 and 0, O 1 of 1 and 2
    assert scores == pytest.approx({
        "span_f1": 2 / 6, "span_precision": 1 / 3, "span_recall": 1 / 3, "accuracy": 3 / 6,
        "macro_f1": (2 / 3 + 0 + 1 + 0 + 2 / 3) / 5,
    })
    assert metrics.span_recall(compared[:1], None) == 0.5 and metrics.span_precision(compared[1:], None) == 0.0
    nothing = metrics.compared_tags([["O"], ["B-X"]], [["O"], ["O"]])
    assert metrics.span_f1(nothing[:1], None) == metrics.span_f1(nothing, None) == 0.0


PREFIXES = ["B-", "I-", "E-", "S-"]
KINDS_OF_TAGS = {"IOB": [f"{prefix}{type_}" for prefix in ("B-", "I-") for type_ in "XY"] + ["O"]}
KINDS_OF_TAGS["BIOES"] = [f"{prefix}{type_}" for prefix in PREFIXES for type_ in ("X", "Y", "a-b")] + ["O", "O"]


def drawn(tags, seed):
    draw = random.Random(seed)
    return [[draw.choice(tags) for _ in range(draw.randrange(12))] for _ in range(400)]


@pytest.mark.parametrize("kind", KINDS_OF_TAGS)
def test_spans_of_random_tags_are_the_matches_of_their_pattern(kind):
    """Of one type, a character a word: B or I, any more I, then I, E or L; or one of these alone."""
    sentences, expected = drawn(KINDS_OF_TAGS[kind], 1), set()
    for number, tags in enumerate(sentences):
        for type_ in {tag[2:] for tag in tags} - {""}:
            prefixes = "".join(tag[0] if tag[2:] == type_ else "." for tag in tags)
            for match in re.finditer("[BI]I*[EL]?|[ELSU]", prefixes):
                expected.add((number, match.start(), match.end() - 1, type_))
    assert metrics.spans(sentences) == expected


SEQEVAL = {  # 1.2.2's f1_score, precision_score and recall_score of `predictions(kind, 3)`
    "IOB": (0.7902240325865579, 0.7907608695652174, 0.7896879240162822),
    "BIOES": (0.8125530110262934, 0.811864406779661, 0.8132427843803056),
}


def predictions(kind, seed):
    """Random tags, of which a fifth is drawn anew, and as they were."""
    targets, draw = drawn(KINDS_OF_TAGS[kind], 1), random.Random(seed)
    change = [[draw.choice(KINDS_OF_TAGS[kind]) if draw.random() < 0.2 else t for t in tags] for tags in targets]
    return change, targets


def scores_of(predicted, targets):
    compared = metrics.compared_tags(predicted, targets)
    return tuple(metrics.OF_TAGS[f"span_{name}"](compared, None) for name in ("f1", "precision", "recall"))


@pytest.mark.parametrize("kind", KINDS_OF_TAGS)
def test_scores_of_random_tags_are_those_that_seqeval_gave(kind):
    assert scores_of(*predictions(kind, 3)) == pytest.approx(SEQEVAL[kind], abs=1e-15)


@pytest.mark.parametrize("kind", KINDS_OF_TAGS)
def test_scores_of_random_tags_are_those_of_seqeval_where_it_is_installed(kind):
    """Its source does not build with every setuptools: pip install --use-pep517 seqeval."""
    seqeval = pytest.importorskip("seqeval.metrics")
    for seed in range(20):
        predicted, targets = predictions(kind, seed)
        functions = seqeval.f1_score, seqeval.precision_score, seqeval.recall_score
        assert scores_of(predicted, targets) == pytest.approx([score(targets, predicted) for score in functions])


# From file to file


def test_a_tagger_is_trained_measured_predicted_exported_and_loaded_by_transformers(
    checkpoint, tokenizer, tmp_path, capsys
):
    draw, words = random.Random(1), "gamma delta epsilon zeta eta theta".split()
    for split, size in (("train", 60), ("valid", 12), ("test", 3)):
        lines = []
        for _ in range(size):
            sentence = [(word, "O") for word in draw.choices(words, k=draw.randrange(2, 24))]
            sentence[draw.randrange(len(sentence))] = draw.choice([("alpha", "B-PER"), ("beta", "B-LOC")])
            lines.append("".join(f"{word} x {tag}\n" for word, tag in sentence))
        (tmp_path / f"{split}.conll").write_text("\n".join(lines))
    out, arguments = tmp_path / "out", ["--model", checkpoint(), "--out", tmp_path / "out", "--cpu", "--name", "ner"]
    for split in ("train", "valid", "test"):
        arguments += [f"--{split}", tmp_path / f"{split}.conll"]
    arguments += "--lr 0.01 --epochs 6 --batch-size 8 --seeds 1 --max-length 16 --export-predictions".split()
    assert main.main(["finetune", "tokens", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    assert "ner: 60 train, 12 valid, 3 test" in printed
    assert "ner: longer sentences are read in windows: train" in printed
    assert "| ner | span_f1 |  | 100.0/100.0 | 1 |" in (out / "results.md").read_text() and "100.0/100.0" in printed
    (result,) = results.read_all(out).values()
    perfect = dict.fromkeys(("span_f1", "span_precision", "span_recall", "accuracy"), 1.0)
    assert result.scores == {"valid": perfect, "test": perfect}
    rows = [line.split(" ") for line in (tmp_path / "test.conll").read_text().splitlines()]
    expected = "".join(f"{row[0]} {row[2]} {row[2]}\n" if len(row) > 1 else "\n" for row in rows) + "\n"
    assert (out / "predictions/ner.conll").read_text() == expected

    transformers = pytest.importorskip("transformers")
    (run,) = out.glob("runs/*/*/*/")
    assert main.main(["export", str(run), "--out", str(tmp_path / "exported")]) == 0
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    finetuned, examples = load_finetuned(run), labelled.read_examples(out / "data/ner", "test")
    ours = predict(finetuned.network, examples)
    with torch.no_grad():
        tokens = torch.from_numpy(examples.tokens[: examples.lengths[0]]).long()[None]
        theirs = model.eval()(tokens).logits[0].numpy()
    np.testing.assert_allclose(theirs, ours[: examples.lengths[0]], atol=1e-5)
    assert list(model.config.id2label.values()) == finetuned.problem.labels == ["B-LOC", "B-PER", "O"]
