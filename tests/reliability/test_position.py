"""The position in the data means the same samples for any number of processes and any buffer."""

import itertools
import logging

import pytest

pytest.importorskip("fairseq")
from fairseq.data.iterators import EpochBatchIterator, GroupedIterator  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from amos_fairseq import fairseq_repairs  # noqa: E402

SAMPLES, UPDATES = 203, 120  # an epoch of 51 batches, the last one ragged, wherever it lands


@pytest.fixture(scope="module", autouse=True)
def repaired():
    fairseq_repairs.install()


class Numbers(Dataset):
    def __init__(self, samples=SAMPLES):
        self.samples = samples

    def __getitem__(self, index):
        return index

    def __len__(self):
        return self.samples


def iterator(processes=1, process=0, epoch=1, size=4, samples=SAMPLES, **options):
    batches = [list(range(start, min(start + size, samples))) for start in range(0, samples, size)]
    return EpochBatchIterator(
        Numbers(samples), list, batches, seed=5, num_shards=processes, shard_id=process, epoch=epoch,
        reuse_dataloader=False, **options,
    )


def run(processes, frequency, updates, state=None, **options):
    """(samples of each update, state): `updates` updates from `state` on, by processes in step."""
    epoch = state["epoch"] if state else 1
    iterators = [iterator(processes, process, epoch, **options) for process in range(processes)]
    for each in iterators if state else []:
        each.load_state_dict(state)
    seen = []
    while len(seen) < updates:
        groups = [GroupedIterator(each.next_epoch_itr(), frequency) for each in iterators]
        for parts in itertools.islice(zip(*groups), updates - len(seen)):
            seen.append(sorted(sample for part in parts for batch in part for sample in batch))
    return seen, iterators[0].state_dict()


@pytest.mark.parametrize("first, second", [((2, 1), (1, 2)), ((1, 4), (4, 1)), ((3, 2), (2, 3)), ((2, 2), (4, 1))])
def test_every_update_sees_the_same_samples_when_the_number_of_processes_changes(first, second):
    """(processes, micro-batches per update) there, back and there again, saved within epochs and at their ends."""
    through, _ = run(*first, UPDATES)
    for third in (UPDATES // 3, 17, 13):
        seen, state = run(*first, third)
        again, state = run(*second, 2 * third - third, state)
        back, _ = run(*first, UPDATES - 2 * third, state)
        assert seen + again + back == through


def test_an_epoch_holds_every_sample_once_and_its_end_is_the_start_of_the_next():
    seen, state = run(1, 1, 51)
    assert sorted(itertools.chain(*seen)) == list(range(SAMPLES))
    assert (state["epoch"], state["iterations_in_epoch"], state["samples_in_epoch"]) == (2, 0, 0)


def test_samples_do_not_depend_on_the_buffer():
    through, _ = run(2, 1, 30)
    seen, state = run(2, 1, 11)
    again, _ = run(2, 1, 19, state, buffer_size=10)
    assert seen + again == through == run(2, 1, 30, buffer_size=10)[0]


def test_state_counts_the_samples_of_all_processes():
    _, state = run(2, 1, 10)
    full = run(1, 2, 10)[0]
    assert state["iterations_in_epoch"] == 10
    assert state["samples_in_epoch"] == sum(map(len, full)) in (79, 80)  # with or without the ragged batch


def test_a_position_within_a_step_of_all_processes_is_read_again_and_told(caplog):
    _, state = run(1, 1, 5)
    with caplog.at_level(logging.WARNING):
        seen, _ = run(2, 1, 1, state)
    assert seen[0] == run(2, 1, 3)[0][2]  # batches 4 and 5
    assert "4 samples before the checkpoint are read again" in caplog.text


def test_a_position_beyond_the_data_is_the_start_of_the_next_epoch():
    _, state = run(1, 1, 40)
    seen, state = run(1, 1, 1, state, samples=100)
    assert state["epoch"] == 2 and state["samples_in_epoch"] == len(seen[0])


def test_states_of_fairseq_load_as_before():
    through, _ = run(1, 1, 12)
    state = {"version": 2, "epoch": 1, "iterations_in_epoch": 9, "shuffle": True}
    assert run(1, 1, 3, state)[0] == through[9:]
