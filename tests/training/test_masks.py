"""Masks are drawn anew in every epoch, whichever process draws them."""

import pytest
import torch

from amos_fairseq.methods import METHODS

EPOCHS = 3


@pytest.fixture(scope="module")
def read(launch, arguments, tmp_path_factory):
    """read(num_workers, **options): for each epoch {sample: (original tokens, masked tokens, masked positions)}."""

    def read(num_workers, **options):
        out = tmp_path_factory.mktemp("masks") / "masks.pt"
        options = arguments(next(iter(METHODS)), num_workers=num_workers, **options)
        launch("read_masks:main", [out, EPOCHS, *options])
        return torch.load(out)

    return read


@pytest.fixture(scope="module")
def masked(read):
    return {num_workers: read(num_workers) for num_workers in (0, 2)}


def without_padding(sample):
    original, tokens, positions = sample
    length = len(original) - original[::-1].index(2)  # up to the last </s>
    return original[:length], tokens[:length], positions[:length]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_masks_differ_in_every_epoch_and_texts_do_not(masked, num_workers):
    epochs = masked[num_workers]
    for sample in epochs[0]:
        texts, tokens, positions = zip(*(without_padding(epoch[sample]) for epoch in epochs))
        assert texts[0] == texts[1] == texts[2]
        assert tokens[0] != texts[0]
    for first, second in (0, 1), (0, 2), (1, 2):
        same = [s for s in epochs[0] if without_padding(epochs[first][s])[2] == without_padding(epochs[second][s])[2]]
        assert len(same) <= 0.2 * len(epochs[0])  # short blocks have few positions


def test_masks_do_not_depend_on_the_number_of_workers(masked):
    assert masked[0] == masked[2]


def test_every_epoch_holds_every_block_once(masked, corpus):
    from amos_fairseq.data.preparation import read_manifest

    blocks = read_manifest(corpus).splits["train"].blocks
    assert [sorted(epoch) for epoch in masked[2]] == [list(range(blocks))] * EPOCHS


def test_no_block_is_lost_where_fairseq_wants_batches_of_a_multiple_of_8(read, masked):
    """Its default, for which it drops a last batch of another size."""
    assert read(0, required_batch_size_multiple=8)[0].keys() == masked[0][0].keys()
