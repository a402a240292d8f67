import pytest
import torch

from amos_fairseq.modules.relative_position import BUCKETINGS, RelativePositionBias, released_buckets, t5_buckets

SIZES = [(32, 128), (64, 128), (128, 256)]
OFFSETS = torch.arange(-511, 512)  # key - query

# First distance of every bucket beyond the exact ones.
T5_STARTS = {
    (32, 128): [8, 12, 16, 23, 32, 46, 64, 91],
    (64, 128): [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113],
    (128, 256): [32, 35, 37, 39, 42, 45, 48, 51, 54, 58, 62, 66, 70, 75, 80, 85]
    + [91, 97, 104, 110, 118, 126, 134, 143, 153, 163, 174, 185, 198, 211, 225, 240],
}
RELEASED_STARTS = {
    (32, 128): [8, 9, 12, 18, 27, 39, 58, 86],
    (64, 128): [16, 17, 19, 22, 25, 28, 32, 37, 43, 49, 56, 64, 74, 84, 97, 111],
    (128, 256): [32, 33, 35, 37, 40, 42, 45, 48, 52, 55, 59, 63, 67, 72, 77, 82]
    + [88, 94, 100, 107, 115, 123, 131, 140, 150, 160, 171, 183, 196, 209, 224, 239],
}


def one_side(exact: int, starts: list[int]) -> torch.Tensor:
    """Bucket of the distances 0..511, counted from the centre."""
    distance = torch.arange(512)
    return (distance[:, None] >= torch.tensor([*range(1, exact), *starts])).sum(1)


@pytest.mark.parametrize("size", SIZES)
def test_t5_rows_are_keys_before_then_keys_after_the_query(size):
    num_buckets, _ = size
    expected = one_side(num_buckets // 4, T5_STARTS[size])
    buckets = t5_buckets(OFFSETS, *size)
    assert torch.equal(buckets[:512].flip(0), expected)
    assert torch.equal(buckets[512:], expected[1:] + num_buckets // 2)


@pytest.mark.parametrize("size", SIZES)
def test_t5_buckets_are_those_of_mpnet(size):
    mpnet = pytest.importorskip("transformers.models.mpnet.modeling_mpnet")
    assert torch.equal(t5_buckets(OFFSETS, *size), mpnet.MPNetEncoder.relative_position_bucket(OFFSETS, *size))


@pytest.mark.parametrize("size", SIZES)
def test_released_rows_mirror_around_the_row_of_distance_zero(size):
    num_buckets, _ = size
    expected = one_side(num_buckets // 4, RELEASED_STARTS[size])
    buckets = released_buckets(OFFSETS, *size)
    assert torch.equal(buckets[511:], num_buckets // 2 - 1 + expected)
    assert torch.equal(buckets[:512].flip(0), num_buckets // 2 - 1 - expected)


@pytest.mark.parametrize("size, used, zero, saturation", list(zip(SIZES, (31, 63, 127), (15, 31, 63), (86, 111, 239))))
def test_released_rows_in_use(size, used, zero, saturation):
    buckets = released_buckets(OFFSETS, *size)
    assert buckets.unique().tolist() == list(range(used))  # the last row, `used`, never
    assert buckets[511] == zero
    assert (buckets == used - 1).nonzero()[0] == 511 + saturation
    assert (buckets == 0).nonzero()[-1] == 511 - saturation


@pytest.mark.parametrize("bucketing", BUCKETINGS)
def test_bias_reads_the_table_at_key_minus_query(bucketing):
    bias = RelativePositionBias(32, 3, 128, 40, bucketing)
    positions = torch.arange(23)
    buckets = BUCKETINGS[bucketing](positions[None, :] - positions[:, None], 32, 128)
    assert torch.equal(bias(23), bias.weight[buckets].permute(2, 0, 1)[None])


@pytest.mark.parametrize("bucketing", BUCKETINGS)
def test_bias_is_independent_of_max_positions(bucketing):
    short, long = (RelativePositionBias(64, 2, 128, max_positions, bucketing) for max_positions in (16, 512))
    long.load_state_dict(short.state_dict())
    assert torch.equal(short(16), long(16))


def test_state_holds_the_table_alone_and_half_precision_keeps_the_buckets():
    bias = RelativePositionBias(32, 2, 128, 16)
    assert list(bias.state_dict()) == ["weight"]
    buckets = bias.buckets.clone()
    assert torch.equal(bias.half().buckets, buckets)
    assert bias(16).dtype == torch.float32
    assert bias.to("meta")(16).device.type == "meta"


def test_gradient_of_a_half_precision_table_counts_every_pair():
    bias = RelativePositionBias(32, 1, 128, 512).bfloat16()
    bias(512).sum().backward()
    assert bias.weight.grad[0] == 512  # distance 0
    assert bias.weight.grad[15] == torch.tensor(88831.0).bfloat16()  # (query, key) pairs at distances 91..511
