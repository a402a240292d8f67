"""Labelled data: what is written is read, and batches on literal numbers."""

import numpy as np
import pytest
import torch

from amos_fairseq.finetune import labelled
from amos_fairseq.finetune.labelled import Collater, Examples, Problem, read_examples, read_problem
from amos_fairseq.user_errors import Damaged

PAD = 1
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
    with pytest.raises(ValueError, match="problem.json.*: delete .* and give the same command again"):
        read_problem(tmp_path)


def test_damaged_examples_are_told_with_the_remedy(tmp_path):
    labelled.write(tmp_path / "toy", PROBLEM, {"train": EXAMPLES})
    path = tmp_path / "toy/train.npz"
    for content in (b"", b"PK", path.read_bytes()[:-40], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(Damaged, match="train.npz is damaged .*: delete .*toy and give the same command again"):
            read_examples(tmp_path / "toy", "train")


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


def test_targets_of_tokens_are_padded_with_what_is_ignored():
    batch = Collater(EXAMPLES._replace(targets=np.array([-100, 3, -100, -100, -100, -100, 0, 1, 2, -100])), PAD)([0, 2])
    assert batch.targets.tolist() == [[-100, 3, -100, -100, -100], [-100, 0, 1, 2, -100]]
    assert batch.targets.dtype == torch.int64
