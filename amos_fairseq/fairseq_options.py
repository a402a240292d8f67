"""Values of fairseq's options that it takes and then fails with late, or trains with wrongly. Here they are refused.

    RANGES    what a number may be
    check     those, the rules of our own options, and what cannot be combined, of a whole configuration
    check_devices, check_ops, check_compiler    what this machine has not
    check_literals    options in which fairseq runs what is written there as Python
"""

import ast
import contextlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Set

import torch
from fairseq import models, tasks
from fairseq.registry import REGISTRIES
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from amos_fairseq.ops.implementation import attention_kernels, functions_for
from amos_fairseq.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Option, Range, declared, options_of
from amos_fairseq.user_errors import suggestion, told_in_one_line

RANGES: Dict[str, Dict[str, Range]] = {
    "common": dict(
        seed=Range(0, 2**32), log_interval=COUNT, fp16_init_scale=POSITIVE, fp16_scale_window=COUNT,
        min_loss_scale=POSITIVE, empty_cache_freq=NOT_NEGATIVE,
    ),
    "distributed_training": dict(distributed_world_size=COUNT, bucket_cap_mb=COUNT),
    "dataset": dict(
        batch_size=COUNT, batch_size_valid=COUNT, max_tokens=COUNT, max_tokens_valid=COUNT, max_valid_steps=COUNT,
        fixed_validation_seed=Range(0, 2**32), num_workers=NOT_NEGATIVE, data_buffer_size=NOT_NEGATIVE,
        required_batch_size_multiple=COUNT, validate_interval=COUNT, validate_interval_updates=NOT_NEGATIVE,
        validate_after_updates=NOT_NEGATIVE,
    ),
    "optimization": dict(
        lr=POSITIVE, update_freq=COUNT, clip_norm=NOT_NEGATIVE, max_update=NOT_NEGATIVE, max_epoch=NOT_NEGATIVE,
        stop_time_hours=NOT_NEGATIVE,
    ),
    "checkpoint": dict(save_interval=COUNT, save_interval_updates=NOT_NEGATIVE),
    "optimizer": dict(adam_eps=POSITIVE, weight_decay=NOT_NEGATIVE),
    "lr_scheduler": dict(
        warmup_updates=NOT_NEGATIVE, total_num_update=POSITIVE, end_learning_rate=NOT_NEGATIVE, power=POSITIVE
    ),
}
# literals of two numbers
PAIRS = {"adam_betas": SHARE, "adamax_betas": SHARE, "lamb_betas": SHARE, "adafactor_eps": NOT_NEGATIVE}
DICTIONARIES = ("model_overrides", "optimizer_overrides")
PRECISIONS = ("fp16", "bf16", "amp")
STARTED_BY_OTHERS = ("WORLD_SIZE", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST")


def check(cfg: DictConfig) -> None:
    """Raises ValueError, in one line, if fairseq's whole configuration describes no training."""
    total, warmup = (options_of(cfg.lr_scheduler).get(name) for name in ("total_num_update", "warmup_updates"))
    if total == 0 and not cfg.optimization.max_update:
        raise ValueError("the schedule's length is not given: give --max-update or --total-num-update")
    for group, ranges in RANGES.items():
        for name, allowed in ranges.items():
            allowed.check(name, options_of(cfg[group]).get(name))
    for group in ("task", "model", "optimizer", "lr_scheduler"):
        for option in options_declared(group, cfg[group]):
            option.check(options_of(cfg[group]).get(option.name))
    check_literals({**options_of(cfg.optimizer), **cfg.checkpoint})
    common, dataset, optimization = cfg.common, cfg.dataset, cfg.optimization
    check_precision(common)
    if dataset.batch_size is None and dataset.max_tokens is None:
        raise ValueError("batch_size is not given: give --batch-size or --max-tokens")
    limits = [optimization[name] for name in ("max_update", "max_epoch", "stop_time_hours")]
    if not any(limits) and optimization.stop_min_lr < 0:
        raise ValueError("max_update 0 has the run never end: give --max-update, as the schedule and methods need it")
    if warmup and total and warmup > total:  # a run that ends within its warm-up is a trial
        raise ValueError(f"warmup_updates {warmup} exceeds total_num_update {total:g}: lower it")
    decay = options_of(cfg.lr_scheduler).get("decay_share")
    if warmup and total and decay and warmup > (1 - decay) * total:
        raise ValueError(f"warmup_updates {warmup} and decay_share {decay} of {total:g} overlap: lower one of them")
    if cfg.ema.store_ema:
        raise ValueError("store_ema does not work with these models: leave it out, and see `amos-fairseq average`")
    if cfg.checkpoint.no_save_optimizer_state:
        raise ValueError("no_save_optimizer_state has a run that was stopped begin again at update 0: leave it out")
    check_parallelism(cfg)
    check_paths(cfg)


def check_devices(cfg: DictConfig) -> None:
    """Raises ValueError if more processes are asked for than there are devices, and nobody else starts them.

    fairseq starts one for each GPU that it sees; torchrun and srun start them themselves.
    """
    size, seen = cfg.distributed_world_size, max(1, torch.cuda.device_count())
    started = cfg.distributed_init_method is not None or any(name in os.environ for name in STARTED_BY_OTHERS)
    if size > seen and not started:
        raise ValueError(
            f"distributed_world_size {size} exceeds the {seen} device{'s' * (seen > 1)} seen here: start the processes "
            f"with torchrun or srun, or lower it to {seen}"
        )


def check_ops(cfg: DictConfig) -> None:
    """Raises ValueError if ops are asked for that this machine has not.

    To look at a GPU may take memory there, so it is for processes that train, not for one that starts them.
    """
    common = cfg.common
    device = "cuda" if torch.cuda.is_available() and not common.cpu else "cpu"
    dtype = torch.bfloat16 if common.bf16 else torch.half if common.fp16 else torch.float
    functions_for(device, dtype)
    model = options_of(cfg.model)
    if model.get("rel_pos_buckets"):
        width = model["encoder_embed_dim"] // model["encoder_attention_heads"]
        attention_kernels(device, dtype, width, options_of(cfg.task).get("tokens_per_sample", 1))
    if model.get("compile_layers"):
        check_compiler(device)


def check_compiler(device: str) -> None:
    """Raises ValueError if there is none of those that torch.compile calls in the first update."""
    variable, known = ("CC", ["gcc", "clang"]) if device == "cuda" else ("CXX", ["g++"])
    names = os.environ.get(variable, "").split()[:1] or known
    if not any(map(shutil.which, names)):
        raise ValueError(f"compile_layers needs {' or '.join(names)}, and there is none: install it, or leave it out")


def options_declared(group: str, component: Any) -> List[Option]:
    """Of a component of the configuration; none of fairseq's older ones, which have no dataclass."""
    registries = {
        "task": tasks.TASK_DATACLASS_REGISTRY, "model": models.MODEL_DATACLASS_REGISTRY,
        **{name: REGISTRIES[name]["dataclass_registry"] for name in ("criterion", "optimizer", "lr_scheduler")},
    }
    config_class = registries[group].get(models.ARCH_MODEL_NAME_REGISTRY.get(component._name, component._name))
    return [] if config_class is None else declared(config_class)


def check_precision(common: Mapping[str, Any]) -> None:
    chosen = [name for name in PRECISIONS if common.get(name)]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are two precisions: give one of them; bf16 is for A100 and later")


def check_parallelism(cfg: DictConfig) -> None:
    distributed = cfg.distributed_training
    foreign = dict(
        pipeline_model_parallel=distributed.pipeline_model_parallel, tpu=cfg.common.tpu,
        model_parallel_size=cfg.common.model_parallel_size > 1, use_bmuf=cfg.optimization.use_bmuf,
    )
    given = [name for name in foreign if foreign[name]]
    if given:
        raise ValueError(f"{given[0]} is for some of fairseq's own models: leave it out")
    if distributed.ddp_backend in ("fully_sharded", "slowmo"):
        raise ValueError(f"ddp_backend {distributed.ddp_backend} does not work with these models: take pytorch_ddp")
    if distributed.zero_sharding != "none":
        raise ValueError(
            f"zero_sharding {distributed.zero_sharding} does not work with these optimizers: leave it out, and save "
            "memory by a smaller --batch-size with a larger --update-freq"
        )


def check_paths(cfg: DictConfig) -> None:
    if OmegaConf.is_missing(cfg.task, "data"):
        raise ValueError("task.data is not given: name the folder that `amos-fairseq prepare` wrote")
    if not cfg.checkpoint.save_dir:
        raise ValueError("save_dir is empty: name a folder for the checkpoints")
    log_file = cfg.common.log_file
    if log_file and not os.path.isdir(os.path.dirname(os.path.abspath(log_file))):
        raise ValueError(f"log_file {log_file} is in no folder that exists: make it")


def check_literals(options: Mapping[str, Any]) -> None:
    """Raises ValueError unless strings that fairseq evaluates as Python are plain numbers or a plain dictionary."""
    for name, allowed in PAIRS.items():
        value = options.get(name)
        if value is not None and not is_pair(literal(value), allowed):
            raise ValueError(f"{name} {value!r} must be two numbers, each {allowed}, as in '(0.9, 0.98)'")
    for name in DICTIONARIES:
        value = options.get(name)
        if value is not None and not isinstance(literal(value), Mapping):
            raise ValueError(f"{name} {value!r} must be a dictionary of plain values, as in \"{{'dropout': 0.1}}\"")


def literal(value: Any) -> Any:
    """The plain value that a string writes; None if it writes none. What is no string is itself."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def is_pair(value: Any, allowed: Range) -> bool:
    return isinstance(value, (tuple, list, ListConfig)) and len(value) == 2 and all(map(allowed.holds, value))


def check_names(cfg: DictConfig) -> None:
    """Raises ValueError if a group of the configuration names what is not registered, or nothing."""
    registries = {
        "task": tasks.TASK_REGISTRY, "model": {**models.MODEL_REGISTRY, **models.ARCH_MODEL_REGISTRY},
        **{name: REGISTRIES[name]["registry"] for name in ("criterion", "optimizer", "lr_scheduler")},
    }
    for group, registry in registries.items():
        name = getattr(cfg.get(group), "_name", None)
        if name is None:
            raise ValueError(f"{group} is not given: name it")
        if name not in registry:
            raise ValueError(f"{group} {name} is not known{suggestion(name, registry)}")


def described(error: OmegaConfBaseException, prefix: str = "") -> str:
    """In one line, an option that a configuration has not, or whose value is of another type."""
    name = ".".join(part for part in (prefix, error.full_key or str(error.key or "")) if part)
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        known = OmegaConf.structured(error.object_type) if error.parent_node is None else error.parent_node
        word = str(error.key)
        return f"{name} is no option{suggestion(word, names_in_groups(known)) or suggestion(word, map(str, known))}"
    if "is not a ListConfig" in str(error):
        given = [word.partition("=")[2] for word in sys.argv if word.lstrip("+").startswith(f"{name}=")]
        return f"{name} must be a list: write {name}=[{given[-1] if given else '..'}]"
    return f"{name}: {re.sub(r'[^ -~]+', ' ', str(error).splitlines()[0])}"


def names_in_groups(cfg: DictConfig) -> List[str]:
    """GROUP.OPTION of all groups of the configuration, where it has any, less what is only taken from elsewhere."""
    groups = [(key, group) for key in cfg if OmegaConf.is_dict(group := cfg._get_node(key)) and not group._is_none()]
    return [f"{key}.{name}" for key, group in groups for name in group if not OmegaConf.is_interpolation(group, name)]


@contextlib.contextmanager
def told_with_recipe_named() -> Iterator[None]:
    """As `told_in_one_line`, and a value that the recipe has and the command does not give is said to be the recipe's.
    """
    with told_in_one_line():
        try:
            yield
        except ValueError as error:
            error.args = (with_recipe_named(str(error), recipe_options()),)
            raise


def with_recipe_named(message: str, names: Set[str]) -> str:
    """`warmup_updates 10000 of the recipe exceeds ..`, for these names."""
    value = r"(?:-?[\d.][\w.+-]*|True|False|\[[^]]*\]|'[^']*')(?![\w.])"
    return re.sub(rf"(?<![\w.])(?:{'|'.join(names)}) {value}", r"\g<0> of the recipe", message) if names else message


def recipe_options() -> Set[str]:
    """Of fairseq-hydra-train: the names of those that the yaml files set and the command does not."""
    if not HydraConfig.initialized():
        return set()
    hydra = HydraConfig.get()
    files = [hydra.job.config_name, *(f"{group}/{choice}" for group, choice in hydra.runtime.choices.items())]
    paths = [Path(source.path, f"{file}.yaml") for source in hydra.runtime.config_sources for file in files]
    names = set()
    for path in filter(Path.is_file, paths):
        for key, value in OmegaConf.to_container(OmegaConf.load(path)).items():
            options = value if isinstance(value, dict) else {key: value}
            names |= {name for name, value in options.items() if not str(value).startswith("${")}
    return names - {override.partition("=")[0].rpartition(".")[2] for override in hydra.overrides.task}
