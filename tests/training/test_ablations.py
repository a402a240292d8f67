"""The cards of the methods: every override in their tables trains, and they name what is logged."""

import functools
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

import pytest
import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

import amos_fairseq.tasks  # noqa: F401
from amos_fairseq.methods import METHODS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEAD = "| row of the paper | recipe | override |\n|---|---|---|\n"
DEFAULT = "default"  # a row that is the recipe itself
UPDATES, SEQUENCES = 2, 8
WITHOUT_EFFECT = {"--tokens-per-sample": "the blocks of the corpus are shorter"}

# Of the sizes, the depths are kept. Learning starts at once, so that an option's effect shows within two updates.
OF_SIZE = ("encoder_layers", "max_positions", "rel_pos_buckets", "rel_pos_max_distance")
OF_SIZE += ("generator_depths", "generator_layers")
QUICK = dict(lr=[0.05], warmup_updates=None, user_dir=None, **dict.fromkeys(OF_SIZE))
# Many draws, of all levels, all of which are known: the gain is of the initial matrices.
QUICK_OF_METHOD = {"peer_tqr": dict(tqr_warmup_updates=0, tqr_top=1000, mask_prob=0.5)}
GAIN_OF_METHOD = {"peer_tqr": 30.0}
QUICK_OF_SIZE = {"small": dict(token_embed_dim=8)}


class Row(NamedTuple):
    method: str
    row: str
    recipe: str
    override: str

    @property
    def words(self) -> Tuple[str, ...]:
        return () if self.override == DEFAULT else tuple(shlex.split(self.override.strip("`")))

    @property
    def base(self) -> Tuple[str, str]:
        """Method and size of the recipe."""
        return self.method, self.recipe.split("_")[0]

    @property
    def trained(self) -> Tuple[str, str]:
        """Method and size that the override leaves or names."""
        arch = self.words[self.words.index("--arch") + 1] if "--arch" in self.words else "_".join(self.base)
        method, _, size = arch.rpartition("_")
        return method, size


def card(name: str) -> str:
    return (EXAMPLES / name / "README.md").read_text()


def rows(name: str) -> List[Row]:
    """The table of overrides in a method's card."""
    lines = card(name).partition(HEAD)[2].split("\n\n")[0].strip().splitlines()
    return [Row(name, *(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]


ROWS = [row for name in METHODS for row in rows(name)]


class Run(NamedTuple):
    options: Dict[str, object]  # as fairseq resolved them
    vocabulary_size: int
    selected_share: float  # of the first batch's tokens
    losses: List[float]
    logged: Set[str]  # terms and statistics, in training and validation
    without_gradient: List[str]
    trainer: Trainer

    @property
    def weights(self) -> Dict[str, torch.Tensor]:
        """After the updates."""
        return self.trainer.model.state_dict()


@pytest.fixture(scope="module")
def train(arguments, tmp_path_factory):
    """train(method, size, words of an override, gain): two updates at width 16, and a validation."""
    folder = tmp_path_factory.mktemp("ablations")

    @functools.cache
    def train(name: str, size: str, words: Tuple[str, ...] = (), gain: Optional[float] = None) -> Run:
        if "--generator-checkpoint" in words:
            path = folder / words[words.index("--generator-checkpoint") + 1]
            path.parent.mkdir()
            trainer = train(name, size).trainer
            trainer.consolidate_optimizer()
            trainer.save_checkpoint(str(path), {"train_iterator": {"epoch": 1}})
        quick = {**QUICK, **QUICK_OF_METHOD.get(name, {}), **QUICK_OF_SIZE.get(size, {})}
        given = [*arguments(name, arch=f"{name}_{size}", save_dir=folder / "runs", **quick), *words]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["fairseq-train", *given])  # fairseq looks there, too
            return two_updates(given, gain or GAIN_OF_METHOD.get(name, 1.0))

    return train


def two_updates(arguments: List[str], gain: float) -> Run:
    namespace = options.parse_args_and_arch(options.get_training_parser(), arguments)
    config = convert_namespace_to_omegaconf(namespace)
    utils.set_torch_seed(config.common.seed)
    task = tasks.setup_task(config.task)
    task.load_dataset("train")
    dataset = task.dataset("train")
    model, criterion = task.build_model(config.model), task.build_criterion(config.criterion)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain if parameter.dim() > 1 else 1.0)
    trainer = Trainer(config, task, model, criterion)
    logged, losses, shares = set(), [], []

    def keep_names(criterion, _, output):
        logged.update(key.split()[1] for key in output[2] if key.endswith(" count") or key.startswith("pooled "))

    criterion.register_forward_hook(keep_names)
    trainer.begin_epoch(1)
    with metrics.aggregate(new_root=True):
        for start in range(0, UPDATES * SEQUENCES, SEQUENCES):
            batch = dataset.collater([dataset[index] for index in range(start, start + SEQUENCES)])
            shares.append(sum(batch["net_input"]["num_masked"]) / batch["ntokens"])
            losses.append(float(trainer.train_step([batch])["loss"]))
        without_gradient = [
            key
            for key, parameter in model.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
        ]
        trainer.valid_step(batch)
    resolved = {**OmegaConf.to_container(config.model), **vars(namespace)}
    return Run(resolved, len(task.dictionary), shares[0], losses, logged, without_gradient, trainer)


def test_every_card_has_rows_of_recipes_and_overrides():
    assert {row.method for row in ROWS if row.words} == set(METHODS)
    for row in ROWS:
        assert row.override == DEFAULT or re.fullmatch("`--[^`]+`", row.override)
        assert (EXAMPLES / row.method / f"{row.recipe}.yaml").exists()
    assert len({(row.method, row.row) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method}: {row.row}".replace("/", ""))
def test_row_trains_every_parameter_and_its_override_changes_what_it_names(train, row):
    run = train(*row.trained, row.words)
    assert len(run.losses) == UPDATES and all(map(math.isfinite, run.losses))
    assert run.without_gradient == []

    recipe, other = train(*row.base), train(*row.trained)
    flags = [word for word in row.words if word.startswith("--")]
    for flag in flags:
        key = flag[2:].replace("-", "_")
        assert run.options[key] != recipe.options.get(key) or run.options[key] != other.options[key], flag
    if not WITHOUT_EFFECT.keys() >= set(flags):
        same = run.weights.keys() == recipe.weights.keys()
        assert not same or any(not torch.equal(run.weights[key], recipe.weights[key]) for key in run.weights)


@pytest.mark.parametrize("name", METHODS)
def test_card_names_everything_that_is_logged(train, name):
    _, _, section = card(name).partition("## What is logged, and what to expect\n\n")
    named = set(re.findall("`([a-z_0-9]+)`", section.split("\n\n")[0]))
    assert named == train(name, "base").logged | {"loss", "tflops", "mfu"}


LN2 = math.log(2)
FIRST_LOSS = {  # of untrained networks, as the cards give it: of ln V and the share of positions that are selected
    "amos_rtd": lambda ln_v, selected: 3 * ln_v + 50 * LN2,
    "coco_lm": lambda ln_v, selected: ln_v + 50 * LN2 + (ln_v + LN2) + math.log(2 * SEQUENCES - 1),
    "teams_mws": lambda ln_v, selected: ln_v + 5 * LN2 + 2 * math.log(6),
    "peer_tqr": lambda ln_v, selected: ln_v + 50 * LN2,
    "script_selfcritic": lambda ln_v, selected: ln_v + 50 * selected * ln_v,
    "electra_rtd": lambda ln_v, selected: ln_v + 50 * LN2,
    "bert_mlm": lambda ln_v, selected: ln_v,
}


@pytest.mark.parametrize("name", METHODS)
def test_first_loss_is_the_one_that_the_card_tells_to_expect(train, name):
    run = train(name, "base", ("--tqr-warmup-updates", "1") if name == "peer_tqr" else (), gain=1.0)
    expected = FIRST_LOSS[name](math.log(run.vocabulary_size), run.selected_share)
    assert run.losses[0] == pytest.approx(expected, rel=0.03)
