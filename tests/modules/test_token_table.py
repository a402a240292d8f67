"""A table that follows another's values and gives it no gradient."""

import pytest
import torch
from torch import nn

from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.modules.token_table import DisentangledTable, folded


@pytest.fixture
def table():
    table = nn.Embedding(3, 2, padding_idx=1)
    table.weight.data = torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]])
    return table


@pytest.fixture
def disentangled(table):
    result = DisentangledTable(table)
    result.delta.data = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, -1.0]])
    return result


def test_it_starts_with_the_values_that_it_follows(table):
    assert torch.equal(DisentangledTable(table).weight, table.weight)


def test_rows_are_the_sum_and_train_the_difference_alone(table, disentangled):
    rows = disentangled(torch.tensor([[2, 0], [2, 1]]))
    assert rows.tolist() == [[[5.0, 5.0], [1.5, 2.0]], [[5.0, 5.0], [0.0, 0.0]]]
    assert disentangled.weight.tolist() == [[1.5, 2.0], [0.0, 0.0], [5.0, 5.0]]
    (rows.sum() + 10 * disentangled.weight.sum()).backward()
    assert disentangled.delta.grad.tolist() == [[11, 11], [10, 10], [12, 12]]  # padding: by `weight` alone
    assert table.weight.grad is None


def test_it_follows_what_the_other_learns(table, disentangled):
    with torch.no_grad():
        table.weight += 1
    assert disentangled(torch.tensor(0)).tolist() == [2.5, 3.0]


def test_the_followed_table_is_no_part_of_it(disentangled):
    names = [name for name, _ in disentangled.named_parameters()]
    assert [*disentangled.state_dict()] == names == ["delta"]


def test_folded_is_an_ordinary_copy_and_the_original_stays(table):
    encoder = Encoder(EncoderConfig(1, vocab_size=3, layers=1, dim=2, heads=1, ffn_dim=4, rel_pos_buckets=0)).eval()
    encoder.token_embeddings = DisentangledTable(table)
    encoder.token_embeddings.delta.data.normal_(generator=torch.Generator().manual_seed(0))
    ordinary, tokens = folded(encoder), torch.tensor([[0, 2, 0]])
    assert type(ordinary.token_embeddings) is nn.Embedding and ordinary.token_embeddings.padding_idx == 1
    assert torch.equal(ordinary(tokens), encoder(tokens))
    assert all(parameter.requires_grad for parameter in ordinary.parameters())
    ordinary.token_embeddings.weight.data.zero_()
    assert encoder.token_embeddings.weight.any() and isinstance(encoder.token_embeddings, DisentangledTable)
