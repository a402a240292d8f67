"""electra_rtd and bert_mlm against Hugging Face's ELECTRA and BERT: equal losses and gradients on equal draws."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from huggingface import Twins, encoder_names, hide_torchaudio  # noqa: E402

transformers = pytest.importorskip("transformers")

COMMON = dict(vocab_size=40, pad_token_id=1, max_position_embeddings=32, layer_norm_eps=1e-5)
COMMON |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
ENCODER = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
GENERATOR = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=1, intermediate_size=48)


@pytest.fixture(autouse=True)
def without_torchaudio(monkeypatch):
    hide_torchaudio(monkeypatch)


@pytest.fixture
def batch(make_batch):
    """With padding, and all kinds of selected positions: <mask>, another token, the token itself."""
    batch = make_batch(lengths=(30, 17, 6), num_masked=4)
    masked_tokens, (first, second) = batch.masked_tokens.clone().flatten(), batch.masked_index[:2]
    masked_tokens[first], masked_tokens[second] = batch.original_tokens.flatten()[first], 30
    return batch._replace(masked_tokens=masked_tokens.view_as(batch.masked_tokens))


def mlm_labels(batch):
    """Originals at the selected positions, elsewhere what Hugging Face ignores."""
    return batch.original_tokens.masked_fill(~batch.masked_positions, -100)


@pytest.mark.parametrize("table_width", [16, 8])
def test_electra_is_hugging_faces_generator_and_discriminator_on_one_table(make_method, batch, table_width):
    method = make_method(
        "electra_rtd",
        rel_pos_buckets=0,
        token_embed_dim=table_width,
        generator_embed_dim=GENERATOR["hidden_size"],
        rtd_head_hidden_layer=True,
    )
    encoder_config, generator_config = (
        transformers.ElectraConfig(**COMMON, **size, embedding_size=table_width) for size in (ENCODER, GENERATOR)
    )
    discriminator = transformers.ElectraForPreTraining(encoder_config)
    generator = transformers.ElectraForMaskedLM(generator_config)
    generator.set_input_embeddings(discriminator.get_input_embeddings())
    generator.tie_weights()
    names = encoder_names(2, ours="encoder.", theirs="discriminator.electra.")
    names |= encoder_names(2, ours="generator.", theirs="generator.electra.") | {
        "rtd_head.dense": ["discriminator.discriminator_predictions.dense"],
        "rtd_head.score": ["discriminator.discriminator_predictions.dense_prediction"],
        "mlm_head.dense": ["generator.generator_predictions.dense"],
        "mlm_head.layer_norm": ["generator.generator_predictions.LayerNorm"],
        "mlm_head.bias": ["generator.generator_lm_head.bias"],
    }
    theirs = nn.ModuleDict({"discriminator": discriminator, "generator": generator})
    negated = ["rtd_head.score.weight", "rtd_head.score.bias"]  # their logit is that of a replaced token
    twins = Twins(method, theirs, names, negated=negated).draw_parameters()

    method.set_num_updates(5)  # one of those whose draws are right as well as wrong
    output = method(batch)
    terms = method.losses(output, batch)
    corrupted, replaced = output.corruption
    attention_mask = batch.valid_positions.long()
    mlm = generator(batch.masked_tokens, attention_mask=attention_mask, labels=mlm_labels(batch)).loss
    rtd = discriminator(corrupted, attention_mask=attention_mask, labels=replaced.long()).loss
    print(f"losses differ by {terms['mlm'].mean - mlm:.1e} of {mlm:.1f} and {terms['rtd'].mean - rtd:.1e} of {rtd:.1f}")
    torch.testing.assert_close(terms["mlm"].mean, mlm, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms["rtd"].mean, rtd, atol=1e-5, rtol=0)
    assert 0 < replaced.sum() < len(output.sampled_tokens)  # a draw that is the original stays original

    sum(term.mean for term in terms.values()).backward()
    (mlm + rtd).backward()
    twins.assert_equal_gradients()


def test_bert_mlm_is_hugging_faces_bert(make_method, batch):
    method = make_method("bert_mlm", rel_pos_buckets=0)
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**COMMON, **ENCODER))
    names = encoder_names(2, ours="encoder.", theirs="bert.") | {
        "mlm_head.dense": ["cls.predictions.transform.dense"],
        "mlm_head.layer_norm": ["cls.predictions.transform.LayerNorm"],
        "mlm_head.bias": ["cls.predictions.bias"],
    }
    twins = Twins(method, bert, names).draw_parameters()
    found = method.losses(method(batch), batch)["mlm"].mean
    expected = bert(batch.masked_tokens, attention_mask=batch.valid_positions.long(), labels=mlm_labels(batch)).loss
    print(f"losses differ by {found - expected:.1e} of {expected:.1f}")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found.backward()
    expected.backward()
    twins.assert_equal_gradients()
