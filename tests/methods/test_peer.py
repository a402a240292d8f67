"""What PEER is: labels from the generator, ordered thresholds, and a warm-up that is plain detection."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.peer import PeerConfig, QualityHead
from amos_fairseq.methods.stages import Words
from amos_fairseq.objectives import quality_levels, rtd_loss

LEVELS = {2: dict(tqr_partition=[]), 3: {}, 4: dict(tqr_partition=[1.0, 10.0]), 5: dict(tqr_partition=[1.0, 8.0, 40.0])}


def test_generator_and_encoder_share_as_in_teams(make_method):
    method = make_method("peer_tqr", encoder_layers=12, generator_layers=0)
    same = [one is other for one, other in zip(method.generator.layers, method.encoder.layers)]
    assert same == [True] * 3 + [False] * 3 and len(method.encoder.layers) == 12
    assert method.generator.embeddings is method.encoder.embeddings


@pytest.mark.parametrize("levels", LEVELS)
def test_thresholds_start_one_apart_below_zero(make_method, levels):
    method = make_method("peer_tqr", **LEVELS[levels])
    thresholds = method.tqr_head.level_thresholds()
    assert thresholds.tolist() == pytest.approx([float(r - levels + 1) for r in range(1, levels)], abs=1e-6)
    assert sum(parameter.numel() for parameter in method.tqr_head.parameters()) == 16 + levels - 1


def test_thresholds_are_sums_of_softplus_gaps_below_the_top_one():
    head = QualityHead(4, 5).double()
    head.top_threshold.data.fill_(0.3)
    d = torch.tensor([-3.0, 0.5, 2.0], dtype=torch.double)
    head.gap_offsets.data.copy_(d - 0.541324854612918)
    d = F.softplus(d).tolist()
    expected = [0.3 - d[2] - d[1] - d[0], 0.3 - d[2] - d[1], 0.3 - d[2], 0.3]
    assert head.level_thresholds().tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_stay_ordered_whatever_their_parameters(seed):
    head = QualityHead(4, 6)
    torch.manual_seed(seed)
    with torch.no_grad():
        head.gap_offsets.copy_(5 * torch.randn(4))
        head.top_threshold.normal_()
    assert (head.level_thresholds().diff() > 0).all()


def test_weight_decay_alone_moves_no_threshold():
    head = QualityHead(4, 4)
    before = head.level_thresholds()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(10):
        (0.0 * head.level_thresholds().sum() + head(torch.ones(4))).backward()
        optimizer.step()
    assert torch.equal(head.level_thresholds(), before)


def test_labels_are_the_generators_at_selected_positions_and_original_elsewhere(make_method, make_batch):
    method, batch = make_method("peer_tqr", gain=8.0, tqr_top=20), make_batch(lengths=(32,) * 20, num_masked=20)
    output = method(batch)
    logits = batch.at_masked(method.mlm_head(method.generator(batch.masked_tokens, batch.padding_mask)))
    of_sampled, of_original = (
        logits.gather(-1, tokens[:, None]) for tokens in (output.sampled_tokens, batch.mlm_targets)
    )
    ranks, replaced = 1 + (logits > of_original).sum(-1), output.sampled_tokens != batch.mlm_targets
    expected = quality_levels((of_sampled - of_original).squeeze(-1), ranks, replaced, [1.0], 20, 3.0)
    assert batch.at_masked(output.level_codes).tolist() == expected.tolist()
    assert (output.level_codes[~batch.masked_positions] == 6).all()
    assert torch.equal(output.level_codes != 6, output.corruption.replaced_positions)
    assert len(expected.unique()) > 2 and not output.level_codes.requires_grad


def test_options_of_the_levels_reach_the_labels(make_method, make_batch):
    batch = make_batch(lengths=(32,) * 20, num_masked=20)
    options = dict(tqr_partition=[1.0, 4.0], tqr_top=20, tqr_buffer=0.5)
    output = make_method("peer_tqr", gain=8.0, **options)(batch)
    found = set(batch.at_masked(output.level_codes).tolist())
    assert found == {-1, 2, 3, 4, 5, 6, 8}
    known = [
        (batch.at_masked(make_method("peer_tqr", gain=8.0, tqr_top=top)(batch).level_codes) >= 0).sum().item()
        for top in (1, 3, 10, 40)
    ]
    assert known == sorted(set(known)) and known[-1] == 400


def test_ranking_reaches_nothing_of_the_generators_own(make_method, batch, gradients):
    reached = gradients(make_method("peer_tqr", gain=8.0), batch, "tqr")
    assert not [name for name in reached if name.startswith(("generator", "mlm_head"))]
    assert {"tqr_head.score.weight", "tqr_head.top_threshold", "encoder.layers.0.fc1.weight"} <= reached


def test_masked_lm_reaches_the_shared_half_of_the_encoder(make_method, batch, gradients):
    reached = gradients(make_method("peer_tqr"), batch, "mlm")
    assert {"encoder.layers.0.fc1.weight", "encoder.embeddings.positions.weight", "mlm_head.bias"} <= reached
    assert not [name for name in reached if name.startswith(("encoder.layers.1", "tqr_head"))]


def detection(output, batch):
    return rtd_loss(output.rtd_logits, output.corruption.replaced_positions, batch.valid_positions).total


def test_two_levels_are_detection(make_method, batch):
    method = make_method("peer_tqr", dtype=torch.double, gain=8.0, tqr_partition=[])
    method.tqr_head.top_threshold.data.fill_(0.4)
    output = method(batch)
    ranking = method.losses(output, batch)["tqr"]
    assert ranking.total.item() == pytest.approx(detection(output, batch).item(), rel=1e-13)
    torch.testing.assert_close(output.rtd_logits, output.quality_scores - 0.4)


def test_warm_up_is_detection_and_trains_every_parameter(make_method, batch, gradients):
    method = make_method("peer_tqr", dtype=torch.double, gain=8.0, tqr_warmup_updates=10).train()
    for update, warming_up in ((0, True), (9, True), (10, False)):
        method.set_num_updates(update)
        output = method(batch)
        ranking = method.losses(output, batch)["tqr"].total.item()
        assert (ranking == pytest.approx(detection(output, batch).item(), rel=1e-13)) == warming_up
        reached = gradients(method, batch)
        assert ("tqr_head.gap_offsets" in reached) != warming_up
        assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_validation_ranks_at_all_levels_during_the_warm_up(make_method, batch):
    method = make_method("peer_tqr", gain=8.0, tqr_warmup_updates=10).eval()
    before = method.losses(method(batch), batch)["tqr"].total
    method.set_num_updates(20)
    assert torch.equal(method.losses(method(batch), batch)["tqr"].total, before)


def test_loss_weighs_ranking_fifty_over_valid_positions(make_method, batch):
    method = make_method("peer_tqr")
    terms = method.losses(method(batch), batch)
    assert {name: (term.weight, int(term.count), term.over) for name, term in terms.items()} == {
        "mlm": (1.0, 9, "selected"), "tqr": (50.0, 33, "valid"),
    }


def test_statistics_of_a_worked_case(make_method, make_batch):
    method, batch = make_method("peer_tqr").eval(), make_batch(lengths=(7,), num_masked=4)
    batch = batch._replace(padding_mask=torch.tensor([[False] * 6 + [True]]))
    replaced = torch.tensor([[False, False, True, True, True, True, False]])
    scores = torch.tensor([[2.0, 0.2, 0.5, -0.5, -0.9, 0.0, 9.0]])
    output = method(batch)
    output = output._replace(
        corruption=output.corruption._replace(replaced_positions=replaced),
        level_codes=torch.tensor([[6, 6, 4, 3, 2, -1, 6]]),
        quality_scores=scores,
        level_thresholds=torch.tensor([-1.0, 0.4]),
        rtd_logits=scores - 0.4,
    )
    found = {name: (float(mean.total), float(mean.count)) for name, mean in method.statistics(output, batch).items()}
    assert found.pop("generator_accuracy")[1] == found.pop("sampled_accuracy")[1] == 4
    assert {name: pytest.approx(value) for name, value in found.items()} == {
        "unknown_share": (1, 4),
        "level_accuracy_1": (3, 4),  # known, outside the buffer: 6 6 4 rightly above, 2 not below -1
        "level_threshold_1": (-1, 1),
        "level_accuracy_2": (4, 6),  # 6 above, 3 2 -1 below
        "level_threshold_2": (0.4, 1),
        "replaced_share": (4, 6),
        "rtd_accuracy_original_words": (0, 1),  # without <s>
        "rtd_accuracy_original_all": (1, 2),
        "rtd_accuracy_replaced": (3, 4),
    }
    validation = method.validation_statistics(output, batch, torch.zeros(2, len(method.excluded_tokens)))
    assert (validation["rtd_auc_words"].value, validation["rtd_auc_all"].value) == (3 / 4, 7 / 8)


def test_levels_are_those_of_logits_in_full_precision_whatever_the_logits_are_rounded_to(make_method, make_batch):
    """In bf16 a logit of 10 is known to 0.03: against that, margins are those of a float64 copy."""
    method, batch = make_method("peer_tqr", gain=6.0, dtype=torch.bfloat16), make_batch()
    reading = method(batch).masked_lm
    states = method.mlm_head.project(method.masked_lm_states(batch)).double()
    logits = states @ method.mlm_head.token_embeddings.weight.double().T + method.mlm_head.bias.double()
    rows = torch.arange(len(logits))
    margins = logits[rows, reading.sampled] - logits[rows, batch.mlm_targets]
    assert margins.abs().max() > 1
    torch.testing.assert_close(reading.margins.double(), margins, rtol=1e-5, atol=1e-5)


def test_without_generator_dropout_it_acts_in_the_encoders_pass_only(make_method, batch):
    method = make_method("peer_tqr", dropout=0.5).train()
    first, again = method(batch), method(batch)
    assert torch.equal(first.masked_lm.losses, again.masked_lm.losses)
    assert not torch.equal(first.quality_scores, again.quality_scores)
    assert all(module.training for module in method.modules())


ABLATIONS = {
    **{f"{levels} levels": options for levels, options in LEVELS.items()},
    "no buffer": dict(tqr_buffer=0.0),
    "large buffer": dict(tqr_buffer=9.0),
    "only the likeliest original is known": dict(tqr_top=1),
    "warm-up": dict(tqr_warmup_updates=5),
    "no tie": dict(tied_layers="none"),
    "full tie": dict(tied_layers="all"),
    "factorised table": dict(token_embed_dim=8),
}


@pytest.mark.parametrize("masked", [3, 0])
@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS)
def test_every_parameter_is_trained_under_every_ablation(make_method, make_batch, options, masked):
    # a parameter without gradient would stop PyTorch's DDP at the second update
    method, batch = make_method("peer_tqr", **options), make_batch(num_masked=masked)
    terms = method.losses(method(batch), batch)
    sum(term.weight * term.total for term in terms.values()).backward()
    assert [name for name, parameter in method.named_parameters() if parameter.grad is None] == []


def test_a_run_that_would_never_rank_is_refused_and_one_that_was_made_is_read(make_method):
    for total, warmup in ((0, 9), (10, 9)):
        make_method("peer_tqr", tqr_warmup_updates=warmup, total_updates=total).check_schedule()
    method = make_method("peer_tqr", tqr_warmup_updates=10, total_updates=10)
    with pytest.raises(ValueError, match="tqr_warmup_updates 10 leaves the ranking nothing of 10 updates: lower it"):
        method.check_schedule()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(tqr_partition=[1.0, 8.0, 32.0]), r"\[1.0, 8.0, 32.0\] with buffer 3.0 leaves level 2 empty"),
        (dict(tqr_partition=[-1.0]), "tqr_partition -1.0 is out of range: it must be above 0"),
        (dict(tqr_top=0), "tqr_top 0 is out of range: it must be at least 1"),
        (dict(tqr_buffer=-0.5), "tqr_buffer -0.5 is out of range: it must be at least 0"),
        (dict(tqr_weight=-1.0), "tqr_weight -1.0 is out of range: it must be at least 0"),
        (dict(level_weight=-1.0), "level_weight -1.0 is out of range: it must be at least 0"),
        (dict(tqr_warmup_updates=-1), "tqr_warmup_updates -1 is out of range: it must be at least 0"),
        (dict(tied_layers="most"), "unknown tied_layers 'most'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message) as error:
        PeerConfig(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_losses_and_thresholds_in_fp32(make_method, batch, dtype):
    method = make_method("peer_tqr", dtype=dtype)
    output = method(batch)
    terms = method.losses(output, batch)
    assert {term.total.dtype for term in terms.values()} == {torch.float32}
    assert output.level_thresholds.dtype == output.rtd_logits.dtype == torch.float32
    sum(term.weight * term.mean for term in terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


@pytest.mark.parametrize(
    "score, code, known, level, predicted, probabilities",
    [
        (2.0, 6, 1, 3.0, 3, [0.047426, 0.135000, 0.817574]),
        (-0.5, 3, 1, 1.5, 2, [0.377541, 0.353518, 0.268941]),
        (-1.0, -1, 1, None, 2, [0.5, 0.317574, 0.182426]),
        (-1.5, 2, None, None, 1, [0.622459, 0.258338, 0.119203]),
    ],
)
def test_levels_that_are_told_are_known_numbers(make_method, score, code, known, level, predicted, probabilities):
    row = torch.tensor([[0]])
    batch = PretrainingBatch(row, row, torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]), [1], None)
    output = SimpleNamespace(
        level_thresholds=torch.tensor([-1.0, 0.5]), quality_scores=torch.tensor([[score]]),
        level_codes=torch.tensor([[code]]),
    )
    (ranking,) = make_method("peer_tqr").details(output, batch, Words("abcde", [known], top=2))["ranking"]
    assert (ranking.level, ranking.predicted, ranking.score) == (level, predicted, score)
    assert ranking.probabilities == pytest.approx(probabilities, abs=1e-6)
