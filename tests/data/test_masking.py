"""Selected positions, what stands there instead, and how they depend on seed, epoch and index."""

import numpy as np
import pytest
import torch

from amos_fairseq.data.masking import MaskedBlockDataset, MaskingOptions, mask_block

MASK, FILLER = 95, 94


class TokenIds:
    """What masking asks of a tokenizer."""

    pad, mask = 1, MASK
    special, excluded = [0, 1, 2, 3, MASK], [0, 1, 2, 3, MASK, FILLER]

    def __len__(self):
        return MASK + 1


@pytest.fixture
def token_ids():
    return TokenIds()


def masked(token_ids, tokens, options=MaskingOptions(), seed=0):
    regular = np.array([token for token in range(len(token_ids)) if token not in token_ids.excluded])
    generator = np.random.default_rng(seed)
    return mask_block(np.asarray(tokens), options, generator, MASK, token_ids.special, regular)


def dataset(token_ids, blocks=40, seed=1, **options):
    generator = torch.Generator().manual_seed(0)
    lengths = [16] * (blocks - 1) + [11]
    data = [
        torch.cat([torch.tensor([0]), torch.randint(4, 94, (length - 2,), generator=generator), torch.tensor([2])])
        for length in lengths
    ]
    return MaskedBlockDataset(data, np.array(lengths), token_ids, MaskingOptions(**options), seed)


@pytest.mark.parametrize("maskable, selected", [(100, 15), (10, 2), (9, 1), (3, 0), (510, 76), (512, 77)])
def test_a_rounded_share_of_the_maskable_positions_is_selected(token_ids, maskable, selected):
    block = masked(token_ids, [0] + [7] * maskable + [2])
    assert block.masked_positions.sum() == selected
    assert (block.masked_tokens == MASK).sum() == selected


def test_special_tokens_are_never_selected(token_ids):
    tokens = [0, 10, 2, 11, 3, 12, 2]
    for seed in range(50):
        positions = masked(token_ids, tokens, MaskingOptions(mask_prob=0.99), seed).masked_positions
        assert positions.tolist() == [False, True, False, True, False, True, False]


def test_special_tokens_are_selected_when_asked_for(token_ids):
    tokens, options = [0, 10, 2, 11, 12, 13, 2], MaskingOptions(mask_prob=0.5, mask_special_tokens=True)
    chosen = sum(masked(token_ids, tokens, options, seed).masked_positions for seed in range(200))
    assert (chosen > 50).all()


def test_every_position_is_selected_equally_often(token_ids):
    tokens = [0] + [9] * 20 + [2]
    counts = sum(masked(token_ids, tokens, seed=seed).masked_positions.astype(int) for seed in range(2000))[1:-1]
    expected = 2000 * 3 / 20
    assert ((counts - expected) ** 2 / expected).sum() / (1 - 3 / 20) < 43.8  # 99.9 % of chi-square, 19 degrees


def test_selected_positions_are_masked_kept_or_random_in_the_given_shares(token_ids):
    options = MaskingOptions(mask_prob=0.5, mask_token_prob=0.8, keep_prob=0.1, random_prob=0.1)
    block = masked(token_ids, [10] * 40_000, options)
    there = block.masked_tokens[block.masked_positions]
    assert len(there) == 20_000
    assert (there == MASK).mean() == pytest.approx(0.8, abs=0.012)
    assert (there == 10).mean() == pytest.approx(0.1 + 0.1 / 90, abs=0.01)
    random = there[(there != MASK) & (there != 10)]
    assert len(random) / 20_000 == pytest.approx(0.1 * 89 / 90, abs=0.01)
    assert set(random) == set(range(4, 94)) - {10}  # every word, no special token, no filler
    assert (block.masked_tokens[~block.masked_positions] == 10).all()


def test_original_tokens_are_left_as_they_were(token_ids):
    tokens = np.arange(4, 44)
    block = masked(token_ids, tokens)
    assert block.original_tokens is tokens and (tokens == np.arange(4, 44)).all()


def test_fillers_and_specials_are_excluded_from_draws(token_ids):
    assert token_ids.excluded == [0, 1, 2, 3, MASK, FILLER]


def test_masks_are_a_function_of_seed_epoch_and_index(token_ids):
    first, again, other_seed = dataset(token_ids), dataset(token_ids), dataset(token_ids, seed=2)

    def positions(data, epoch, index=5):
        data.set_epoch(epoch)
        return data[index]["block"].masked_positions.tolist()

    assert positions(first, 1) == positions(again, 1)
    assert positions(first, 3) == positions(again, 3)
    assert positions(first, 1) != positions(first, 2)
    assert positions(first, 1) != positions(other_seed, 1)
    assert positions(first, 1) != positions(first, 1, index=6)


def test_reading_leaves_numpy_s_own_random_numbers_alone(token_ids):
    data = dataset(token_ids)
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    data[3]
    assert np.random.rand() == expected


def test_a_batch_is_padded_to_a_multiple_of_eight_and_counted(token_ids):
    data = dataset(token_ids)
    batch = data.collater([data[38], data[39]])
    inputs = batch["net_input"]
    assert inputs["original_tokens"].shape == (2, 16)
    assert inputs["padding_mask"].sum(1).tolist() == [0, 5]
    assert (inputs["original_tokens"][1, 11:] == token_ids.pad).all()
    assert (inputs["masked_tokens"][1, 11:] == token_ids.pad).all()
    assert inputs["num_masked"] == [2, 1] and torch.equal(inputs["sample_ids"], torch.tensor([38, 39]))
    assert batch["counts"] == {"selected": 3, "valid": 27, "words": 23, "sequences": 2} and batch["words"] == [14, 9]
    assert batch["ntokens"] == 27 and batch["nsentences"] == 2
    positions = inputs["masked_positions"].flatten().nonzero().squeeze(-1)
    assert torch.equal(inputs["masked_index"], positions)


def test_full_blocks_need_no_padding_mask(token_ids):
    data = dataset(token_ids)
    assert data.collater([data[0], data[1]])["net_input"]["padding_mask"] is None


def test_no_samples_are_an_empty_batch(token_ids):
    assert dataset(token_ids).collater([]) == {}


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, 1.5])
def test_a_mask_probability_outside_zero_to_one_is_refused(probability):
    with pytest.raises(ValueError, match=f"mask_prob {probability} is out of range: it must be above 0 and below 1"):
        MaskingOptions(mask_prob=probability)


@pytest.mark.parametrize("shares, words", [((0.8, 0.1, 0.2), "add up to 1"), ((1.0, 0.5, -0.5), "random_prob -0.5 is")])
def test_shares_that_do_not_add_up_are_refused(shares, words):
    with pytest.raises(ValueError, match=words):
        MaskingOptions(0.15, *shares)
