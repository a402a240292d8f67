import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amos_fairseq.modules.attention import SelfAttention, aligned, warn_if_materialised

B, H, T, D = 3, 2, 7, 4


def materialised_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """The meaning of `F.scaled_dot_product_attention`: softmax(query key^T / sqrt(D) + attn_mask) value, in float32.

    query, key, value: (B, H, T, D)   attn_mask: broadcasts to (B, H, T, T)
    """
    scores = (query @ key.transpose(-2, -1)).float() * query.size(-1) ** -0.5
    if attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p).to(value.dtype) @ value


def bias_of(kind: str) -> torch.Tensor | None:
    if kind == "none":
        return None
    bias = torch.randn(1, H, T, T)
    if kind == "padded":
        bias = bias.repeat(B, 1, 1, 1)
        bias[0, ..., 5:] = bias[1, ..., :2] = float("-inf")
    return bias


@pytest.mark.parametrize("kind", ["none", "shared", "padded"])
def test_fused_attention_equals_the_materialised_one(kind):
    torch.manual_seed(0)
    bias = bias_of(kind)
    inputs = [tensor for tensor in (*torch.randn(3, B, H, T, D), bias) if tensor is not None]
    probe = torch.randn(B, H, T, D)

    results = []
    for attention in (F.scaled_dot_product_attention, materialised_attention):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        query, key, value, *mask = leaves
        mask = mask[0].expand(B, -1, -1, -1) if mask else None
        output = attention(query, key, value, attn_mask=mask)
        results.append([output, *torch.autograd.grad((output * probe).sum(), leaves)])
    for fused, materialised in zip(*results):
        torch.testing.assert_close(fused, materialised, atol=1e-6, rtol=1e-5)


def test_materialised_attention_on_literal_numbers():
    query = key = torch.tensor([[1.0], [0.0]]).view(1, 1, 2, 1)
    value = torch.tensor([[4.0], [8.0]]).view(1, 1, 2, 1)
    bias = torch.tensor([[-1.0, 3.0**0.5], [0.0, float("-inf")]])
    weight = 1 / (1 + torch.tensor(3.0**0.5).exp())  # scores (1 - 1, 0 + sqrt 3); then only the first key
    expected = torch.tensor([4 * weight + 8 * (1 - weight), 4.0]).view(1, 1, 2, 1)
    torch.testing.assert_close(materialised_attention(query, key, value, bias), expected)


def test_projections_are_query_key_value_in_this_order(monkeypatch):
    attention = SelfAttention(H * D, H)
    seen = {}

    def spy(query, key, value, attn_mask=None, dropout_p=0.0):
        seen.update(query=query, key=key, value=value, attn_mask=attn_mask)
        return materialised_attention(query, key, value, attn_mask, dropout_p)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    hidden, bias = torch.randn(B, T, H * D), torch.randn(1, H, T, T)
    attention(hidden, bias)
    weights, offsets = attention.in_proj.weight.chunk(3), attention.in_proj.bias.chunk(3)
    for name, weight, offset in zip(("query", "key", "value"), weights, offsets):
        heads = (hidden @ weight.t() + offset).view(B, T, H, D).transpose(1, 2)
        torch.testing.assert_close(seen[name], heads)
    assert seen["attn_mask"].shape == (B, H, T, T)
    assert seen["attn_mask"].data_ptr() == bias.data_ptr() and seen["attn_mask"].stride(0) == 0  # not copied


@pytest.mark.parametrize("length, row", [(7, 8), (8, 8), (9, 16)])
def test_aligned_bias_has_the_same_values_keys_in_sequence_and_rows_at_multiples_of_8(length, row):
    heads_last = torch.randn(1, length, length, H).permute(0, 3, 1, 2)
    assert heads_last.stride(-1) == H
    result = aligned(heads_last)
    assert torch.equal(result, heads_last)
    assert result.stride()[1:] == (length * row, row, 1)


def test_a_call_without_a_fused_kernel_is_told(recwarn):
    query = torch.randn(B, H, T, D, requires_grad=True)
    warn_if_materialised(query, query, query, torch.zeros(1, 1, T, T))
    assert not recwarn
    with pytest.warns(UserWarning, match="attention of 4 channels per head in torch.float32 has no fused kernel"):
        warn_if_materialised(query, query, query, torch.zeros(1, 1, T, T, requires_grad=True))  # on the CPU


def test_attention_dropout_acts_in_training_only():
    attention, hidden = SelfAttention(H * D, H, dropout=0.5), torch.randn(B, T, H * D)
    assert not torch.equal(attention(hidden), attention(hidden))
    attention.eval()
    assert torch.equal(attention(hidden), attention(hidden))
