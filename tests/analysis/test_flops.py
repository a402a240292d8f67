"""The papers' FLOPs, from their sizes, batches and updates."""
import pytest

from amos_fairseq import reference_flops
from amos_fairseq.analysis.flops import Geometry, electra_flops, hardware_flops, update_flops, without_memory
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.base import PretrainingMethod

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


@pytest.mark.parametrize("name", METHODS)
def test_a_method_without_a_count_of_its_own_is_charged_its_networks_and_heads(name, monkeypatch):
    child = type("Child", (METHODS[name],), {})
    monkeypatch.setitem(METHODS, "child", child)
    inherited, own = (without_memory(of, "small", WORDPIECES, SMALL) for of in ("child", name))
    assert electra_flops(inherited, 128) == electra_flops(own, 128)
    monkeypatch.setattr(child, "reference_flops", PretrainingMethod.reference_flops)
    assert 0.4 < electra_flops(inherited, 128) / electra_flops(own, 128) < 1.3


def test_random_replacements_cost_no_generator(make_method):
    with_generator, without = (make_method("coco_lm", random_replacements=random) for random in (False, True))
    generator = with_generator.generator.config
    charged = reference_flops.network(generator, 32) + reference_flops.PREDICTED * reference_flops.mlm_head(generator)
    saved = with_generator.reference_flops(32) - without.reference_flops(32)
    assert saved == pytest.approx(charged)


SAVED = 17.46  # GFLOP of a masked LM's last layer, of base size, at the 85 % of 512 positions that are not selected


@pytest.mark.parametrize("name, gigaflops", [("amos_rtd", 518.8), ("script_selfcritic", 670.8), ("peer_tqr", 493.2)])
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


def test_a_crop_costs_what_its_padded_batch_does():
    """COCO-LM's crop of 16 tokens keeps 14, which a batch pads to 16: the pass costs what that over the batch does."""
    geometry = Geometry(sequences=4, length=16, updates=10)
    with_crop, without = (
        without_memory("coco_lm", "tiny", 100, geometry, dict(scl_weight=weight)) for weight in (1.0, 0.0)
    )
    encoder = with_crop.network_flops(with_crop.encoder, 4 * 16, 16)
    assert update_flops(with_crop, geometry)[1] - update_flops(without, geometry)[1] == 3 * encoder
