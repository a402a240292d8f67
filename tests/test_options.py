"""An option knows what it may be, and what depends on it."""

from dataclasses import dataclass
from typing import List

import pytest

from amos_fairseq.methods import METHODS
from amos_fairseq.options import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Option,
    Range,
    check,
    declared,
    free_names,
    option,
)
from amos_fairseq.user_errors import suggestion

NAN, INF = float("nan"), float("inf")


@dataclass
class Base:
    weight: float = option(1.0, "weight of the loss", NOT_NEGATIVE)
    plain: int = 3


@dataclass
class Config(Base):
    depths: List[int] = option([4, 6], "layers with a head", COUNT)
    heads: str = option("split", "kind of heads", choices=("split", "ffn"), unseen=True)
    start: str = option("", "checkpoint to start from", path=True)
    log: bool = option(False, "say more", free=True)


@pytest.mark.parametrize("allowed, inside, outside, words", [
    (POSITIVE, [1e-9, 7], [0, -1, NAN, INF], "above 0"),
    (NOT_NEGATIVE, [0, 7.5], [-1e-9, NAN, INF], "at least 0"),
    (COUNT, [1, 2**40], [0, 0.5, "1"], "at least 1"),
    (SHARE, [0, 0.999], [1, -0.1, NAN], "at least 0 and below 1"),
    (Range(0, 1, without_low=True, with_high=True), [0.001, 1], [0, 1.001], "above 0 and at most 1"),
])
def test_a_range_holds_and_says_what_it_holds(allowed, inside, outside, words):
    assert all(map(allowed.holds, inside)) and not any(map(allowed.holds, outside))
    assert str(allowed) == words


def test_options_are_listed_with_their_rules_inherited_ones_first():
    assert declared(Config) == [
        Option("weight", 1.0, "weight of the loss", NOT_NEGATIVE),
        Option("plain", 3),
        Option("depths", [4, 6], "layers with a head", COUNT),
        Option("heads", "split", "kind of heads", choices=("split", "ffn"), unseen=True),
        Option("start", "", "checkpoint to start from", free=True, path=True),
        Option("log", False, "say more", free=True),
    ]
    assert free_names(Config) == {"start", "log"}


def test_lists_are_copied_for_each_instance():
    Config().depths.append(8)
    assert Config().depths == [4, 6]


@pytest.mark.parametrize("values, words", [
    (dict(weight=-1.0), "weight -1.0 is out of range: it must be at least 0"),
    (dict(depths=[4, 0]), "depths 0 is out of range: it must be at least 1"),
    (dict(heads="on_top"), "unknown heads 'on_top': choose split, ffn"),
])
def test_a_config_is_checked_and_the_first_wrong_value_told(values, words):
    check(Config())
    check(Config(weight=None))  # not given
    with pytest.raises(ValueError) as refusal:
        check(Config(**values))
    assert str(refusal.value) == words


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_a_method_has_a_help_text_and_a_default_within_its_rules(method):
    for each in declared(METHODS[method].config_class):
        assert each.help
        each.check(each.default)


def test_names_with_a_rule_of_their_own():
    found = {each.name for method in METHODS.values() for each in declared(method.config_class) if each.unseen}
    assert found == {"encoder_attention_heads", "rel_pos_max_distance", "rel_pos_bucketing", "layer_norm_eps"}
    free = frozenset.union(*(free_names(method.config_class) for method in METHODS.values()))
    assert free == {"init_checkpoint", "init_encoder_from_generator", "generator_checkpoint", "compile_layers"}


def test_options_of_the_tasks_that_a_resumed_run_may_change():
    pytest.importorskip("amos_fairseq.tasks")
    from fairseq.tasks import TASK_REGISTRY

    common = {
        "data", "allow_change", "allow_scratch", "stop_after_minutes", "startup_timeout", "update_timeout",
        "validation_timeout", "save_timeout", "max_skipped_updates", "loss_spike_factor",
    }
    assert TASK_REGISTRY["finetuning"].free_options == common | {"pretrained"}
    assert TASK_REGISTRY["coco_lm"].free_options == common | {
        "verify_data", "init_checkpoint", "init_encoder_from_generator", "generator_checkpoint", "compile_layers"
    }


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_a_share_that_crops_keep_outside_zero_to_one_is_refused(fraction):
    pytest.importorskip("amos_fairseq.tasks")
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    TASK_DATACLASS_REGISTRY["coco_lm"](crop_keep_fraction=1.0)
    with pytest.raises(ValueError, match=f"crop_keep_fraction {fraction} is out of range: it must be above 0"):
        TASK_DATACLASS_REGISTRY["coco_lm"](crop_keep_fraction=fraction)


OPTIONS = [
    "--lr", "--lr-scheduler", "--batch-size", "--max-update", "--max-epoch", "--warmup-updates", "--encoder-layers",
    "--generator-layers", "--rtd-weight", "--mlm-weight", "--weight-decay", "--mask-prob", "--task", "--tpu", "--bf16",
    "--dropout", "--fix-batches-to-gpus", "--sampling-temperature", "--user-dir",
]


@pytest.mark.parametrize("word, meant", {
    "--lrr": "--lr", "--batch_size": "--batch-size", "--batchsize": "--batch-size", "--max-updates": "--max-update",
    "--warmup": "--warmup-updates", "--wramup-updates": "--warmup-updates", "--weight-rtd": "--rtd-weight",
    "--layers": "--encoder-layers or --generator-layers", "--mask-probability": "--mask-prob",
    "--sampling-temprature": "--sampling-temperature", "--taks": "--task", "--epochs": "--max-epoch",
    "--encoder-dropout": "--dropout", "--fp-16": None, "--fp16": None, "--clm-weight": None, "--level-weight": None,
    "--decoder-layers": None, "--encoder-lr": None, "--mask": "--mask-prob", "--gpus": None, "--seed": None, "": None,
}.items())
def test_a_suggestion_is_what_the_name_could_mean(word, meant):
    assert suggestion(word, OPTIONS) == (f", did you mean {meant}?" if meant else "")
