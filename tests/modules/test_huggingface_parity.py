"""The encoder and its masked LM head against Hugging Face's MPNet, BERT and ELECTRA: equal outputs and gradients."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.modules.heads import MaskedLMHead

sys.path.insert(0, str(Path(__file__).parents[1] / "references"))
from huggingface import MPNET_LAYER, Twins, encoder_names, hide_torchaudio  # noqa: E402

transformers = pytest.importorskip("transformers")

SIZE = dict(vocab_size=60, layers=2, dim=32, heads=4, ffn_dim=48, max_positions=128)
COMMON = dict(vocab_size=60, pad_token_id=1, num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
COMMON |= dict(intermediate_size=48, layer_norm_eps=1e-5)
LENGTHS = torch.tensor([100, 37, 1])  # reaches the last bucket, starts at distance 91


@pytest.fixture(autouse=True)
def without_torchaudio(monkeypatch):
    hide_torchaudio(monkeypatch)


def assert_parity(ours: nn.Module, theirs: nn.Module, names: dict, run_ours, run_theirs, first_rows=None):
    """Compares output and every gradient of a random projection."""
    twins = Twins(ours.eval(), theirs.eval(), names, first_rows or {}).draw_parameters()
    tokens = torch.randint(2, SIZE["vocab_size"], (len(LENGTHS), int(LENGTHS.max())))
    padding_mask = torch.arange(tokens.size(1)) >= LENGTHS[:, None]
    tokens = tokens.masked_fill(padding_mask, 1)
    output, expected = run_ours(tokens, padding_mask)[~padding_mask], run_theirs(tokens, padding_mask)[~padding_mask]
    probe = torch.randn_like(output)
    (output * probe).mean(0).sum().backward()
    (expected * probe).mean(0).sum().backward()
    print(f"outputs differ by {(output - expected).abs().max():.1e} of {expected.abs().max():.1f}")
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    twins.assert_equal_gradients()


def hidden_state_of(model: nn.Module):
    return lambda tokens, padding_mask: model(tokens, attention_mask=(~padding_mask).long()).last_hidden_state


def test_encoder_with_32_buckets_is_mpnet():
    encoder = Encoder(EncoderConfig(**SIZE, padding_idx=1, rel_pos_buckets=32, rel_pos_max_distance=128))
    # MPNet numbers positions from padding_idx + 1.
    config = transformers.MPNetConfig(**COMMON, max_position_embeddings=SIZE["max_positions"] + 2)
    mpnet = transformers.MPNetModel(config, add_pooling_layer=False)
    first_rows = {"embeddings.positions.weight": 2}
    assert_parity(encoder, mpnet, encoder_names(2, MPNET_LAYER), encoder, hidden_state_of(mpnet), first_rows)


def test_encoder_without_relative_bias_is_bert():
    encoder = Encoder(EncoderConfig(**SIZE, padding_idx=1, rel_pos_buckets=0))
    config = transformers.BertConfig(**COMMON, max_position_embeddings=SIZE["max_positions"])
    bert = transformers.BertModel(config, add_pooling_layer=False)
    assert_parity(encoder, bert, encoder_names(2), encoder, hidden_state_of(bert))


@pytest.mark.parametrize("embedding_dim", [16, 48])  # ELECTRA's narrow generators read a wider table
def test_factorised_encoder_is_electra(embedding_dim):
    encoder = Encoder(EncoderConfig(**SIZE, padding_idx=1, rel_pos_buckets=0, embedding_dim=embedding_dim))
    config = transformers.ElectraConfig(
        **COMMON, embedding_size=embedding_dim, max_position_embeddings=SIZE["max_positions"]
    )
    electra = transformers.ElectraModel(config)
    assert_parity(encoder, electra, encoder_names(2), encoder, hidden_state_of(electra))


@pytest.mark.parametrize("embedding_dim", [32, 16, 48])
def test_encoder_with_masked_lm_head_is_electra_generator(embedding_dim):
    encoder = Encoder(EncoderConfig(**SIZE, padding_idx=1, rel_pos_buckets=0, embedding_dim=embedding_dim))
    ours = nn.ModuleDict({"encoder": encoder, "head": MaskedLMHead(SIZE["dim"], encoder.token_embeddings)})
    config = transformers.ElectraConfig(
        **COMMON, embedding_size=embedding_dim, max_position_embeddings=SIZE["max_positions"]
    )
    electra = transformers.ElectraForMaskedLM(config)
    names = encoder_names(2, ours="encoder.", theirs="electra.") | {
        "head.dense": ["generator_predictions.dense"],
        "head.layer_norm": ["generator_predictions.LayerNorm"],
        "head.bias": ["generator_lm_head.bias"],
    }

    def run_ours(tokens, padding_mask):
        return ours["head"](encoder(tokens, padding_mask))

    def run_theirs(tokens, padding_mask):
        return electra(tokens, attention_mask=(~padding_mask).long()).logits

    assert_parity(ours, electra, names, run_ours, run_theirs)
