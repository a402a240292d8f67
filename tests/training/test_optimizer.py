"""fused_adamw in every precision of fairseq's trainer."""

import math

import pytest
import torch

pytest.importorskip("fairseq")
from fairseq import checkpoint_utils  # noqa: E402

import amos_fairseq.tasks  # noqa: E402, F401 (installs the repairs)

PRECISIONS = {
    "fp32": {},
    "bf16": dict(bf16=True),
    "fp16": dict(fp16=True),
    "memory-efficient bf16": dict(memory_efficient_bf16=True),
    "memory-efficient fp16": dict(memory_efficient_fp16=True),
}


def checkpoint(folder, name):
    return str(next(folder.glob(f"checkpoint_{name}*")))


def last_state(folder):
    """Parameters, and the optimizer's state."""
    state = checkpoint_utils.load_checkpoint_to_cpu(checkpoint(folder, "last"))
    return state["model"], state["last_optimizer_state"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_in_every_precision_learns_and_resumes_with_the_same_bits(launch, arguments, tmp_path, precision):
    options = dict(PRECISIONS[precision], optimizer="fused_adamw", weight_decay=0.1, disable_validation=True)
    options.update(max_update=6, save_interval_updates=3)
    through = launch(
        "fairseq_cli.train:cli_main", arguments("bert_mlm", **options, save_dir=tmp_path / "through")
    ).log.train
    assert all(math.isfinite(row["loss"]) for row in through) and through[-1]["loss"] < through[0]["loss"]

    options.update(restore_file=checkpoint(tmp_path / "through", "1_3"), save_dir=tmp_path / "resumed")
    resumed = launch("fairseq_cli.train:cli_main", arguments("bert_mlm", **options)).log.train
    assert [row["num_updates"] for row in resumed] == [4, 5, 6]
    (model, state), (same_model, same_state) = (last_state(tmp_path / run) for run in ("through", "resumed"))
    assert all(torch.equal(same_model[name], value) for name, value in model.items())
    assert state["param_groups"] == same_state["param_groups"]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.1, 0.0]
    assert state["state"].keys() == same_state["state"].keys()
    for index, moments in state["state"].items():
        for key, value in moments.items():
            assert value.dtype == torch.float32 and torch.equal(same_state["state"][index][key], value)


TOLD = {  # 8 buckets and 2 heads of each network
    "amos_rtd": ["0.5: encoder", "30: rel_pos 32 parameters", "1: shared", "2: generator"],
    "bert_mlm": ["1: encoder", "30: rel_pos 16 parameters"],
}


@pytest.mark.parametrize("name, processes, options", [
    ("amos_rtd", 2, dict(encoder_lr_factor=0.5, generator_lr_factor=2, update_freq=2)), ("bert_mlm", 1, dict(fp16=True))
])
def test_learning_rates_of_groups_are_listed_and_resume_with_the_same_bits(
    launch, arguments, tmp_path, name, processes, options
):
    options.update(optimizer="fused_adamw", rel_pos_lr_factor=30, save_interval_updates=3, max_update=6)

    def train(save_dir, **changes):
        fails = changes.pop("fails", False)
        given = arguments(name, **{**options, "save_dir": tmp_path / save_dir, **changes})
        return launch("fairseq_cli.train:cli_main", given, processes, fails)

    told = [line.split("rate x ")[1] for line in train("through").out[0].splitlines() if "learning rate x" in line]
    assert all(line.startswith(start) for line, start in zip(told, TOLD[name])) and len(told) == len(TOLD[name])
    resume = dict(restore_file=checkpoint(tmp_path / "through", "*_3"))
    train("resumed", **resume)
    (model, state), (same_model, same_state) = (last_state(tmp_path / run) for run in ("through", "resumed"))
    assert all(torch.equal(same_model[key], value) for key, value in model.items())
    for index, moments in state["state"].items():
        assert all(torch.equal(same_state["state"][index][key], value) for key, value in moments.items())

    resume.update(rel_pos_lr_factor=10)
    assert "rel_pos_lr_factor" in train("other", **resume, fails=True).err[0]
    train("other", **resume, allow_change="rel_pos_lr_factor")
