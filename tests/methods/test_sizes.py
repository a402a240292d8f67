"""Parameter counts and FLOPs of the published sizes, counted without memory on the meta device."""

import pytest
import torch

from amos_fairseq.flops import BACKWARD_AND_FORWARD
from amos_fairseq.methods import METHODS, size_options
from amos_fairseq.methods.config import ENCODER_SIZES, Vocabulary


def build(name, size, vocabulary_size=32768, **options):
    method = METHODS[name]
    config = method.config_class(**{**size_options(name, size), **options})
    with torch.device("meta"):
        return method(config, Vocabulary(vocabulary_size, padding=1, excluded=[0, 1, 2, 3]))


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    "size, vocabulary, buckets, expected",
    [("base", 32768, 32, 110.6), ("base", 64000, 64, 134.6), ("large", 64000, 128, 368.4)],
)
def test_encoder_has_the_published_number_of_parameters(size, vocabulary, buckets, expected):
    distance = 256 if buckets == 128 else 128
    method = build("amos_rtd", size, vocabulary, rel_pos_buckets=buckets, rel_pos_max_distance=distance)
    assert millions(method.encoder) == pytest.approx(expected, abs=0.05)


def test_amos_base_plus_plus_trains_192_million_parameters():
    assert millions(build("amos_rtd", "base", 64000, rel_pos_buckets=64)) == pytest.approx(192.4, abs=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_small_sizes_are_near_14_million_parameters(name):
    assert 11 < millions(build(name, "small", 30522).encoder) < 17


def unasked(dim, ffn_dim, length, positions):
    """Forward FLOPs that a masked LM's last layer saves at positions not selected, which give keys and values only."""
    return positions * (4 * dim**2 + 4 * length * dim + 4 * dim * ffn_dim)


@pytest.mark.parametrize("name, gigaflops", [("amos_rtd", 518.8), ("script_selfcritic", 670.8), ("bert_mlm", 301.8)])
def test_flops_of_a_training_step_are_the_published_formula_less_the_last_layer_where_nothing_is_asked(name, gigaflops):
    sequences, length = 10, 512  # 76.8 selected positions in each
    flops = BACKWARD_AND_FORWARD * build(name, "base").forward_flops(sequences * length, length, 768)
    saved = BACKWARD_AND_FORWARD * unasked(768, 3072, length, 435.2) / 1e9
    assert saved == pytest.approx(17.46, abs=5e-3)
    assert flops / sequences / 1e9 == pytest.approx(gigaflops - saved, rel=2e-3)


def test_electra_base_costs_two_thirds_of_amos_base():
    cost = {name: build(name, "base").forward_flops(5120, 512, 768) for name in ("electra_rtd", "amos_rtd")}
    # 340.3 of 518.8 without what the last layer of either generator, 256 and 768 wide, saves
    assert cost["electra_rtd"] / cost["amos_rtd"] == pytest.approx((340.3 - 2.4) / (518.8 - 17.5), rel=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_every_size(name):
    assert set(METHODS[name].sizes) == set(ENCODER_SIZES)
    for size in ENCODER_SIZES:
        assert build(name, size).encoder.config.layers == size_options(name, size)["encoder_layers"]


LAYER = 512 * (24 * 768**2 + 4 * 512 * 768)  # forward, of one layer of base size over 512 tokens
SAVED = unasked(768, 3072, 512, 512 - 77)  # by the generator's last


def test_peer_base_runs_its_twelve_layers_and_a_generator_of_six():
    head = 2 * 77 * (768**2 + 768 * 32768)
    assert build("peer_tqr", "base").forward_flops(512, 512, 77) == 18 * LAYER - SAVED + head


def test_teams_base_costs_a_layer_and_a_selection_head_more_than_peer_base():
    cost = {name: build(name, "base").forward_flops(512, 512, 77) for name in ("teams_mws", "peer_tqr")}
    assert cost["teams_mws"] - cost["peer_tqr"] == LAYER + 2 * 77 * (768**2 + 6 * 768)


@pytest.mark.parametrize(
    "options, layers",
    [
        (dict(mws_weight=0.0), 18),
        (dict(task_heads="ffn"), 18),
        (dict(task_heads="on_top"), 20),
        (dict(tied_layers="all"), 19),
    ],
)
def test_layers_run_by_ablations_of_teams(options, layers):
    method = build("teams_mws", "base", **options)
    selection = 2 * 77 * (768**2 + 6 * 768) if method.mws_head is not None else 0
    head = 2 * 77 * (768**2 + 768 * 32768)
    assert method.forward_flops(512, 512, 77) == layers * LAYER - SAVED + head + selection


def test_shared_layers_are_counted_once_among_the_parameters():
    # Six generator layers of which three are the encoder's; TEAMS has one more for the second branch.
    layer = 12 * 768**2 + 13 * 768
    for name, own_layers in (("peer_tqr", 3), ("teams_mws", 4)):
        method = build(name, "base")
        heads = [head for head in ("mlm_head", "rtd_head", "mws_head", "tqr_head") if hasattr(method, head)]
        table = method.encoder.token_embeddings.weight.numel()
        own = sum(p.numel() for head in heads for p in getattr(method, head).parameters()) - table
        assert sum(p.numel() for p in method.parameters()) == 12 * layer + own_layers * layer + own + table + 514 * 768
