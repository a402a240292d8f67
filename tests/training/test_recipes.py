"""The yaml recipes: every option listed, the model of the architecture, the networks and batches of the papers."""

import functools
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import amos_fairseq.tasks  # noqa: F401
from amos_fairseq.methods import METHODS, size_options
from amos_fairseq.methods.config import ENCODER_SIZES, Vocabulary
from amos_fairseq.options import declared
from amos_fairseq.supervision import SupervisionConfig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = [(path.parent.name, path.stem) for path in sorted(EXAMPLES.glob("*/*.yaml"))]

# What the papers train: sequences and tokens of an update, updates, vocabulary, millions of the encoder's parameters.
PUBLISHED = {
    ("amos_rtd", "small"): (128, 128, 1_000_000, 30_522, 13.5),  # ELECTRA small's
    ("amos_rtd", "base"): (2048, 512, 125_000, 32_768, 110.6),
    ("amos_rtd", "base_plus_plus"): (2048, 512, 1_950_000, 64_000, 134.6),
    ("coco_lm", "base"): (2048, 512, 125_000, 32_768, 110.6),
    ("coco_lm", "base_plus_plus"): (2048, 512, 1_950_000, 64_000, 134.6),
    ("coco_lm", "large_plus_plus"): (2048, 512, 1_950_000, 64_000, 368.4),
    ("teams_mws", "small"): (256, 512, 500_000, 30_522, 13.5),
    ("teams_mws", "base"): (256, 512, 1_000_000, 30_522, 108.9),
    ("teams_mws", "base_plus_plus"): (1024, 512, 1_000_000, 30_522, 108.9),
    ("teams_mws", "large"): (2048, 512, 1_760_000, 30_522, 334.1),
    ("peer_tqr", "small"): (512, 128, 250_000, 30_522, 13.5),
    ("peer_tqr", "base"): (256, 512, 666_900, 30_522, 108.9),
    ("script_selfcritic", "small"): (128, 128, 1_000_000, 30_522, 13.5),
    ("script_selfcritic", "base"): (256, 512, 766_000, 30_522, 108.9),
    ("electra_rtd", "base"): (2048, 512, 125_000, 32_768, 110.6),
    ("bert_mlm", "base"): (2048, 512, 125_000, 32_768, 110.6),
}


@functools.cache  # this is slow
def load(name, recipe, *overrides):
    hydra_init(recipe)
    with initialize_config_dir(str(EXAMPLES / name), version_base="1.1"):
        cfg = compose(recipe, overrides=["common.user_dir=/user_dir", "task.data=/data", *overrides])
    OmegaConf.set_struct(cfg, True)
    add_defaults(cfg)
    return cfg


def model_config(name, cfg):
    config = METHODS[name].config_class
    return config(**{field.name: cfg.model[field.name] for field in fields(config)})


def build(name, cfg, vocabulary_size):
    vocabulary = Vocabulary(vocabulary_size, padding=1, excluded=[0, 1, 2, 3])
    with torch.device("meta"):
        return METHODS[name](model_config(name, cfg), vocabulary, total_updates=cfg.optimization.max_update)


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.fixture(scope="module", params=RECIPES, ids="/".join)
def recipe(request):
    return request.param


@pytest.mark.parametrize("size", ENCODER_SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_yaml_and_architecture_of_a_size_are_the_same_model(name, size):
    cfg = load(name, "base", f"model={size}")
    assert model_config(name, cfg) == METHODS[name].config_class(**size_options(name, size))
    assert f"{name}_{size}" in ARCH_CONFIG_REGISTRY


@pytest.mark.parametrize("size", ENCODER_SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_yaml_lists_every_option_of_the_model(name, size):
    written = OmegaConf.load(EXAMPLES / name / "model" / f"{size}.yaml")
    assert set(written) == {field.name for field in fields(METHODS[name].config_class)} | {"_name"}


def test_every_recipe_of_the_papers_is_there():
    assert set(RECIPES) == set(PUBLISHED)


def test_recipe_lists_every_option_of_the_task_but_those_of_supervision(recipe):
    name, stem = recipe
    written = OmegaConf.load(EXAMPLES / name / f"{stem}.yaml")
    options, supervision = (
        {option.name for option in declared(config)} for config in (TASK_DATACLASS_REGISTRY[name], SupervisionConfig)
    )
    from_other_groups = {
        "seed", "max_update", "max_tokens", "max_tokens_valid", "save_dir", "restore_file", "optimizer",
        "fixed_validation_seed",
    }
    assert set(written.task) == options - from_other_groups - supervision | {"_name"}


def test_recipe_sets_the_same_keys_as_base(recipe):
    name, _ = recipe
    written, base = (OmegaConf.load(EXAMPLES / name / f"{stem}.yaml") for stem in (recipe[1], "base"))
    assert written.keys() - {"model"} == base.keys()
    for section in base.keys() - {"defaults"}:
        assert written[section].keys() == base[section].keys()


def test_recipe_names_its_method_and_how_to_run_it(recipe):
    name, stem = recipe
    cfg = load(name, stem)
    assert {cfg.task._name, cfg.model._name, cfg.criterion._name} == {name}
    assert f"--config-dir examples/{name} --config-name {stem} " in (EXAMPLES / name / f"{stem}.yaml").read_text()


def test_recipe_has_one_folder_for_its_run_seen_from_where_one_stands(recipe):
    name, stem = recipe
    written = OmegaConf.load(EXAMPLES / name / f"{stem}.yaml")
    assert written.checkpoint.save_dir == f"runs/{name}-{stem}"
    assert OmegaConf.to_container(written.hydra) == {"run": {"dir": "${checkpoint.save_dir}"}, "job": {"chdir": False}}


def test_recipe_trains_on_the_papers_batch_and_schedule(recipe):
    cfg = load(*recipe)
    sequences, tokens, updates, _, _ = PUBLISHED[recipe]
    gpus, micro_batches = cfg.distributed_training.distributed_world_size, cfg.optimization.update_freq[0]
    assert gpus * cfg.dataset.batch_size * micro_batches == sequences
    assert f"{gpus} GPUs x batch_size {cfg.dataset.batch_size} x update_freq {micro_batches} = {sequences} " in (
        (EXAMPLES / recipe[0] / f"{recipe[1]}.yaml").read_text()
    )
    assert cfg.task.tokens_per_sample == tokens <= cfg.model.max_positions
    assert cfg.optimization.max_update == cfg.lr_scheduler.total_num_update == updates
    assert cfg.lr_scheduler.warmup_updates == 10_000


def test_recipe_builds_an_encoder_of_the_papers_size(recipe):
    name, stem = recipe
    *_, vocabulary_size, expected = PUBLISHED[recipe]
    assert millions(build(name, load(name, stem), vocabulary_size).encoder) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name, expected", [("amos_rtd", 192.36), ("coco_lm", 164.27)])
def test_base_plus_plus_trains_the_published_number_of_parameters(name, expected):
    assert millions(build(name, load(name, "base_plus_plus"), 64_000)) == pytest.approx(expected, abs=0.006)


PLUS_PLUS = [recipe for recipe in RECIPES if recipe[0] in ("amos_rtd", "coco_lm") and recipe[1].endswith("plus_plus")]


@pytest.mark.parametrize("name, stem", PLUS_PLUS)
def test_plus_plus_recipe_changes_nothing_but_the_relative_positions_of_its_size(name, stem):
    cfg, of_size = load(name, stem), size_options(name, stem.split("_")[0])
    buckets, distance = {"base": (64, 128), "large": (128, 256)}[stem.split("_")[0]]
    options = dict(of_size, rel_pos_buckets=buckets, rel_pos_max_distance=distance)
    assert model_config(name, cfg) == METHODS[name].config_class(**options)


def test_a_models_size_is_changed_on_the_command_line(recipe):
    cfg = load(*recipe, "model=tiny", "model.dropout=0.0")
    assert (cfg.model.encoder_layers, cfg.model.dropout) == (2, 0.0)


@pytest.mark.parametrize("name", METHODS)
def test_card_lists_the_recipes(name):
    listed = re.findall(r"^\| `(\w+)\.yaml` \|", (EXAMPLES / name / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == [stem for method, stem in RECIPES if method == name]


@pytest.mark.parametrize("name", METHODS)
def test_command_line_of_the_card_is_the_base_recipe(name, monkeypatch):
    command = (EXAMPLES / name / "README.md").read_text().split("```bash\nfairseq-train ")[1].split("\n\n")[0]
    words = shlex.split(command.replace("\\\n", " "))
    start = words.index("--user-dir")
    arguments = words[:start] + words[start + 2 :]
    monkeypatch.setattr(sys, "argv", ["fairseq-train", *arguments])  # fairseq looks there, too
    given = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), arguments))
    recipe = load(name, "base", "task.data=data", "checkpoint.save_dir=checkpoints")
    assert model_config(name, given) == model_config(name, recipe)
    for section in ("common", "task", "dataset", "optimization", "optimizer", "lr_scheduler", "checkpoint"):
        values, expected = (OmegaConf.to_container(cfg, resolve=True)[section] for cfg in (given, recipe))
        unlike = {key for key in expected if values.get(key) != expected[key]}
        assert unlike - {"user_dir"} == set(), section
