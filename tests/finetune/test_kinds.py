"""Kinds of problems: what each refuses, and that a new one is a class and its line in the table: of tokens, below."""

import hashlib

import numpy as np
import pytest
from torch import nn
from torch.nn import functional as F

from amos_fairseq.cli import main as command_line
from amos_fairseq.finetune import labelled
from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.kinds import KINDS, kind_of
from amos_fairseq.finetune.kinds.base import Kind
from amos_fairseq.finetune.labelled import IGNORED, Examples, Problem
from amos_fairseq.finetune.metrics import OF_CLASSES
from amos_fairseq.finetune.model import load_finetuned
from amos_fairseq.finetune.presets import Setting
from amos_fairseq.finetune.results import Result, format_table

MASK = 9
EXAMPLES = Examples(
    tokens=np.array([0, 5, 2, 0, 2, 0, 6, 7, 9, 2], np.int32),
    lengths=np.array([3, 2, 5]),
    targets=np.array([1, 0, 1]),
    candidates=np.array([1, 0, 0, 1, 0, 1, 1, 1, 0, 0], bool),
)


def check(problem, examples, max_tokens=5):
    kind_of(problem.kind).check(problem, examples, "toy", 10, MASK, max_tokens)


def spans(*targets):
    return dict(targets=np.array(targets))


REFUSED = {  # what: (kind, changes, what the line must say)
    "too long": ("classification", {}, "example 2 of toy has 5 tokens, more than the encoder's 4 positions: "),
    "no targets": ("classification", dict(targets=None), "toy has no targets for its 3 examples: it can be predicted"),
    "lengths of others": ("classification", dict(lengths=np.array([3, 3, 5])), "toy is empty or damaged"),
    "empty": ("regression", dict(lengths=np.array([], int), tokens=np.array([], int)), "toy is empty or damaged"),
    "label beyond": ("classification", dict(targets=np.array([0, 2, 1])), "example 1 of toy has label 2, which is"),
    "label below": ("prompt", dict(targets=np.array([0, 0, -1])), "example 2 of toy has label -1, which is"),
    "no set": ("multi_label", dict(targets=np.array([[0, 1], [1, 1], [0, 2]])), "example 2 of toy has targets that"),
    "sets of others": ("multi_label", dict(targets=np.array([[0], [1], [0]])), "example 0 of toy has targets that"),
    "no number": ("regression", dict(targets=np.array([0.0, np.nan, 1.0])), "example 1 of toy has target nan"),
    "no mask": ("prompt", {}, "example 0 of toy has not one <mask>, but several or none"),
    "id beyond": ("regression", dict(tokens=np.array([0, 5, 2, 0, 99, 0, 6, 7, 9, 2])), "example 1 of toy has ids"),
    "span backwards": ("span", spans([0, 0], [0, 0], [2, 1]), r"example 2 of toy has span \[2 1\], which is none of"),
    "span beyond": ("span", spans([0, 3], [0, 0], [1, 2]), r"example 0 of toy has span \[0 3\], which is none of"),
    "tag beyond": (
        "token", dict(targets=np.array([-100, 1, -100, -100, -100, -100, 0, 2, 1, -100])),
        "example 2 of toy has a token with none of the 2 labels",
    ),
    "targets of sequences": ("token", {}, "toy has no targets for its 3 examples"),
    "span elsewhere": ("span", spans([0, 0], [0, 0], [1, 3]), r"example 2 of toy has span \[1 3\], which is outside"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_examples_that_cannot_be_trained_on_are_named(what):
    kind, changes, told = REFUSED[what]
    problem = Problem("toy", kind, ["accuracy"], "", labels=["no", "yes"], label_tokens=[5, 6])
    with pytest.raises(ValueError, match=told):
        check(problem, EXAMPLES._replace(**changes), max_tokens=4 if what == "too long" else 5)


def test_good_examples_pass():
    check(Problem("toy", "classification", ["accuracy"], "", labels=["no", "yes"]), EXAMPLES)
    prompt = Problem("toy", "prompt", ["accuracy"], "", labels=["no", "yes"], label_tokens=[5, 6])
    check(Problem("toy", "multi_label", [], "", ["no", "yes"]), EXAMPLES._replace(targets=np.array([[0, 1]] * 3)))
    one_mask = EXAMPLES._replace(tokens=np.array([0, 9, 2, 9, 2, 0, 6, 7, 9, 2]))
    check(prompt, one_mask)
    span = Problem("toy", "span", ["f1"], "")
    check(span, EXAMPLES._replace(**spans([0, 0], [0, 0], [1, 2])))


def test_an_unknown_kind_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=f"kind 'guess' is none of classification, .*, {list(KINDS)[-1]}$"):
        kind_of("guess")


# A new kind: one of the labels for each token but <s> and </s>, which transformers shall not have


class MarkHead(nn.Module):
    """(B, T, C) -> (B, T, L)"""

    def __init__(self, dim, labels):
        super().__init__()
        self.out_proj = nn.Linear(dim, labels)

    def read_at(self, tokens):
        """All positions."""

    def forward(self, hidden):
        return self.out_proj(hidden)


class Marks(Kind):
    name = "mark"
    metrics = OF_CLASSES
    per_token = True

    def new_head(self, problem, encoder, method, mask_token, dropout):
        return MarkHead(encoder.config.dim, len(problem.labels))

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs.float().transpose(1, 2), batch.targets, ignore_index=IGNORED, reduction="sum")

    def check_targets(self, problem, examples, mask_token, refuse):
        wrong = (examples.targets != IGNORED) & ~np.isin(examples.targets, range(len(problem.labels)))
        refuse(examples.number_in_each(wrong) > 0, f"has a token with none of the {len(problem.labels)} labels")

    def judged(self, folder, problem, split, outputs):
        predicted, targets = super().judged(folder, problem, split, outputs)
        return predicted[targets != IGNORED], targets[targets != IGNORED]


def train():
    """fairseq-train that knows this kind."""
    import fairseq_cli.train  # noqa: I001 (the first, since it sets up logging)
    import amos_fairseq.models.finetuned  # noqa: F401 (--user-dir does not, of a package that is there already)
    import amos_fairseq.tasks  # noqa: F401

    KINDS["mark"] = Marks()
    fairseq_cli.train.cli_main()


@pytest.fixture
def tokens_folder(tokenizer, tmp_path):
    """A labelled folder: whether each word is alpha, beta or another."""
    words = {word: tokenizer.encode(word)[0] for word in ("alpha", "beta", "gamma", "delta")}
    ids, draw, splits = list(words.values()), np.random.default_rng(1), {}
    for split, size in (("train", 40), ("valid", 11)):
        drawn = [draw.integers(4, size=length) for length in draw.integers(2, 8, size)]
        splits[split] = Examples(
            np.concatenate([tokenizer.sequence([ids[place] for place in places]) for places in drawn]).astype(np.int32),
            np.array([len(places) + 2 for places in drawn]),
            np.concatenate([[IGNORED, *np.minimum(places, 2), IGNORED] for places in drawn]),
        )
    sha256 = hashlib.sha256(tokenizer.model).hexdigest()
    problem = Problem("words", "mark", ["accuracy", "macro_f1"], sha256, ["alpha", "beta", "other"])
    labelled.write(tmp_path / "words", problem, splits)
    return tmp_path / "words"


def test_a_new_kind_is_trained_measured_loaded_shown_and_refused_by_export(
    tokens_folder, checkpoint, finetune, tmp_path, monkeypatch, capsys
):
    kind = Marks()
    monkeypatch.setitem(KINDS, "mark", kind)
    options = dict(function="tests.finetune.test_kinds:train", save_dir=tmp_path / "run")
    outcome = finetune(tokens_folder, checkpoint(), **options)
    finetuned = load_finetuned(tmp_path / "run")
    assert finetuned.problem == labelled.read_problem(tokens_folder)
    examples = labelled.read_examples(tokens_folder, "valid")
    outputs = predict(finetuned.network, examples)
    assert outputs.shape == (examples.lengths.sum(), 3)
    scores = kind.evaluate(tokens_folder, finetuned.problem, "valid", outputs)
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0}
    best = max(outcome.log.validation, key=lambda row: row["accuracy"])
    assert best["accuracy"] == scores["accuracy"] and best["macro_f1"] == scores["macro_f1"]

    result = Result("words", "mark", ["accuracy"], Setting(1e-2, 8, 8, 0.1), 1, {"valid": scores}, 40, 1.0)
    assert "| words | accuracy |  | 100.0 | 1 |" in format_table([result])

    pytest.importorskip("transformers")
    assert command_line.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "exported")]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert "words is a problem of mark, for which transformers has no class that is equal: use the checkpoint" in line
    assert not (tmp_path / "exported").exists()


def test_labels_of_tokens_are_checked_by_their_kind(monkeypatch):
    monkeypatch.setitem(KINDS, "mark", Marks())
    problem = Problem("toy", "mark", ["accuracy"], "", labels=["no", "yes"])
    targets = np.array([IGNORED, 1, IGNORED, IGNORED, IGNORED, IGNORED, 0, 1, 1, IGNORED])
    check(problem, EXAMPLES._replace(targets=targets))
    with pytest.raises(ValueError, match="example 2 of toy has a token with none of the 2 labels"):
        check(problem, EXAMPLES._replace(targets=np.where(targets == 0, 2, targets)))
    with pytest.raises(ValueError, match="toy has no targets for its 3 examples"):
        check(problem, EXAMPLES)
