"""The yaml recipes: every option listed, and the same model as the architecture of their size."""

from dataclasses import fields
from pathlib import Path

import pytest
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import amos_fairseq.models.pretraining  # noqa: F401
import amos_fairseq.tasks  # noqa: F401
from amos_fairseq.methods import METHODS, size_options
from amos_fairseq.methods.base import ENCODER_SIZES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name, *overrides):
    hydra_init("base")
    with initialize_config_dir(str(EXAMPLES / name), version_base="1.1"):
        cfg = compose("base", overrides=["common.user_dir=/user_dir", "task.data=/data", *overrides])
    OmegaConf.set_struct(cfg, True)
    add_defaults(cfg)
    return cfg


@pytest.mark.parametrize("size", ENCODER_SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_yaml_and_architecture_of_a_size_are_the_same_model(name, size):
    cfg = load(name, f"model={size}")
    config = METHODS[name].config_class
    of_yaml = config(**{field.name: cfg.model[field.name] for field in fields(config)})
    assert of_yaml == config(**size_options(name, size))
    assert f"{name}_{size}" in ARCH_CONFIG_REGISTRY


@pytest.mark.parametrize("size", ENCODER_SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_yaml_lists_every_option_of_the_model(name, size):
    written = OmegaConf.load(EXAMPLES / name / "model" / f"{size}.yaml")
    assert set(written) == {field.name for field in fields(METHODS[name].config_class)} | {"_name"}


@pytest.mark.parametrize("name", METHODS)
def test_recipe_lists_every_option_of_the_task(name):
    written = OmegaConf.load(EXAMPLES / name / "base.yaml")
    options = {field.name for field in fields(TASK_DATACLASS_REGISTRY[name]) if not field.name.startswith("_")}
    unlisted = {"seed", "max_update", "reuse_dataloader"}  # two come from common and optimization, one is a trap
    assert set(written.task) == options - unlisted | {"_name"}


@pytest.mark.parametrize("name", METHODS)
def test_base_recipe_trains_on_2048_sequences_per_update(name):
    cfg = load(name)
    gpus = cfg.distributed_training.distributed_world_size
    assert gpus * cfg.dataset.batch_size * cfg.optimization.update_freq[0] == 2048
