"""What `amos-fairseq train .. --dry-run` tells, of a recipe and of a command, and how it ends where a run would."""

import os

import pytest
import torch
from torch.utils._pytree import tree_leaves

from amos_fairseq.checkpoints import storage, store
from amos_fairseq.terminal import duration
from tests.runs import AMOS_FAIRSEQ, REPOSITORY

NAME = "bert_mlm"
RECIPE = ["train", "--config-dir", REPOSITORY / "examples/amos_rtd", "--config-name", "base"]


def told(outcome) -> dict:
    """Label -> its line, and those below it without one."""
    lines = outcome.out[0].partition("nothing is trained, nothing is written\n\n")[2].splitlines()
    assert lines and all(len(line) <= 80 or " " not in line.strip() for line in lines)
    rows = {}
    for line in lines:
        if not line.startswith(" "):
            label = line[:14].strip()
        rows.setdefault(label, []).append(line[14:])
    return rows


def test_a_recipe_is_planned_without_gpus_data_or_a_trace(launch, tmp_path):
    overrides = [
        "model=large", "optimization.max_update=20000", "dataset.batch_size=8", "optimization.update_freq=[32]",
    ]
    rows = told(launch(AMOS_FAIRSEQ, [*RECIPE, "--dry-run", *overrides], folder=tmp_path))
    assert os.listdir(tmp_path) == []
    assert rows["method"] == ["amos_rtd, size large"]
    assert rows["data"] == ["task.data is not given: a vocabulary of 32,768 is assumed"]
    assert rows["options"] == [
        "4 are not the recipe's:", "model=large", "dataset.batch_size 128 -> 8",
        "optimization.max_update 125000 -> 20000", "optimization.update_freq 2 -> 32",
    ]
    assert rows["update"] == ["2,048 sequences, 1,048,576 tokens: 8 devices x 8 x update_freq 32"]
    assert rows["passes"] == ["not known without data"]
    parts = [row.split()[2].strip(":,") for row in rows["memory"][1:]]
    assert parts == ["parameters", "gradients", "optimizer", "activations", "temporaries"]


def test_a_command_is_planned_on_its_data_with_the_checkpoints_it_leaves(launch, arguments, training, tmp_path):
    command = ["train", "--dry-run", *arguments(NAME, save_interval_updates=3, save_dir="run")]
    rows = told(launch(AMOS_FAIRSEQ, command, folder=tmp_path))
    assert rows["method"][0].startswith(f"{NAME}, size tiny but for encoder_layers 1, encoder_embed_dim")
    assert rows["update"][0].startswith("8 sequences, ")
    assert rows["update"][0].endswith(": 1 device x 8 x update_freq 1")
    assert rows["passes"][0].endswith(" over the data, 64 sequences")
    assert "optimization.lr 0.25 -> 0.002" in rows["options"] and os.listdir(tmp_path) == []
    each, most = rows["checkpoints"][0].split(" MiB each, at most ")
    (folder, _) = training(NAME)
    state = storage.read(store.newest_valid(folder))
    tensors = tree_leaves([state["model"], state["last_optimizer_state"]])
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in tensors if torch.is_tensor(tensor)}  # tied ones once
    assert float(each) == pytest.approx(sum(sizes.values()) / 2**20, abs=0.06)
    assert len(store.listed(folder)) < int(most.split(":")[0]) == 6


@pytest.mark.parametrize("limits", [{}, dict(max_update=10**6), dict(total_num_update=1)])
def test_epochs_limit_a_run_as_updates_do(launch, arguments, tmp_path, limits):
    """Of 33 blocks, 8 an update: five updates each."""
    options = {"max_epoch": 3, "max_update": 0, "warmup_updates": 0, "save_dir": "run", **limits}
    rows = told(launch(AMOS_FAIRSEQ, ["train", "--dry-run", *arguments(NAME, **options)], folder=tmp_path))
    assert rows["passes"][0].endswith(" over the data, 120 sequences") and " in 15 updates" in rows["FLOPs"][0]


def test_hours_follow_from_flops_devices_and_peaks():
    flops, devices = 1.29e20, 8
    assert [duration(flops / (peak * 0.35 * devices)) for peak in (312e12, 989e12)] == ["41.0 h", "12.9 h"]
    assert [duration(seconds) for seconds in (59.96, 61, 345600)] == ["60 s", "1.0 min", "4.0 days"]


WRONG = {
    "lr": (dict(lr=[0]), "lr 0.0 is out of range: it must be above 0"),
    "model": (dict(max_positions=16), "tokens_per_sample 32 exceeds max_positions 16: raise --max-positions"),
    "padded": (dict(tokens_per_sample=36, max_positions=36), "tokens_per_sample 36, padded to 40, exceeds max_"),
    "ranking": (dict(name="peer_tqr", tqr_warmup_updates=8), "tqr_warmup_updates 8 leaves the ranking nothing of 8"),
    "batch": (dict(name="coco_lm", batch_size=1), "train: batches of 1 sequence leave scl_weight 1.0 without a"),
    "max_tokens": (dict(max_tokens=9, batch_size=None, data="gone"), "max_tokens 9 is less than one block, 32"),
    "no corpus": (dict(data=REPOSITORY / "slurm"), "slurm holds no manifest.json, nor does its parent: run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_ends_it_as_it_ends_the_run(launch, arguments, case):
    options, words = WRONG[case]
    outcome = launch(AMOS_FAIRSEQ, ["train", *arguments(**{"name": NAME, **options}), "--dry-run"], fails=True)
    assert outcome.codes == [os.EX_USAGE] and words in outcome.err[0].splitlines()[-1]
    assert "Traceback" not in outcome.out[0] + outcome.err[0] and "nothing is trained" not in outcome.out[0]


@pytest.mark.parametrize("override, words", [
    ("common.sed=2", "common.sed is no option, did you mean seed?"),
    ("optimization.max_update=9", "warmup_updates 10000 of the recipe exceeds total_num_update 9: lower it"),
])
def test_what_is_wrong_of_a_recipe_ends_it(launch, tmp_path, override, words):
    outcome = launch(AMOS_FAIRSEQ, [*RECIPE, override, "--dry-run"], fails=True, folder=tmp_path)
    assert outcome.codes == [os.EX_USAGE] and outcome.err[0].splitlines()[-1].endswith(words)
