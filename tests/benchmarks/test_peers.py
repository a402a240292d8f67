"""The other sides compute what they stand for: closed formulas, and our methods on equal draws."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from amos_fairseq import ops

for folder in ("examples/benchmarks", "tests/references"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))
import peers  # noqa: E402
from huggingface import hide_torchaudio  # noqa: E402
from peers import Vocabularies  # noqa: E402

PARTS = pytest.mark.parametrize("part", [peers.public_vocabulary, peers.lookup_vocabulary])


def gradients(part, x: Vocabularies, upstream):
    leaves = (x.hidden, x.scores, x.table, x.bias)
    drawn = part(x)
    found = torch.autograd.grad((drawn.loss, drawn.embeddings), leaves, (torch.ones_like(drawn.loss), upstream))
    return drawn, dict(zip(("hidden", "scores", "table", "bias"), found))


@PARTS
def test_one_position_two_depths_two_tokens_by_hand(part):
    # z_1 = (1, 0), z_2 = (0, 1), equal weights, no noise: the mixture is (1/2, 1/2), the first token is drawn, and with
    # table rows (1, 0), (0, 1), gradient (2, 1): s = (2, 1), p = (1/2, 1/2), C_k = Cov(s, z_k) / tau = +-1/4 / 0.5.
    # Reversed, -gamma_k (C_k - 0) = -+1/4.
    x = Vocabularies(
        hidden=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.double, requires_grad=True),
        scores=torch.zeros(1, 2, dtype=torch.double, requires_grad=True),
        table=torch.eye(2, dtype=torch.double, requires_grad=True),
        bias=torch.zeros(2, dtype=torch.double, requires_grad=True),
        targets=torch.tensor([0]),
        temperature=0.5,
        gumbel=torch.zeros(1, 2, dtype=torch.double),
    )
    drawn, found = gradients(part, x, torch.tensor([[2.0, 1.0]], dtype=torch.double))
    assert drawn.loss.item() == pytest.approx(0.313262 + 1.313262, abs=1e-6)  # log(1 + 1/e), log(1 + e)
    assert drawn.sampled.tolist() == [0] and drawn.embeddings.tolist() == [[1.0, 0.0]]
    assert found["scores"].flatten().tolist() == pytest.approx([-0.25, 0.25])
    assert found["bias"].tolist() == pytest.approx([-1.0, 1.0])  # p - 1 of both heads: -.268941, -.731059
    expected = [2 - 0.268941, 1 - 0.731059, 0.268941, 0.731059]  # drawn: upstream; both: p - one-hot of the heads
    assert found["table"].flatten().tolist() == pytest.approx(expected, abs=1e-5)


@PARTS
def test_vocabulary_part_has_the_gradients_of_the_closed_formulas(part):
    torch.manual_seed(0)
    rows, heads, words, width, temperature = 6, 3, 11, 5, 0.3
    hidden, table = torch.randn(rows, heads, width).double(), torch.randn(words, width).double()
    scores, bias = torch.randn(rows, heads).double(), torch.randn(words).double()
    gumbel, upstream = torch.randn(rows, words).double(), torch.randn(rows, width).double()
    targets = torch.randint(words, (rows,))
    leaves = [x.clone().requires_grad_() for x in (hidden, scores, table, bias)]
    drawn, found = gradients(part, Vocabularies(*leaves, targets, temperature, gumbel), upstream)

    z = hidden @ table.T + bias  # (M, G, V)
    weights = scores.softmax(-1)
    perturbed = torch.einsum("mg,mgv->mv", weights, z) + gumbel
    p, s = (perturbed / temperature).softmax(-1), upstream @ table.T
    covariance = torch.einsum("mv,mv,mgv->mg", p, s - (p * s).sum(-1, keepdim=True), z) / temperature
    of_logits = z.softmax(-1) - F.one_hot(targets, words)[:, None]
    sampled = perturbed.argmax(-1)
    expected = {
        "hidden": of_logits @ table,  # nothing from the draws: the mixed logits are detached
        "scores": -weights * (covariance - (weights * covariance).sum(-1, keepdim=True)),
        "table": torch.einsum("mgv,mge->ve", of_logits, hidden).index_add(0, sampled, upstream),
        "bias": of_logits.sum((0, 1)),
    }
    loss = (z.logsumexp(-1) - z.gather(-1, targets[:, None, None].expand(-1, heads, 1)).squeeze(-1)).sum()
    torch.testing.assert_close(drawn.loss, loss)
    assert torch.equal(drawn.sampled, sampled)
    torch.testing.assert_close(drawn.embeddings, table[sampled])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_a_draw_given_by_name_takes_the_place_of_the_likeliest():
    x = Vocabularies(
        *(torch.randn(shape, requires_grad=True) for shape in ((2, 3, 4), (2, 3), (5, 4), (5,))),
        targets=torch.tensor([0, 1]),
        temperature=0.3,
        sampled=torch.tensor([4, 2]),
    )
    drawn = peers.public_vocabulary(x)
    assert drawn.sampled.tolist() == [4, 2]
    torch.testing.assert_close(drawn.embeddings, x.table[[4, 2]])


@pytest.mark.parametrize("function", [peers.eager_cross_entropy, *map(peers.torch_cross_entropy, (None, "auto"))])
def test_cross_entropies_of_torch_are_sums_with_the_bias(function):
    if function is not peers.eager_cross_entropy and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("F.linear_cross_entropy came with torch 2.13")
    # logits (1, 0) + (0, 1) = (1, 1) and (0, 2) + (0, 1) = (0, 3): log 2 and log(1 + e^-3)
    hidden, bias = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True), torch.tensor([0.0, 1.0])
    table = torch.eye(2).requires_grad_()
    loss = function(hidden, table, bias.requires_grad_(), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(0.693147 + 0.048587, abs=1e-5)


def test_public_amos_has_our_loss_and_gradients_on_equal_noise(make_method, make_batch):
    batch = make_batch(lengths=(12, 12, 12))
    method = make_method("amos_rtd", dtype=torch.double, gain=4.0)
    names, parameters = zip(*method.named_parameters())
    terms = method.losses(method(batch), batch)
    loss = sum(term.weight * term.mean for term in terms.values())
    ours = torch.autograd.grad(loss, parameters)

    noise = ops.gumbel_noise(method.sampling_noise(batch), 40).double()
    noise = noise.masked_fill(method.excluded_tokens, float("-inf"))
    public = peers.PublicAmos(method)(batch, noise)
    torch.testing.assert_close(public, loss)
    for name, found, expected in zip(names, ours, torch.autograd.grad(public, parameters)):
        assert expected.norm() > 0, name
        assert (found - expected).norm() <= 1e-4 * expected.norm(), name  # ours leaves out the soft draw's tail


def test_hugging_faces_electra_at_all_and_at_selected_positions_has_one_loss(make_method, make_batch, monkeypatch):
    pytest.importorskip("transformers")
    hide_torchaudio(monkeypatch)
    batch = make_batch(lengths=(12, 12, 12))
    config = make_method("electra_rtd", generator_embed_dim=64).config
    vocabulary = peers.Vocabulary(40, padding=1, excluded=[])
    model = peers.HuggingFaceElectra(config, vocabulary, selected_only=False)
    noise = torch.randn(len(batch.masked_index), 40)
    losses = []
    for model.selected_only in (False, True):
        loss = model(batch, noise)
        table = model.discriminator.electra.embeddings.word_embeddings.weight
        losses.append((loss, *torch.autograd.grad(loss, [table, model.generator.generator_lm_head.bias])))
    for at_all, at_selected in zip(*losses):
        torch.testing.assert_close(at_all, at_selected)
    assert model.generator.generator_lm_head.weight is table


def test_fairseqs_roberta_has_our_sizes_and_its_criterions_loss(make_method, make_batch):
    pytest.importorskip("fairseq")
    batch = make_batch(lengths=(12, 12, 12))
    method = make_method("bert_mlm", rel_pos_buckets=0)
    roberta = peers.FairseqRoberta(method.config, peers.Vocabulary(40, padding=1, excluded=[]))
    # two positions more (fairseq counts from padding + 1) and a LayerNorm's worth of nothing else
    sizes = [sum(p.numel() for p in model.parameters()) for model in (roberta, method)]
    assert sizes[0] - sizes[1] == 2 * 16
    logits = roberta.encoder(batch.masked_tokens)[0][batch.masked_positions]
    expected = F.nll_loss(logits.log_softmax(-1), batch.original_tokens[batch.masked_positions])
    torch.testing.assert_close(roberta(batch), expected)
