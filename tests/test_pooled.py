import pytest
import torch

from amos_fairseq import pooled


def pairs(logits, replaced):
    """AUC by a direct count over all pairs."""
    originals, replacements = logits[~replaced][:, None], logits[replaced][None, :]
    return float(((originals > replacements).double() + (originals == replacements).double() / 2).mean())


def test_auc_counts_rightly_ranked_pairs_and_half_of_ties():
    # originals 2 and 1, replaced 1 and -1: pairs right (2,1) (2,-1) (1,-1), tied (1,1)
    found = pooled.ranking(torch.tensor([2.0, 1.0, -1.0, 1.0]), torch.tensor([False, True, True, False]))
    assert found.value == 3.5 / 4


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
def test_auc_is_that_of_all_logits_however_batches_share_them(spread):
    generator = torch.Generator().manual_seed(0)
    replaced = torch.rand(3000, generator=generator) < 0.15
    logits = 1.9 + spread * (torch.randn(3000, generator=generator) - replaced.float())
    whole = pooled.ranking(logits, replaced)
    assert whole.value == pytest.approx(pairs(logits, replaced), abs=1e-3)
    parts = [pooled.ranking(logits[part], replaced[part]) for part in torch.randperm(3000).split([1, 999, 2000])]
    assert torch.equal(sum(part.sums for part in parts), whole.sums)


def test_auc_of_logits_that_tie_in_part():
    generator = torch.Generator().manual_seed(0)
    logits, replaced = torch.randn(500, generator=generator).round(), torch.rand(500, generator=generator) < 0.3
    assert pooled.ranking(logits, replaced).value == pytest.approx(pairs(logits, replaced), abs=1e-12)


def test_logits_beyond_the_bins_are_ranked_above_and_below_all():
    assert pooled.ranking(torch.tensor([1e9, 0.0, -1e9]), torch.tensor([False, False, True])).value == 1.0


def test_what_has_no_pair_has_no_value():
    assert pooled.ranking(torch.ones(2), torch.tensor([False, False])).value is None
    assert pooled.similarity(torch.ones(1, 2)).value is None
    assert pooled.spread(torch.ones(1, 2)).value is None


def test_cosine_is_the_mean_over_pairs_of_different_words():
    hidden = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])  # cosines 0, 1 / sqrt 2, 1 / sqrt 2
    found = pooled.similarity(hidden)
    assert found.value == pytest.approx(2 / 3 * 0.5**0.5)
    parts = pooled.similarity(hidden[:1]).sums + pooled.similarity(hidden[1:]).sums
    assert pooled.mean_cosine(parts) == pytest.approx(found.value)


def test_effective_rank_is_exp_of_the_entropy_of_the_covariances_eigenvalues():
    hidden = 5 + torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # variances 9 : 1
    found = pooled.spread(hidden)
    assert found.value == pytest.approx(1.384145, abs=1e-6)  # exp(-.9 ln .9 - .1 ln .1)
    parts = pooled.spread(hidden[:1]).sums + pooled.spread(hidden[1:]).sums
    assert pooled.effective_rank(parts) == pytest.approx(found.value)


def test_effective_rank_is_from_one_to_the_width():
    assert pooled.spread(torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])).value == pytest.approx(1)
    assert pooled.spread(torch.ones(3, 2)).value == 1.0
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert pooled.spread(square).value == pytest.approx(2)
