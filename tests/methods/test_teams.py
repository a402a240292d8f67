"""What TEAMS is: what generator and encoder share, which parameters each loss reaches, how candidates are drawn."""

import pytest
import torch

from amos_fairseq.methods.teams import TeamsConfig


def starting(names, *prefixes):
    return {name for name in names if name.startswith(prefixes)}


def test_the_generator_stands_on_the_encoders_bottom_layers(make_method):
    method = make_method("teams_mws", encoder_layers=12, generator_layers=0)
    generator, encoder = method.generator, method.encoder
    assert len(generator.layers) == 6 and len(encoder.layers) == 12
    assert [one is other for one, other in zip(generator.layers, encoder.layers)] == [True] * 3 + [False] * 3
    assert generator.embeddings is encoder.embeddings
    assert generator.token_embeddings is encoder.token_embeddings is method.mlm_head.token_embeddings


@pytest.mark.parametrize(
    "generator_layers, tied_layers, shared",
    [(4, "none", 0), (4, "half", 2), (5, "half", 2), (1, "half", 0), (4, "all", 4)],
)
def test_layers_are_tied_from_the_bottom(make_method, generator_layers, tied_layers, shared):
    method = make_method("teams_mws", encoder_layers=4, generator_layers=generator_layers, tied_layers=tied_layers)
    same = [one is other for one, other in zip(method.generator.layers, method.encoder.layers)]
    assert same == [True] * shared + [False] * (min(4, generator_layers) - shared)
    assert method.generator.embeddings is method.encoder.embeddings


def test_each_network_has_a_relative_position_bias_of_its_own(make_method, batch, gradients):
    method = make_method("teams_mws")
    assert method.generator.relative_position_bias is not method.encoder.relative_position_bias
    assert "generator.relative_position_bias.weight" in gradients(method, batch, "mlm")


# --- gradients ---

BOTTOM = ("encoder.token_embeddings", "encoder.embeddings", "encoder.layers.0")


def test_each_loss_trains_the_shared_bottom_and_its_own_branch(make_method, batch, gradients):
    method = make_method("teams_mws", encoder_layers=3)
    reached = {name: gradients(method, batch, name) for name in ("mlm", "rtd", "mws")}
    for names in reached.values():
        assert all(starting(names, part) for part in BOTTOM)
    trunk, top, branch, own = "encoder.layers.1.", "encoder.layers.2.", "branch_layer.", "generator.layers.1."
    expected = {
        "mlm": {own, "mlm_head."},
        "rtd": {trunk, branch, "rtd_head."},
        "mws": {trunk, top, "mws_head."},
    }
    parts = {trunk, top, branch, own, "mlm_head.", "rtd_head.", "mws_head."}
    assert {name: {part for part in parts if starting(names, part)} for name, names in reached.items()} == expected


def test_selection_reaches_the_candidates_rows_of_the_table(make_method, batch):
    method = make_method("teams_mws")
    output = method(batch)
    method.losses(output, batch)["mws"].mean.backward()
    touched = method.encoder.token_embeddings.weight.grad.abs().sum(-1).nonzero().flatten().tolist()
    read = output.corruption.corrupted_tokens[batch.valid_positions].tolist()
    assert set(touched) == set(read) | set(output.candidate_tokens.flatten().tolist())
    assert set(touched) > set(read)


def test_shared_layers_get_the_sum_of_both_passes_gradients(make_method, batch, gradients):
    method = make_method("teams_mws", dtype=torch.double)
    found = {}
    for names in (("mlm",), ("rtd", "mws"), ("mlm", "rtd", "mws")):
        gradients(method, batch, *names)
        found[names] = method.encoder.layers[0].fc1.weight.grad.clone()
    torch.testing.assert_close(found["mlm", "rtd", "mws"], found["mlm",] + found["rtd", "mws"])


# --- stages ---


def test_branches_are_two_layers_on_one_trunk(make_method, batch):
    method = make_method("teams_mws", encoder_layers=3, dtype=torch.double)
    output = method(batch)
    tokens, encoder = output.corruption.corrupted_tokens, method.encoder
    mws_states, rtd_states = method.encode(output.corruption.corrupted_tokens, batch.padding_mask)
    assert torch.equal(mws_states, encoder(tokens, batch.padding_mask))
    embedded, layers = encoder.begin(encoder.token_embeddings(tokens), batch.padding_mask)
    assert torch.equal(rtd_states, method.branch_layer(layers.run(embedded, 0, 2), layers.attention_bias))
    assert torch.equal(output.rtd_logits, method.rtd_head(rtd_states))


def test_selection_is_the_papers_equation_seven(make_method, batch):
    method = make_method("teams_mws", dtype=torch.double, gain=5.0)
    output = method(batch)
    hidden = batch.at_masked(method.encode(output.corruption.corrupted_tokens, batch.padding_mask)[0])
    table, total = method.encoder.token_embeddings.weight, 0.0
    for row, candidates in zip(hidden, output.candidate_tokens):
        projected = method.mws_head.layer_norm(torch.nn.functional.gelu(method.mws_head.dense(row)))
        scores = torch.stack([(table[token] * projected).sum().exp() for token in candidates])
        total -= (scores[0] / scores.sum()).log()
    torch.testing.assert_close(method.losses(output, batch)["mws"].total, total)


def test_candidates_are_the_original_and_five_others_independent_of_the_draw(make_method, make_batch):
    method, batch = make_method("teams_mws"), make_batch(lengths=(32,) * 40, num_masked=20)
    output = method(batch)
    assert output.candidate_tokens.shape == (800, 6)
    assert torch.equal(output.candidate_tokens[:, 0], batch.mlm_targets)
    # 34 tokens of nearly equal probability: K of the 33 others hold an independent draw that is another in 5 of 33
    replaced = output.sampled_tokens != batch.mlm_targets
    held = (output.candidate_tokens[:, 1:] == output.sampled_tokens[:, None]).any(-1)[replaced].double().mean().item()
    assert held == pytest.approx(5 / 33, abs=4 * (5 / 33 * 28 / 33 / 770) ** 0.5)


def test_hardest_negatives_are_the_likeliest_others(make_method, batch):
    method = make_method("teams_mws", negatives="hardest", num_negatives=3, gain=5.0)
    output = method(batch)
    logits = batch.at_masked(method.mlm_head(method.generator(batch.masked_tokens, batch.padding_mask)))
    logits = logits.masked_fill(method.excluded_tokens, -torch.inf)
    for row, original, candidates in zip(logits, batch.mlm_targets, output.candidate_tokens):
        ordered = [token for token in row.argsort(descending=True).tolist() if token != original]
        assert candidates.tolist() == [original, *ordered[:3]]
    method.set_num_updates(5)
    assert torch.equal(method(batch).candidate_tokens, output.candidate_tokens)


def test_without_generator_dropout_it_acts_in_the_encoders_pass_only(make_method, batch):
    method = make_method("teams_mws", dropout=0.5).train()
    first, again = method(batch), method(batch)
    assert torch.equal(first.masked_lm.losses, again.masked_lm.losses)
    assert not torch.equal(first.mws_hidden, again.mws_hidden) and not torch.equal(first.rtd_logits, again.rtd_logits)
    assert all(module.training for module in method.modules())
    method.eval()
    assert torch.equal(method(batch).rtd_logits, method(batch).rtd_logits)
    assert not any(module.training for module in method.modules())


def test_loss_weighs_detection_five_and_selection_two(make_method, batch):
    method = make_method("teams_mws")
    terms = method.losses(method(batch), batch)
    assert {name: (term.weight, int(term.count)) for name, term in terms.items()} == {
        "mlm": (1.0, 9), "rtd": (5.0, 33), "mws": (2.0, 9),
    }


def test_statistics_name_what_is_logged(make_method, batch):
    method = make_method("teams_mws")
    trained = {
        "generator_accuracy", "sampled_accuracy", "mws_accuracy", "replaced_share",
        "rtd_accuracy_original_words", "rtd_accuracy_original_all", "rtd_accuracy_replaced",
    }
    assert set(method.statistics(method(batch), batch)) == trained
    method.eval()
    output = method(batch)
    statistics = method.statistics(output, batch)
    assert set(statistics) == trained
    dots = (output.candidate_embeddings * output.mws_hidden[:, None]).sum(-1)
    right = (dots[:, 0] > dots[:, 1:].max(-1).values).sum().item()
    assert (statistics["mws_accuracy"].total.item(), statistics["mws_accuracy"].count) == (right, 9)


# --- ablations: one option each ---

ABLATIONS = {
    "RTD only": dict(mws_weight=0.0),
    "MWS only": dict(rtd_weight=0.0),
    "FFN heads": dict(task_heads="ffn"),
    "heads on top of the last layer": dict(task_heads="on_top"),
    "RTD branch exported": dict(exported_branch="rtd"),
    "RTD branch exported, heads on top": dict(exported_branch="rtd", task_heads="on_top"),
    "no tie": dict(tied_layers="none"),
    "full tie": dict(tied_layers="all"),
    "hardest negatives": dict(negatives="hardest"),
    "one negative": dict(num_negatives=1),
    "thirty negatives": dict(num_negatives=30),
    "shallow generator": dict(generator_layers=1),
    "deep generator": dict(generator_layers=4),
    "one layer": dict(encoder_layers=1),
    "absolute positions only": dict(rel_pos_buckets=0),
    "deeper detection head": dict(rtd_head_hidden_layer=True),
    "factorised table": dict(token_embed_dim=8),
}


@pytest.mark.parametrize("masked", [3, 0])
@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS)
def test_every_parameter_is_trained_under_every_ablation(make_method, make_batch, options, masked):
    # a parameter without gradient would stop PyTorch's DDP at the second update
    method, batch = make_method("teams_mws", **options), make_batch(num_masked=masked)
    terms = method.losses(method(batch), batch)
    sum(term.weight * term.total for term in terms.values()).backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    "options, terms",
    [(dict(mws_weight=0.0), {"mlm": 1.0, "rtd": 5.0}), (dict(rtd_weight=0.0), {"mlm": 1.0, "mws": 2.0})],
)
def test_a_task_of_no_weight_is_not_there(make_method, batch, options, terms):
    method = make_method("teams_mws", **options).eval()
    output = method(batch)
    assert {name: term.weight for name, term in method.losses(output, batch).items()} == terms
    assert method.branch_layer is None and len(method.encoder.layers) == 2
    logged = set(method.statistics(output, batch))
    assert ("mws_accuracy" in logged) == ("mws" in terms) and ("rtd_accuracy_replaced" in logged) == ("rtd" in terms)


def test_detection_only_reads_the_encoder(make_method, batch):
    method = make_method("teams_mws", mws_weight=0.0)
    output = method(batch)
    hidden = method.encoder(output.corruption.corrupted_tokens, batch.padding_mask)
    assert torch.equal(output.rtd_logits, method.rtd_head(hidden)) and output.candidate_tokens is None


@pytest.mark.parametrize("task_heads, layers", [("split", 3), ("on_top", 4)])
def test_the_exported_encoder_ends_in_the_chosen_branch(make_method, batch, task_heads, layers, gradients):
    for branch in ("mws", "rtd"):
        method = make_method("teams_mws", encoder_layers=3, task_heads=task_heads, exported_branch=branch)
        assert len(method.encoder.layers) == layers
        reached = gradients(method, batch, branch)
        assert starting(reached, f"encoder.layers.{layers - 1}.") and not starting(reached, "branch_layer.")
        other = gradients(method, batch, "rtd" if branch == "mws" else "mws")
        assert starting(other, "branch_layer.") and not starting(other, f"encoder.layers.{layers - 1}.")
        assert starting(other, f"encoder.layers.{layers - 2}.")


def test_feed_forward_heads_read_the_same_states(make_method, batch):
    method = make_method("teams_mws", task_heads="ffn")
    mws_states, rtd_states = method.encode(batch.original_tokens, batch.padding_mask)
    assert mws_states is rtd_states and method.branch_layer is None and len(method.encoder.layers) == 2
    assert method.rtd_head.dense is not None


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(tied_layers="quarter"), "unknown tied_layers 'quarter': choose none, half, all"),
        (dict(generator_layers=-1), "generator_layers -1 is out of range: it must be at least 0"),
        (dict(generator_layers=14, tied_layers="all"), "generator_layers 14 .* 14 layers to tie, .* encoder_layers 12"),
        (dict(task_heads="attention"), "unknown task_heads 'attention': choose split, on_top, ffn"),
        (dict(negatives="easy"), "unknown negatives 'easy': choose sampled, hardest"),
        (dict(exported_branch="mlm"), "unknown exported_branch 'mlm': choose mws, rtd"),
        (dict(rtd_weight=0.0, mws_weight=0.0), "rtd_weight 0.0 and mws_weight 0.0"),
        (dict(rtd_weight=-1.0), "rtd_weight -1.0 is out of range: it must be at least 0"),
        (dict(num_negatives=0), "num_negatives 0 is out of range: it must be at least 1"),
        (dict(exported_branch="rtd", task_heads="ffn"), "exported_branch rtd needs two branches, but task_heads ffn"),
        (dict(mws_weight=0.0, num_negatives=9), "num_negatives 9 changes nothing with mws_weight 0.0: leave it out"),
        (dict(mws_weight=0.0, negatives="hardest"), "negatives hardest changes nothing with mws_weight 0.0"),
        (dict(exported_branch="rtd", rtd_weight=0.0), "exported_branch rtd .* rtd_weight 0.0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        TeamsConfig(**options)
    assert "\n" not in str(error.value)


def test_more_negatives_than_tokens_are_refused_before_the_first_batch(make_method):
    with pytest.raises(ValueError, match="num_negatives is 34, but the vocabulary allows 1 to 33"):
        make_method("teams_mws", num_negatives=34)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_losses_in_fp32(make_method, batch, dtype):
    method = make_method("teams_mws", dtype=dtype)
    terms = method.losses(method(batch), batch)
    assert {term.total.dtype for term in terms.values()} == {torch.float32}
    sum(term.weight * term.mean for term in terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())
