"""`amos-fairseq train .. --dry-run`: what the command would train and what that takes, or what is wrong with it.

It needs no GPU, no data and no memory: the options are checked as a run checks them, the model has no values.
"""

import contextlib
import logging
import math
import os
import sys
import textwrap
import warnings
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, NoReturn, Optional, Tuple

from amos_fairseq.user_errors import seen_from, told_in_one_line

OPTION = "--dry-run"
# for hydra, whose place, log and copies of the configuration are not to be made
NOTHING_WRITTEN = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
DEVICES, MFU = ("A100", "H100", "H200"), 0.35
VOCABULARY_SIZE = 32768  # where there are no data to tell
WIDTH, LABEL = 80, 14  # columns, and those of what stands on the left
NOT_TOLD = {"common.user_dir", "task.data", "checkpoint.save_dir"}  # or elsewhere


class Numbers(NamedTuple):
    """What the data and the command say about the run's length."""

    data: str  # in words
    vocabulary: int
    length: int  # tokens of a block
    blocks: Optional[int]  # of training, in the shards that the command names; None without data
    tokens: Optional[int]  # in these
    shards: int
    devices: int
    batch: int  # sequences of a device at a time
    update_freq: int
    updates: int

    @property
    def sequences(self) -> int:
        return self.devices * self.batch * self.update_freq

    @property
    def passes(self) -> Optional[float]:
        return self.updates * self.sequences / self.blocks if self.blocks else None


@contextlib.contextmanager
def instead_of_training(by_hydra: bool) -> Iterator[None]:
    """Inside, fairseq's programs end with the plan of the run where they would start its processes."""
    from fairseq.distributed import utils as distributed_utils

    call_main = distributed_utils.call_main
    distributed_utils.call_main = lambda cfg, main, **kwargs: end_with_plan(cfg, by_hydra)
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        distributed_utils.call_main = call_main


def end_with_plan(cfg, by_hydra: bool) -> NoReturn:
    """Status 0, or as the run would end, with its message, for options and data that are wrong."""
    import torch
    from fairseq import checkpoint_utils
    from omegaconf import OmegaConf

    from amos_fairseq import fairseq_options, supervision
    from amos_fairseq.checkpoints import store
    from amos_fairseq.checkpoints.training import goes_on_from, refuse_changes, refuse_no_rate
    from amos_fairseq.methods import METHODS

    given = not OmegaConf.is_missing(cfg.task, "data")
    if not given:
        cfg.task.data = "task.data"  # which is told to be missing
    with told_in_one_line((ValueError, OSError)):
        fairseq_options.check_names(cfg)
        if cfg.task._name not in METHODS:
            raise ValueError(f"{OPTION} is for pre-training, not for task {cfg.task._name}: leave it out")
        supervision.check_options(cfg)
        checkpoint_utils.verify_checkpoint_directory(cfg.checkpoint.save_dir)
        has_data = given and any(os.path.exists(path) for path in cfg.task.data.split(":"))
        task = task_of(cfg, has_data)
        compiled, cfg.model.compile_layers = cfg.model.compile_layers, False  # which takes minutes, and less memory
        with torch.device("meta"):
            model = task.build_model(cfg.model)
        cfg.model.compile_layers = compiled
        earlier = goes_on_from(cfg.task)
        if earlier is not None and earlier.is_dir() and has_data:
            refuse_changes(earlier, SimpleNamespace(cfg=cfg, task=task))
        made = earlier and store.NAME.fullmatch(earlier.resolve().name)
        if made and int(made["updates"]) < (cfg.optimization.max_update or math.inf):  # else it is finished
            refuse_no_rate(cfg, int(made["updates"]))
    missing = "" if has_data else (
        f"{seen_from(cfg.task.data.split(':')[0])} does not exist" if given else "task.data is not given"
    )
    numbers = numbers_of(cfg, task, missing)
    if os.environ.get("RANK", "0") == "0":
        rows = [("method", method_and_size(cfg)), ("data", numbers.data)]
        if earlier is not None:
            rows.append(("goes on from", str(earlier)))
        differ = differing(cfg, by_hydra)
        rows += [("options", differ[0]), *(("", line) for line in differ[1:]), *costs(cfg, model, numbers)]
        print(f"{OPTION}: nothing is trained, nothing is written\n")
        print("\n".join(line for row in rows for line in wrapped(*row)))
    sys.stdout.flush()
    raise SystemExit(0)


def task_of(cfg, has_data: bool):
    """fairseq's task; without data one of a vocabulary whose words are not known, from which no earlier run starts."""
    from fairseq import tasks

    from amos_fairseq.methods.base import Vocabulary

    if has_data:
        return tasks.setup_task(cfg.task)
    stand_in = {
        "open_data": lambda self: None, "take_up": lambda self, *start: None,
        "vocabulary": Vocabulary(VOCABULARY_SIZE, 1, [0, 1, 2, 3]),
        "dictionary": SimpleNamespace(count=[1] * VOCABULARY_SIZE),
    }
    return type("WithoutData", (tasks.TASK_REGISTRY[cfg.task._name],), stand_in)(cfg.task)


def numbers_of(cfg, task, missing: str) -> Numbers:
    blocks = tokens = None
    shards, length, words = 1, cfg.task.tokens_per_sample, f"{missing}: a vocabulary of {VOCABULARY_SIZE:,} is assumed"
    if not missing:
        named = {os.path.basename(path) for path in task.shards}
        train = [shard for shard in task.manifest.splits["train"].shards
                 if next(iter(shard.files)).split("/")[0] in named]
        blocks, tokens = sum(shard.blocks for shard in train), sum(shard.tokens for shard in train)
        shards, length = len(train), task.manifest.tokens_per_sample
        words = f"{cfg.task.data}: {blocks:,} blocks of {length}, vocabulary {task.vocabulary.size:,}"
    started = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    devices = int(os.environ["WORLD_SIZE"]) if started else cfg.distributed_training.distributed_world_size
    limits = [cfg.dataset.batch_size, cfg.dataset.max_tokens and cfg.dataset.max_tokens // length]
    batch = max(1, min(limit for limit in limits if limit))
    updates = cfg.optimization.max_update or int(float(schedule_of(cfg).get("total_num_update") or 0))
    if not updates and blocks:
        updates = math.ceil(blocks / (devices * batch * cfg.optimization.update_freq[0]))
    return Numbers(
        words, task.vocabulary.size, length, blocks, tokens, shards, devices, batch, cfg.optimization.update_freq[0],
        max(1, updates),
    )


def schedule_of(cfg) -> Mapping[str, Any]:
    from amos_fairseq.fairseq_options import options_of

    return options_of(cfg.lr_scheduler)


def method_and_size(cfg) -> str:
    """A size is what the options of an architecture are, all or but for some."""
    from amos_fairseq.methods import size_options
    from amos_fairseq.methods.base import ENCODER_SIZES

    method, options = cfg.task._name, cfg.model
    unlike = {
        size: [name for name, value in size_options(method, size).items() if plain(options.get(name)) != plain(value)]
        for size in ENCODER_SIZES
    }
    size = min(unlike, key=lambda size: len(unlike[size]))
    changed = ", ".join(f"{name} {plain(options[name])}" for name in unlike[size])
    return f"{method}, size {size}" + (f" but for {changed}" if changed else "")


def wrapped(label: str, text: str) -> List[str]:
    """Lines of at most WIDTH columns, but for a word that is longer."""
    lines = textwrap.wrap(
        text, WIDTH - LABEL, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [f"{name:<{LABEL}}{line}" for name, line in zip([label, *[""] * len(lines)], lines)]


# What differs

def differing(cfg, by_hydra: bool) -> List[str]:
    """Lines: the resolved options that are not the recipe's, or not the architecture's defaults."""
    from amos_fairseq.fairseq_options import options_declared

    chosen, baseline = recipe() if by_hydra else ([], architecture(cfg))
    now, then = flat(cfg), flat(baseline)
    copies = {
        f"{group}.{option.name}": option.default[2:-1]
        for group in ("task", "model", "optimizer", "lr_scheduler") for option in options_declared(group, cfg[group])
        if str(option.default).startswith("${")
    }
    copies.update({"dataset.batch_size_valid": "dataset.batch_size", "dataset.max_tokens_valid": "dataset.max_tokens"})
    lines = [
        f"{key} {then[key]} -> {now[key]}" for key in now
        if key in then and now[key] != then[key] and then[key] != "???" and key not in NOT_TOLD
        and not (key in copies and now[key] == now.get(copies[key]))
    ]
    of = "the recipe's" if by_hydra else "the defaults of the architecture"
    lines = [*chosen, *lines]
    return [f"{len(lines)} are not {of}:", *lines] if lines else [f"all are {of}"]


def recipe() -> Tuple[List[str], Any]:
    """The groups that were chosen, and the yaml with them and without any other override."""
    from fairseq.dataclass.initialize import add_defaults
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import open_dict

    def load(overrides: List[str]):
        return loader.load_configuration(of_job.job.config_name, overrides=overrides, run_mode=RunMode.RUN)

    of_job, loader = HydraConfig.get(), GlobalHydra.instance().config_loader()
    baseline = load([])
    given = (override.partition("=") for override in of_job.overrides.task)
    choices = baseline.hydra.runtime.choices
    chosen = [f"{group}={name}" for group, _, name in given if group in choices and choices[group] != name]
    if chosen:
        baseline = load(chosen)
    with open_dict(baseline):
        del baseline["hydra"]
    add_defaults(baseline)
    return chosen, baseline


def architecture(cfg) -> Any:
    """The configuration of a command with nothing but what names the components."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    names = {"task": cfg.task, "arch": cfg.model, "criterion": cfg.criterion, "optimizer": cfg.optimizer}
    names["lr-scheduler"] = cfg.lr_scheduler
    command = [cfg.task.data, *(word for name, group in names.items() for word in (f"--{name}", group._name))]
    given, sys.argv = sys.argv, [sys.argv[0], *command]  # fairseq looks there, too
    try:
        parsed = options.parse_args_and_arch(options.get_training_parser(), command)
        return convert_namespace_to_omegaconf(parsed)
    finally:
        sys.argv = given


def flat(cfg) -> Dict[str, str]:
    from omegaconf import OmegaConf

    groups = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return {
        f"{group}.{name}": plain(value) for group, options in groups.items() if isinstance(options, Mapping)
        for name, value in options.items() if name != "_name"
    }


def plain(value: Any) -> str:
    """As one writes it: numbers of any kind alike, lists and tuples, too."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.12g}"
    return str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else ",".join(map(plain, value))


# What it takes

def costs(cfg, model, numbers: Numbers) -> Iterator[Tuple[str, str]]:
    """Rows of a table of 80 columns."""
    from amos_fairseq.analysis.flops import Geometry, update_flops
    from amos_fairseq.flops import PEAK_FLOPS

    method, sequences, updates = model.method, numbers.sequences, numbers.updates
    geometry = Geometry(sequences, numbers.length, updates, cfg.task.mask_prob)
    groups = [
        (group.name, sum(parameter.numel() for parameter in group.parameters))
        for group in method.learning_rate_groups()
    ]
    frozen = sum(parameter.numel() for parameter in method.parameters() if not parameter.requires_grad)
    groups += [("frozen", frozen)] if frozen else []
    yield "parameters", f"{sum(size for _, size in groups):,}"
    yield "", ", ".join(f"{name} {size:,}" for name, size in groups)

    tokens = sequences * numbers.length
    if numbers.tokens:
        tokens = round(sequences * numbers.tokens / max(1, numbers.blocks or 1))
    layout = f"{counted(numbers.devices, 'device')} x {numbers.batch} x update_freq {numbers.update_freq}"
    yield "update", f"{sequences:,} sequences, {tokens:,} tokens: {layout}"

    alone, joint = update_flops(method, geometry)
    first = min(method.generator_warmup, updates)
    total = first * alone + (updates - first) * joint
    of_first = f", {alone:.3g} in the first {first:,} (generator alone)" if first else ""
    yield "FLOPs", f"{joint:.3g} an update{of_first}; {total:.3g} in {updates:,} updates"

    yield from memory_rows(cfg, method, numbers)
    times = [f"{name} {duration(total / (PEAK_FLOPS[name] * MFU * numbers.devices))}" for name in DEVICES]
    yield "time", f"{', '.join(times)}, where {counted(numbers.devices, 'device')} reach an MFU of {MFU:.0%}"
    if numbers.passes is None:
        yield "passes", "not known without data"
    else:
        yield "passes", f"{numbers.passes:.3g} over the data, {sequences * updates:,} sequences"
    yield "checkpoints", checkpoints(cfg, model, numbers)


def memory_rows(cfg, method, numbers: Numbers) -> Iterator[Tuple[str, str]]:
    import torch

    from amos_fairseq.analysis.plan import batch_without_values, memory

    common = cfg.common
    dtype = torch.bfloat16 if common.bf16 else torch.half if common.fp16 else torch.float
    of_half = "memory_efficient_bf16" if common.bf16 else "memory_efficient_fp16"
    batch = batch_without_values(
        numbers.batch, numbers.length, cfg.task.mask_prob, cfg.task.get("crop_keep_fraction")
    )
    masters, fused = not common.get(of_half), not common.cpu
    try:
        parts = memory(method.to(dtype), batch, masters, numbers.devices, fused)
    except (NotImplementedError, RuntimeError) as error:
        yield "memory", f"not known: {str(error).splitlines()[0]}"
        return
    cuda = "" if common.cpu else ", and about 0.6 GiB of CUDA's own"
    yield "memory", f"{amount(parts.total)} of each device{cuda}"
    notes = {
        "gradients": ", and the buckets that they are sent in" if numbers.devices > 1 else "",
        "optimizer": ": two moments" + (" and the parameters in fp32" if masters and dtype != torch.float else ""),
        "activations": f" of {numbers.batch} sequences" + (", attention in full" if not fused else ""),
        "temporaries": "" if common.cpu else ", fewer with the compiled ops",
    }
    for name, size in parts._asdict().items():
        yield "", f"{amount(size):>10} {name}{notes.get(name, '')}"


def checkpoints(cfg, model, numbers: Numbers) -> str:
    from amos_fairseq.analysis.plan import checkpoint_bytes

    options, epochs = cfg.checkpoint, math.ceil((numbers.passes or 1) * numbers.shards)
    if options.no_save:
        return "none"
    masters = not (cfg.common.memory_efficient_bf16 or cfg.common.memory_efficient_fp16)
    size = checkpoint_bytes(model, masters)
    kept = 2 + max(0, options.keep_best_checkpoints)  # the best, and the next while it is written
    for interval, of_kind, keep in (
        (options.save_interval_updates, numbers.updates, options.keep_interval_updates),
        (0 if options.no_epoch_checkpoints else options.save_interval, epochs, options.keep_last_epochs),
    ):
        made = of_kind // interval if interval > 0 else 0
        kept += min(made, keep) if keep > 0 else made
    return f"{on_disk(size)} each, at most {kept:,}: {on_disk(size * kept)} in {options.save_dir}"


def amount(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def on_disk(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("s" if number != 1 else "")


def duration(seconds: float) -> str:
    for unit, length, least in (("days", 86400, 4), ("h", 3600, 1), ("min", 60, 1)):
        if seconds >= least * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
