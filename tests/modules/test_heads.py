import copy
import math

import pytest
import torch
from torch import nn

from amos_fairseq.modules.heads import DetectionHead, MaskedLMHead


def test_masked_lm_head_scores_by_the_table_it_shares():
    table = nn.Embedding(11, 4, padding_idx=1)
    values = table.weight.detach().clone()
    head = MaskedLMHead(6, table)
    assert head.token_embeddings is table and torch.equal(table.weight, values)
    head.bias.data.normal_()
    hidden = torch.randn(2, 3, 6)
    projected = head.project(hidden)
    assert projected.shape == (2, 3, 4)
    torch.testing.assert_close(head(hidden), projected @ table.weight.t() + head.bias)


def test_masked_lm_head_projection_on_literal_numbers():
    head = MaskedLMHead(2, nn.Embedding(5, 2))
    head.dense.weight.data.copy_(torch.eye(2))
    gelu = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in (1.0, -2.0)]
    half_gap = (gelu[0] - gelu[1]) / 2
    expected = half_gap / math.sqrt(half_gap**2 + 1e-5)  # LayerNorm of two numbers
    torch.testing.assert_close(head.project(torch.tensor([1.0, -2.0])), torch.tensor([expected, -expected]))


def test_table_stays_one_parameter_through_copies_and_casts():
    model = nn.ModuleDict({"table": nn.Embedding(11, 4)})
    model["head"] = MaskedLMHead(6, model["table"])
    for other in (model, copy.deepcopy(model), copy.deepcopy(model).to(torch.float16)):
        assert other["head"].token_embeddings.weight is other["table"].weight
        assert len(list(other.parameters())) == 6
    other.load_state_dict(model.state_dict())
    assert torch.equal(other["table"].weight, model["table"].weight.half())


def test_detection_head_is_one_linear_or_dense_gelu_linear():
    hidden = torch.randn(2, 3, 6)
    linear, deep = DetectionHead(6), DetectionHead(6, hidden_layer=True)
    assert sum(p.numel() for p in linear.parameters()) == 6 + 1
    assert sum(p.numel() for p in deep.parameters()) == 6 * 6 + 6 + 6 + 1
    torch.testing.assert_close(linear(hidden), (hidden @ linear.score.weight.t())[..., 0])
    torch.testing.assert_close(deep(hidden), deep.score(nn.functional.gelu(deep.dense(hidden)))[..., 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_heads_run_in_half_precision(dtype):
    heads = [MaskedLMHead(6, nn.Embedding(11, 4)), DetectionHead(6), DetectionHead(6, hidden_layer=True)]
    for head in heads:
        output = head.to(dtype)(torch.randn(5, 6, dtype=dtype))
        assert output.dtype == dtype and output.isfinite().all()
