"""What COCO-LM is: which parameters each loss reaches, its ablations, and contrast over processes."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from amos_fairseq.corruption import Corruption
from amos_fairseq.methods import size_options
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.coco_lm import CocoLM, CocoLMConfig, SequenceViews, cosine_statistics
from amos_fairseq.methods.continuation import EarlierRun, load_generator
from amos_fairseq.methods.stages import Words
from amos_fairseq.objectives import clm_loss, scl_loss
from amos_fairseq.ops import read_linear


def heads(reached):
    return {name.split(".")[0] for name in reached}


def test_loss_is_mlm_plus_fifty_times_copy_plus_clm_plus_scl(make_method, batch):
    method = make_method("coco_lm")
    terms = method.losses(method(batch), batch)
    assert {name: term.weight for name, term in terms.items()} == {"mlm": 1.0, "rtd": 50.0, "clm": 1.0, "scl": 1.0}
    assert {name: int(term.count) for name, term in terms.items()} == {"mlm": 9, "rtd": 33, "clm": 9, "scl": 3}


def test_each_loss_reaches_its_own_head_and_no_loss_of_the_encoder_the_generator(make_method, batch, gradients):
    method = make_method("coco_lm")
    assert heads(gradients(method, batch, "mlm")) == {"generator", "mlm_head", "encoder"}
    assert heads(gradients(method, batch, "rtd")) == {"encoder", "rtd_head"}
    assert heads(gradients(method, batch, "clm")) == {"encoder", "clm_head"}
    assert heads(gradients(method, batch, "scl")) == {"encoder", "scl_head"}


def test_mlm_reaches_nothing_of_the_encoder_but_the_embedding_network(make_method, batch, gradients):
    reached = {name for name in gradients(make_method("coco_lm"), batch, "mlm") if name.startswith("encoder")}
    shared = {"encoder.token_embeddings.weight", "encoder.embeddings.positions.weight"}
    assert reached == shared | {"encoder.embeddings.layer_norm.weight", "encoder.embeddings.layer_norm.bias"}


def test_a_narrower_generator_has_an_embedding_network_of_its_own(make_method):
    method = make_method("coco_lm", generator_embed_dim=8)
    assert method.generator.token_embeddings is method.encoder.token_embeddings
    assert method.generator.embeddings is not method.encoder.embeddings


def test_the_encoders_dropout_in_the_shared_embedding_network_is_off_when_sampling(make_method, batch):
    with_dropout = make_method("coco_lm", generator_dropout=0.0, dropout=0.5).train()
    without = make_method("coco_lm", generator_dropout=0.0).train()
    without.load_state_dict(with_dropout.state_dict())
    assert torch.equal(with_dropout(batch).sampled_tokens, without(batch).sampled_tokens)


def test_language_model_has_no_projection_on_a_table_as_wide_as_the_encoder(make_method, batch):
    method = make_method("coco_lm")
    assert [name for name, _ in method.clm_head.named_parameters()] == ["bias", "token_embeddings.weight"]
    hidden = torch.randn(4, 16)
    method.clm_head.bias.data.normal_()
    states, table, bias = method.clm_head.output_layer(hidden)
    assert states is hidden and table is method.encoder.token_embeddings.weight and bias is method.clm_head.bias
    expected = (hidden @ table.T + bias).logsumexp(-1)
    torch.testing.assert_close(read_linear(states, table, bias).logsumexp, expected)


def test_terms_are_the_objectives_of_the_stages_by_hand(make_method, batch):
    method = make_method("coco_lm", dtype=torch.double, gain=5.0)
    method.set_num_updates(4)  # one of those that draw an original, too
    output, encoder = method(batch), method.encoder
    terms = method.losses(output, batch)
    corrupted = output.corruption.corrupted_tokens
    hidden = encoder(corrupted, batch.padding_mask)
    at = batch.masked_positions
    lm_logits = hidden[at] @ encoder.token_embeddings.weight.T
    log_lm = lm_logits.log_softmax(-1).gather(-1, batch.original_tokens[at].unsqueeze(-1)).squeeze(-1)
    clm = clm_loss(log_lm, method.rtd_head(hidden)[at], corrupted[at] == batch.original_tokens[at])
    assert 0 < output.corruption.replaced_positions[at].sum() < 9
    assert terms["clm"].total.item() == pytest.approx(clm.total.item(), rel=1e-12)
    cropped = encoder(batch.cropped_tokens, batch.cropped_padding_mask)
    head = method.scl_head
    views = (head.layer_norm(F.gelu(head.dense(states[:, 0]))) for states in (hidden, cropped))
    assert terms["scl"].total.item() == pytest.approx(scl_loss(*views, 1.0).total.item(), rel=1e-12)


@pytest.mark.parametrize("all_tokens", [False, True])
def test_correction_tells_of_the_language_models_logits(make_method, batch, all_tokens):
    method = make_method("coco_lm", dtype=torch.double, gain=5.0, clm_all_tokens=all_tokens)
    output = method(batch)
    where = torch.ones_like(batch.masked_positions) if all_tokens else batch.masked_positions
    hidden = method.encoder(output.corruption.corrupted_tokens, batch.padding_mask)
    logits = hidden[where] @ method.encoder.token_embeddings.weight.T
    original, corrupted = (x[where].unsqueeze(-1) for x in (batch.original_tokens, output.corruption.corrupted_tokens))
    found = output.correction
    torch.testing.assert_close(found.log_lm, logits.log_softmax(-1).gather(-1, original).squeeze(-1))
    torch.testing.assert_close(found.logits_of_corrupted, logits.gather(-1, corrupted).squeeze(-1))
    torch.testing.assert_close(found.lm.logsumexp, logits.logsumexp(-1))
    torch.testing.assert_close(found.lm.largest, logits.max(-1).values)
    assert torch.equal(found.lm.likeliest, logits.argmax(-1))
    assert found.log_lm.requires_grad and not found.logits_of_corrupted.requires_grad


def test_generator_drops_when_trained_and_not_when_sampled_from(make_method, batch):
    with_dropout, without = make_method("coco_lm", generator_dropout=0.5), make_method("coco_lm")
    outputs = with_dropout(batch), without(batch)
    assert torch.equal(outputs[0].sampled_tokens, outputs[1].sampled_tokens)
    assert not torch.allclose(outputs[0].masked_lm.losses, outputs[1].masked_lm.losses)


def test_published_generators_are_shallow_and_as_wide_as_the_encoder():
    layers = {size: size_options("coco_lm", size)["generator_layers"] for size in ("small", "base", "large")}
    assert layers == {"small": 4, "base": 4, "large": 6}
    assert CocoLMConfig().generator_embed_dim == 0


# --- ablations: one option each ---

ALL_TOKENS = dict(rtd_weight=0.0, scl_weight=0.0, clm_all_tokens=True, clm_without_stop_gradient=True)
ABLATIONS = {
    "RTD only": dict(clm_weight=0.0, scl_weight=0.0),
    "CLM only": dict(scl_weight=0.0),
    "SCL + RTD": dict(clm_weight=0.0),
    "no relative positions": dict(rel_pos_buckets=0),
    "ELECTRA's generator": dict(generator_layers=0, generator_embed_dim=8),
    "random replacements": dict(random_replacements=True),
    "converged generator": dict(generator_checkpoint="some.pt"),
    "all-token LM only": ALL_TOKENS,
    "all tokens": dict(clm_all_tokens=True),
    "no copy": dict(clm_without_copy=True),
    "no stop-gradient": dict(clm_without_stop_gradient=True),
    "<s> itself": dict(scl_without_head=True),
    "contrast over processes": dict(scl_gather=True),
    "generator dropout": dict(generator_dropout=0.1),
    "deeper detection head": dict(rtd_head_hidden_layer=True),
    "factorised table": dict(token_embed_dim=8),
}


@pytest.mark.parametrize("num_masked", [3, 0])
@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS)
def test_every_parameter_is_trained_under_every_ablation(make_method, make_batch, options, num_masked):
    method, batch = make_method("coco_lm", **options), make_batch(num_masked=num_masked)
    terms = method.losses(method(batch), batch)
    sum(term.weight * term.total for term in terms.values()).backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    "options, terms",
    [
        (ABLATIONS["RTD only"], {"mlm", "rtd"}),
        (ABLATIONS["CLM only"], {"mlm", "rtd", "clm"}),
        (ABLATIONS["SCL + RTD"], {"mlm", "rtd", "scl"}),
        (ABLATIONS["random replacements"], {"rtd", "clm", "scl"}),
        (ABLATIONS["converged generator"], {"rtd", "clm", "scl"}),
    ],
)
def test_tasks_that_are_left_out_have_no_term(make_method, batch, options, terms):
    method = make_method("coco_lm", **options)
    assert set(method.losses(method(batch), batch)) == terms


def test_random_replacements_are_even_over_the_words_and_need_no_generator(make_method, make_batch):
    method, batch = make_method("coco_lm", random_replacements=True), make_batch(lengths=(32,) * 100, num_masked=30)
    counts = torch.bincount(method.sample(None, batch), minlength=40).double()
    assert (counts[method.excluded_tokens] == 0).all() and not hasattr(method, "generator")
    expected = 3000 / 34
    assert ((counts[4:38] - expected) ** 2 / expected).sum() < 63.9  # 99.9 % of chi-square, 33 degrees


def test_all_token_language_model_trains_detection_through_the_copy_mechanism(make_method, batch, gradients):
    method = make_method("coco_lm", **ALL_TOKENS)
    terms = method.losses(method(batch), batch)
    assert (int(terms["clm"].count), terms["clm"].over, terms["rtd"].weight) == (33, "valid", 0.0)
    assert "rtd_head" in heads(gradients(method, batch, "clm"))


def test_language_model_without_copy_is_a_masked_language_model_on_the_corrupted_sequence(make_method, batch):
    method = make_method("coco_lm", clm_without_copy=True)
    output = method(batch)
    hidden = method.encoder(output.corruption.corrupted_tokens, batch.padding_mask)
    lm_logits = batch.at_masked(hidden) @ method.encoder.token_embeddings.weight.T
    expected = F.cross_entropy(lm_logits, batch.mlm_targets, reduction="sum")
    assert method.losses(output, batch)["clm"].total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_converged_generator_draws_as_it_did_and_learns_nothing(make_method, batch, gradients):
    trained = make_method("coco_lm", seed=5, gain=10.0)
    method = make_method("coco_lm", generator_checkpoint="some.pt", generator_dropout=0.3)
    load_generator(method, EarlierRun("some.pt", trained.state_dict()))
    assert torch.equal(method(batch).sampled_tokens, trained(batch).sampled_tokens)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1.0)
    gradients(method, batch)
    optimizer.step()
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert "encoder.token_embeddings.weight" in changed
    assert not [name for name in changed if name.startswith(("generator", "mlm_head"))]


def test_another_generator_than_the_options_describe_is_refused(make_method):
    run = EarlierRun("some.pt", make_method("coco_lm", generator_layers=1).state_dict())
    for options, told in [
        (dict(generator_layers=2), r"generator\.layers\.1\.self_attn\.in_proj\.weight is absent, not \(48, 16\)"),
        (dict(encoder_ffn_embed_dim=32), r"generator\.layers\.0\.fc1\.weight is \(24, 16\), not \(32, 16\)"),
    ]:
        with pytest.raises(ValueError, match=r"some\.pt does not hold the generator .*" + told):
            load_generator(make_method("coco_lm", generator_checkpoint="some.pt", **options), run)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(clm_weight=-1.0), "clm_weight -1.0 is out of range: it must be at least 0"),
        (dict(scl_temperature=0.0), "scl_temperature 0.0 is out of range: it must be above 0"),
        (dict(generator_checkpoint="a.pt", random_replacements=True), "checkpoint 'a.pt' .* random_replacements True"),
        (dict(clm_weight=0.0, clm_all_tokens=True), "clm_all_tokens True changes nothing with clm_weight 0.0"),
        (dict(clm_without_copy=True, clm_all_tokens=True), "clm_all_tokens True .* clm_without_copy True"),
        (dict(clm_without_copy=True, clm_without_stop_gradient=True), "stop_gradient True .* clm_without_copy True"),
        (dict(scl_weight=0.0, scl_gather=True), "scl_gather True changes nothing with scl_weight 0.0"),
        (dict(scl_weight=0.0, scl_temperature=0.1), "scl_temperature 0.1 changes nothing with scl_weight 0.0"),
        (dict(rtd_weight=0.0), "rtd_weight 0.0 leaves detection untrained with clm_without_stop_gradient False"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CocoLMConfig(**options)


def test_batches_of_one_sequence_are_refused_where_it_has_no_negative(make_method):
    with pytest.raises(ValueError, match="^valid: batches of 1 sequence leave .* raise --batch-size-valid or "):
        make_method("coco_lm").check_batch_size(1, "valid")
    make_method("coco_lm").check_batch_size(2, "train")
    make_method("coco_lm", scl_gather=True).check_batch_size(1, "train")
    with pytest.raises(ValueError, match="valid: batches of 1 sequence"):  # which gathers nothing
        make_method("coco_lm", scl_gather=True).check_batch_size(1, "valid")
    make_method("coco_lm", scl_weight=0.0).check_batch_size(1, "train")


# --- what is logged ---


def means(statistics):
    return {name: float(mean.total) / float(mean.count) for name, mean in statistics.items()}


def test_cosines_of_a_worked_case():
    # cos(corrupted, cropped): positive 1/sqrt 2 twice; negative 0, 0 within views, and -1/sqrt 2, 1/sqrt 2 across
    found = cosine_statistics(SequenceViews(torch.eye(2), torch.tensor([[3.0, 3.0], [-1.0, 1.0]])))
    assert means(found) == pytest.approx({"scl_cosine_positive": 0.5**0.5, "scl_cosine_negative": 0.0}, abs=1e-6)
    assert found["scl_cosine_positive"].count == 2 and found["scl_cosine_negative"].count == 8


def test_language_model_accuracy_is_told_apart_by_replacement(make_method, batch):
    method = make_method("coco_lm")
    output = method(batch)
    at = batch.masked_positions
    replaced = output.corruption.replaced_positions[at]
    # copies everything: right on originals, wrong on replaced
    copied = method.statistics(output._replace(rtd_logits=torch.full_like(output.rtd_logits, 90.0)), batch)
    assert copied["clm_accuracy_replaced"].total == 0
    assert copied["clm_accuracy_original"].total == copied["clm_accuracy_original"].count
    # never copies, and knows all
    knows = 90 * F.one_hot(batch.original_tokens[at], 40).float()
    of_corrupted = knows.gather(-1, output.sampled_tokens[:, None]).squeeze(-1)
    correction = output.correction._replace(
        lm=read_linear(knows, torch.eye(40), torch.zeros(40)), logits_of_corrupted=of_corrupted
    )
    output = output._replace(rtd_logits=torch.full_like(output.rtd_logits, -90.0), correction=correction)
    right = method.statistics(output, batch)
    assert int(right["clm_accuracy_replaced"].total) == int(right["clm_accuracy_replaced"].count) == int(replaced.sum())


def test_validation_without_contrast_still_logs_the_cosines(make_method, batch):
    method = make_method("coco_lm", scl_weight=0.0)
    assert method(batch).sequence_views is None
    method.eval()
    assert {"scl_cosine_positive", "scl_cosine_negative"} <= method.statistics(method(batch), batch).keys()


def test_flops_add_the_cropped_pass_and_the_pass_that_is_sampled_from(make_method, batch):
    flops = {
        name: make_method("coco_lm", **options).training_flops(batch)
        for name, options in dict(
            rtd=dict(clm_weight=0.0, scl_weight=0.0), scl=dict(clm_weight=0.0), clm=dict(scl_weight=0.0),
            dropout=dict(clm_weight=0.0, scl_weight=0.0, generator_dropout=0.1),
        ).items()
    }
    layer = 36 * (8 * 16**2 + 4 * 12 * 16 + 4 * 16 * 24)
    last = 36 * 4 * 16**2 + 9 * (4 * 16**2 + 4 * 12 * 16 + 4 * 16 * 24)  # keys and values of all, the rest of 9
    head = 9 * 2 * (16 * 16 + 16 * 40)
    assert flops["rtd"] == 3 * (2 * layer + last + head)  # two layers of the encoder, one of the generator
    assert flops["dropout"] - flops["rtd"] == last + head
    assert flops["clm"] - flops["rtd"] == 3 * 9 * 2 * 16 * 40
    assert flops["scl"] - flops["rtd"] == 3 * 2 * 33 * (8 * 16**2 + 4 * 11 * 16 + 4 * 16 * 24)


def test_half_precision_keeps_losses_in_fp32(make_method, batch):
    method = make_method("coco_lm", dtype=torch.bfloat16)
    terms = method.losses(method(batch), batch)
    assert {term.total.dtype for term in terms.values()} == {torch.float32}
    sum(term.weight * term.mean for term in terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


# --- contrast over processes ---

CASES = {  # sequences per process; a stand-in's do not count
    "even": [[0, 1], [2, 3]],
    "uneven": [[0, 1, 2], [3]],
    "one sequence each": [[0], [1]],
    "one without data": [[0, 1, 2, 3], None],
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """{case: (gradients by parameter summed over both processes, their loss terms)}"""
    folder, worker = tmp_path_factory.mktemp("gather"), Path(__file__).with_name("contrast_two_processes.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torch.save(CASES, folder / "cases")
    commands = [[sys.executable, worker, str(rank), folder] for rank in range(2)]
    processes = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [process.communicate(timeout=900)[1] for process in processes]
    assert not any(process.returncode for process in processes), errors
    return torch.load(folder / "results")


@pytest.mark.parametrize("case", CASES)
def test_gathered_contrast_of_two_processes_is_that_of_one(two_processes, make_method, make_batch, case):
    sequences = sum(len(rows) for rows in CASES[case] if rows)
    method = make_method("coco_lm", dtype=torch.double, gain=3.0)
    batch = make_batch(lengths=(12, 9, 12, 10)[:sequences])
    terms = method.losses(method(batch), batch)
    sum(term.weight * term.mean for term in terms.values()).backward()
    found, totals = two_processes[case]
    assert totals == pytest.approx({name: term.total.item() for name, term in terms.items()}, rel=1e-10)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)
    assert method.scl_head.dense.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("corrupted, loss", [(1, 0.298031), (0, 2.602466)])
def test_a_correction_that_is_told_has_the_probabilities_of_the_worked_example(corrupted, loss):
    row, tokens = torch.tensor([[1]]), torch.tensor([corrupted])
    batch = PretrainingBatch(row, row, torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]), [1], None)
    hidden = torch.tensor([[[2.0, 1.0, 0.5, -1.0, -3.0]]])
    head = SimpleNamespace(output_layer=lambda hidden: (hidden, torch.eye(5), torch.zeros(5)))
    config = SimpleNamespace(clm_without_copy=False)
    method = SimpleNamespace(encoder=lambda tokens, padding_mask: hidden, clm_head=head, config=config)
    output = SimpleNamespace(
        corruption=Corruption(tokens[None], None), sampled_tokens=tokens, rtd_logits=torch.tensor([[0.7]])
    )
    (correction,) = CocoLM.details(method, output, batch, Words("abcde", [1], top=2))["correction"]
    assert -math.log(correction.original) == pytest.approx(loss, abs=1e-5)
    assert correction.copy == pytest.approx(0.668188, abs=1e-6)
    assert [token.token for token in correction.language_model] == ["a", "b"]
    assert correction.language_model[0].probability == pytest.approx(0.606968, abs=1e-6)
    assert correction.corrected.token == "abcde"[corrupted]
