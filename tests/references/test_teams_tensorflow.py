"""Our TEAMS against the TensorFlow Model Garden's: see teams_tensorflow.py, which made the numbers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.teams import Teams, TeamsConfig

sys.path.insert(0, str(Path(__file__).parent))
import teams_tensorflow as theirs  # noqa: E402

STORED = json.loads(theirs.RESULTS.read_text(encoding="utf-8"))
INPUTS = STORED["inputs"]


def batch_of(inputs) -> PretrainingBatch:
    original = torch.tensor(inputs["original_tokens"])
    selected = torch.zeros_like(original, dtype=torch.bool)
    for row, positions in enumerate(inputs["selected"]):
        selected[row, positions] = True
    return PretrainingBatch(
        original_tokens=original,
        masked_tokens=torch.tensor(inputs["masked_tokens"]),
        masked_positions=selected,
        masked_index=selected.flatten().nonzero().squeeze(-1),
        num_masked=selected.sum(-1).tolist(),
        sample_ids=torch.arange(len(original)),
        padding_mask=original == theirs.PADDING,
    )


def our_teams(table_width: int) -> Teams:
    """With their weights, draws and LayerNorm's epsilon."""
    config = TeamsConfig(
        encoder_layers=theirs.ENCODER_LAYERS,
        encoder_embed_dim=theirs.DIM,
        encoder_ffn_embed_dim=theirs.FFN,
        encoder_attention_heads=theirs.HEADS,
        token_embed_dim=table_width,
        max_positions=theirs.MAX_POSITIONS,
        rel_pos_buckets=0,
        dropout=0.0,
        attention_dropout=0.0,
        generator_layers=theirs.GENERATOR_LAYERS,
        generator_dropout=0.0,
        num_negatives=theirs.NEGATIVES,
        rtd_head_hidden_layer=True,
    )
    method = Teams(config, Vocabulary(theirs.VOCABULARY, theirs.PADDING, excluded=[theirs.PADDING, theirs.MASK]))
    values = theirs.weights(table_width)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name == "encoder.embeddings.projection.bias":
                assert not parameter.any()  # theirs has none
            else:
                parameter.copy_(torch.from_numpy(values.pop(name)))
    assert not values
    for module in method.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12
    sampled = torch.tensor(sum(INPUTS["sampled_tokens"], []))
    method.without_dropout = lambda masked_lm, *_: masked_lm._replace(sampled=sampled)
    chosen = torch.tensor(sum(INPUTS["candidate_tokens"], []))
    method.candidates = lambda _: lambda rows, logits: chosen[rows]
    return method


@pytest.fixture(scope="module", params=theirs.TABLE_WIDTHS)
def compared(request):
    """Our loss terms, our gradients times their directions, and theirs of both."""
    width = theirs.TABLE_WIDTHS[request.param]
    method, batch = our_teams(width), batch_of(INPUTS)
    terms = method.losses(method(batch), batch)
    sum(term.weight * term.mean for term in terms.values()).backward()
    parameters, directions = dict(method.named_parameters()), theirs.directions(width)
    slopes = {name: (parameters[name].grad * torch.from_numpy(x)).sum().item() for name, x in directions.items()}
    return terms, slopes, STORED["cases"][request.param]


def test_losses_are_those_of_the_tensorflow_model_garden(compared):
    terms, _, case = compared
    names = {"mlm": "masked_lm_loss", "rtd": "replaced_token_detection_loss", "mws": "multiword_selection_loss"}
    found = {names[name]: term.mean.item() for name, term in terms.items()}
    found["total_loss"] = sum(term.weight * term.mean.item() for term in terms.values())
    print("losses differ by", {name: f"{abs(found[name] - case['losses'][name]):.1e}" for name in found})
    assert found == pytest.approx(case["losses"], abs=1e-5)  # GELU by tanh would be 5e-5 off


def test_gradients_are_those_of_the_tensorflow_model_garden(compared):
    _, slopes, case = compared
    gaps = {name: abs(slopes[name] - slope) for name, slope in case["slopes"].items()}
    print(f"gradients along their directions differ by {max(gaps.values()):.1e}, worst {max(gaps, key=gaps.get)}")
    assert slopes == pytest.approx(case["slopes"], abs=5e-5)
    assert all(abs(slope) > 1e-3 for slope in case["slopes"].values())


def test_the_case_holds_right_and_wrong_draws_and_all_kinds_of_selected_positions():
    batch, sampled = batch_of(INPUTS), torch.tensor(sum(INPUTS["sampled_tokens"], []))
    originals, shown = batch.at_masked(batch.original_tokens), batch.at_masked(batch.masked_tokens)
    assert 0 < (sampled == originals).sum() < len(originals)
    assert ((shown == theirs.MASK).sum(), (shown == originals).sum()) == (7, 1) and len(originals) == 9
    assert batch.padding_mask.sum() == 9
