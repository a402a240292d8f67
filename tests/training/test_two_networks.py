"""Runs whose encoder has a table of its own, or whose generator is an earlier run's: started, stopped, gone on."""

import pytest
import torch

from amos_fairseq import checkpoints, from_pretrained

TRAIN = "fairseq_cli.train:cli_main"
NAME = "electra_rtd"
ALL = "encoder, generator, mlm_head, rtd_head"
# what: (the option that names the earlier run, the others, what the log says was taken)
RUNS = {
    "gdes": ("init_checkpoint", dict(token_table="gdes", gdes_positions=True), f"took {ALL}; new: nothing"),
    "separate": ("init_checkpoint", dict(token_table="separate"), f"took {ALL}; new: nothing"),
    "frozen": (
        "generator_checkpoint", dict(sampling_temperature=2, sampling_temperature_decay=0.5), "took generator, mlm_head"
    ),
}


def parameters(path):
    return checkpoints.read(path)["model"]


@pytest.fixture
def earlier(training):
    return training(NAME).folder / "checkpoint_last"


@pytest.mark.parametrize("named, options, taken", RUNS.values(), ids=RUNS)
def test_a_run_starts_from_an_earlier_one_and_interrupted_goes_on_with_the_same_bits(
    earlier, launch, arguments, tmp_path, named, options, taken
):
    options = {named: earlier, "save_interval_updates": 3, "disable_validation": True, **options}

    def train(folder, **more):
        return launch(TRAIN, arguments(NAME, save_dir=tmp_path / folder, **options, **more))

    first = train("through")
    assert f"| {named} {earlier}: {taken}\n" in first.out[0]
    assert ("mlm" in first.log.train[-1]) == (named == "init_checkpoint")
    through, before = parameters(tmp_path / "through" / "checkpoint_last"), parameters(earlier)
    for key in before:
        if named == "generator_checkpoint" and key.startswith(("method.generator", "method.mlm_head")):
            assert torch.equal(through[key], before[key]), key
    resumed = train("resumed", restore_file=tmp_path / "through" / "checkpoint_1_3").out[0]
    assert "Loaded checkpoint" in resumed and taken not in resumed
    found = parameters(tmp_path / "resumed" / "checkpoint_last")
    assert found.keys() == through.keys() and all(torch.equal(found[key], through[key]) for key in found)
    tokens = torch.tensor([[0, 10, 11, 2]])
    loaded = from_pretrained(tmp_path / "resumed")
    assert torch.equal(loaded.encoder(tokens), loaded.method.encoder(tokens))


def test_a_run_of_one_shared_table_goes_on_from_one_of_a_difference(earlier, launch, arguments, tmp_path):
    options = dict(save_dir=tmp_path / "gdes", max_update=2, disable_validation=True, token_table="gdes")
    launch(TRAIN, arguments(NAME, **options))
    options = dict(save_dir=tmp_path / "shared", max_update=1, disable_validation=True)
    path = tmp_path / "gdes" / "checkpoint_last"
    told = launch(TRAIN, arguments(NAME, init_checkpoint=path, **options)).out[0]
    assert f"| init_checkpoint {path}: took encoder; new: generator, mlm_head, rtd_head\n" in told


def test_a_generator_of_no_checkpoint_is_refused_in_one_line(launch, arguments, tmp_path):
    outcome = launch(TRAIN, arguments(NAME, generator_checkpoint="gone", save_dir=tmp_path / "run"), fails=True)
    words = "generator_checkpoint gone does not exist: give a local folder, nothing is downloaded"
    assert outcome.err[0].splitlines()[-1] == f"amos_fairseq: error: {words}"
