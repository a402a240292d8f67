"""The generator's warm-up, and what an encoder takes from a generator: of this run or of an earlier one."""

import re

import pytest
import torch

from amos_fairseq.analysis.flops import Geometry, hardware_flops, update_flops, updates_within
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.continuation import EarlierRun
from amos_fairseq.methods.generator_first import learner, start_from_generator

WIDE = {"electra_rtd": dict(generator_embed_dim=0), "amos_rtd": dict(generator_depths=[1, 2])}
TWO_NETWORKS = ["amos_rtd", "coco_lm", "electra_rtd", "peer_tqr", "teams_mws"]
WARMED_UP = [*TWO_NETWORKS, "script_selfcritic"]


@pytest.fixture
def make(make_method):
    """make(name, **options): a method whose generator is as wide as its encoder, with a warm-up of 4 updates."""

    def make(name, **options):
        return make_method(name, **{"generator_warmup_updates": 4, **WIDE.get(name, {}), **options})

    return make


def at(method, update):
    method.set_num_updates(update)
    return learner(method)


def loss_of(learner, batch):
    torch.manual_seed(0)
    return learner.losses(learner(batch), batch)


@pytest.mark.parametrize("name", WARMED_UP)
def test_the_masked_lm_is_the_only_term_of_training_until_the_warm_up_ends(make, batch, name):
    method = make(name)
    whole = method(batch)
    expected = method.losses(whole, batch)
    for update in (0, 3):
        terms = loss_of(at(method, update), batch)
        assert terms.keys() == {"mlm"} and terms["mlm"][1:] == expected["mlm"][1:]
        assert torch.equal(terms["mlm"].total, expected["mlm"].total)
    for update in (4, 50):
        assert at(method, update) is method
    assert loss_of(method, batch).keys() == expected.keys() > {"mlm"}
    assert at(method.eval(), 0) is method


@pytest.mark.parametrize("name", WARMED_UP)
def test_only_the_generator_is_told_of_and_nothing_is_drawn(make, batch, name):
    learner = at(make(name), 0)
    output = learner(batch)
    names = {"amos_rtd": {f"mlm{kind}_{depth}" for kind in ("", "_accuracy") for depth in (1, 2)}}
    found, whole = (by.statistics(by(batch), batch) for by in (learner, learner.method))
    assert found.keys() == names.get(name, {"generator_accuracy"})
    assert all(found[key].mean == whole[key].mean for key in found)
    assert output.sampled.numel() == 0 and learner.judged_logits(output) is None


@pytest.mark.parametrize("name", TWO_NETWORKS)
def test_gradients_are_0_where_the_generator_does_not_reach_and_there_for_all_of_it(make, batch, name):
    method = make(name)
    loss_of(at(method, 0), batch)["mlm"].total.backward()
    idle = set(method.idle_parameters())
    assert not idle & {*method.masked_lm_encoder.parameters(), *method.mlm_head.parameters()}
    assert set(method.encoder.layers[-1].parameters()) <= idle or name in ("teams_mws", "peer_tqr", "coco_lm")
    for key, parameter in method.named_parameters():
        assert bool(parameter.grad.any()) != (parameter in idle), key
    heads = {"rtd_head", "tqr_head", "mws_head", "clm_head", "scl_head", "branch_layer", "mixture_head"}
    assert {parameter for module in heads & dict(method.named_children()).keys() if getattr(method, module)
            for parameter in getattr(method, module).parameters()} - idle <= {method.encoder.token_embeddings.weight}


COPIED = {  # of 3 layers of the encoder
    "amos_rtd": ({}, "copied embeddings, relative_position_bias, layers 0-1; new: layer 2"),
    "one layer": (dict(generator_depths=[1]), "copied embeddings, relative_position_bias, layer 0; new: layers 1-2"),
    "electra_rtd": ({}, "copied embeddings, relative_position_bias, layers 0-2; new: nothing"),
    "coco_lm": ({}, "copied relative_position_bias, layer 0; new: layers 1-2"),
    "teams_mws": ({}, "copied relative_position_bias, layer 1; new: layer 2"),
    "peer_tqr": ({}, "copied relative_position_bias, layer 1; new: layer 2"),
    "deepest": (
        dict(generator_depths=[2, 1], separate_generators=True),
        "copied embeddings, relative_position_bias, layers 0-1; new: layer 2",
    ),
    "deeper than the encoder": (
        dict(generator_depths=[1, 5]), "copied embeddings, relative_position_bias, layers 0-2; new: nothing"
    ),
    "separate tables": (
        dict(token_table="separate"),
        "copied embeddings, relative_position_bias, token_embeddings, layers 0-1; new: layer 2",
    ),
    "gdes": (  # the differences are 0 by then
        dict(token_table="gdes", gdes_positions=True),
        "copied embeddings, relative_position_bias, layers 0-1; new: layer 2",
    ),
    "without": (
        dict(generator_warmup_without_copy=True),
        "copied nothing; new: embeddings, relative_position_bias, token_embeddings, layers 0-2",
    ),
}


@pytest.mark.parametrize("name", COPIED)
def test_the_encoder_takes_of_the_tower_what_it_does_not_share_already(make, name):
    options, words = COPIED[name]
    method = make(name if name in METHODS else "amos_rtd", encoder_layers=3, **options)
    assert method.encoder_start().words == words
    with torch.no_grad():
        for parameter, value in method.encoder_start().copies:
            assert parameter is not value
            parameter.copy_(value)
    if name != "without":
        tower, encoder = (dict(net.named_parameters()) for net in (method.masked_lm_encoder, method.encoder))
        assert all(torch.equal(tower[key], encoder[key]) for key in tower.keys() & encoder.keys())


def test_a_copied_encoder_of_the_same_depth_sees_what_the_generator_sees(make, batch):
    method = make("electra_rtd").eval()
    with torch.no_grad():
        for parameter, value in method.encoder_start().copies:
            parameter.copy_(value)
    seen = (net(batch.masked_tokens, batch.padding_mask) for net in (method.generator, method.encoder))
    assert torch.equal(*seen)


REFUSED = {
    "narrow": (
        "electra_rtd", dict(generator_embed_dim=8), "generator_warmup_updates starts the encoder from the generator, "
        "but generator_embed_dim is 8 against encoder_embed_dim 16: set generator_embed_dim 0, or "
        "generator_warmup_without_copy",
    ),
    "heads": (
        "coco_lm", dict(generator_embed_dim=16), "generator_attention_heads is 1 against encoder_attention_heads 2: set"
    ),
    "whole run": (
        "amos_rtd", dict(total_updates=4), "generator_warmup_updates 4 leaves the encoder nothing of max_update 4: low"
    ),
    "both warm-ups": (
        "amos_rtd", dict(total_updates=10, rtd_warmup_updates=7),
        "rtd_warmup_updates 7 exceeds max_update 10 less generator_warmup_updates 4: lower it",
    ),
    "no generator": ("coco_lm", dict(random_replacements=True), "generator_warmup_updates 4 is of a generator, which"),
    "frozen": ("coco_lm", dict(generator_checkpoint="run"), "generator_warmup_updates 4 is of a generator that"),
    "started encoder": (
        "amos_rtd", dict(init_checkpoint="run"), "generator_warmup_updates 4 would replace the encoder of "
        "init_checkpoint 'run': leave one out, or set generator_warmup_without_copy",
    ),
    "encoder of a generator": (
        "amos_rtd", dict(init_encoder_from_generator="run"), "generator_warmup_updates 4 would replace the encoder of"
    ),
    "no warm-up": (
        "amos_rtd", dict(generator_warmup_updates=0, generator_warmup_without_copy=True),
        "generator_warmup_without_copy True changes nothing with generator_warmup_updates 0: leave it out",
    ),
    "negative": ("amos_rtd", dict(generator_warmup_updates=-1), "generator_warmup_updates -1 is out of range: it must"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(make, what):
    name, options, words = REFUSED[what]
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        make(name, **options)
    assert "\n" not in str(refused.value)


def test_an_encoder_has_one_start(make_method):
    words = "init_encoder_from_generator 'a' would replace the encoder of init_checkpoint 'b': leave one out"
    with pytest.raises(ValueError, match=words):
        make_method("bert_mlm", init_encoder_from_generator="a", init_checkpoint="b")
    with pytest.raises(ValueError, match="gdes follows this run's generator, not that of init_enc"):
        make_method("amos_rtd", init_encoder_from_generator="a", token_table="gdes")


@pytest.mark.parametrize("options", [
    dict(generator_embed_dim=8, generator_warmup_without_copy=True), dict(total_updates=5),
    dict(total_updates=10, rtd_warmup_updates=6), dict(total_updates=0),
    dict(init_checkpoint="run", generator_warmup_without_copy=True),
])
def test_the_rest_is_not(make, options):
    make("electra_rtd", **options)


def test_the_encoders_own_schedules_count_from_the_end_of_the_warm_up(make, batch):
    method = make("electra_rtd", rtd_warmup_updates=2)
    assert [loss_of(at(method, update), batch)["rtd"].weight for update in (4, 5, 6)] == [0.0, 25.0, 50.0]
    peer = make("peer_tqr", tqr_warmup_updates=2)
    ranked = [loss_of(at(peer, update), batch)["tqr"].total for update in (5, 6)]
    plain = make("peer_tqr", tqr_warmup_updates=2, generator_warmup_updates=0)
    assert [plain.joint_updates, at(plain, 7).joint_updates] == [0, 7]
    assert ranked[0] != ranked[1]
    switch = make("amos_rtd", mixture="layer_switch", total_updates=10)
    assert [int(at(switch, update)(batch).mixture_weights[0].argmax()) for update in (4, 6, 7, 9)] == [0, 0, 1, 1]


def test_flops_of_the_warm_up_are_the_generators(make, batch):
    """2 x (33 + 3) x 16 x 16 ..: of batch (3, 12), 9 selected, width 16, feed-forward 24, vocabulary 40, 2 layers."""
    layer = 36 * 4 * 16 * 16, 4 * 16 * 16 + 4 * 12 * 16 + 4 * 16 * 24  # keys and values; the rest, by position
    generator = layer[0] + 36 * layer[1] + layer[0] + 9 * layer[1]  # the last layer at selected positions only
    head = 9 * 2 * (16 * 16 + 16 * 40)
    method = make("electra_rtd")
    assert at(method, 3).training_flops(batch) == 3 * (generator + head)
    assert at(method, 4).training_flops(batch) == 3 * (generator + head + 2 * (layer[0] + 36 * layer[1]))
    amos = make("amos_rtd")
    assert at(amos, 3).training_flops(batch) == 3 * (generator + 2 * head)
    script = make("script_selfcritic")
    critic = 2 * (layer[0] + 36 * layer[1]) + 36 * 2 * (16 * 16 + 16 * 40)
    assert at(script, 3).training_flops(batch) == 3 * (generator + head)
    assert at(script, 4).training_flops(batch) == 3 * (generator + head + critic)


@pytest.mark.parametrize("name", WARMED_UP)
def test_a_run_costs_what_its_updates_do(make, name):
    geometry = Geometry(sequences=4, length=16, updates=10)
    alone, joint = update_flops(make(name), geometry)
    assert 0 < alone < joint and joint == update_flops(make(name, generator_warmup_updates=0), geometry)[1]
    assert hardware_flops(make(name), geometry) * 10 * 64 == pytest.approx(4 * alone + 6 * joint)
    assert updates_within(make(name), geometry, 4 * alone + 6 * joint, alone=0.4) == 10
    assert updates_within(make(name, generator_warmup_updates=0), geometry, 6 * joint) == 6


def test_where_one_network_is_all_nothing_is_idle_and_nothing_is_copied(make):
    method = make("script_selfcritic")
    assert method.idle_parameters() == [] and method.encoder_start().copies == []


def give(method, earlier, **options):
    start_from_generator(method, EarlierRun("old.pt", earlier.state_dict(), options))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("earlier", TWO_NETWORKS)
def test_every_encoder_starts_from_the_generator_of_every_method(make, make_method, caplog, name, earlier):
    own = {key: WIDE[key] for key in WIDE if key == name}
    method, earlier = make_method(name, **own.get(name, {})), make(earlier, seed=5)
    with caplog.at_level("INFO", logger="amos_fairseq"):
        give(method, earlier)
    assert caplog.messages[-1].startswith("old.pt: generator -> encoder: copied embeddings, relative_position_bias, ")
    tower = dict(earlier.masked_lm_encoder.named_parameters())
    common = [key for key in dict(method.encoder.named_parameters()) if key in tower]
    assert len(common) > 16 and "token_embeddings.weight" in common
    assert all(torch.equal(method.encoder.get_parameter(key), tower[key]) for key in common)


def test_of_several_generators_the_deepest_is_taken(make, make_method):
    earlier = make("amos_rtd", seed=5, generator_depths=[2, 1], separate_generators=True)
    method = make_method("bert_mlm")
    give(method, earlier)
    assert torch.equal(method.encoder.layers[1].fc1.weight, earlier.generators[0].layers[1].fc1.weight)


@pytest.mark.parametrize("earlier, options, words", [
    ("bert_mlm", {}, "old.pt holds no generator: name a run of a method that has one"),
    ("electra_rtd", dict(generator_embed_dim=8), "old.pt does not hold the generator that the options describe: relat"),
    ("amos_rtd", dict(rel_pos_buckets=0), "relative_position_bias.weight is absent, not (8, 2); set the encoder's"),
])
def test_a_generator_that_does_not_fit_is_refused_and_nothing_is_taken(make_method, earlier, options, words):
    method, untouched = make_method("bert_mlm"), make_method("bert_mlm")
    with pytest.raises(ValueError, match=re.escape(words)):
        give(method, make_method(earlier, seed=5, **options))
    assert all(torch.equal(value, untouched.state_dict()[key]) for key, value in method.state_dict().items())


def test_heads_of_a_generator_of_its_own_width_are_known(make_method):
    """16 / 64 are one head, and nothing but the option tells where there are no relative positions."""
    earlier = make_method("coco_lm", seed=5, generator_embed_dim=16, encoder_ffn_embed_dim=64, rel_pos_buckets=0)
    method = make_method("bert_mlm", encoder_ffn_embed_dim=64, rel_pos_buckets=0)
    with pytest.raises(ValueError, match="old.pt was trained with encoder_attention_heads 1, not 2: set it as in that"):
        give(method, earlier, generator_embed_dim=16, encoder_attention_heads=2)
