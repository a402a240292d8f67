"""The encoder and its masked LM head against Hugging Face's MPNet, BERT and ELECTRA: equal outputs and gradients."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec

import pytest
import torch
from torch import Tensor, nn

from amos_fairseq.modules import Encoder, EncoderConfig, MaskedLMHead

transformers = pytest.importorskip("transformers")

SIZE = dict(vocab_size=60, layers=2, dim=32, heads=4, ffn_dim=48, max_positions=128)
COMMON = dict(vocab_size=60, pad_token_id=1, num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
COMMON |= dict(intermediate_size=48, layer_norm_eps=1e-5)
LENGTHS = torch.tensor([100, 37, 1])  # reaches the last bucket, starts at distance 91


@pytest.fixture(autouse=True)
def without_torchaudio(monkeypatch):
    """A torchaudio built for another torch (fairseq requires one) would break the import of models without audio."""
    monkeypatch.setitem(sys.modules, "torchaudio", module_from_spec(ModuleSpec("torchaudio", None)))


EMBEDDINGS = {
    "token_embeddings.weight": ["embeddings.word_embeddings.weight"],
    "embeddings.positions.weight": ["embeddings.position_embeddings.weight"],
    "embeddings.layer_norm": ["embeddings.LayerNorm"],
}
BERT_LAYER = {
    "self_attn.in_proj": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "self_attn.out_proj": ["attention.output.dense"],
    "self_attn_layer_norm": ["attention.output.LayerNorm"],
    "fc1": ["intermediate.dense"],
    "fc2": ["output.dense"],
    "final_layer_norm": ["output.LayerNorm"],
}
MPNET_LAYER = BERT_LAYER | {
    "self_attn.in_proj": ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    "self_attn.out_proj": ["attention.attn.o"],
    "self_attn_layer_norm": ["attention.LayerNorm"],
}


def correspondence(layer: dict[str, list[str]], extra: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names of our modules or parameters -> names of theirs, whose rows follow each other in ours."""
    layers = {
        f"layers.{i}.{ours}": [f"encoder.layer.{i}.{name}" for name in theirs]
        for i in range(SIZE["layers"])
        for ours, theirs in layer.items()
    }
    return EMBEDDINGS | layers | extra


def assert_parity(name: str, ours: nn.Module, theirs: nn.Module, names: dict, run_ours, run_theirs, first_rows=None):
    """Draws their parameters, copies them into ours, compares output and every gradient of a random projection."""
    torch.manual_seed(0)
    their_parameters = dict(theirs.eval().named_parameters())
    for key, parameter in their_parameters.items():
        centre = 1.0 if key.endswith("LayerNorm.weight") else 0.0
        nn.init.zeros_(parameter) if "token_type" in key else nn.init.normal_(parameter, centre, 0.15)

    def as_ours(key: str, tensors: dict[str, Tensor]) -> Tensor:
        module, _, kind = key.rpartition(".")
        sources = names[key] if key in names else [f"{source}.{kind}" for source in names[module]]
        return torch.cat([tensors[source] for source in sources])[(first_rows or {}).get(key, 0) :]

    for key, parameter in ours.eval().named_parameters():
        parameter.data.copy_(as_ours(key, their_parameters))

    tokens = torch.randint(2, SIZE["vocab_size"], (len(LENGTHS), int(LENGTHS.max())))
    padding_mask = torch.arange(tokens.size(1)) >= LENGTHS[:, None]
    tokens = tokens.masked_fill(padding_mask, 1)
    output, expected = run_ours(tokens, padding_mask)[~padding_mask], run_theirs(tokens, padding_mask)[~padding_mask]
    probe = torch.randn_like(output)
    (output * probe).mean(0).sum().backward()
    (expected * probe).mean(0).sum().backward()

    their_gradients = {key: parameter.grad for key, parameter in their_parameters.items()}
    pairs = {key: (parameter.grad, as_ours(key, their_gradients)) for key, parameter in ours.named_parameters()}
    worst = max(pairs, key=lambda key: (pairs[key][0] - pairs[key][1]).abs().max())
    gap, size = (pairs[worst][0] - pairs[worst][1]).abs().max(), max(grad.abs().max() for grad, _ in pairs.values())
    print(f"{name}: outputs differ by {(output - expected).abs().max():.1e} of {expected.abs().max():.1f}")
    print(f"{name}: gradients differ by {gap:.1e} of {size:.1f}, worst {worst}")
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    for key, (gradient, their_gradient) in pairs.items():
        assert their_gradient.abs().max() > 1e-4, key
        torch.testing.assert_close(gradient, their_gradient, atol=1e-5, rtol=1e-5, msg=key)


def hidden_state_of(model: nn.Module):
    return lambda tokens, padding_mask: model(tokens, attention_mask=(~padding_mask).long()).last_hidden_state


def test_encoder_with_32_buckets_is_mpnet():
    encoder = Encoder(EncoderConfig(**SIZE, padding_idx=1, rel_pos_buckets=32, rel_pos_max_distance=128))
    # MPNet numbers positions from padding_idx + 1.
    config = transformers.MPNetConfig(**COMMON, max_position_embeddings=SIZE["max_positions"] + 2)
    mpnet = transformers.MPNetModel(config, add_pooling_layer=False)
    names = correspondence(MPNET_LAYER, {"relative_position_bias": ["encoder.relative_attention_bias"]})
    first_rows = {"embeddings.positions.weight": 2}
    assert_parity("MPNet", encoder, mpnet, names, encoder, hidden_state_of(mpnet), first_rows)


def test_encoder_without_relative_bias_is_bert():
    encoder = Encoder(EncoderConfig(**SIZE, padding_idx=1, rel_pos_buckets=0))
    config = transformers.BertConfig(**COMMON, max_position_embeddings=SIZE["max_positions"])
    bert = transformers.BertModel(config, add_pooling_layer=False)
    assert_parity("BERT", encoder, bert, correspondence(BERT_LAYER, {}), encoder, hidden_state_of(bert))


@pytest.mark.parametrize("embedding_dim", [16, 48])  # ELECTRA's narrow generators read a wider table
def test_factorised_encoder_is_electra(embedding_dim):
    encoder = Encoder(EncoderConfig(**SIZE, padding_idx=1, rel_pos_buckets=0, embedding_dim=embedding_dim))
    config = transformers.ElectraConfig(
        **COMMON, embedding_size=embedding_dim, max_position_embeddings=SIZE["max_positions"]
    )
    electra = transformers.ElectraModel(config)
    names = correspondence(BERT_LAYER, {"embeddings.projection": ["embeddings_project"]})
    assert_parity(f"ELECTRA, embedding {embedding_dim}", encoder, electra, names, encoder, hidden_state_of(electra))


@pytest.mark.parametrize("embedding_dim", [32, 16, 48])
def test_encoder_with_masked_lm_head_is_electra_generator(embedding_dim):
    encoder = Encoder(EncoderConfig(**SIZE, padding_idx=1, rel_pos_buckets=0, embedding_dim=embedding_dim))
    ours = nn.ModuleDict({"encoder": encoder, "head": MaskedLMHead(SIZE["dim"], encoder.token_embeddings)})
    config = transformers.ElectraConfig(
        **COMMON, embedding_size=embedding_dim, max_position_embeddings=SIZE["max_positions"]
    )
    electra = transformers.ElectraForMaskedLM(config)
    extra = {"embeddings.projection": ["embeddings_project"]} if embedding_dim != SIZE["dim"] else {}
    names = {
        f"encoder.{name}": [f"electra.{source}" for source in sources]
        for name, sources in correspondence(BERT_LAYER, extra).items()
    }
    names |= {
        "head.dense": ["generator_predictions.dense"],
        "head.layer_norm": ["generator_predictions.LayerNorm"],
        "head.bias": ["generator_lm_head.bias"],
    }

    def run_ours(tokens, padding_mask):
        return ours["head"](encoder(tokens, padding_mask))

    def run_theirs(tokens, padding_mask):
        return electra(tokens, attention_mask=(~padding_mask).long()).logits

    assert_parity(f"ELECTRA generator, embedding {embedding_dim}", ours, electra, names, run_ours, run_theirs)
