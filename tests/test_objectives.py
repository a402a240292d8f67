import pytest
import torch
import torch.nn.functional as F

from amos_fairseq.objectives import LossTerm, mlm_loss, rtd_loss

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def test_mlm_loss_is_the_negative_log_softmax_at_the_original_token():
    # log(e^2 + e + e^.5 + e^-1 + e^-3) = 2.499280
    term = mlm_loss(LOGITS.expand(2, 5), torch.tensor([0, 3]))
    assert term.total.item() == pytest.approx((2.499280 - 2) + (2.499280 + 1), abs=1e-5)
    assert term.count == 2
    assert term.mean.item() == pytest.approx(1.999280, abs=1e-5)
    assert term.weight == 1.0


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
    total = mlm_loss(logits, targets).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(F.cross_entropy(logits.float(), targets, reduction="sum").item(), rel=1e-6)


def test_no_selected_position_is_no_loss():
    term = mlm_loss(torch.empty(0, 5), torch.empty(0, dtype=torch.long))
    assert term.total.item() == 0 and term.count == 0


def test_a_mean_is_total_over_count():
    assert LossTerm(torch.tensor(6.0), 4, 2.0).mean.item() == 1.5
