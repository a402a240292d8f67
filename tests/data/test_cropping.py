"""Which part of a block its cropped view keeps, and how that depends on seed, epoch and index."""

import numpy as np
import pytest
import torch

from amos_fairseq.data.masking import MaskedBlockDataset, MaskingOptions, crop_block

BLOCK = np.array([0, *range(100, 118), 2])


def crop(index, fraction=0.9, seed=1, epoch=1, block=BLOCK):
    return crop_block(block, fraction, seed, epoch, index).tolist()


@pytest.mark.parametrize("fraction, kept", [(0.9, 18), (0.7, 14), (0.5, 10), (0.05, 1), (0.01, 1), (1.0, 20)])
def test_a_rounded_share_is_kept(fraction, kept):
    assert len(crop(0, fraction)) == kept


def test_a_crop_is_the_first_token_and_a_contiguous_part_of_the_rest():
    for index in range(50):
        first, *rest = crop(index, 0.5)
        start = BLOCK.tolist().index(rest[0])
        assert first == 0 and start >= 1
        assert rest == BLOCK[start : start + len(rest)].tolist()


def test_all_starts_are_equally_frequent():
    starts = np.bincount([BLOCK.tolist().index(crop(index, 0.8)[1]) for index in range(2000)])[1:]
    assert len(starts) == 5  # 16 of 20 tokens: <s> and 15 of the other 19
    assert ((starts - 400) ** 2 / 400).sum() < 18.5  # 99.9 % of chi-square, 4 degrees


def test_all_is_kept_at_one():
    assert crop(3, 1.0) == BLOCK.tolist()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_blocks_can_be_cropped(length):
    assert crop(0, 0.5, block=BLOCK[:length])[0] == 0


def test_crops_are_a_function_of_seed_epoch_and_index():
    def crops(**keys):
        return [crop(index, 0.5, **keys) for index in range(10)]

    assert crops() == crops()
    assert crops() != crops(epoch=2) and crops() != crops(seed=2)
    assert len(set(map(tuple, crops()))) > 3


@pytest.fixture
def dataset(tokenizer):
    blocks = [torch.tensor([0, *range(10, 10 + n), 2]) for n in (30, 30, 18)]

    def dataset(cropping):
        return MaskedBlockDataset(blocks, [32, 32, 20], tokenizer, MaskingOptions(), seed=1, cropping=cropping)

    return dataset


def test_a_batch_holds_the_crops_right_padded(dataset):
    data = dataset(0.5)
    inputs = data.collater([data[0], data[2]])["net_input"]
    assert inputs["cropped_tokens"].shape == (2, 16)
    assert inputs["cropped_tokens"][0].tolist() == crop_block(data.blocks[0].numpy(), data.cropping, 1, 1, 0).tolist()
    assert inputs["cropped_padding_mask"].sum(1).tolist() == [0, 6]
    assert (inputs["cropped_tokens"][1, 10:] == 1).all()
    assert data.collater([data[0], data[1]])["net_input"]["cropped_padding_mask"] is None


def test_masks_are_the_same_with_crops_and_without(dataset):
    with_crops, without = dataset(0.9), dataset(None)
    batches = [data.collater([data[0], data[1]])["net_input"] for data in (with_crops, without)]
    assert torch.equal(batches[0]["masked_positions"], batches[1]["masked_positions"])
    assert "cropped_tokens" not in batches[1]
