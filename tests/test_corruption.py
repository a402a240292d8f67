import math

import pytest
import torch

from amos_fairseq.corruption import check_negatives, corrupt, sample_candidates
from amos_fairseq.ops import Noise

ORIGINAL = torch.tensor([[5, 6, 7, 8], [9, 5, 6, 7]])
MASKED = torch.tensor([[False, True, True, False], [False, False, False, True]])


def among(size, *tokens):
    """(V,) bool, True at `tokens`."""
    return torch.isin(torch.arange(size), torch.tensor(tokens))


def test_draws_fill_the_selected_positions_in_row_major_order():
    corruption = corrupt(ORIGINAL, MASKED, torch.tensor([11, 12, 13]))
    assert corruption.corrupted_tokens.tolist() == [[5, 11, 12, 8], [9, 5, 6, 13]]
    assert corruption.replaced_positions.tolist() == MASKED.tolist()


def test_a_draw_equal_to_the_original_is_not_replaced():
    corruption = corrupt(ORIGINAL, MASKED, torch.tensor([6, 12, 7]))
    assert corruption.replaced_positions.tolist() == [[False, False, True, False], [False] * 4]


def test_the_original_is_left_as_it_was():
    before = ORIGINAL.clone()
    corrupt(ORIGINAL, MASKED, torch.tensor([11, 12, 13]))
    assert torch.equal(ORIGINAL, before)


def test_without_selected_positions_nothing_changes():
    corruption = corrupt(ORIGINAL, torch.zeros_like(MASKED), torch.empty(0, dtype=torch.long))
    assert torch.equal(corruption.corrupted_tokens, ORIGINAL) and not corruption.replaced_positions.any()


def noise_of(rows):
    return Noise(11, torch.stack([torch.arange(rows), torch.zeros(rows, dtype=torch.long)], dim=1))


def test_candidates_are_the_original_first_and_distinct_others():
    torch.manual_seed(0)
    original, excluded = torch.randint(3, 12, (2000,)), among(12, 0, 2)
    logits = 3 * torch.randn(2000, 12)
    logits[:, 2] += 50.0
    candidates = sample_candidates(logits.half(), torch.zeros(12), original, 5, noise_of(2000), excluded)
    assert candidates.shape == (2000, 6) and torch.equal(candidates[:, 0], original)
    assert (candidates.sort(dim=-1).values.diff(dim=-1) > 0).all()
    assert not excluded[candidates].any()


@pytest.mark.parametrize("excluded, expected", [(None, [1, 2, 3, 4]), (among(5, 3), [1, 2, 4])])
def test_as_many_candidates_as_the_vocabulary_allows_are_all_others(excluded, expected):
    candidates = sample_candidates(
        torch.randn(7, 5), torch.zeros(5), torch.zeros(7, dtype=torch.long), len(expected), noise_of(7), excluded
    )
    assert candidates[:, 1:].sort(dim=-1).values.tolist() == [expected] * 7


def without_replacement(probabilities, draws):
    """{(a, b, ..): probability} of ordered draws: p_a, p_a p_b / (1 - p_a), .."""
    exact = {(): 1.0}
    for _ in range(draws):
        exact = {
            (*drawn, token): chance * p / (1 - sum(probabilities[t] for t in drawn))
            for drawn, chance in exact.items()
            for token, p in probabilities.items()
            if token not in drawn
        }
    return exact


@pytest.mark.parametrize("draws, bound", [(1, 16.27), (2, 31.26), (3, 49.73)])  # 99.9 % at 3, 11 and 23 degrees
def test_candidates_have_the_probabilities_of_draws_without_replacement(draws, bound):
    logits, rows = torch.tensor([2.0, 1.0, 0.5, -0.5, 3.0]), 100_000
    others = {token: math.exp(logits[token]) for token in (0, 1, 2, 3)}  # 4 is the original
    exact = without_replacement({token: p / sum(others.values()) for token, p in others.items()}, draws)
    zeros, original = torch.zeros(rows, 5), torch.full((rows,), 4)
    drawn = sample_candidates(zeros, logits, original, draws, noise_of(rows))[:, 1:]
    kinds, found = drawn.unique(dim=0, return_counts=True)
    counts = dict(zip(map(tuple, kinds.tolist()), found.tolist()))
    assert counts.keys() == exact.keys()
    assert sum((counts[kind] - rows * p) ** 2 / (rows * p) for kind, p in exact.items()) < bound


def test_without_noise_the_candidates_are_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, 5.0]])
    assert sample_candidates(logits, torch.zeros(5), torch.tensor([3]), 3, None, among(5, 4)).tolist() == [[3, 1, 2, 0]]


def test_candidates_carry_no_gradient_and_no_position_is_no_candidate():
    logits = torch.randn(2, 6, requires_grad=True)
    before = logits.detach().clone()
    bias = torch.zeros(6, requires_grad=True)
    assert not sample_candidates(logits, bias, torch.tensor([1, 2]), 2, noise_of(2)).requires_grad
    assert torch.equal(logits, before)
    none = torch.empty(0, dtype=torch.long)
    assert sample_candidates(torch.empty(0, 6), bias, none, 2, noise_of(0)).shape == (0, 3)


@pytest.mark.parametrize("negatives", [0, 3])
def test_more_candidates_than_the_vocabulary_allows_are_refused_with_both_numbers(negatives):
    with pytest.raises(ValueError, match=f"num_negatives is {negatives}, but the vocabulary allows 1 to 2"):
        check_negatives(negatives, vocabulary_size=5, num_excluded=2)


@pytest.mark.parametrize("negatives", [1, 2])
def test_as_many_candidates_as_the_vocabulary_allows_are_not_refused(negatives):
    check_negatives(negatives, vocabulary_size=5, num_excluded=2)
