"""A run whose generator learns alone at first: what is saved, what is logged, and runs that are taken up again."""

import functools
from typing import NamedTuple

import pytest
import torch

from amos_fairseq import checkpoints
from amos_fairseq.methods import build
from amos_fairseq.methods.config import Vocabulary

TRAIN = "fairseq_cli.train:cli_main"
WARMUP = 4
KINDS = {  # what: (method, options, processes)
    "fp32": ("amos_rtd", dict(encoder_layers=2), 1),
    "fp16": ("coco_lm", dict(fp16=True, encoder_layers=2), 1),
    "bf16": ("electra_rtd", dict(bf16=True, generator_embed_dim=0, generator_layers=1, encoder_layers=2), 1),
    "memory-efficient fp16": ("teams_mws", dict(memory_efficient_fp16=True, encoder_layers=3, rel_pos_buckets=0), 1),
    "2 processes": ("amos_rtd", dict(bf16=True, encoder_layers=3, update_freq=[2]), 2),
    "2 processes, legacy": ("peer_tqr", dict(ddp_backend="legacy_ddp", update_freq=[2], encoder_layers=3), 2),
}


class Saved(NamedTuple):
    parameters: dict  # by name, as they are trained: in fp32 if there are such copies
    moments: dict  # of each that has any
    idle: set  # names of what the generator and its head do not use
    copies: dict  # by name of a parameter of the encoder, that of the generator's which it takes
    state: dict


def saved(folder, update) -> Saved:
    (path,) = folder.glob(f"checkpoint_*_{update}")
    state = checkpoints.read(path)
    options = state["cfg"]["model"]
    vocabulary = Vocabulary(len(state["model"]["method.mlm_head.bias"]), 1, [0, 1, 2, 3])
    method = build(state["cfg"]["task"]["_name"], options, vocabulary, total_updates=8)
    method.load_state_dict({key[7:]: value for key, value in state["model"].items() if key.startswith("method.")})
    names = {parameter: name for name, parameter in method.named_parameters()}
    optimizer = state["last_optimizer_state"]
    groups = optimizer["param_groups"]
    place = {number: place for group in groups for number, place in zip(group["params"], group["places"])}
    by_place = sorted(names, key=lambda parameter: parameter.dim() < 2)
    values = dict(zip(by_place, optimizer.get("fp32_params", by_place)))
    moments = {names[by_place[place[number]]]: moments for number, moments in optimizer["state"].items()}
    copies = {names[own]: names[value] for own, value in method.encoder_start().copies}
    parameters = {names[parameter]: value for parameter, value in values.items()}
    return Saved(parameters, moments, {names[parameter] for parameter in method.idle_parameters()}, copies, state)


@pytest.fixture(scope="module")
def train(launch, arguments, tmp_path_factory):
    """train(kind, **options): folder and outcome of 8 updates of one of KINDS, saved after each."""

    @functools.cache
    def train(kind, **options):
        name, own, processes = KINDS[kind]
        folder = tmp_path_factory.mktemp("run")
        options = dict(optimizer="fused_adamw", weight_decay=0.1, generator_warmup_updates=WARMUP, **own, **options)
        options.update(clip_norm=1.0, save_interval_updates=1, batch_size=4 // processes, disable_validation=True)
        return folder, launch(TRAIN, arguments(name, **options, save_dir=folder), processes)

    return train


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_what_waits_stays_as_it_is_to_the_bit_and_has_no_moments(train, kind):
    folder, _ = train(kind)
    first, third = saved(folder, 1), saved(folder, 3)
    assert first.idle and first.idle == third.idle
    for name, value in third.parameters.items():
        assert torch.equal(value, first.parameters[name]) == (name in third.idle), name
    assert third.moments.keys() == third.parameters.keys() - third.idle


def test_after_the_last_update_of_the_warm_up_the_tower_is_in_the_encoder_to_the_bit(train, kind):
    folder, _ = train(kind)
    before, after, third = (saved(folder, update) for update in (3, WARMUP, WARMUP + 1))
    assert len(after.copies) >= 12  # a layer's
    for name in after.idle:
        source = after.copies.get(name)
        expected = after.parameters[source] if source else before.parameters[name]
        assert torch.equal(after.parameters[name], expected), name
    assert after.moments.keys() == after.parameters.keys() - after.idle
    steps = {name: int(moments["step"]) for name, moments in third.moments.items()}
    assert steps == {name: 1 if name in after.idle else WARMUP + 1 for name in after.parameters}
    for name in after.idle:  # and learns from there: the first step of AdamW is of about the learning rate
        moved = (third.parameters[name].float() - after.parameters[name].float()).abs().max()
        assert moved < 0.01, name


@pytest.mark.parametrize(
    "kind, update",
    [*((kind, WARMUP) for kind in KINDS), *((kind, update) for kind in ("bf16", "2 processes") for update in (2, 6))],
)
def test_a_run_taken_up_before_at_or_after_the_copy_ends_with_the_same_bits(train, kind, update):
    folder, through = train(kind)
    (path,) = folder.glob(f"checkpoint_*_{update}")
    again, resumed = train(kind, restore_file=path)
    rows = [(row["num_updates"], row["loss"]) for row in through.log.train[update:]]
    assert [(row["num_updates"], row["loss"]) for row in resumed.log.train] == rows
    expected, found = saved(folder, 8), saved(again, 8)
    assert all(torch.equal(found.parameters[name], value) for name, value in expected.parameters.items())
    for key, value in expected.state["model"].items():
        assert torch.equal(found.state["model"][key], value), key
    assert found.moments.keys() == expected.moments.keys()
    for name, moments in expected.moments.items():
        assert all(torch.equal(found.moments[name][key], value) for key, value in moments.items()), name
    assert ("generator -> encoder" in resumed.out[0]) == (update < WARMUP)


TOLD = {
    "fp32": "copied embeddings, relative_position_bias, layers 0-1; new: nothing",
    "fp16": "copied relative_position_bias, layer 0; new: layer 1",
    "bf16": "copied embeddings, relative_position_bias, layer 0; new: layer 1",
    "memory-efficient fp16": "copied layer 1; new: layer 2",
    "2 processes": "copied embeddings, relative_position_bias, layers 0-1; new: layer 2",
    "2 processes, legacy": "copied relative_position_bias, layer 1; new: layer 2",
}


def test_the_log_tells_of_the_copy_once_and_of_the_encoder_from_then_on(train, kind):
    folder, outcome = train(kind)
    assert outcome.out[0].count(f"generator -> encoder after 4 updates: {TOLD[kind]}") == 1
    judged = [any(key in row for key in ("rtd", "tqr")) for row in outcome.log.train]
    assert judged == [update > WARMUP for update in range(1, 9)]
    alone = outcome.log.train[:WARMUP]
    assert all(row["loss"] == pytest.approx(row["mlm"], abs=1e-4) for row in alone)
    assert not any("replaced_share" in row or "sampled_accuracy" in row for row in alone)
    counts = [int(saved(folder, update).state["model"]["token_counts"].sum()) for update in (WARMUP, 5)]
    assert counts[0] == 0 < counts[1]


def test_the_guard_against_loss_spikes_does_not_compare_the_two_losses(train):
    folder, _ = train("fp32", loss_spike_factor=2)
    counts = [len(saved(folder, update).state["extra_state"]["recent_losses"]) for update in (3, 4, 5)]
    assert counts == [3, 1, 2]  # the loss of an update is noted after it


def test_without_the_copy_the_encoder_starts_as_it_was(train):
    folder, outcome = train("fp32", generator_warmup_without_copy=True)
    first, last = saved(folder, 1), saved(folder, WARMUP)
    assert last.idle and all(torch.equal(last.parameters[name], first.parameters[name]) for name in last.idle)
    assert "after 4 updates: copied nothing; new: embeddings, " in outcome.out[0]


def test_another_warm_up_is_refused_on_resume_and_allowed_by_name(train, launch, arguments, tmp_path):
    folder, _ = train("fp32")
    (path,) = folder.glob("checkpoint_*_2")
    name, own, _ = KINDS["fp32"]
    options = dict(own, optimizer="fused_adamw", weight_decay=0.1, clip_norm=1.0, batch_size=4, save_dir=tmp_path)
    options.update(restore_file=path, generator_warmup_updates=3, disable_validation=True)
    assert "--allow-change generator_warmup_updates" in launch(TRAIN, arguments(name, **options), 1, True).err[0]
    outcome = launch(TRAIN, arguments(name, **options, allow_change="generator_warmup_updates"))
    assert "generator -> encoder after 3 updates: copied embeddings" in outcome.out[0]


def test_validation_shows_all_of_the_method_in_the_warm_up_too(launch, arguments, tmp_path):
    options = dict(optimizer="fused_adamw", generator_warmup_updates=4, max_update=5, validate_interval_updates=2)
    outcome = launch(TRAIN, arguments("amos_rtd", **options, save_dir=tmp_path))
    assert all({"rtd", "mlm", "rtd_auc_words"} <= row.keys() for row in outcome.log.validation)
    assert outcome.log.validation[0]["num_updates"] == 2


def test_an_encoder_starts_from_the_generator_of_an_earlier_run(training, launch, arguments, tmp_path):
    earlier = training("amos_rtd").folder / "checkpoint_last"
    options = dict(init_encoder_from_generator=earlier, max_update=1, disable_validation=True, save_dir=tmp_path)
    outcome = launch(TRAIN, arguments("bert_mlm", **options))
    words = "generator -> encoder: copied embeddings, relative_position_bias, token_embeddings, layer 0; new: nothing"
    assert outcome.out[0].count(f"init_encoder_from_generator {earlier}: {words}\n") == 1
    learned, first = (checkpoints.read(path)["model"] for path in (earlier, tmp_path / "checkpoint_last"))
    for key in first:
        if key.startswith("method.encoder."):
            source = learned[key.replace("encoder", "generators.0")]
            torch.testing.assert_close(first[key], source, rtol=0, atol=0.00202)  # Adam's first step


def test_one_network_is_a_masked_lm_alone_until_the_warm_up_ends(launch, arguments, tmp_path):
    options = dict(generator_warmup_updates=2, max_update=4, disable_validation=True, save_dir=tmp_path)
    outcome = launch(TRAIN, arguments("script_selfcritic", **options))
    assert ["critic" in row for row in outcome.log.train] == [False, False, True, True]
    assert all(row["loss"] == pytest.approx(row["mlm"], abs=1e-4) for row in outcome.log.train[:2])
    assert outcome.out[0].count("generator -> encoder after 2 updates: one network\n") == 1
