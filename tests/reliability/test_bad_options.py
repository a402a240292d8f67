"""A command or configuration that cannot be meant ends in one line, with status 64, before anything is written.

What a whole configuration says is checked here in this process, and through the programs with --soak: by turns
fairseq-train, `amos-fairseq train`, and the latter with a yaml file, which is fairseq-hydra-train with this package in
place before it composes the configuration.
"""

import json
import math
import os
import sys
from typing import NamedTuple

import pytest
import torch
import yaml

from amos_fairseq import ops

pytest.importorskip("fairseq")
from fairseq import options  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402

import amos_fairseq.models.pretraining  # noqa: E402, F401
import amos_fairseq.tasks  # noqa: E402, F401
from amos_fairseq import fairseq_options  # noqa: E402

NAME, WSD = "amos_rtd", "warmup_stable_decay"
TRAIN, OURS = "fairseq_cli.train:cli_main", "amos_fairseq.cli.main:main"

# what: (options, what the line says), found in the whole configuration
CONFIGURATIONS = {
    "lr 0": (dict(lr=[0.0]), "lr 0.0 is out of range: it must be above 0"),
    "lr negative": (dict(lr=[-0.001]), "lr -0.001 is out of range: it must be above 0"),
    "lr 0 in a list": (dict(lr=[0.1, 0.0]), "lr 0.0 is out of range: it must be above 0"),
    "batch_size 0": (dict(batch_size=0), "batch_size 0 is out of range: it must be at least 1"),
    "batch_size negative": (dict(batch_size=-8), "batch_size -8 is out of range: it must be at least 1"),
    "batch_size_valid 0": (dict(batch_size_valid=0), "batch_size_valid 0 is out of range: it must be at least 1"),
    "max_tokens 0": (dict(max_tokens=0), "max_tokens 0 is out of range: it must be at least 1"),
    "update_freq 0": (dict(update_freq=[0]), "update_freq 0 is out of range: it must be at least 1"),
    "clip_norm negative": (dict(clip_norm=-1.0), "clip_norm -1.0 is out of range: it must be at least 0"),
    "clip_norm nan": (dict(clip_norm=math.nan), "clip_norm nan is out of range: it must be at least 0"),
    "max_update negative": (dict(max_update=-5), "max_update -5 is out of range: it must be at least 0"),
    "num_workers negative": (dict(num_workers=-1), "num_workers -1 is out of range: it must be at least 0"),
    "seed negative": (dict(seed=-1), "seed -1 is out of range: it must be at least 0 and below 4294967296"),
    "seed too large": (dict(seed=2**32), "seed 4294967296 is out of range"),
    "save_interval 0": (dict(save_interval=0), "save_interval 0 is out of range: it must be at least 1"),
    "save_interval_updates negative": (dict(save_interval_updates=-1), "save_interval_updates -1 is out of range"),
    "log_interval 0": (dict(log_interval=0), "log_interval 0 is out of range: it must be at least 1"),
    "warmup_updates negative": (dict(warmup_updates=-1), "warmup_updates -1 is out of range: it must be at least 0"),
    "total_num_update 0": (dict(total_num_update=0.0), "total_num_update 0.0 is out of range: it must be above 0"),
    "weight_decay negative": (dict(weight_decay=-0.01), "weight_decay -0.01 is out of range: it must be at least 0"),
    "adam_eps 0": (dict(adam_eps=0.0), "adam_eps 0.0 is out of range: it must be above 0"),
    "no layers": (dict(encoder_layers=0), "encoder_layers 0 is out of range: it must be at least 1"),
    "no heads": (dict(encoder_attention_heads=0), "encoder_attention_heads 0 is out of range: it must be at least 1"),
    "dropout of 1": (dict(dropout=1.0), "dropout 1.0 is out of range: it must be at least 0 and below 1"),
    "rtd_weight nan": (dict(rtd_weight=math.nan), "rtd_weight nan is out of range: it must be at least 0"),
    "factor 0": (dict(encoder_lr_factor=0.0), "encoder_lr_factor 0.0 is out of range: it must be above 0"),
    "no depth": (dict(generator_depths=[1, 0]), "generator_depths 0 is out of range: it must be at least 1"),
    "unknown bucketing": (dict(rel_pos_bucketing="t6"), "unknown rel_pos_bucketing 't6': choose t5, released"),
    "save_timeout negative": (dict(save_timeout=-1.0), "save_timeout -1.0 is out of range: it must be at least 0"),
    "stop_after_minutes nan": (dict(stop_after_minutes=math.nan), "stop_after_minutes nan is out of range"),
    "share of 1": (dict(mask_prob=1.0), "mask_prob 1.0 is out of range: it must be above 0 and below 1"),
    "amp with bf16": (dict(amp=True, bf16=True), "bf16 and amp are two precisions: give one of them"),
    "no batch size": (dict(batch_size=None), "batch_size is not given: give --batch-size or --max-tokens"),
    "no end": (dict(max_update=0), "max_update 0 has the run never end"),
    "warm-up above the total": (dict(warmup_updates=21), "warmup_updates 21 exceeds total_num_update 20: lower it"),
    "too many processes": (dict(distributed_world_size=99), "distributed_world_size 99 exceeds the"),
    "parameters in shards": (dict(ddp_backend="fully_sharded"), "ddp_backend fully_sharded does not work with these"),
    "averaged models": (dict(ddp_backend="slowmo"), "ddp_backend slowmo does not work with these models: take"),
    "moments in shards": (dict(zero_sharding="os"), "zero_sharding os does not work with these optimizers"),
    "pipeline": (dict(pipeline_model_parallel=True), "pipeline_model_parallel is for some of fairseq's own models"),
    "TPUs": (dict(tpu=True), "tpu is for some of fairseq's own models: leave it out"),
    "model in parts": (dict(model_parallel_size=2), "model_parallel_size is for some of fairseq's own models"),
    "averages of updates": (dict(use_bmuf=True), "use_bmuf is for some of fairseq's own models: leave it out"),
    "no state of the optimizer": (dict(no_save_optimizer_state=True), "no_save_optimizer_state has a run that was"),
    "averaged parameters": (dict(store_ema=True), "store_ema does not work with these models: leave it out, and see"),
    "no save_dir": (dict(save_dir=""), "save_dir is empty: name a folder for the checkpoints"),
    "missing folder of log_file": (dict(log_file="gone/log"), "log_file gone/log is in no folder that exists: make it"),
}
# what: (options of the command line, what the line says), found by its parser
COMMANDS = {
    "lr infinite": (dict(lr="1e999"), "lr inf is out of range: it must be above 0"),
    "lr that is no number": (dict(lr="fast"), "argument --lr: invalid list of numbers: 'fast'"),
    "lr without end": (dict(lr="("), "argument --lr: invalid list of numbers: '('"),
    "update_freq nested": (dict(update_freq="(" * 300), "argument --update-freq: invalid list of numbers: '(((("),
    "batch_size of a fraction": (dict(batch_size=1.5), "--max-sentences: invalid int value: '1.5'"),
    "warmup_updates in words": (dict(warmup_updates="ten"), "argument --warmup-updates: invalid int value: 'ten'"),
    "depths in words": (dict(generator_depths="[a]"), "argument --generator-depths: invalid list of numbers: '[a]'"),
    "one beta": (dict(adam_betas="(0.9)"), "adam_betas '(0.9)' must be two numbers, each at least 0 and below 1"),
    "beta of 1": (dict(adam_betas="(0.9,1.0)"), "adam_betas '(0.9,1.0)' must be two numbers"),
    "betas without end": (dict(adam_betas="(0.9,"), "adam_betas '(0.9,' must be two numbers"),
    "unknown option": (dict(lrr="1"), "unrecognized arguments: --lrr 1, did you mean --lr?"),
    "option of another method": (dict(level_weight="1"), "unrecognized arguments: --level-weight 1"),
    "unknown task": (dict(task="amos"), "argument --task: invalid choice: 'amos', did you mean amos_rtd?"),
    "unknown arch": (dict(arch="amos_rtd_bse"), "invalid choice: 'amos_rtd_bse', did you mean amos_rtd_base?"),
    "unknown criterion": (dict(criterion="amos"), "--criterion: invalid choice: 'amos', did you mean amos_rtd?"),
    "unknown optimizer": (dict(optimizer="fused"), "argument --optimizer: invalid choice: 'fused', did you mean"),
    "unknown schedule": (dict(lr_scheduler="polynomial"), "'polynomial', did you mean polynomial_decay?"),
    "unknown ddp backend": (dict(ddp_backend="dpp"), "argument --ddp-backend: invalid choice: 'dpp'"),
    "fp16 with bf16": (dict(fp16=True, bf16=True), "fp16 and bf16 are two precisions: give one of them"),
}
# what: (options, what the line says), found by the task, the model or what it loads
STARTS = {
    "tokens_per_sample 2": (dict(tokens_per_sample=2), "holds blocks of 32 tokens, more than tokens_per_sample 2"),
    "max_tokens below a block": (dict(batch_size=None, max_tokens=16), "max_tokens 16 is less than one block of"),
    "max_tokens_valid below a block": (dict(max_tokens_valid=16), "max_tokens_valid 16 is less than one block of"),
    "gumbel_temperature 0": (dict(gumbel_temperature=0), "gumbel_temperature"),
    "update_timeout negative": (dict(update_timeout=-1), "update_timeout -1.0 is out of range: it must be at least 0"),
    "decay_share above 1": (dict(lr_scheduler=WSD, decay_share=1.5), "decay_share 1.5 is out of range: it must be at"),
    "unknown decay_shape": (dict(lr_scheduler=WSD, decay_shape="up"), "up"),
    "warm-up within the decay": (
        dict(lr_scheduler=WSD, warmup_updates=11, decay_share=0.5),
        "warmup_updates 11 and decay_share 0.5 of 20 overlap: lower one of them",
    ),
    "factor for adam": (dict(rel_pos_lr_factor=30), "rel_pos_lr_factor 30.0 needs an optimizer with a rate for each"),
    "detection warm-up beyond the run": (dict(rtd_warmup_updates=9), "rtd_warmup_updates 9 exceeds max_update 8"),
    "sampling_temperature 0": (dict(sampling_temperature=0), "sampling_temperature 0.0 is out of range: it must be"),
    "positions without gdes": (dict(gdes_positions=True), "gdes_positions needs token_table gdes, got shared: set it"),
    "missing generator_checkpoint": (dict(generator_checkpoint="gone"), "generator_checkpoint gone does not exist"),
    "generator's warm-up for adam": (
        dict(generator_warmup_updates=2), "generator_warmup_updates 2 needs an optimizer that leaves parameters without"
    ),
    "generator's warm-up of the whole run": (
        dict(generator_warmup_updates=8), "generator_warmup_updates 8 leaves the encoder nothing of max_update 8: lower"
    ),
    "encoder from nothing": (
        dict(init_encoder_from_generator="gone"), "init_encoder_from_generator gone does not exist"
    ),
    "factor of nothing": (
        dict(rel_pos_lr_factor=30, rel_pos_buckets=0, optimizer="fused_adamw"), "rel_pos_lr_factor 30.0 is of no"
    ),
    "metric that is not logged": (
        dict(best_checkpoint_metric="rtd_auc"), "best_checkpoint_metric rtd_auc is nothing that validation logs: choose"
    ),
    "spikes without checkpoints": (dict(loss_spike_factor=2, no_save=True), "loss_spike_factor 2.0 needs checkpoints"),
    "missing init_checkpoint": (dict(init_checkpoint="gone"), "init_checkpoint gone does not exist"),
    "save_dir below a file": (dict(save_dir="/dev/null/run"), "save_dir /dev/null/run: /dev/null is no folder"),
    "unknown split": (dict(valid_subset="test"), "holds no split 'test': prepare writes train and valid"),
}
# what: (overrides of a yaml file, changes of the file, what the line says)
YAML = {
    "yaml: lr 0": (["optimization.lr=[0]"], {}, "lr 0.0 is out of range: it must be above 0"),
    "yaml: unknown key of fairseq": (["optimization.max_updates=1"], {}, "did you mean max_update?"),
    "yaml: unknown key of the task": ([], {"task": {"mask_probb": 0.1}}, "did you mean mask_prob?"),
    "yaml: unknown key of the model": ([], {"model": {"layers": 1}}, "model.layers is no option"),
    "yaml: unknown group": (["optim.lr=1"], {}, "optim is no option"),
    "yaml: number in words": (["optimization.max_update=many"], {}, "max_update: Value 'many'"),
    "yaml: share in words": ([], {"task": {"mask_prob": "some"}}, "task.mask_prob: Value 'some'"),
    "yaml: unknown task": (["task._name=amos"], {}, "task amos is not known, did you mean amos_rtd?"),
    "yaml: unknown model": (["model._name=amos"], {}, "model amos is not known, did you mean amos_rtd"),
    "yaml: no data": ([], {"task": {"data": "???"}}, "task.data is not given"),
    "yaml: betas": (["optimizer.adam_betas='(0.9)'"], {}, "adam_betas '(0.9)' must be two numbers"),
    "yaml: scalar lr": (["optimization.lr=1e-4"], {}, "optimization.lr must be a list: write optimization.lr=[1e-4]"),
    "yaml: scalar depth": (["model.generator_depths=2"], {}, "must be a list: write model.generator_depths=[2]"),
    "yaml: option without its group": (["lr=1e-4"], {}, "lr is no option, did you mean optimization.lr?"),
    "yaml: no override": (["optimization.lr=[1e-4"], {}, "optimization.lr=[1e-4 is no override: write GROUP.OPTION="),
    "yaml: no group of files": (["lr_scheduler=fixed"], {}, "configuration: write lr_scheduler._name=fixed"),
    "yaml: what the recipe has": (
        ["lr_scheduler.total_num_update=1"], {}, "warmup_updates 2 of the recipe exceeds total_num_update 1: lower it"
    ),
    "yaml: no batch": (["dataset.batch_size=null"], {}, "batch_size is not given"),
}
FIRST = {"yaml: unknown key of fairseq", "yaml: share in words", "yaml: unknown task", "lr 0", "yaml: scalar lr",
         "yaml: no override", "yaml: what the recipe has"}
SOAK = {*CONFIGURATIONS, *YAML} - FIRST
MISTAKES = {mistake: words for mistake, (*_, words) in {**CONFIGURATIONS, **COMMANDS, **STARTS, **YAML}.items()}


@pytest.fixture(scope="module")
def configuration(arguments):
    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments(NAME)))


@pytest.mark.parametrize("mistake", CONFIGURATIONS)
def test_configuration_is_refused_with_option_value_and_range(configuration, mistake):
    changes, words = CONFIGURATIONS[mistake]
    cfg = configuration.copy()
    for name, value in changes.items():
        groups = [*fairseq_options.RANGES, "task", "model", "ema"]  # fairseq's own come first
        group = next(group for group in groups if name in cfg[group])
        cfg[group][name] = value
    with pytest.raises(ValueError) as refusal:
        fairseq_options.check(cfg)
        fairseq_options.check_devices(cfg.distributed_training)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_configuration_without_mistakes_is_accepted(configuration):
    fairseq_options.check(configuration)
    fairseq_options.check_names(configuration)
    trial = configuration.copy()
    trial.optimization.max_update = 1  # within its warm-up
    fairseq_options.check(trial)


@pytest.mark.parametrize("choice, words", [
    ("triton", "AMOS_FAIRSEQ_OPS is 'triton': choose auto, pytorch, compiled"),
    ("compiled", "the compiled ops for cpu are not built: run `"),
])
def test_ops_that_are_not_there_are_told_at_the_start(configuration, monkeypatch, choice, words):
    monkeypatch.setattr(ops.compiled, "available", lambda device: False)
    with ops.use(choice), pytest.raises(ValueError) as refusal:
        fairseq_options.check_ops(configuration)
    assert words in str(refusal.value)


@pytest.mark.parametrize("device, variable, words", [
    ("cpu", "CXX", "compile_layers needs g++, and there is none: install it, or leave it out"),
    ("cuda", "CC", "compile_layers needs gcc or clang, and there is none"),
])
def test_layers_without_a_compiler_are_told_at_the_start(configuration, monkeypatch, device, variable, words):
    cfg = configuration.copy()
    cfg.model.compile_layers = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    cfg.common.cpu = device == "cpu"
    monkeypatch.setattr(fairseq_options, "functions_for", lambda *_: None)
    monkeypatch.setenv(variable, f"{sys.executable} -O")
    fairseq_options.check_ops(cfg)
    monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError) as refusal:
        fairseq_options.check_ops(cfg)
    assert words in str(refusal.value)


class Told(NamedTuple):
    status: int
    out: str
    err: str
    megabytes: float
    seconds: float
    made: list


@pytest.fixture(scope="module")
def many(launch, tmp_path_factory):
    """many(commands): what became of each [function, arguments]."""
    def many(commands):
        folder = tmp_path_factory.mktemp("many")
        launch("tests.reliability.many:main", [json.dumps(commands), folder])
        outcomes = json.loads((folder / "outcomes.json").read_text())
        made = [[path.name for path in (folder / str(number)).iterdir()] for number in range(len(commands))]
        return [Told(*outcome, names) for outcome, names in zip(outcomes, made)]
    return many


@pytest.fixture(scope="module")
def told(request, many, arguments, yaml_config, tmp_path_factory):
    """By mistake."""
    commands, folder = {}, tmp_path_factory.mktemp("yaml")
    for mistake, (changes, _) in {**CONFIGURATIONS, **COMMANDS, **STARTS}.items():
        command = arguments(NAME, **{"save_dir": "run", **changes})
        commands[mistake] = [TRAIN, command] if len(commands) % 2 else [OURS, ["train", *command]]
    for mistake, (overrides, changes, _) in YAML.items():
        config = yaml_config(NAME)
        config["checkpoint"] = dict(save_dir="run")
        for group, values in changes.items():
            config[group].update(values)
        name = f"case{len(commands)}"
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        commands[mistake] = [OURS, ["train", "--config-dir", str(folder), "--config-name", name, *overrides]]
    if not request.config.getoption("--soak"):
        commands = {mistake: command for mistake, command in commands.items() if mistake not in SOAK}
    return dict(zip(commands, many(list(commands.values()))))


PLAIN = {  # as YAML, with fairseq-hydra-train, which imports this package once it has composed the configuration
    "yaml: lr 0": (["optimization.lr=[0]"], {}, "lr 0.0 is out of range: it must be above 0"),
    "yaml: unknown key of the task": ([], {"task": {"mask_probb": 0.1}}, "task.mask_probb is no option, did you mean"),
    "yaml: missing data": (["task.data=gone"], {}, "does not exist: run amos-fairseq prepare"),
}


@pytest.mark.parametrize("mistake", PLAIN)
def test_mistake_ends_fairseq_hydra_train_alike(launch, yaml_config, tmp_path, mistake):
    overrides, changes, words = PLAIN[mistake]
    config = {**yaml_config(NAME), "checkpoint": dict(save_dir=str(tmp_path / "run"))}
    for group, values in changes.items():
        config[group].update(values)
    (tmp_path / "case.yaml").write_text(yaml.safe_dump(config))
    command = ["--config-dir", tmp_path, "--config-name", "case", *overrides]
    outcome = launch("fairseq_cli.hydra_train:cli_main", command, fails=True)
    line = outcome.err[0].splitlines()[-1]
    assert line.startswith("amos_fairseq: error: ") and words in line
    assert outcome.codes == [os.EX_USAGE] and "Traceback" not in outcome.out[0] + outcome.err[0]
    assert not (tmp_path / "run").exists()


CASES = [pytest.param(mistake, marks=pytest.mark.soak if mistake in SOAK else ()) for mistake in MISTAKES]


@pytest.mark.parametrize("mistake", CASES)
def test_mistake_ends_the_program_with_one_line_and_status_64(told, mistake):
    outcome = told[mistake]
    line = outcome.err.splitlines()[-1]
    assert line.startswith("amos_fairseq: error: ") and MISTAKES[mistake] in line, outcome.err[-3000:]
    assert outcome.err.count("error: ") == 1 and "Traceback" not in outcome.out + outcome.err
    assert outcome.status == os.EX_USAGE
    assert set(outcome.made) <= {"outputs"}  # hydra's own log


def test_values_of_the_recipe_are_said_to_be_its():
    names, message = {"warmup_updates", "bf16", "lr"}, "warmup_updates 10000 exceeds total_num_update 100: lower it"
    told = "warmup_updates 10000 of the recipe exceeds total_num_update 100: lower it"
    assert fairseq_options.with_recipe_named(message, names) == told
    assert fairseq_options.with_recipe_named(message, set()) == message  # of the command line, or of its overrides
    kept = "rtd_warmup_updates 9 and lr is not given: lr_scheduler 3, bf16 and fp16"
    assert fairseq_options.with_recipe_named(kept, names) == kept


def test_a_command_without_an_architecture_is_told_what_to_give(capsys):
    with pytest.raises(SystemExit) as ended:
        options.parse_args_and_arch(options.get_training_parser(), ["data"])
    assert ended.value.code == 64
    assert capsys.readouterr().err.startswith("amos_fairseq: error: there is no --arch: name a method by --task, ")


@pytest.mark.parametrize("optimizer", ["adafactor", "adagrad", "adadelta", "adamax", "sgd", "nag"])
@pytest.mark.parametrize("schedule", ["fixed", "cosine", "manual", "inverse_sqrt"])
def test_fairseqs_other_optimizers_and_schedules_are_accepted(arguments, optimizer, schedule):
    """Those without a dataclass leave a Namespace in the configuration."""
    unused = dict(adam_betas=None, total_num_update=None, warmup_updates=None)
    command = arguments(NAME, optimizer=optimizer, lr_scheduler=schedule, **unused)
    parsed = options.parse_args_and_arch(options.get_training_parser(), command)
    fairseq_options.check(convert_namespace_to_omegaconf(parsed))
