"""What a resumed run may not do otherwise, and how it is told."""

import copy

import pytest

from amos_fairseq.checkpoints.differences import characteristics, differences, table

CFG = {
    "common": {"seed": 3, "fp16": False, "bf16": True, "amp": False, "memory_efficient_bf16": False},
    "dataset": {"batch_size": 8, "max_tokens": None},
    "optimization": {"update_freq": [2, 4], "lr": [0.1]},
    "distributed_training": {"distributed_world_size": 2},
    "optimizer": {"_name": "adam", "lr": [0.1]},
    "task": {"_name": "amos_rtd", "data": "a", "mask_prob": 0.15, "seed": 3, "save_dir": "b", "allow_change": ""},
    "model": {
        "_name": "amos_rtd_tiny", "dropout": 0.1, "generator_depths": [4, 6], "init_checkpoint": "x",
        "generator_checkpoint": "",
    },
}
FREE = {"allow_change", "init_checkpoint", "generator_checkpoint"}
TASK_STATE = {"dictionary_sha256": "d" * 64, "data_sha256": "e" * 64}


def changed(path, value):
    cfg, *keys, last = copy.deepcopy(CFG), *path.split(".")
    group = cfg
    for key in keys:
        group = group[key]
    group[last] = value
    return characteristics(cfg, TASK_STATE, FREE)


THEN = characteristics(CFG, TASK_STATE, FREE)


def test_characteristics_in_words():
    assert THEN == {
        "method": "amos_rtd", "seed": 3, "precision": "bf16", "optimizer": "adam", "batch": "8 sequences x 4/8",
        "vocabulary": "d" * 12, "data": "e" * 12, "mask_prob": 0.15, "dropout": 0.1, "generator_depths": [4, 6],
        "generator": "trained",
    }


@pytest.mark.parametrize(
    "path, value, option, then, now",
    [
        ("common.seed", 4, "seed", 3, 4),
        ("common.bf16", False, "precision", "bf16", "fp32"),
        ("common.memory_efficient_bf16", True, "precision", "bf16", "bf16 memory_efficient_bf16"),
        ("dataset.batch_size", 16, "batch", "8 sequences x 4/8", "16 sequences x 4/8"),
        ("dataset.max_tokens", 512, "batch", "8 sequences x 4/8", "8 sequences, 512 tokens x 4/8"),
        ("distributed_training.distributed_world_size", 3, "batch", "8 sequences x 4/8", "8 sequences x 6/12"),
        ("optimizer._name", "adamax", "optimizer", "adam", "adamax"),
        ("task._name", "peer_tqr", "method", "amos_rtd", "peer_tqr"),
        ("task.mask_prob", 0.2, "mask_prob", 0.15, 0.2),
        ("model.dropout", 0.0, "dropout", 0.1, 0.0),
        ("model.generator_depths", [4, 8], "generator_depths", [4, 6], [4, 8]),
        ("model.generator_checkpoint", "x", "generator", "trained", "frozen"),
    ],
)
def test_a_change_is_found_and_allowed_by_its_name(path, value, option, then, now):
    assert differences(THEN, changed(path, value), []) == [(option, then, now)]
    assert differences(THEN, changed(path, value), [option]) == []


@pytest.mark.parametrize(
    "path, value",
    [("task.data", "c"), ("task.save_dir", "c"), ("model.init_checkpoint", ""), ("optimization.lr", [0.2]),
     ("model.generator_depths", (4, 6)), ("model._name", "amos_rtd_base"), ("model.new_option", 1)],
)
def test_places_rates_and_options_that_one_side_does_not_have_may_change(path, value):
    assert differences(THEN, changed(path, value), []) == []


def test_processes_may_change_if_the_batch_does_not():
    cfg = copy.deepcopy(CFG)
    cfg["distributed_training"]["distributed_world_size"], cfg["optimization"]["update_freq"] = 4, [1, 2]
    assert differences(THEN, characteristics(cfg, TASK_STATE, FREE), []) == []


@pytest.mark.parametrize("key, option", [("dictionary_sha256", "vocabulary"), ("data_sha256", "data")])
def test_other_vocabulary_and_data_are_found_where_both_are_known(key, option):
    now = characteristics(CFG, {**TASK_STATE, key: "f" * 64}, FREE)
    assert [difference.option for difference in differences(THEN, now, [])] == [option]
    assert differences(characteristics(CFG, {}, FREE), now, []) == []


def test_table_has_a_row_for_each_in_columns():
    now = {**THEN, "seed": 10, "dropout": 0.25}
    assert table(differences(THEN, now, [])) == (
        "option   then  now\n"
        "seed     3     10\n"
        "dropout  0.1   0.25"
    )
