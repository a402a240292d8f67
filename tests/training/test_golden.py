"""A change without new mathematics leaves every method's losses as they were.

    GOLDEN=FILE bash tests/run.sh tests/training/test_golden.py      # writes what it finds to FILE

Two such files of one machine, from before and after the change, are alike to the last bit. golden.json, beside this
file, is what other machines must come near to; new mathematics writes it anew.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import meters, metrics
from fairseq.trainer import Trainer

import amos_fairseq.tasks  # noqa: F401
from amos_fairseq.criterions.pretraining import PooledMeter
from amos_fairseq.methods import METHODS

FILE = Path(__file__).with_name("golden.json")
UPDATES, SEQUENCES = 20, 8
TOLERANCE = 1e-5  # ten times what the plainest kernels of ATen cost (ATEN_CPU_CAPABILITY=default)
OF_THE_MACHINE = ("tflops", "mfu", "wps", "ups", "bsz")


@pytest.fixture(scope="module")
def recorded(arguments, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums depends on their number
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("golden"))
        patch.setattr(sys, "argv", ["fairseq-train"])  # fairseq looks there, too
        changes = dict(max_update=UPDATES, user_dir=None, fixed_validation_seed=3)
        found = {name: record(arguments(name, **changes)) for name in METHODS}
    torch.set_num_threads(threads)
    if os.environ.get("GOLDEN"):
        rows = (f'"{name}": {json.dumps(quantities, sort_keys=True)}' for name, quantities in found.items())
        Path(os.environ["GOLDEN"]).write_text("{\n" + ",\n".join(rows) + "\n}\n")
    return found


def record(arguments):
    """By name, unrounded: loss and gradient norm of each update, then all that a validation logs."""
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    utils.set_torch_seed(config.common.seed)
    task = tasks.setup_task(config.task)
    task.load_dataset("train")
    dataset = task.dataset("train")
    trainer = Trainer(config, task, task.build_model(config.model), task.build_criterion(config.criterion))
    trainer.begin_epoch(1)
    batches = [
        dataset.collater([dataset[(update * SEQUENCES + row) % len(dataset)] for row in range(SEQUENCES)])
        for update in range(UPDATES)
    ]

    def logged(step, *batch):
        with metrics.aggregate(new_root=True) as found:
            step(*batch)
        known = meters.AverageMeter, PooledMeter
        return {name: float(meter.avg) for name, meter in found.items() if isinstance(meter, known)}

    rows = [logged(trainer.train_step, [batch]) for batch in batches]
    validation = logged(trainer.valid_step, batches[0])
    weighted = [name for name in rows[0] if name.startswith("_weighted ")]
    return {
        "loss": [sum(row[name] for name in weighted) for row in rows],
        "gnorm": [row["gnorm"] for row in rows],
        **{f"valid_{name}": [value] for name, value in validation.items() if name not in OF_THE_MACHINE},
    }


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradient_norms_of_twenty_updates_are_the_golden_ones(recorded, name):
    golden = json.loads(FILE.read_text())[name]
    assert recorded[name].keys() == golden.keys()
    for quantity, values in golden.items():
        assert recorded[name][quantity] == pytest.approx(values, rel=TOLERANCE, abs=1e-6), quantity


def test_masks_and_draws_of_validation_do_not_depend_on_the_seed(arguments, tmp_path, monkeypatch):
    """A spread over seeds is one of what was learned; --fixed-validation-seed chooses others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fairseq-train"])
    read = []
    for changes in dict(seed=3), dict(seed=4), dict(seed=4, fixed_validation_seed=2):
        given = arguments("electra_rtd", user_dir=None, **changes)
        config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), given))
        task, noises = tasks.setup_task(config.task), []
        model, criterion = task.build_model(config.model).eval(), task.build_criterion(config.criterion)
        draw = model.method.sampling_noise
        monkeypatch.setattr(model.method, "sampling_noise", lambda *given: noises.append(draw(*given)) or noises[-1])
        for split in "train", "valid":
            task.load_dataset(split)
        batch = task.dataset("valid").collater([task.dataset("valid")[row] for row in range(2)])
        task.valid_step(batch, model, criterion)
        assert model.method.noise_seed == changes["seed"]
        train = task.dataset("train")[0]["block"].masked_tokens.tolist()
        read.append((batch["net_input"]["masked_tokens"].tolist(), noises[0].seed, train))
    assert read[0][:2] == read[1][:2] and read[0][2] != read[1][2]
    assert read[1][0] != read[2][0] and read[1][1] != read[2][1] and read[1][2] == read[2][2]
