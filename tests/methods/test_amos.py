"""What AMOS is: which parameters each loss reaches, and how the detection loss trains the mixture."""

import pytest
import torch
import torch.nn.functional as F

from amos_fairseq.corruption import corrupt
from amos_fairseq.methods.amos import AmosConfig
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.modules.encoder import EncoderConfig, LayerRun
from amos_fairseq.ops import full_precision, gumbel_noise


def starting(names, *prefixes):
    return {name for name in names if name.startswith(prefixes)}


def test_detection_reaches_the_mixture_and_every_block_but_not_the_mlm_projection(make_method, batch, gradients):
    method = make_method("amos_rtd")
    reached = gradients(method, batch, "rtd")
    everything = {name for name, _ in method.named_parameters()}
    assert everything - reached == {
        "mlm_head.dense.weight", "mlm_head.dense.bias", "mlm_head.layer_norm.weight", "mlm_head.layer_norm.bias",
        "mlm_head.bias",
    }


def test_detection_reaches_no_generator_parameter_without_a_learned_mixture(make_method, batch, gradients):
    reached = gradients(make_method("amos_rtd", mixture="uniform"), batch, "rtd")
    assert not starting(reached, "generators", "mlm_head", "mixture_head")
    assert starting(reached, "encoder.layers", "rtd_head")


def test_the_table_gets_only_the_lookups_gradient_from_detection(make_method, batch):
    # without a learned mixture detection reaches the table through the encoder's input alone: at the corrupted ids
    method = make_method("amos_rtd", mixture="uniform")
    output = method(batch)
    method.losses(output, batch)["rtd"].mean.backward()
    touched = method.encoder.token_embeddings.weight.grad.abs().sum(-1).nonzero().squeeze(-1)
    expected = output.corruption.corrupted_tokens[batch.valid_positions].unique()
    assert set(touched.tolist()) == set(expected.tolist())


def loss_of_depth(method, batch, index):
    """The masked LM loss of one generator, written out with all logits: their sum is what the method trains."""
    logits = method.mlm_head(method.generate(batch)[index])
    return F.cross_entropy(logits, batch.at_masked(batch.original_tokens), reduction="sum")


def reached_by_depth(method, batch, index):
    loss_of_depth(method, batch, index).backward()
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("index, block", [(0, [0]), (1, [1]), (2, [2, 3])])
def test_each_mlm_loss_trains_its_own_block_only(make_method, batch, index, block):
    reached = reached_by_depth(make_method("amos_rtd"), batch, index)
    layers = {int(name.split(".")[3]) for name in starting(reached, "generators.0.layers")}
    assert layers == set(block)
    assert bool(starting(reached, "generators.0.embeddings")) == (index == 0)
    assert "mlm_head.dense.weight" in reached and not starting(reached, "encoder.layers", "rtd_head", "mixture_head")


def test_joined_blocks_let_the_deepest_loss_train_the_whole_tower(make_method, batch):
    reached = reached_by_depth(make_method("amos_rtd", join_blocks=True), batch, 2)
    assert {int(name.split(".")[3]) for name in starting(reached, "generators.0.layers")} == {0, 1, 2, 3}


def test_the_mlm_term_is_the_sum_of_the_depths_losses_and_so_is_its_gradient(make_method, batch):
    method = make_method("amos_rtd", dtype=torch.double, gain=5.0)
    by_depth = [loss_of_depth(method, batch, index) for index in range(3)]
    output = method(batch)
    term, statistics = method.losses(output, batch)["mlm"], method.statistics(output, batch)
    assert (term.weight, term.count, term.over) == (1.0, 9, "selected")
    assert term.total.item() == pytest.approx(sum(by_depth).item(), rel=1e-12)
    logged = [statistics[f"mlm_{depth}"].mean.item() for depth in (1, 2, 4)]
    assert logged == pytest.approx([loss.item() / 9 for loss in by_depth], rel=1e-12)
    assert len(set(logged)) == 3

    parameters = list(method.parameters())
    found, expected = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (term.total, sum(by_depth)))
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def literal_detection_loss(method, batch, reversal=True):
    """AMOS's detection loss as the paper writes it: (M, V, G) logits, one-hot samples, sums by hand.

    Returns the loss and v, f of Eq. 3 as leaves, whose gradients the reversal has turned.
    """
    with torch.no_grad():
        hidden = method.generate(batch)  # f, (G, M, C)
        h = method.mlm_head.project(hidden)
    v = method.mixture_head.weight.detach().clone().requires_grad_()
    f = hidden.clone().requires_grad_()
    table, read = (part.token_embeddings.weight.detach() for part in (method.mlm_head, method.encoder))
    bias = method.mlm_head.bias.detach()
    gamma = torch.softmax((f @ v.T).squeeze(-1).T, dim=-1)  # (M, G)
    logits = torch.stack([h_d @ table.T + bias for h_d in h], dim=-1)  # (M, V, G)
    mixed = (logits * gamma[:, None, :]).sum(-1) / method.draw_temperature
    allowed = mixed.masked_fill(method.excluded_tokens, -torch.inf)
    noise = gumbel_noise(method.sampling_noise(batch), len(table), torch.double)
    soft = torch.softmax((allowed.log_softmax(-1) + noise) / method.config.gumbel_temperature, dim=-1)
    hard = F.one_hot(soft.argmax(-1), len(table)).to(soft.dtype)
    sample = hard - soft.detach() + soft
    if reversal:
        sample.register_hook(lambda gradient: -gradient)
    tokens = corrupt(batch.original_tokens, batch.masked_positions, hard.argmax(-1))
    embeddings = F.one_hot(tokens.corrupted_tokens, len(table)).to(soft.dtype)
    embeddings = embeddings.flatten(0, 1).index_copy(0, batch.masked_index, sample).view_as(embeddings) @ read
    encoder = method.encoder
    hidden, layers = encoder.begin(embeddings, batch.padding_mask)
    hidden = layers.run(hidden)
    p = torch.sigmoid(method.rtd_head(hidden))[batch.valid_positions]
    replaced = tokens.replaced_positions[batch.valid_positions]
    return -torch.where(replaced, 1 - p, p).log().mean(), v, f


def detection_gradients(method, batch):
    """Of the detection loss: its value, and its gradients at v and f of Eq. 3."""
    seen, generate = {}, method.generate

    def watched(batch):
        seen["f"] = generate(batch)
        return seen["f"]

    method.generate = watched
    term = method.losses(method(batch), batch)["rtd"]
    return term.mean.item(), *torch.autograd.grad(term.mean, (method.mixture_head.weight, seen["f"]))


LARGE = Vocabulary(size=1009, padding=1, excluded=[0, 1, 2, 3, 1008])


OPTIONS = dict(
    shared={}, separate=dict(token_table="separate"), gdes=dict(token_table="gdes"), hot=dict(sampling_temperature=3.0),
    both=dict(token_table="separate", sampling_temperature=0.7),
)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("temperature, tolerance", [(0.3, 1e-4), (0.5, 2e-2), (0.501, 1e-9), (1.0, 1e-9)])
def test_gradient_of_the_mixture_equals_autograd_on_a_literal_float64_transcription(
    make_method, make_batch, temperature, tolerance, options
):
    """Up to a temperature of 0.5 the sum is over each row's candidates, above it over all tokens."""
    options = dict(gumbel_temperature=temperature, vocabulary=LARGE, **options)
    method, batch = make_method("amos_rtd", dtype=torch.double, gain=10.0, **options), make_batch(num_masked=7)
    if method.config.token_table != "shared":  # two tables that have parted
        table = method.encoder.token_embeddings
        getattr(table, "delta", table.weight).data += 0.2 * torch.sin(torch.arange(1009.0 * 16)).view(1009, 16)
    loss, *expected = literal_detection_loss(method, batch)
    loss.backward()
    value, *found = detection_gradients(method, batch)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    for gradient, leaf in zip(found, expected):
        error = ((gradient - leaf.grad).norm() / leaf.grad.norm()).item()
        assert error <= tolerance and (error > 1e-12) == (temperature <= 0.5)
        assert leaf.grad.abs().max() > 1e-8


def test_candidate_tail_is_the_share_of_the_soft_sample_that_the_candidates_leave_out(make_method, make_batch):
    method, batch = make_method("amos_rtd", dtype=torch.double, vocabulary=LARGE), make_batch(num_masked=7)
    output = method(batch)
    with torch.no_grad():
        hidden = method.generate(batch)
        mixed = method.mixed_embedding(method.mix(hidden, batch), method.mlm_head.project(hidden))
        logits = method.mlm_head.logits(mixed)
    perturbed = logits.masked_fill(method.excluded_tokens, -torch.inf)
    perturbed += gumbel_noise(method.sampling_noise(batch), LARGE.size, torch.double)
    soft = (perturbed / 0.3).softmax(-1)
    candidates = [row[row >= 0].long() for row in output.masked_lm.candidates]
    expected = 21 - sum(row[listed].sum() for row, listed in zip(soft, candidates))
    tail = method.statistics(output, batch)["candidate_tail"]
    assert tail.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert tail.count == 21 and 0 < tail.mean.item() < 1e-4
    assert not method.excluded_tokens[torch.cat(candidates)].any()


@pytest.mark.parametrize("options", [dict(gumbel_temperature=0.6), dict(mixture="uniform")])
def test_without_candidates_no_tail_is_logged(make_method, batch, options):
    method = make_method("amos_rtd", **options)
    assert "candidate_tail" not in method.statistics(method(batch), batch)


def test_validation_lists_no_candidates_and_logs_no_tail(make_method, batch):
    method = make_method("amos_rtd").eval()
    with torch.no_grad():
        output = method(batch)
        assert output.masked_lm.candidates.numel() == 0
        assert "candidate_tail" not in method.statistics(output, batch)


def test_gradients_in_evaluation_are_those_of_training(make_method, batch):
    method = make_method("amos_rtd", gain=5.0)
    trained, evaluated = (detection_gradients(method.train(mode), batch) for mode in (True, False))
    assert trained[0] == evaluated[0] and all(torch.equal(x, y) for x, y in zip(trained[1:], evaluated[1:]))


def test_a_step_on_the_mixture_alone_raises_the_detection_loss(make_method, batch):
    """To first order, where the straight-through gradient is defined: the drawn embeddings move as the soft ones do."""
    method = make_method("amos_rtd", dtype=torch.double, gain=10.0)
    method.losses(method(batch), batch)["rtd"].mean.backward()
    v = method.mixture_head.weight
    gradient = v.grad.clone()

    def loss_at(weight):
        """Detection loss with input e_hard + mu(v) - mu(v_0), mu the soft sample's embedding."""
        with torch.no_grad():
            hidden = method.generate(batch)
            h = method.mlm_head.project(hidden)
            noise = gumbel_noise(method.sampling_noise(batch), len(method.mlm_head.bias), torch.double)
            table = method.encoder.token_embeddings.weight

            def soft(weight):
                gamma = (hidden @ weight.T).squeeze(-1).T.softmax(-1)
                logits = method.mlm_head.logits(torch.einsum("mg,gme->me", gamma, h))
                logits.masked_fill_(method.excluded_tokens, -torch.inf)
                return ((logits + noise) / method.config.gumbel_temperature).softmax(-1)

            before = soft(v)
            tokens = corrupt(batch.original_tokens, batch.masked_positions, before.argmax(-1))
            embeddings = table[tokens.corrupted_tokens]
            embeddings.flatten(0, 1).index_add_(0, batch.masked_index, (soft(weight) - before) @ table)
            hidden, layers = method.encoder.begin(embeddings, batch.padding_mask)
            logits = method.rtd_head(layers.run(hidden))
            output = method(batch)._replace(corruption=tokens, rtd_logits=logits)
            return method.losses(output, batch)["rtd"].mean.item()

    step = 1e-3
    rise = loss_at(v - step * gradient) - loss_at(v)  # what SGD does with the gradient it is given
    assert rise > 0
    assert rise == pytest.approx(step * gradient.square().sum().item(), rel=1e-2)


def test_detection_raises_the_mixture_weight_of_the_generator_whose_draws_are_harder_to_detect(make_method, batch):
    """Two generators of one token each: the encoder detects token 10 and is fooled by token 20."""
    method = make_method("amos_rtd", generator_depths=[1, 2], gumbel_temperature=0.3, dtype=torch.double)
    table = method.encoder.token_embeddings.weight
    table.data.zero_()
    table.data[10, 0], table.data[20, 1] = 1.0, 1.0
    easy, hard = torch.zeros(2, 1, 16, dtype=torch.double)
    easy[0, 0], hard[0, 1] = 3.0, 3.0
    method.generate = lambda batch: torch.stack(
        [torch.eye(16, dtype=torch.double)[i].expand(sum(batch.num_masked), 16) for i in (0, 1)]
    )
    method.mlm_head.project = lambda hidden: torch.stack([easy.expand_as(hidden[0]), hard.expand_as(hidden[1])])
    method.encoder.begin = lambda embeddings, padding_mask, key: (embeddings, LayerRun([], None, []))
    method.rtd_head.forward = lambda hidden: 4 * hidden[..., 1] - 4 * hidden[..., 0]  # positive = original
    method.mixture_head.weight.data.zero_()
    optimizer = torch.optim.SGD([method.mixture_head.weight], lr=5.0)
    for update in range(60):
        method.set_num_updates(update)
        output = method(batch)
        optimizer.zero_grad()
        method.losses(output, batch)["rtd"].mean.backward()
        optimizer.step()
    assert output.mixture_weights.mean(0)[1].item() > 0.9


def test_mixing_embeddings_is_mixing_logits(make_method, batch):
    method = make_method("amos_rtd", dtype=torch.double)
    with torch.no_grad():
        hidden = method.generate(batch)
        projected = method.mlm_head.project(hidden)
        gamma = method.mix(hidden, batch)
        mixed = method.mlm_head.logits(method.mixed_embedding(gamma, projected))
        expected = torch.einsum("mg,gmv->mv", gamma, method.mlm_head.logits(projected))
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)


def test_mixture_weights_are_a_softmax_over_depths(make_method, batch):
    method = make_method("amos_rtd")
    hidden = torch.randn(3, 5, 16)
    with torch.no_grad():
        scores = torch.stack([hidden[d] @ method.mixture_head.weight[0] for d in range(3)], -1)
        torch.testing.assert_close(method.mix(hidden, batch), scores.softmax(-1))


def test_generator_has_no_dropout(make_method, batch):
    method = make_method("amos_rtd", dropout=0.5).train()
    assert torch.equal(method.generate(batch), method.generate(batch))


# --- ablations: one option each ---

ABLATIONS = {
    "random layer": dict(mixture="random_layer"),
    "layer switch": dict(mixture="layer_switch"),
    "no adversarial training": dict(mixture="uniform"),
    "final mixture weights": dict(mixture="fixed:[0.2,0.3,0.5]"),
    "adversarial MLM embeddings": dict(adversarial_mlm_scale=0.1),
    "no stop-gradient": dict(join_blocks=True),
    "separate generators": dict(separate_generators=True),
    "three shallow generators": dict(separate_generators=True, generator_depths=[2, 2, 2]),
    "one generator": dict(generator_depths=[3]),
    "all depths": dict(generator_depths=[1, 2, 3, 4]),
    "no relative positions": dict(rel_pos_buckets=0),
    "deeper detection head": dict(rtd_head_hidden_layer=True),
    "factorised table": dict(token_embed_dim=8),
}


@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS)
def test_every_parameter_is_trained_under_every_ablation(make_method, batch, options, gradients):
    # a parameter without gradient would stop PyTorch's DDP at the second update
    method = make_method("amos_rtd", **options)
    gradients(method, batch)
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_adversarial_mlm_scale_lets_its_share_of_the_reversed_gradient_into_the_embeddings(
    make_method, batch, gradients
):
    grads = {}
    for scale in (0.1, 1.0):
        method = make_method("amos_rtd", adversarial_mlm_scale=scale, dtype=torch.double)
        gradients(method, batch, "rtd")
        grads[scale] = method.mlm_head.dense.weight.grad
    torch.testing.assert_close(grads[0.1], 0.1 * grads[1.0])
    assert grads[1.0].abs().max() > 0


def test_layers_switch_at_one_and_two_thirds_of_the_updates(make_method, batch):
    method = make_method("amos_rtd", mixture="layer_switch", total_updates=90)
    parts = []
    for update in (0, 29, 30, 59, 60, 89, 95):
        method.set_num_updates(update)
        parts.append(method(batch).mixture_weights[0].argmax().item())
    assert parts == [0, 0, 1, 1, 2, 2, 2]


def test_a_random_layer_is_picked_evenly_for_each_position(make_method, make_batch):
    method = make_method("amos_rtd", mixture="random_layer")
    batch = make_batch(lengths=(32,) * 100, num_masked=30)
    weights = method.mix(torch.zeros(3, 3000, 16), batch)
    assert ((weights == 0) | (weights == 1)).all() and (weights.sum(-1) == 1).all()
    assert weights.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=4 * (2 / 9 / 3000) ** 0.5)


def test_fixed_weights_are_normalised(make_method, batch):
    weights = make_method("amos_rtd", mixture="fixed:[1,1,2]")(batch).mixture_weights
    assert weights[0].tolist() == [0.25, 0.25, 0.5] and weights.shape == (9, 3)


def test_equal_depths_are_told_apart_in_the_logs(make_method, batch):
    method = make_method("amos_rtd", separate_generators=True, generator_depths=[2, 2, 1])
    statistics = method.statistics(method(batch), batch)
    for kind in ("mlm", "mlm_accuracy", "mixture_weight"):
        assert {f"{kind}_{depth}" for depth in ("2a", "2b", "1")} <= statistics.keys()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(generator_layers=4), r"generator_depths \[4, 6, 8\] go deeper than generator_layers 4"),
        (dict(generator_layers=10), "generator_layers 10 exceed the deepest of generator_depths"),
        (dict(generator_depths=[]), "must be layer numbers from 1"),
        (dict(generator_depths=[0, 2]), "generator_depths 0 is out of range: it must be at least 1"),
        (dict(generator_depths=[6, 4]), "must increase"),
        (dict(mixture="lerned"), "unknown mixture 'lerned': choose learned, random_layer"),
        (dict(mixture="fixed:[1,2]"), "with 3 weights"),
        (dict(mixture="fixed:__import__('os')"), "unknown mixture"),
        (dict(mixture="fixed:[0,0,0]"), "unknown mixture"),
        (dict(gumbel_temperature=0.0), "gumbel_temperature 0.0 is out of range: it must be above 0"),
        (dict(mixture="uniform", adversarial_mlm_scale=0.1), "needs mixture learned"),
        (dict(adversarial_mlm_scale=-1.0), "adversarial_mlm_scale -1.0 is out of range: it must be at least 0 and at"),
        (dict(mixture="uniform", gumbel_temperature=0.5), "temperature 0.5 changes nothing with mixture uniform"),
        (dict(separate_generators=True, join_blocks=True), "join_blocks True changes nothing with separate_generators"),
        (dict(generator_depths=[2], join_blocks=True), r"changes nothing with generator_depths \[2\]: leave it out"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AmosConfig(**options)


def test_of_separate_generators_the_deepest_fills_masks(make_method):
    method = make_method("amos_rtd", separate_generators=True, generator_depths=[2, 4, 1])
    assert method.masked_lm_encoder is method.generators[1] and len(method.masked_lm_encoder.layers) == 4


def test_the_mixture_is_computed_in_fp32_under_autocast_too(make_method, batch):
    method = make_method("amos_rtd", gain=10.0)
    hidden = method.generate(batch).detach().to(torch.bfloat16).float()
    weights = method.mix(hidden, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.mix(hidden, batch), weights)
        mixed = method.mixed_embedding(weights, hidden)
    assert torch.equal(mixed, method.mixed_embedding(weights, hidden)) and mixed.dtype == torch.float32


def test_layer_switch_needs_the_length_of_the_run(make_method):
    with pytest.raises(ValueError, match="--max-update"):
        make_method("amos_rtd", mixture="layer_switch", total_updates=0)


def test_half_precision_keeps_mixture_and_losses_in_fp32(make_method, batch):
    method = make_method("amos_rtd", dtype=torch.bfloat16)
    output = method(batch)
    terms = method.losses(output, batch)
    assert output.mixture_weights.dtype == torch.float32
    assert {term.total.dtype for term in terms.values()} == {torch.float32}
    sum(term.weight * term.mean for term in terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


def test_full_precision_keeps_doubles():
    assert full_precision(torch.ones(1, dtype=torch.double)).dtype == torch.double
    assert full_precision(torch.ones(1, dtype=torch.half)).dtype == torch.float32
    assert EncoderConfig.__dataclass_params__.frozen
