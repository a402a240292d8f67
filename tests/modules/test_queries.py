import pytest
import torch

from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.modules.queries import Queries

TINY = dict(vocab_size=50, padding_idx=1, layers=2, dim=16, heads=2, ffn_dim=24, max_positions=24)
COUNTS = {"even": [2, 2, 2], "ragged": [1, 4, 3], "one sequence without": [3, 0, 1], "all without": [0, 0, 0]}
LENGTH = 9


def selected(counts, lengths=(9, 6, 4), seed=0):
    """(M,) ascending flat positions, `counts` of the first `lengths` tokens of each sequence."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(n, generator=generator)[:count].sort()[0] for count, n in zip(counts, lengths)]
    return torch.cat([row + sequence * LENGTH for sequence, row in enumerate(rows)])


def test_layout_on_literal_numbers():
    queries = Queries.of(torch.tensor([1, 4, 10, 13, 14]), [2, 0, 3], 5)  # positions 1 4 | | 0 3 4 of T = 5
    assert queries.positions.tolist() == [[1, 4, 0], [0, 0, 0], [0, 3, 4]]
    assert queries.slots.tolist() == [0, 1, 6, 7, 8]
    assert queries.rows(torch.arange(15.0).view(3, 5, 1)).flatten().tolist() == [1, 4, 10, 13, 14]
    padded = queries.pad(torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]))
    assert padded.squeeze(-1).tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5]]
    assert queries.unpad(padded).flatten().tolist() == [1, 2, 3, 4, 5]


def test_bias_rows_are_those_of_the_queries_of_each_sequence_and_head():
    queries = Queries.of(torch.tensor([1, 3, 5]), [2, 1], 4)  # positions 1 3 | 1
    for blocks, heads in ((1, 3), (2, 3), (2, 1)):
        bias = torch.arange(blocks * heads * 16.0).view(blocks, heads, 4, 4)
        rows = queries.bias(bias)
        assert rows.shape == (2, heads, 2, 4)
        assert torch.equal(rows[0], bias[0][:, [1, 3]])
        assert torch.equal(rows[1, :, 0], bias[-1][:, 1])


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("options", [dict(), dict(rel_pos_buckets=0)], ids=["relative", "absolute"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.double, 1e-12), (torch.float, 1e-6)])
def test_last_layer_at_selected_positions_equals_all_of_it(counts, padded, options, dtype, tolerance):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**{**TINY, **options})).to(dtype).eval()
    tokens = torch.randint(2, 50, (3, LENGTH))
    padding_mask = torch.arange(LENGTH).expand(3, -1) >= torch.tensor([[9], [6], [4]]) if padded else None
    index = selected(counts)
    probe = torch.randn(len(index), 16, dtype=dtype)

    everywhere = encoder(tokens, padding_mask).flatten(0, 1)[index]
    rows = encoder(tokens, padding_mask, at=Queries.of(index, counts, LENGTH))
    assert rows.shape == (len(index), 16)
    parameters = list(encoder.parameters())
    expected = torch.autograd.grad((everywhere * probe).sum(), parameters)
    actual = torch.autograd.grad((rows * probe).sum(), parameters)
    for one, another in zip([rows, *actual], [everywhere, *expected]):
        assert (one - another).norm() <= tolerance * another.norm()


@pytest.mark.parametrize("start, stop", [(0, 1), (1, 2), (0, None)])
def test_the_last_of_the_layers_that_run_is_the_one_that_is_asked_for_rows(start, stop):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**TINY)).double().eval()
    hidden, layers = encoder.begin(torch.randn(3, LENGTH, 16, dtype=torch.double))
    index = selected([1, 4, 3])
    rows = layers.run(hidden, start, stop, at=Queries.of(index, [1, 4, 3], LENGTH))
    torch.testing.assert_close(rows, layers.run(hidden, start, stop).flatten(0, 1)[index])


def test_nothing_but_keys_and_values_is_computed_for_all_positions(allocations):
    encoder = Encoder(EncoderConfig(**{**TINY, "layers": 1}))
    (hidden, layers), counts = encoder.begin(torch.randn(3, LENGTH, 16)), [2, 2, 2]
    queries = Queries.of(selected(counts), counts, LENGTH)
    with allocations:
        layers.run(hidden, at=queries).sum().backward()
    assert 3 * LENGTH * 2 * 16 in allocations.elements  # keys and values
    assert not {3 * LENGTH * 3 * 16, 3 * LENGTH * 24, 3 * 2 * LENGTH**2} & allocations.elements


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_give_the_rows(dtype):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**TINY)).eval()
    tokens, index, counts = torch.randint(2, 50, (3, LENGTH)), selected([1, 4, 3]), [1, 4, 3]
    expected = encoder(tokens).flatten(0, 1)[index]
    queries = Queries.of(index, counts, LENGTH)
    with torch.autocast("cpu", dtype):
        autocast = encoder(tokens, at=queries)
    halved = encoder.to(dtype)(tokens, at=queries)
    assert halved.dtype == dtype
    for actual in (autocast, halved):
        torch.testing.assert_close(actual.float(), expected, atol=0.05, rtol=0.05)


def test_counts_that_do_not_sum_to_the_index_are_refused():
    with pytest.raises(ValueError, match="counts of 3 positions for an index of 2"):
        Queries.of(torch.tensor([0, 7]), [1, 2], 5)
