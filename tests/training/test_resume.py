"""A run that is taken up again from a checkpoint ends with the same bits as one that was never stopped."""

import pytest
import torch

from amos_fairseq import checkpoints
from amos_fairseq.methods import METHODS


def load(path):
    """Parameters, and Adam's state of each."""
    checkpoint = checkpoints.read(path)
    return checkpoint["model"], checkpoint["last_optimizer_state"]["state"]


CASES = [  # by turns; all of them with --nightly
    pytest.param(name, processes, marks=[pytest.mark.nightly] * ((number + processes) % 2))
    for number, name in enumerate(METHODS) for processes in (1, 2)
]


@pytest.mark.parametrize("name, processes", CASES)
def test_resumed_run_ends_with_the_same_parameters_and_moments(
    training, launch, arguments, tmp_path, name, processes
):
    """From the middle of the first, ragged epoch into the second, with dropout and a worker process."""
    folder, through = training(name, processes)
    options = dict(batch_size=8 // processes, save_interval_updates=3, save_dir=tmp_path)
    options.update(disable_validation=True, restore_file=folder / "checkpoint_1_3")
    resumed = launch("fairseq_cli.train:cli_main", arguments(name, **options), processes)
    assert "Loaded checkpoint" in resumed.out[0]
    train = through.log.train
    assert [(row["epoch"], row["num_updates"]) for row in train[3:]] == [(1, 4), (1, 5), (2, 6), (2, 7), (2, 8)]
    assert [(row["num_updates"], row["loss"]) for row in resumed.log.train] == [
        (row["num_updates"], row["loss"]) for row in train[3:]
    ]

    model, moments = load(folder / "checkpoint_last")
    resumed_model, resumed_moments = load(tmp_path / "checkpoint_last")
    assert model.keys() == resumed_model.keys() and moments.keys() == resumed_moments.keys()
    for parameter, value in model.items():
        assert torch.equal(resumed_model[parameter], value), parameter
    for parameter, state in moments.items():
        assert {"exp_avg", "exp_avg_sq"} <= state.keys()
        for key in "exp_avg", "exp_avg_sq":
            assert torch.equal(resumed_moments[parameter][key], state[key]), (parameter, key)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_a_run_taken_up_while_the_weight_of_detection_on_words_rises_ends_with_the_same_bits(
    launch, arguments, tmp_path, processes
):
    options = dict(rtd_warmup_updates=6, detection_on_words=True, batch_size=8 // processes, save_interval_updates=3)
    options.update(max_update=7, disable_validation=True)

    def train(save_dir, **changes):
        given = arguments("electra_rtd", **options, save_dir=tmp_path / save_dir, **changes)
        rows = launch("fairseq_cli.train:cli_main", given, processes).log.train
        return [row["loss"] for row in rows], load(tmp_path / save_dir / "checkpoint_last")

    losses, through = train("through")
    resumed_losses, resumed = train("resumed", restore_file=tmp_path / "through" / "checkpoint_1_3")
    assert resumed_losses == losses[3:]
    for values, found in zip(through, resumed):
        torch.testing.assert_close(found, values, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bert_mlm"])
def test_two_processes_saw_the_samples_of_one(training, name):
    """The same number of updates an epoch, and the same sizes of all but the ragged last ones."""
    one, two = (training(name, processes).outcome.log.train for processes in (1, 2))
    assert [row["epoch"] for row in one] == [row["epoch"] for row in two]
    epoch = [[row["bsz"] for row in rows if row["epoch"] == 1] for rows in (one, two)]
    assert sum(epoch[0]) == sum(epoch[1]) and len(set(epoch[0])) > 1
