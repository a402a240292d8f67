import pytest
import torch

from amos_fairseq.corruption import Corruption
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.base import detection_accuracy, identity_logits


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


@pytest.mark.parametrize("name", ["electra_rtd", "teams_mws", "peer_tqr"])
def test_generator_dropout_is_off_when_sampling(make_method, batch, name):
    # the same weights draw the same tokens, candidates and levels with dropout in the MLM pass and without
    with_dropout = make_method(name, generator_dropout=0.5).train()
    without = make_method(name).train()
    without.load_state_dict(with_dropout.state_dict())
    outputs = with_dropout(batch), without(batch)
    for field in ("sampled_tokens", "candidate_tokens", "level_codes"):
        if hasattr(outputs[0], field):
            assert torch.equal(*(getattr(output, field) for output in outputs)), field
    assert not torch.allclose(outputs[0].masked_lm.losses, outputs[1].masked_lm.losses)
    assert all(module.training for module in with_dropout.modules())


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
    words = torch.tensor([[False, True, True, True, True, False]])
    means = detection_accuracy(logits, corruption, valid, words)
    assert {name: float(mean.total) / float(mean.count) for name, mean in means.items()} == pytest.approx(
        {
            "replaced_share": 2 / 5, "rtd_accuracy_original_words": 1 / 2, "rtd_accuracy_original_all": 2 / 3,
            "rtd_accuracy_replaced": 1 / 2,
        }
    )


def test_tokens_are_counted_where_words_stand_as_originals_and_as_replacements(make_method, batch):
    method = make_method("electra_rtd")
    original = batch.original_tokens[:1, :6].clone()
    original[0] = torch.tensor([0, 7, 8, 7, 2, 1])  # <s>, three words, </s>, padding
    corrupted = torch.tensor([[0, 7, 7, 9, 2, 1]])
    padding_mask = torch.tensor([[False] * 5 + [True]])
    batch = batch._replace(original_tokens=original, masked_positions=original > 6, padding_mask=padding_mask)
    counts = method.count_tokens(Corruption(corrupted, corrupted != original), batch)
    assert counts.nonzero().tolist() == [[0, 7], [1, 7], [1, 9]] and counts.sum() == 3


def test_a_token_alone_is_judged_by_its_counts_and_a_new_one_by_those_of_all():
    logits = identity_logits(torch.tensor([[3, 0, 0], [0, 1, 0]]))  # priors 0.7 and 0.3
    expected = torch.tensor([3.7 / 0.3, 0.7 / 1.3, 0.7 / 0.3]).log()
    torch.testing.assert_close(logits.float(), expected)
    assert identity_logits(torch.zeros(2, 3, dtype=torch.long)).tolist() == [0, 0, 0]


def test_validation_statistics_add_up_over_parts_of_the_batch(make_method, make_batch):
    method = make_method("electra_rtd", gain=10.0).eval()
    counts = torch.ones(2, len(method.excluded_tokens), dtype=torch.long)
    whole, *parts = (make_batch(lengths=(12,) * size, seed=seed) for size, seed in ((1, 1), (1, 1), (2, 2)))
    found = [method.validation_statistics(method(part), part, counts) for part in (whole, *parts)]
    assert found[0].keys() == {"rtd_auc_words", "rtd_auc_all", "rtd_auc_identity", "hidden_cosine", "hidden_rank"}
    assert float(found[0]["rtd_auc_words"].sums.sum()) == 10 and float(found[0]["rtd_auc_all"].sums.sum()) == 12
    assert found[0]["rtd_auc_identity"].value == 0.5
    for name, pooled in found[0].items():
        torch.testing.assert_close(pooled.sums, found[1][name].sums)


def test_rows_at_selected_positions_have_the_values_and_the_gradients_of_indexing(batch):
    states = torch.randn(*batch.original_tokens.shape, 5, requires_grad=True)
    upstream = torch.randn(len(batch.masked_index), 5)
    found, expected = batch.at_masked(states), states.flatten(0, 1)[batch.masked_index]
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(rows, states, upstream)[0] for rows in (found, expected)))
