"""What SCRIPT is: one network in both roles, what each loss reaches, how the critic's gradient passes the sample."""

import math

import pytest
import torch
import torch.nn.functional as F

from amos_fairseq.methods.script import ScriptConfig
from amos_fairseq.objectives import critic_logits, rtd_loss
from amos_fairseq.ops import gumbel_noise

MODES = ["none", "straight_through", "soft"]


def loss(method, batch):
    terms = method.losses(method(batch), batch)
    return sum(term.weight * term.mean for term in terms.values()), terms


def reached(method):
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_loss_is_mlm_plus_fifty_times_the_critic(make_method, batch):
    total, terms = loss(make_method("script_selfcritic"), batch)
    assert {name: term.weight for name, term in terms.items()} == {"mlm": 1.0, "critic": 50.0}
    assert total.item() == pytest.approx(terms["mlm"].mean.item() + 50 * terms["critic"].mean.item(), rel=1e-6)
    assert terms["mlm"].count == 9 and int(terms["critic"].count) == 33


def test_there_is_one_network_and_no_parameter_beside_those_of_a_masked_language_model(make_method):
    script, bert = make_method("script_selfcritic"), make_method("bert_mlm")
    assert {n: p.shape for n, p in script.named_parameters()} == {n: p.shape for n, p in bert.named_parameters()}


def test_both_losses_equal_a_float64_transcription_with_all_logits(make_method, batch):
    method = make_method("script_selfcritic", dtype=torch.double, gain=5.0)
    output = method(batch)
    terms = method.losses(output, batch)
    logits = method.mlm_head(method.encoder(batch.masked_tokens, batch.padding_mask))  # s_t of Eq. 1, (B, T, V)
    at = batch.masked_positions
    mlm = -logits[at].log_softmax(-1).gather(1, batch.original_tokens[at][:, None]).mean()
    tokens = batch.original_tokens.clone()
    noise = gumbel_noise(method.sampling_noise(batch), 40, torch.double)
    tokens[at] = logits[at].masked_fill(method.excluded_tokens, -torch.inf).add(noise).argmax(-1)
    mass = method.mlm_head(method.encoder(tokens, batch.padding_mask)).exp().sum(-1)
    is_original = tokens == batch.original_tokens
    critic = -torch.where(is_original, mass / (mass + 1), 1 / (mass + 1)).log()[batch.valid_positions].mean()  # Eq. 4-6
    assert torch.equal(output.corruption.corrupted_tokens, tokens)
    assert terms["mlm"].mean.item() == pytest.approx(mlm.item(), rel=1e-12)
    assert terms["critic"].mean.item() == pytest.approx(critic.item(), rel=1e-12)

    expected = torch.autograd.grad(mlm + 50 * critic, list(method.parameters()))
    found = torch.autograd.grad(loss(method, batch)[0], list(method.parameters()))
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def test_critic_trains_every_parameter_and_the_masked_language_model_too(make_method, batch):
    method = make_method("script_selfcritic")
    everything = {name for name, _ in method.named_parameters()}
    for name in ("critic", "mlm"):
        method.zero_grad()
        loss(method, batch)[1][name].mean.backward()
        assert reached(method) == everything


@pytest.mark.parametrize("mode", MODES)
def test_draws_are_those_of_gumbel_max_in_every_mode(make_method, batch, mode):
    method = make_method("script_selfcritic", sample_gradient=mode)
    logits = batch.at_masked(method.mlm_head(method.encoder(batch.masked_tokens, batch.padding_mask)))
    perturbed = logits.masked_fill(method.excluded_tokens, -torch.inf) + gumbel_noise(method.sampling_noise(batch), 40)
    assert torch.equal(method(batch).sampled_tokens, perturbed.argmax(dim=-1))


def literal_critic_loss(method, batch, mode, temperature):
    """The critic's loss with one-hot draws times the table; returns it, the projected hidden states, the one-hots."""
    with torch.no_grad():
        projected = method.generate(batch)
    projected.requires_grad_()
    table, bias = method.encoder.token_embeddings.weight, method.mlm_head.bias
    logits = (projected @ table.detach().T + bias.detach()).masked_fill(method.excluded_tokens, -torch.inf)
    perturbed = logits + gumbel_noise(method.sampling_noise(batch), len(table), torch.double)
    soft = (perturbed / temperature).softmax(-1)  # Eq. 3
    hard = F.one_hot(perturbed.argmax(-1), len(table)).to(soft.dtype)
    drawn = {"none": hard, "straight_through": hard - soft.detach() + soft, "soft": soft}[mode]
    tokens = batch.original_tokens.masked_scatter(batch.masked_positions, hard.argmax(-1))
    one_hots = F.one_hot(tokens, len(table)).to(soft.dtype).flatten(0, 1)
    embeddings = one_hots.index_copy(0, batch.masked_index, drawn).view(*tokens.shape, -1) @ table.detach()
    hidden, layers = method.encoder.begin(embeddings, batch.padding_mask)
    hidden = layers.run(hidden)
    z = critic_logits(method.mlm_head(hidden))
    return rtd_loss(z, tokens != batch.original_tokens, batch.valid_positions).mean, projected


@pytest.mark.parametrize("mode, temperature", [("none", 1.0), ("straight_through", 0.5), ("soft", 2.0), ("soft", 0.2)])
def test_gradient_through_the_sample_equals_autograd_on_one_hot_draws(make_method, batch, mode, temperature):
    method = make_method(
        "script_selfcritic", dtype=torch.double, gain=10.0, sample_gradient=mode, gumbel_temperature=temperature
    )
    expected, projected = literal_critic_loss(method, batch, mode, temperature)
    (expected_gradient,) = torch.autograd.grad(expected, projected, allow_unused=True)

    seen = {}
    generate = method.generate

    def watched(batch):
        seen["projected"] = generate(batch)
        return seen["projected"]

    method.generate = watched
    term = method.losses(method(batch), batch)["critic"]
    (gradient,) = torch.autograd.grad(term.mean, seen["projected"], allow_unused=True)
    assert term.mean.item() == pytest.approx(expected.item(), rel=1e-12)
    if mode == "none":
        assert gradient is None
    else:
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-15)
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_the_masked_input_gets_the_critics_gradient_only_through_the_sample(make_method, batch, mode):
    method = make_method("script_selfcritic", sample_gradient=mode, dtype=torch.double)
    inputs = []
    begin = method.encoder.begin

    def watched(embeddings, padding_mask, key):
        inputs.append(embeddings)
        return begin(embeddings, padding_mask, key)

    method.encoder.begin = watched
    term = method.losses(method(batch), batch)["critic"]
    (found,) = torch.autograd.grad(term.mean, inputs[0], allow_unused=True)
    assert (found is not None and bool(found.any())) == (mode != "none")


def test_paper_bias_starts_the_critic_at_log_v_and_neutral_near_zero(make_method, batch):
    paper, neutral = (make_method("script_selfcritic", critic_bias_init=kind) for kind in ("paper", "neutral"))
    outputs = paper(batch), neutral(batch)
    at_log_v, at_zero = (output.critic_logits[batch.valid_positions] for output in outputs)
    torch.testing.assert_close(at_log_v, torch.full_like(at_log_v, math.log(40)), atol=0.1, rtol=0)
    torch.testing.assert_close(at_zero, at_log_v - math.log(40))
    losses = [method.losses(output, batch) for method, output in zip((paper, neutral), outputs)]
    assert losses[0]["mlm"].mean.item() == pytest.approx(losses[1]["mlm"].mean.item(), rel=1e-6)
    assert losses[1]["critic"].mean.item() == pytest.approx(math.log(2), abs=0.05)


ABLATIONS = {
    "undecided critic": dict(critic_bias_init="neutral"),
    "masked LM only": dict(critic_weight=0.0),
    "straight-through sample": dict(sample_gradient="straight_through", gumbel_temperature=0.3),
    "soft sample": dict(sample_gradient="soft", gumbel_temperature=0.3),
    "no relative positions": dict(rel_pos_buckets=0),
    "factorised table": dict(token_embed_dim=8),
}


@pytest.mark.parametrize("num_masked", [3, 0])
@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS)
def test_every_parameter_is_trained_under_every_ablation(make_method, make_batch, options, num_masked):
    method = make_method("script_selfcritic", **options)
    loss(method, make_batch(num_masked=num_masked))[0].nan_to_num().backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_without_the_critics_weight_the_gradient_is_that_of_the_masked_language_model(make_method, batch):
    script, bert = make_method("script_selfcritic", critic_weight=0.0), make_method("bert_mlm")
    bert.load_state_dict(script.state_dict())
    for method in (script, bert):
        loss(method, batch)[0].backward()
    for x, y in zip(script.parameters(), bert.parameters()):
        torch.testing.assert_close(x.grad, y.grad)


def test_statistics_on_originals_and_on_replaced(make_method, batch):
    method = make_method("script_selfcritic", gain=10.0)
    output = method(batch)
    found = {name: mean.mean.item() for name, mean in method.statistics(output, batch).items()}
    logits = batch.at_masked(method.mlm_head(method.encoder(batch.masked_tokens, batch.padding_mask)))
    replaced = output.corruption.replaced_positions
    original = batch.valid_positions & ~replaced
    z = output.critic_logits
    expected = {
        "generator_accuracy": (logits.argmax(-1) == batch.mlm_targets).float().mean(),
        "sampled_accuracy": (output.sampled_tokens == batch.mlm_targets).float().mean(),
        "critic_logit_original": z[original].mean(),
        "critic_logit_replaced": z[replaced].mean(),
        "replaced_share": replaced.sum() / 33,
        "rtd_accuracy_original_words": (z[original & method.words(batch)] > 0).float().mean(),
        "rtd_accuracy_original_all": (z[original] > 0).float().mean(),
        "rtd_accuracy_replaced": (z[replaced] < 0).float().mean(),
    }
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_keeps_losses_in_fp32(make_method, batch, mode):
    method = make_method("script_selfcritic", dtype=torch.bfloat16, sample_gradient=mode)
    total, terms = loss(method, batch)
    assert {term.total.dtype for term in terms.values()} == {torch.float32}
    total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(critic_weight=-1.0), "critic_weight -1.0 is out of range: it must be at least 0"),
        (dict(critic_bias_init="zero"), "unknown critic_bias_init 'zero': choose paper, neutral"),
        (dict(sample_gradient="hard"), "unknown sample_gradient 'hard': choose none, straight_through, soft"),
        (dict(sample_gradient="soft", gumbel_temperature=0.0), "gumbel_temperature 0.0 is out of range: .* above 0"),
        (dict(gumbel_temperature=0.3), "gumbel_temperature 0.3 changes nothing with sample_gradient none"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ScriptConfig(**options)
