import pytest
import torch

from amos_fairseq.corruption import Corruption
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.base import detection_accuracy, detection_auc


def loss(method, batch):
    terms = method.losses(method(batch), batch)
    return sum(term.weight * term.mean for term in terms.values()), terms


def test_electra_detection_reaches_nothing_of_the_generator(make_method, batch):
    method = make_method("electra_rtd")
    loss(method, batch)[1]["rtd"].mean.backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert not [name for name in reached if name.startswith(("generator", "mlm_head"))]


def test_electra_loss_is_mlm_plus_fifty_times_detection(make_method, batch):
    total, terms = loss(make_method("electra_rtd"), batch)
    assert {name: term.weight for name, term in terms.items()} == {"mlm": 1.0, "rtd": 50.0}
    assert total.item() == pytest.approx(terms["mlm"].mean.item() + 50 * terms["rtd"].mean.item(), rel=1e-6)
    assert terms["mlm"].count == 9 and int(terms["rtd"].count) == 33


def test_generator_dropout_is_off_when_sampling(make_method, batch):
    # the same weights draw the same tokens with dropout in the MLM pass and without
    with_dropout = make_method("electra_rtd", generator_dropout=0.5).train()
    without = make_method("electra_rtd").train()
    without.load_state_dict(with_dropout.state_dict())
    outputs = with_dropout(batch), without(batch)
    assert torch.equal(outputs[0].sampled_tokens, outputs[1].sampled_tokens)
    assert not torch.allclose(outputs[0].masked_lm.losses, outputs[1].masked_lm.losses)
    assert with_dropout.generator.training


def test_one_token_table_serves_input_output_generator_and_encoder(make_method):
    method = make_method("electra_rtd")
    assert method.mlm_head.token_embeddings is method.generator.token_embeddings is method.encoder.token_embeddings


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_no_loss(make_method, make_batch, rows_of, name):
    method = make_method(name)
    short, long = make_batch(lengths=(12, 9)), rows_of(make_batch(lengths=(12, 9, 20)), [0, 1])
    losses = [loss(method, batch)[0].item() for batch in (short, long)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_selected_positions_still_trains_every_parameter(make_method, make_batch, name):
    method = make_method(name)
    loss(method, make_batch(num_masked=0))[0].nan_to_num().backward()
    assert [n for n, parameter in method.named_parameters() if parameter.grad is None] == []


def test_detection_statistics_on_a_worked_case():
    corruption = Corruption(torch.zeros(1, 6), torch.tensor([[False, True, True, False, False, False]]))
    valid = torch.tensor([[True, True, True, True, True, False]])
    logits = torch.tensor([[2.0, 1.0, -1.0, -3.0, 0.5, 9.0]])
    means = detection_accuracy(logits, corruption, valid)
    assert {name: float(mean.total) / float(mean.count) for name, mean in means.items()} == pytest.approx(
        {"replaced_share": 2 / 5, "rtd_accuracy_original": 2 / 3, "rtd_accuracy_replaced": 1 / 2}
    )


def test_auc_counts_rightly_ranked_pairs_and_half_of_ties():
    corruption = Corruption(torch.zeros(1, 5), torch.tensor([[False, True, True, False, False]]))
    valid = torch.tensor([[True, True, True, True, False]])
    # originals 2 and 1, replaced 1 and -1: pairs right (2,1) (2,-1) (1,-1), tied (1,1); the last position is padding
    auc = detection_auc(torch.tensor([[2.0, 1.0, -1.0, 1.0, -9.0]]), corruption, valid)
    assert float(auc.total) == 3.5 and float(auc.count) == 4


def test_auc_equals_a_direct_count_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 20, generator=generator).round(decimals=1)
    replaced = torch.rand(5, 20, generator=generator) < 0.3
    auc = detection_auc(logits, Corruption(logits, replaced), torch.ones_like(replaced))
    originals, replacements = logits[~replaced][:, None], logits[replaced][None, :]
    pairs = (originals > replacements).double() + (originals == replacements).double() / 2
    assert float(auc.mean) == pytest.approx(pairs.mean().item(), rel=1e-12)
