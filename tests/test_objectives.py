import math

import pytest
import torch
import torch.nn.functional as F

from amos_fairseq.objectives import (
    LossTerm,
    candidate_logits,
    clm_loss,
    corrected_tokens,
    critic_logits,
    critic_loss,
    level_targets,
    mlm_loss,
    mws_loss,
    pseudo_log_likelihood,
    quality_levels,
    rtd_loss,
    scl_loss,
    tqr_loss,
)
from amos_fairseq.ops import masked_lm, read_linear

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def output_layer(logits):
    """hidden, table, bias whose logits are the given ones, exactly."""
    size = logits.size(-1)
    return logits, torch.eye(size, dtype=logits.dtype), torch.zeros(size, dtype=logits.dtype)


def read(logits, original, **draw):
    return masked_lm(*output_layer(logits), original, **draw)


def test_mlm_loss_is_the_negative_log_softmax_at_the_original_token():
    # log(e^2 + e + e^.5 + e^-1 + e^-3) = 2.499280
    term = mlm_loss(read(LOGITS.expand(2, 5), torch.tensor([0, 3])))
    assert term.total.item() == pytest.approx((2.499280 - 2) + (2.499280 + 1), abs=1e-5)
    assert term.count == 2
    assert term.mean.item() == pytest.approx(1.999280, abs=1e-5)
    assert (term.weight, term.over) == (1.0, "selected")


def test_mlm_loss_of_several_heads_is_their_sum_over_one_count():
    heads = torch.stack([LOGITS, LOGITS.flip(0), torch.zeros(5)]).expand(2, 3, 5)
    term = mlm_loss(read(heads, torch.tensor([0, 3])), weight=2.0)
    # of tokens 0 and 3, as above; of tokens 4 and 1, whose logits these are from the back; log 5 of either
    per_row = (2.499280 - 2) + (2.499280 + 3) + 1.609438, (2.499280 + 1) + (2.499280 - 1) + 1.609438
    assert term.total.item() == pytest.approx(sum(per_row), abs=1e-5)
    assert (term.count, term.weight) == (2, 2.0)


def test_mlm_loss_equals_a_float64_transcription_of_the_paper():
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(8, 9, generator=generator, dtype=torch.double)
    targets = torch.randint(9, (8,), generator=generator)
    expected = -sum(math.log(math.exp(row[t]) / sum(map(math.exp, row))) for row, t in zip(logits.tolist(), targets))
    assert mlm_loss(read(logits, targets)).total.item() == pytest.approx(expected, rel=1e-12)


def test_rtd_loss_counts_every_valid_position_and_positive_means_original():
    logits = torch.tensor([[2.0, -1.0, 0.5, 9.0]])
    replaced = torch.tensor([[False, True, True, False]])
    valid = torch.tensor([[True, True, True, False]])
    # softplus(-2) + softplus(-1) + softplus(.5) = .126928 + .313262 + .974077
    term = rtd_loss(logits, replaced, valid, weight=50.0)
    assert term.total.item() == pytest.approx(1.414267, abs=1e-5)
    assert int(term.count) == 3
    assert term.weight == 50.0


def test_a_position_without_a_verdict_costs_log_two():
    term = rtd_loss(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool))
    assert term.mean.item() == pytest.approx(0.693147, abs=1e-6)


def test_rtd_loss_equals_a_float64_transcription_of_the_paper():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 7, generator=generator, dtype=torch.double) * 5
    replaced = torch.rand(4, 7, generator=generator) < 0.3
    valid = torch.rand(4, 7, generator=generator) < 0.8
    probability = 1 / (1 + torch.exp(-logits))
    expected = -torch.where(replaced, 1 - probability, probability).log()[valid].sum()
    assert rtd_loss(logits, replaced, valid).total.item() == pytest.approx(expected.item(), rel=1e-12)


def test_padding_gets_no_gradient():
    logits = torch.randn(1, 4, requires_grad=True)
    valid = torch.tensor([[True, True, False, False]])
    rtd_loss(logits, torch.zeros(1, 4, dtype=torch.bool), valid).total.backward()
    assert (logits.grad[0, :2] != 0).all() and (logits.grad[0, 2:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_fp32_losses(dtype):
    logits = (LOGITS * 4).to(dtype).expand(3, 5)
    targets = torch.tensor([0, 1, 4])
    total = mlm_loss(read(logits, targets)).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(F.cross_entropy(logits.float(), targets, reduction="sum").item(), rel=1e-6)


def test_no_selected_position_is_no_loss():
    term = mlm_loss(read(torch.empty(0, 5), torch.empty(0, dtype=torch.long)))
    assert term.total.item() == 0 and term.count == 0


def test_a_mean_is_total_over_count():
    assert LossTerm(torch.tensor(6.0), 4, 2.0).mean.item() == 1.5


# --- SCRIPT ---

CRITIC_ROWS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0], [-2.0, -3.0, -1.0, -2.5, -4.0], [0.0] * 5])


def test_critic_logit_is_the_logsumexp_of_the_token_logits():
    assert critic_logits(CRITIC_ROWS).tolist() == pytest.approx([2.499280, -0.425562, 1.609438], abs=1e-6)


def test_critic_loss_on_a_worked_case():
    replaced, valid = torch.tensor([[False, True, False]]), torch.ones(1, 3, dtype=torch.bool)
    term = critic_loss(critic_logits(CRITIC_ROWS[None]), replaced, valid, weight=50.0)
    assert term.total.item() == pytest.approx(0.764101, abs=1e-6)  # .078944 + .502835 + .182322
    assert (int(term.count), term.weight, term.over) == (3, 50.0, "valid")


def test_critic_gradient_of_a_replaced_token_is_its_token_distribution_times_p_original():
    logits = CRITIC_ROWS[None, 1:2].clone().requires_grad_()
    yes = torch.ones(1, 1, dtype=torch.bool)
    critic_loss(critic_logits(logits), yes, yes).total.backward()
    assert logits.grad.flatten().tolist() == pytest.approx([0.081853, 0.030112, 0.222498, 0.049646, 0.011078], abs=1e-6)


def test_critic_loss_equals_a_float64_transcription_of_the_paper():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 6, 11, generator=generator, dtype=torch.double)
    replaced, valid = torch.rand(3, 6, generator=generator) < 0.3, torch.rand(3, 6, generator=generator) < 0.8
    negative = 1 / (logits.exp().sum(-1) + 1)  # Eq. 4
    expected = -torch.where(replaced, negative, 1 - negative).log()[valid].sum()  # Eq. 6
    term = critic_loss(critic_logits(logits), replaced, valid)
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-12)


def test_pseudo_log_likelihood_sums_the_counted_positions_of_each_sequence():
    logits = torch.stack([critic_logits(CRITIC_ROWS), torch.tensor([0.0, 50.0, 7.0])])
    counted = torch.tensor([[True, True, True], [True, True, False]])
    assert pseudo_log_likelihood(logits, counted).tolist() == pytest.approx([-1.189663, -0.693147], abs=1e-6)


def test_pseudo_log_likelihood_equals_a_float64_transcription_of_the_paper():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(3, 6, 11, generator=generator, dtype=torch.double)
    counted = torch.rand(3, 6, generator=generator) < 0.7
    mass = logits.exp().sum(-1)
    expected = [row[here].log().sum().item() for row, here in zip(mass / (mass + 1), counted)]  # Eqs. 4 and 7
    found = pseudo_log_likelihood(critic_logits(logits), counted)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_critic_of_half_precision_logits_is_fp32():
    logits = (CRITIC_ROWS * 3).to(torch.bfloat16)
    assert critic_logits(logits).dtype == torch.float32
    assert torch.equal(critic_logits(logits), logits.float().logsumexp(-1))
    assert pseudo_log_likelihood(logits[:, 0], torch.ones(3, dtype=torch.bool)).dtype == torch.float32


# --- multi-word selection (TEAMS) ---


def test_mws_loss_is_cross_entropy_with_the_original_first():
    # log(e^2 + e + e^.5 + e^-1 + e^-3 + 1) - 2
    hidden, embeddings = torch.ones(1, 1), torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0, 0.0]).reshape(1, 6, 1)
    term = mws_loss(hidden, embeddings)
    assert term.total.item() == pytest.approx(0.57822, abs=5e-6)
    assert (term.count, term.weight, term.over) == (1, 1.0, "selected")
    assert mws_loss(hidden, embeddings, weight=2.0).weight == 2.0


def test_mws_loss_equals_a_float64_transcription_of_the_paper():
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.double)
    embeddings = torch.randn(7, 4, 5, generator=generator, dtype=torch.double)
    scores = torch.stack([(embeddings[:, k] * hidden).sum(-1).exp() for k in range(4)], -1)
    expected = -(scores[:, 0] / scores.sum(-1)).log().sum()  # Eqs. 7 and 8
    term = mws_loss(hidden, embeddings)
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-12) and term.count == 7


def test_mws_logits_of_half_precision_are_summed_in_fp32():
    hidden, embeddings = torch.full((2, 512), 0.1).bfloat16(), torch.full((2, 3, 512), 0.3).bfloat16()
    assert candidate_logits(hidden, embeddings).dtype == torch.float32
    exact = 512 * hidden[0, 0].double() * embeddings[0, 0, 0].double()
    torch.testing.assert_close(candidate_logits(hidden, embeddings), torch.full((2, 3), exact.item()))
    assert mws_loss(hidden, embeddings).mean.item() == pytest.approx(math.log(3), abs=1e-6)


# --- token quality ranking (PEER) ---

LEVELS = {  # (K, partition, buffer, top): rows by original, columns by draw; b: in the buffer above, ?: unknown
    (3, (1.0,), 3.0, 3): ["3 1b 1 1 1", "2 3 1b 1 1", "2 2 3 1 1", "? ? ? 3 ?", "? ? ? ? 3"],
    (3, (1.0,), 0.0, 3): ["3 1 1 1 1", "2 3 1 1 1", "2 2 3 1 1", "? ? ? 3 ?", "? ? ? ? 3"],
    (3, (1.0,), 9.0, 3): ["3 1b 1b 1 1", "2 3 1b 1b 1", "2 2 3 1b 1", "? ? ? 3 ?", "? ? ? ? 3"],
    (3, (1.0,), 3.0, 1): ["3 1b 1 1 1", "? 3 ? ? ?", "? ? 3 ? ?", "? ? ? 3 ?", "? ? ? ? 3"],
    (4, (1.0, 10.0), 3.0, 3): ["4 2b 2 1b 1", "3 4 2b 2 1", "3 3 4 2 1b", "? ? ? 4 ?", "? ? ? ? 4"],
    (5, (1.0, 8.0, 32.0), 0.0, 3): ["5 3 3 2 1", "4 5 3 3 1", "4 4 5 3 1", "? ? ? 5 ?", "? ? ? ? 5"],
    (2, (), 3.0, 3): ["2 1 1 1 1", "1 2 1 1 1", "1 1 2 1 1", "? ? ? 2 ?", "? ? ? ? 2"],
}


def code(level: str) -> int:
    return -1 if level == "?" else 2 * int(level[0]) + level.endswith("b")


def codes_of(logits, original, sampled, *options, **named_options):
    """The levels of given draws."""
    rows = torch.arange(len(logits))
    margins = logits[rows, sampled] - logits[rows, original]
    return quality_levels(margins, read(logits, original).ranks[:, 0], sampled != original, *options, **named_options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("levels, partition, buffer, top", LEVELS)
def test_quality_levels_of_every_draw(levels, partition, buffer, top, dtype):
    original, sampled = torch.cartesian_prod(torch.arange(5), torch.arange(5)).unbind(-1)
    codes = codes_of(LOGITS.to(dtype).expand(25, 5), original, sampled, partition, top, buffer)
    expected = [[code(level) for level in row.split()] for row in LEVELS[levels, partition, buffer, top]]
    assert codes.dtype == torch.long and codes.reshape(5, 5).tolist() == expected


def test_quality_levels_default_to_three_levels_of_the_top_three_with_buffer_three():
    original, sampled = torch.tensor([0, 0, 3]), torch.tensor([1, 2, 0])
    assert codes_of(LOGITS.expand(3, 5), original, sampled).tolist() == [3, 2, -1]


def test_the_lower_end_belongs_to_a_level_and_to_a_buffer():
    # d = 0 is level K-1; d = -log 4 is the buffer's, which 1 ulp below is not
    low = -torch.tensor(4.0).log()
    logits = torch.stack([torch.zeros(4), torch.tensor([0.0, 0.0, low, low.nextafter(torch.tensor(-9.0))])])[1]
    draws = torch.tensor([1, 2, 3])
    codes = codes_of(logits.expand(3, 4), torch.zeros(3, dtype=torch.long), draws)
    assert codes.tolist() == [4, 3, 2]


def test_ties_favour_the_original_in_its_place():
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])
    assert codes_of(logits, torch.tensor([3]), torch.tensor([0]), top=1).item() == 4
    assert codes_of(logits, torch.tensor([4]), torch.tensor([0]), top=4).item() == -1
    assert codes_of(logits, torch.tensor([4]), torch.tensor([0]), top=5).item() == 4


def test_quality_levels_equal_a_transcription_of_the_papers_table():
    generator = torch.Generator().manual_seed(7)
    logits = (2 * torch.randn(400, 9, generator=generator)).requires_grad_()
    original, sampled = torch.randint(9, (2, 400), generator=generator)
    (tau1, tau2), delta, top, found = (0.5, 6.0), 2.0, 4, []
    for row, o, s in zip(logits.detach().double(), original, sampled):
        p = row.softmax(0)
        ratio, place = p[s] / p[o], (p > p[o]).sum() + 1
        if s == o:
            found.append(8)
        elif place > top:
            found.append(-1)
        elif ratio >= 1 / tau1:
            found.append(6)
        elif ratio >= 1 / (tau1 * (1 + delta)):
            found.append(5)
        elif ratio >= 1 / tau2:
            found.append(4)
        else:
            found.append(3 if ratio >= 1 / (tau2 * (1 + delta)) else 2)
    codes = codes_of(logits, original, sampled, (tau1, tau2), top, delta)
    assert codes.tolist() == found and set(found) == {-1, 2, 3, 4, 5, 6, 8}
    assert not codes.requires_grad
    assert torch.equal(codes, codes_of(logits + 7.0, original, sampled, (tau1, tau2), top, delta))


@pytest.mark.parametrize(
    "partition, top, buffer, message",
    [
        ((1.0, 8.0, 32.0), 3, 3.0, r"\[1.0, 8.0, 32.0\] with buffer 3.0 leaves level 2 empty.*below 32.0"),
        ((1.0, 4.0), 3, 3.0, "leaves level 2 empty"),
        ((2.0, 1.0), 3, 0.0, "leaves level 2 empty"),
        ((0.0, 1.0), 3, 0.0, "ratios above 0"),
        ((1.0,), 0, 3.0, "top is 0"),
        ((1.0,), 3, -1.0, "buffer is -1.0"),
    ],
)
def test_a_partition_with_an_empty_level_is_refused(partition, top, buffer, message):
    with pytest.raises(ValueError, match=message) as error:
        quality_levels(torch.zeros(1), torch.ones(1, dtype=torch.long), torch.tensor([True]), partition, top, buffer)
    assert "\n" not in str(error.value)


SCORES = torch.tensor([[2.0, 1.0, 0.5, -0.5, -1.5, 0.0]])
CODES = torch.tensor([[6, 6, 4, 3, 2, -1]])
ALL = torch.ones(1, 6, dtype=torch.bool)


def test_tqr_loss_of_a_worked_case():
    thresholds = torch.tensor([-1.0, 0.5])
    term = tqr_loss(SCORES, thresholds, CODES, ALL)
    assert term.total.item() == pytest.approx(2.708407, abs=1e-5)
    assert term.mean.item() == pytest.approx(0.451401, abs=1e-6)
    assert int(term.count) == 6 and (term.weight, term.over) == (1.0, "valid")
    level_2 = tqr_loss(SCORES, thresholds, CODES, ALL, level_weight=0.0).total.item()
    assert level_2 == pytest.approx(2.282904, abs=1e-5)
    term = tqr_loss(SCORES, thresholds, CODES, ALL, 1.0, 50.0)
    assert term.total.item() - level_2 == pytest.approx(0.851006, abs=1e-5) and term.weight == 50.0


def test_level_targets_skip_a_buffer_and_below_the_top_the_unknown():
    verdicts = [[part.int().tolist()[0] for part in level_targets(CODES, level, 3)] for level in (1, 2)]
    below, counts = verdicts[0]
    assert counts == [1, 1, 1, 0, 1, 0]
    assert [b for b, c in zip(below, counts) if c] == [0, 0, 0, 1]
    assert verdicts[1] == [[0, 0, 1, 1, 1, 1], [1] * 6]


def test_tqr_loss_equals_a_float64_transcription_of_the_paper():
    generator = torch.Generator().manual_seed(8)
    scores, thresholds = torch.randn(4, 9, generator=generator, dtype=torch.double), torch.tensor([-1.5, -0.2, 0.9])
    codes = torch.tensor([-1, 2, 3, 4, 5, 6, 8])[torch.randint(7, (4, 9), generator=generator)]
    valid = torch.rand(4, 9, generator=generator) < 0.8
    expected = 0.0
    for g, c, v in zip(scores.flatten(), codes.flatten().tolist(), valid.flatten()):
        at_most = [1 / (1 + math.exp(-(xi - g))) for xi in thresholds.double().tolist()]
        rank = c / 2 + (0.1 - 0.5) * (c % 2) if c >= 0 else -1  # in a buffer k + Delta, with Delta = .1
        loss = -math.log(1 - at_most[2] if rank > 3 else at_most[2])
        for r in (1, 2):
            if rank != -1 and rank <= r:
                loss -= 0.3 * math.log(at_most[r - 1])
            elif rank != -1 and rank > r + 0.1 + 1e-9:
                loss -= 0.3 * math.log(1 - at_most[r - 1])
        expected += loss * bool(v)
    assert tqr_loss(scores, thresholds, codes, valid, 0.3).total.item() == pytest.approx(expected, rel=1e-7)


def test_two_quality_levels_equal_rtd():
    generator = torch.Generator().manual_seed(9)
    scores = (4 * torch.randn(3, 8, generator=generator, dtype=torch.double)).requires_grad_()
    replaced, valid = torch.rand(2, 3, 8, generator=generator) < 0.4
    threshold = torch.tensor([0.7], dtype=torch.double)
    for codes in (torch.where(replaced, 2, 4), torch.where(replaced, -1, 4)):
        ranking = tqr_loss(scores, threshold, codes, valid)
        detection = rtd_loss(scores - threshold, replaced, valid)
        assert ranking.total.item() == pytest.approx(detection.total.item(), rel=1e-14)
        assert int(ranking.count) == int(detection.count)
        gradients = [torch.autograd.grad(term.total, scores)[0] for term in (ranking, detection)]
        torch.testing.assert_close(*gradients)


def test_half_precision_scores_are_ranked_in_fp32():
    term = tqr_loss(SCORES.bfloat16(), torch.tensor([-1.0, 0.5]).bfloat16(), CODES, ALL)
    assert term.total.dtype == torch.float32
    assert term.total.item() == pytest.approx(2.708407, abs=1e-5)  # every number here is exact in bfloat16


# --- COCO-LM ---


def clm(logits, copy_logits, original, corrupted, **options):
    """`clm_loss` of a language model with these logits (M, V)."""
    log_lm = logits.log_softmax(-1).gather(-1, original[:, None]).squeeze(-1)
    return clm_loss(log_lm, copy_logits, original == corrupted, **options)


def test_clm_loss_on_a_worked_case():
    # p_copy = sigmoid(.7) = .668188, softmax(LOGITS)[1] = .223291
    copy_logits, original, corrupted = torch.tensor([0.7, 0.7]), torch.tensor([1, 1]), torch.tensor([1, 4])
    term = clm(LOGITS.expand(2, 5), copy_logits, original, corrupted, weight=2.0)
    assert term.total.item() == pytest.approx(0.298031 + 2.602466, abs=2e-6)
    assert (term.count, term.weight, term.over) == (2, 2.0, "selected")
    same = clm(LOGITS[None], torch.tensor([0.7]), torch.tensor([1]), torch.tensor([1]))
    assert same.mean.item() == pytest.approx(0.298031, abs=1e-6)


def test_clm_loss_equals_a_float64_transcription_of_the_paper():
    generator = torch.Generator().manual_seed(8)
    logits = 3 * torch.randn(40, 6, generator=generator, dtype=torch.double)
    copy_logits = 3 * torch.randn(40, generator=generator, dtype=torch.double)
    original, corrupted = torch.randint(6, (2, 40), generator=generator)
    p_copy = 1 / (1 + torch.exp(-copy_logits))
    p_lm = (1 - p_copy) * (logits.exp() / logits.exp().sum(-1, keepdim=True))[torch.arange(40), original]
    expected = -(p_lm + (original == corrupted) * p_copy).log()
    term = clm(logits, copy_logits, original, corrupted)
    assert term.total.item() == pytest.approx(expected.sum().item(), rel=1e-12)
    valid = torch.rand(40, generator=generator) < 0.7
    term = clm(logits, copy_logits, original, corrupted, valid_positions=valid)
    assert term.mean.item() == pytest.approx(expected[valid].mean().item(), rel=1e-12) and term.over == "valid"


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_clm_loss_trains_the_copy_probability_only_without_stop_gradient(stop_gradient):
    logits, copy_logits = LOGITS[None].clone().requires_grad_(), torch.tensor([0.7], requires_grad=True)
    clm(logits, copy_logits, torch.tensor([1]), torch.tensor([4]), stop_gradient=stop_gradient).total.backward()
    assert logits.grad.abs().max() > 0
    # d/db -log sigmoid(-b) = sigmoid(b)
    assert (copy_logits.grad is None) if stop_gradient else copy_logits.grad.item() == pytest.approx(0.668188, abs=1e-6)


def test_clm_loss_stays_finite_where_probabilities_vanish():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    term = clm(logits, torch.tensor([-150.0, 150.0]), torch.tensor([1, 0]), torch.tensor([1, 1]))
    term.total.backward()
    assert term.total.item() == pytest.approx(150 + 350) and logits.grad.isfinite().all()


def test_corrected_token_is_the_likeliest_of_copy_and_language_model():
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(300, 5, generator=generator, dtype=torch.double)
    copy_logits = torch.randn(300, generator=generator, dtype=torch.double)
    corrupted = torch.randint(5, (300,), generator=generator)
    p_copy = copy_logits.sigmoid()[:, None]
    p = (1 - p_copy) * logits.softmax(-1) + p_copy * F.one_hot(corrupted, 5)
    of_corrupted = logits.gather(-1, corrupted[:, None]).squeeze(-1)
    found = corrected_tokens(read_linear(*output_layer(logits)), of_corrupted, copy_logits, corrupted)
    assert torch.equal(found, p.argmax(-1))
    assert 0 < (found == corrupted).double().mean() < 1


CORRUPTED_VIEWS, CROPPED_VIEWS = torch.eye(2), torch.tensor([[1.0, 1.0], [-1.0, 1.0]])


def test_scl_loss_on_a_worked_case():
    # anchors .551690 .913514 .913514 .551690
    term = scl_loss(CORRUPTED_VIEWS, CROPPED_VIEWS, 1.0, weight=3.0)
    assert term.mean.item() == pytest.approx(0.732602, abs=1e-6)
    assert (term.count, term.weight, term.over) == (2, 3.0, "sequences")


def test_scl_loss_equals_a_float64_transcription_of_the_paper():
    generator = torch.Generator().manual_seed(4)
    corrupted, cropped, others = torch.randn(3, 4, 7, generator=generator, dtype=torch.double)
    for negatives in (None, others):
        views = [*corrupted, *cropped, *(() if negatives is None else negatives)]
        losses = []
        for anchor in range(8):
            candidates = [x for x in range(len(views)) if x != anchor]
            scores = {x: torch.cosine_similarity(views[anchor], views[x], dim=0) / 0.3 for x in candidates}
            losses.append(-(scores[(anchor + 4) % 8].exp() / sum(score.exp() for score in scores.values())).log())
        term = scl_loss(corrupted, cropped, 0.3, negatives=negatives)
        assert term.mean.item() == pytest.approx(sum(losses).item() / 8, rel=1e-12)


def test_scl_loss_depends_on_directions_only_and_is_symmetric_in_the_views():
    expected = scl_loss(CORRUPTED_VIEWS, CROPPED_VIEWS, 1.0).total.item()
    assert scl_loss(1e-3 * CORRUPTED_VIEWS, 50 * CROPPED_VIEWS, 1.0).total.item() == pytest.approx(expected, rel=1e-6)
    assert scl_loss(CROPPED_VIEWS, CORRUPTED_VIEWS, 1.0).total.item() == pytest.approx(expected, rel=1e-6)


def test_scl_loss_of_half_precision_embeddings_is_fp32_under_autocast_too():
    views = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = scl_loss(*views, 1.0).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(scl_loss(*views.double(), 1.0).total.item(), rel=1e-6)


def test_selection_is_computed_in_fp32_under_autocast_too():
    draw = torch.Generator().manual_seed(0)
    hidden, candidates = torch.randn(3, 64, generator=draw), torch.randn(3, 6, 64, generator=draw)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = candidate_logits(hidden, candidates)
    torch.testing.assert_close(logits, (hidden[:, None] * candidates).sum(dim=-1))


def test_a_single_sequence_has_nothing_to_contrast_with():
    views = torch.randn(2, 1, 4, requires_grad=True)
    term = scl_loss(*views, 1.0)
    term.total.backward()
    assert term.total.item() == 0 and (views.grad == 0).all()
