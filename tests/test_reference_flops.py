"""Parts of the networks of ELECTRA's paper, by its own count."""

import pytest

from amos_fairseq import reference_flops
from amos_fairseq.modules.encoder import EncoderConfig

WORDPIECES = 30522


def test_parts_of_a_base_encoder_in_gigaflops_of_a_sequence():
    config = EncoderConfig(1, WORDPIECES, layers=12, dim=768, heads=12, ffn_dim=3072)
    sequence = 512 / 1e9
    assert reference_flops.block(config, 512) * sequence == pytest.approx(8.107, rel=1e-3)
    assert reference_flops.input_embedding(config, 512) * sequence == pytest.approx(24.4, abs=0.05)
    assert reference_flops.mlm_head(config) * reference_flops.PREDICTED * sequence == pytest.approx(3.86, abs=0.01)
    assert reference_flops.mlm_head(config) * sequence == pytest.approx(24.7, abs=0.05)
    assert reference_flops.detection_head(config) * sequence == pytest.approx(0.61, abs=0.01)


def test_parts_of_electra_bases_generator_in_gigaflops_of_a_sequence():
    config = EncoderConfig(1, WORDPIECES, layers=12, dim=256, heads=4, ffn_dim=1024, embedding_dim=768)
    sequence = 512 / 1e9
    assert 12 * reference_flops.block(config, 512) * sequence == pytest.approx(13.1, abs=0.1)
    assert reference_flops.input_embedding(config, 512) * sequence == pytest.approx(24.6, abs=0.05)
    assert reference_flops.mlm_head(config) * reference_flops.PREDICTED * sequence == pytest.approx(3.8, abs=0.05)
