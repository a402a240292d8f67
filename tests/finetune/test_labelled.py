"""Labelled data: what is written is read, batches on literal numbers, and what is refused."""

import numpy as np
import pytest
import torch

from amos_fairseq.finetune import labelled
from amos_fairseq.finetune.labelled import Collater, Examples, Problem, check, read_examples, read_problem

PAD, MASK = 1, 9
EXAMPLES = Examples(
    tokens=np.array([0, 5, 2, 0, 2, 0, 6, 7, 9, 2], np.int32),
    lengths=np.array([3, 2, 5]),
    targets=np.array([1, 0, 1]),
    candidates=np.array([1, 0, 0, 1, 0, 1, 1, 1, 0, 0], bool),
)
PROBLEM = Problem("toy", "classification", ["accuracy"], "0" * 64, labels=["no", "yes"])


def test_what_is_written_is_read(tmp_path):
    labelled.write(tmp_path / "toy", PROBLEM, {"train": EXAMPLES, "test": EXAMPLES._replace(targets=None)})
    assert read_problem(tmp_path / "toy") == PROBLEM
    for field, array in read_examples(tmp_path / "toy", "train")._asdict().items():
        assert np.array_equal(array, getattr(EXAMPLES, field))
    assert read_examples(tmp_path / "toy", "test").targets is None
    with pytest.raises(ValueError, match="holds no split 'valid'"):
        read_examples(tmp_path / "toy", "valid")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"kind": "guess"}', b'{"name": 1}'])
def test_a_damaged_problem_is_told_with_the_remedy(tmp_path, content):
    (tmp_path / "problem.json").write_bytes(content)
    with pytest.raises(ValueError, match="problem.json is damaged .*: delete .* and give the same command again"):
        read_problem(tmp_path)


def test_a_batch_is_padded_on_the_right_to_its_longest():
    batch = Collater(EXAMPLES, PAD)([1, 2])
    assert batch.tokens.tolist() == [[0, 2, 1, 1, 1], [0, 6, 7, 9, 2]] and batch.tokens.dtype == torch.int64
    assert batch.padding_mask.tolist() == [[False, False, True, True, True], [False] * 5]
    assert batch.targets.tolist() == [0, 1]
    assert batch.candidates.tolist() == [[True, False, False, False, False], [True, True, True, False, False]]


def test_a_batch_without_padding_has_no_mask():
    batch = Collater(EXAMPLES._replace(candidates=None), PAD)([0])
    assert batch.tokens.tolist() == [[0, 5, 2]] and batch.padding_mask is None and batch.candidates is None


@pytest.mark.parametrize(
    "targets, expected",
    [
        (np.array([0.1, 4.2, 3.0], np.float32), torch.float64),
        (np.array([1, 0, 2], np.int8), torch.int64),
        (np.array([[0, 1], [0, 0], [1, 2]], np.int32), torch.int64),
    ],
)
def test_targets_are_numbers_in_fp64_or_classes(targets, expected):
    batch = Collater(EXAMPLES._replace(targets=targets), PAD)([2, 0])
    assert batch.targets.dtype == expected
    np.testing.assert_array_equal(batch.targets.numpy(), targets[[2, 0]])


def spans(*targets):
    return dict(targets=np.array(targets))


REFUSED = {  # what: (kind, changes, what the line must say)
    "too long": ("classification", {}, "example 2 of toy has 5 tokens, more than the encoder's 4 positions: "),
    "no targets": ("classification", dict(targets=None), "toy has no targets for its 3 examples: it can be predicted"),
    "lengths of others": ("classification", dict(lengths=np.array([3, 3, 5])), "toy is empty or damaged"),
    "empty": ("regression", dict(lengths=np.array([], int), tokens=np.array([], int)), "toy is empty or damaged"),
    "label beyond": ("classification", dict(targets=np.array([0, 2, 1])), "example 1 of toy has label 2, which is"),
    "label below": ("prompt", dict(targets=np.array([0, 0, -1])), "example 2 of toy has label -1, which is"),
    "no number": ("regression", dict(targets=np.array([0.0, np.nan, 1.0])), "example 1 of toy has target nan"),
    "no mask": ("prompt", {}, "example 0 of toy has not one <mask>, but several or none"),
    "id beyond": ("regression", dict(tokens=np.array([0, 5, 2, 0, 99, 0, 6, 7, 9, 2])), "example 1 of toy has ids"),
    "span backwards": ("span", spans([0, 0], [0, 0], [2, 1]), r"example 2 of toy has span \[2 1\], which is none of"),
    "span beyond": ("span", spans([0, 3], [0, 0], [1, 2]), r"example 0 of toy has span \[0 3\], which is none of"),
    "span elsewhere": ("span", spans([0, 0], [0, 0], [1, 3]), r"example 2 of toy has span \[1 3\], which is outside"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_examples_that_cannot_be_trained_on_are_named(what):
    kind, changes, told = REFUSED[what]
    problem = Problem("toy", kind, ["accuracy"], "", labels=["no", "yes"], label_tokens=[5, 6])
    with pytest.raises(ValueError, match=told):
        check(problem, EXAMPLES._replace(**changes), "toy", 10, MASK, max_tokens=4 if what == "too long" else 5)


def test_good_examples_pass():
    check(PROBLEM, EXAMPLES, "toy", 10, MASK, max_tokens=5)
    prompt = Problem("toy", "prompt", ["accuracy"], "", labels=["no", "yes"], label_tokens=[5, 6])
    one_mask = EXAMPLES._replace(tokens=np.array([0, 9, 2, 9, 2, 0, 6, 7, 9, 2]))
    check(prompt, one_mask, "toy", 10, MASK, max_tokens=5)
    span = Problem("toy", "span", ["f1"], "")
    check(span, EXAMPLES._replace(**spans([0, 0], [0, 0], [1, 2])), "toy", 10, MASK, max_tokens=5)
