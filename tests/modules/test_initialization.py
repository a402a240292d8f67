import torch
from torch import nn

from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.modules.heads import DetectionHead, MaskedLMHead
from amos_fairseq.modules.initialization import initialize


def test_initialisation_is_normal_002_with_zero_biases_and_padding_row():
    torch.manual_seed(0)
    modules = nn.Sequential(nn.Embedding(300, 200, padding_idx=2), nn.Linear(200, 300), nn.LayerNorm(300))
    nn.init.ones_(modules[1].bias)
    modules.apply(initialize)
    table, linear, norm = modules
    for weight in (table.weight, linear.weight):
        assert weight.mean().abs() < 5e-4 and abs(weight.std() - 0.02) < 5e-4
    assert not table.weight[2].any() and table.weight[3].all()
    assert not linear.bias.any()
    assert norm.weight.eq(1).all() and not norm.bias.any()
    assert all(parameter.requires_grad for parameter in modules.parameters())


def test_encoder_and_heads_come_initialised():
    config = EncoderConfig(vocab_size=99, padding_idx=1, layers=1, dim=64, heads=2, ffn_dim=64, max_positions=64)
    encoder = Encoder(config)
    heads = [MaskedLMHead(64, encoder.token_embeddings), DetectionHead(64, hidden_layer=True)]
    assert not encoder.token_embeddings.weight[1].any()
    for name, parameter in nn.ModuleList([encoder, *heads]).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "layer_norm" in name:
            assert parameter.eq(1).all(), name
        else:
            assert 0.015 < parameter.std() < 0.025, name
