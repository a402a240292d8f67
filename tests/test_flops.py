import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amos_fairseq import flops
from amos_fairseq.flops import encoder_flops
from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.modules.queries import Queries

BASE = EncoderConfig(vocab_size=32768, padding_idx=1, layers=12, dim=768, heads=12, ffn_dim=3072)


def test_layer_of_a_base_encoder_on_literal_numbers():
    assert encoder_flops(BASE, tokens=1, length=512, layers=1) == 15_728_640  # 8 d^2 + 4 d f + 4 T d
    assert encoder_flops(BASE, tokens=100, length=512, layers=3) == 100 * 3 * 15_728_640


def test_last_layer_at_15_percent_saves_what_it_leaves_out():
    everywhere = encoder_flops(BASE, tokens=1000, length=512, layers=8)
    assert everywhere - encoder_flops(BASE, 1000, 512, 8, queries=150) == 850 * (15_728_640 - 4 * 768**2)
    assert encoder_flops(BASE, 1000, 512, 8, queries=1000) == everywhere


@pytest.mark.parametrize("options", [dict(), dict(embedding_dim=8)], ids=["", "factorised"])
@pytest.mark.parametrize("counts", [None, [2, 2]], ids=["everywhere", "at selected positions"])
def test_products_that_an_encoder_computes_are_those_counted(options, counts):
    shape = dict(vocab_size=50, padding_idx=1, layers=3, dim=16, heads=2, ffn_dim=40, rel_pos_buckets=8)
    config = EncoderConfig(**shape, **options)
    encoder, tokens = Encoder(config).eval(), torch.randint(2, 50, (2, 8))
    at = counts and Queries.of(torch.tensor([1, 4, 9, 12]), counts, 8)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(tokens, at=at)
    assert counter.get_total_flops() == encoder_flops(config, 16, 8, 3, counts and 4)


def test_the_peak_of_a_cpu_is_that_of_the_time_it_ran(monkeypatch):
    """One second of each thread between two looks at the CPU's clock, however long the wall's is."""
    ran = itertools.count(step=torch.get_num_threads())
    monkeypatch.setattr(flops.time, "process_time", lambda: float(next(ran)))
    assert flops.measured_flops(torch.device("cpu"), torch.float32, size=8, trials=3, budget=0.0) == 2 * 8**3


@pytest.mark.parametrize("name, peak", [
    ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12), ("NVIDIA H20", 148e12), ("NVIDIA GH200 480GB", 989e12), ("NVIDIA B200", 2250e12),
    ("NVIDIA A10G", 70e12), ("Tesla V100-SXM2-32GB", 125e12),
    ("NVIDIA A10", None), ("NVIDIA H2000", None), ("NVIDIA RTX A4000", None),
])
def test_a_gpu_has_the_peak_of_its_name_or_what_products_in_bf16_reach(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(flops, "measured_flops", lambda device, dtype, size: (dtype, size))
    assert flops.peak_flops.__wrapped__(torch.device("cuda")) == (peak or (torch.bfloat16, 8192))


def test_what_products_reach_is_found_without_a_draw():
    state = torch.get_rng_state()
    assert flops.measured_flops(torch.device("cpu"), torch.bfloat16, size=8, trials=1, budget=0.0) > 0
    assert torch.equal(torch.get_rng_state(), state)
