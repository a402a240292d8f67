import math

import pytest
import torch

from amos_fairseq.corruption import corrupt, gumbel_noise, sample_tokens

ORIGINAL = torch.tensor([[5, 6, 7, 8], [9, 5, 6, 7]])
MASKED = torch.tensor([[False, True, True, False], [False, False, False, True]])


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


def test_sampled_frequencies_are_the_softmax_of_the_logits():
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
    draws = 100_000
    torch.manual_seed(0)
    counts = torch.bincount(sample_tokens(logits.expand(draws, 5)), minlength=5).double()
    expected = logits.double().softmax(0) * draws
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 18.47  # 99.9 % of the chi-square distribution with 4 degrees of freedom


def test_excluded_tokens_are_never_drawn_however_likely():
    logits = torch.zeros(5000, 6)
    logits[:, 2] = 100.0
    torch.manual_seed(0)
    drawn = sample_tokens(logits, excluded_tokens=torch.tensor([0, 2])).unique()
    assert drawn.tolist() == [1, 3, 4, 5]


def test_given_noise_decides_the_draw():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    assert sample_tokens(logits, torch.tensor([[5.0, 0.0, 0.0]])).item() == 0
    assert sample_tokens(logits, torch.zeros(1, 3)).item() == 2


def test_half_precision_logits_are_sampled_in_fp32():
    torch.manual_seed(0)
    drawn = sample_tokens(torch.zeros(2000, 32768, dtype=torch.bfloat16)[:200])
    # uniform over 32,768 ids: mean 16,384, standard error 669; half-precision noise gives a mean near 252
    assert abs(drawn.double().mean().item() - 16384) < 4 * 669


def test_noise_has_the_moments_of_a_gumbel_variable():
    noise = gumbel_noise(100, seeds=[1, 2], counts=[500, 500])
    assert noise.dtype == torch.float32 and noise.shape == (1000, 100)
    assert noise.mean().item() == pytest.approx(0.577216, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)


def test_noise_passes_a_kolmogorov_smirnov_test():
    noise = gumbel_noise(1000, seeds=[5], counts=[100]).flatten().double().sort().values
    distribution = torch.exp(-torch.exp(-noise))
    empirical = torch.arange(1, noise.numel() + 1, dtype=torch.double) / noise.numel()
    assert (distribution - empirical).abs().max().item() < 1.95 / noise.numel() ** 0.5  # 99.9 %


def test_noise_of_a_sequence_depends_on_its_seed_alone():
    together = gumbel_noise(11, seeds=[3, 4, 5], counts=[2, 3, 1])
    assert torch.equal(together[2:5], gumbel_noise(11, seeds=[4], counts=[3]))
    swapped = gumbel_noise(11, seeds=[4, 3], counts=[3, 2])
    assert torch.equal(swapped[:3], together[2:5]) and torch.equal(swapped[3:], together[:2])


def test_noise_leaves_the_default_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    gumbel_noise(10, seeds=[1], counts=[4])
    assert torch.equal(torch.rand(3), expected)
