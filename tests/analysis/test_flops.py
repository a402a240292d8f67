"""The papers' FLOPs, from their sizes, batches and updates."""
import pytest

from amos_fairseq.analysis import flops
from amos_fairseq.analysis.flops import Geometry, electra_flops, hardware_flops, without_memory
from amos_fairseq.methods import METHODS
from amos_fairseq.modules.encoder import EncoderConfig

WORDPIECES = 30522
SMALL, BASE = Geometry(128, 128, 1_000_000), Geometry(256, 512, 766_000)
PEER_SMALL, PEER_BASE = Geometry(512, 128, 250_000), Geometry(256, 512, 666_900)


@pytest.mark.parametrize(
    "name, size, geometry, published",
    [
        ("electra_rtd", "small", SMALL, 1.294e18),
        ("electra_rtd", "base", BASE, 6.425e19),
        ("bert_mlm", "base", Geometry(256, 512, 1_000_000), 6.428e19),
        ("peer_tqr", "small", PEER_SMALL, 1.496e18),
        ("peer_tqr", "small", Geometry(512, 128, 212_500), 1.272e18),
        ("peer_tqr", "base", PEER_BASE, 6.387e19),
        ("teams_mws", "small", PEER_SMALL, 1.553e18),
        ("teams_mws", "base", PEER_BASE, 6.664e19),
    ],
)
def test_runs_cost_what_the_papers_tables_say(name, size, geometry, published):
    token = electra_flops(without_memory(name, size, WORDPIECES, geometry), geometry.length)
    total = token * geometry.sequences * geometry.length * geometry.updates
    assert total == pytest.approx(published, rel=1e-3)


def test_parts_of_a_base_encoder_in_gigaflops_of_a_sequence():
    config = EncoderConfig(WORDPIECES, 1, layers=12, dim=768, heads=12, ffn_dim=3072)
    sequence = 512 / 1e9
    assert flops.block(config, 512) * sequence == pytest.approx(8.107, rel=1e-3)
    assert flops.input_embedding(config, 512) * sequence == pytest.approx(24.4, abs=0.05)
    assert flops.mlm_head(config) * flops.PREDICTED * sequence == pytest.approx(3.86, abs=0.01)
    assert flops.mlm_head(config) * sequence == pytest.approx(24.7, abs=0.05)
    assert flops.detection_head(config) * sequence == pytest.approx(0.61, abs=0.01)


def test_parts_of_electra_bases_generator_in_gigaflops_of_a_sequence():
    config = without_memory("electra_rtd", "base", WORDPIECES, BASE).generator.config
    sequence = 512 / 1e9
    assert 12 * flops.block(config, 512) * sequence == pytest.approx(13.1, abs=0.1)
    assert flops.input_embedding(config, 512) * sequence == pytest.approx(24.6, abs=0.05)
    assert flops.mlm_head(config) * flops.PREDICTED * sequence == pytest.approx(3.8, abs=0.05)


SAVED = 17.46  # GFLOP of a masked LM's last layer, of base size, at the 85 % of 512 positions that are not selected


@pytest.mark.parametrize("name, gigaflops", [("amos_rtd", 518.8), ("script_selfcritic", 670.8), ("peer_tqr", 446.7)])
def test_hardware_counts_what_mfu_counts(name, gigaflops):
    geometry = Geometry(sequences=10, length=512, updates=1)
    token = hardware_flops(without_memory(name, "base", 32768, geometry), geometry)
    assert token * 512 / 1e9 == pytest.approx(gigaflops - SAVED, rel=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_counted_in_both_ways(name):
    geometry = Geometry(sequences=8, length=128, updates=1)
    method = without_memory(name, "small", 32768, geometry)
    matrix_products = 2 * hardware_flops(method, geometry) / 3  # a backward pass of one forward pass
    lookups = 2 * 2 * 128 * 32768  # of one network at least, charged by electra alone
    assert electra_flops(method, 128) > matrix_products + lookups
