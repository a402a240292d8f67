"""Parameter counts and FLOPs of the published sizes, counted without memory on the meta device."""

import pytest
import torch

from amos_fairseq.flops import BACKWARD_AND_FORWARD
from amos_fairseq.methods import METHODS, size_options
from amos_fairseq.methods.base import ENCODER_SIZES, Vocabulary


def build(name, size, vocabulary_size=32768, **options):
    method = METHODS[name]
    config = method.config_class(**{**size_options(name, size), **options})
    with torch.device("meta"):
        return method(config, Vocabulary(vocabulary_size, padding=1, excluded=[0, 1, 2, 3]))


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    "size, vocabulary, buckets, expected", [("base", 32768, 32, 110.6), ("base", 64000, 64, 134.6), ("large", 64000, 128, 368.4)]
)
def test_encoder_has_the_published_number_of_parameters(size, vocabulary, buckets, expected):
    method = build("amos_rtd", size, vocabulary, rel_pos_buckets=buckets, rel_pos_max_distance=128 if buckets < 128 else 256)
    assert millions(method.encoder) == pytest.approx(expected, abs=0.05)


def test_amos_base_plus_plus_trains_192_million_parameters():
    assert millions(build("amos_rtd", "base", 64000, rel_pos_buckets=64)) == pytest.approx(192.4, abs=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_small_sizes_are_near_14_million_parameters(name):
    assert 11 < millions(build(name, "small", 30522).encoder) < 17


@pytest.mark.parametrize("name, gigaflops", [("amos_rtd", 518.8), ("bert_mlm", 301.8)])
def test_flops_of_a_training_step_are_the_published_formula(name, gigaflops):
    sequences, length = 10, 512  # 76.8 selected positions in each
    flops = BACKWARD_AND_FORWARD * build(name, "base").forward_flops(sequences * length, length, 768)
    assert flops / sequences / 1e9 == pytest.approx(gigaflops, rel=2e-3)


def test_electra_base_costs_two_thirds_of_amos_base():
    cost = {name: build(name, "base").forward_flops(5120, 512, 768) for name in ("electra_rtd", "amos_rtd")}
    assert cost["electra_rtd"] / cost["amos_rtd"] == pytest.approx(340.3 / 518.8, rel=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_every_size(name):
    assert set(METHODS[name].sizes) == set(ENCODER_SIZES)
    for size in ENCODER_SIZES:
        assert build(name, size).encoder.config.layers == size_options(name, size)["encoder_layers"]
