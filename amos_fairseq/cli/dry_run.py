"""`amos-fairseq train .. --dry-run`: what the command would train and what that takes, or what is wrong with it.

It needs no GPU, no data and no memory: the options are checked as a run checks them, the model has no values.
"""

import contextlib
import logging
import math
import os
import sys
import warnings
from types import SimpleNamespace
from typing import Any, Iterator, NamedTuple, NoReturn, Tuple

from amos_fairseq.cli.differing import differing, method_and_size
from amos_fairseq.terminal import duration, filled
from amos_fairseq.user_errors import seen_from, told_in_one_line

OPTION = "--dry-run"
# for hydra, whose place, log and copies of the configuration are not to be made
NOTHING_WRITTEN = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
DEVICES = ("A100", "H100", "H200")
VOCABULARY_SIZE = 32768  # where there are no data to tell
ASSUMED = f"a vocabulary of {VOCABULARY_SIZE:,} is assumed"
LABEL = 14  # columns on the left


class Run(NamedTuple):
    """How long the run is, by its command and its data."""

    length: int  # tokens of a block
    blocks: int  # of training, in the shards that the command names; 0 without data
    tokens: int  # in these
    shards: int
    devices: int
    batch: int  # sequences of a device at a time
    update_freq: int
    updates: int

    @property
    def sequences(self) -> int:
        return self.devices * self.batch * self.update_freq

    @property
    def passes(self) -> float:
        """Over the data; 0 without."""
        return self.updates * self.sequences / self.blocks if self.blocks else 0.0


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
    from amos_fairseq.checkpoints.training import goes_on_from
    from amos_fairseq.fairseq_options import told_with_recipe_named

    with told_in_one_line(OSError), told_with_recipe_named():
        task, model, missing = built(cfg)
        run = run_of(cfg, task, missing)
        model.method.check_batch_size(run.batch, "train")
        earlier = goes_on_from(cfg.task)
        if earlier is not None:
            check_going_on(cfg, task, earlier, missing)
    if os.environ.get("RANK", "0") == "0":
        known = f"{cfg.task.data}: {run.blocks:,} blocks of {run.length}, vocabulary {task.vocabulary.size:,}"
        rows = [("method", method_and_size(cfg)), ("data", f"{missing}: {ASSUMED}" if missing else known)]
        rows += [("goes on from", str(earlier))] if earlier is not None else []
        rows += zip(["options", *[""] * 999], differing(cfg, by_hydra))
        rows += costs(cfg, model, run)
        print(f"{OPTION}: nothing is trained, nothing is written\n")
        print("\n".join(filled(f"{label:<{LABEL}}{text}", hanging=LABEL + 2) for label, text in rows))
    sys.stdout.flush()
    raise SystemExit(0)


def built(cfg) -> Tuple[Any, Any, str]:
    """The task, a model without values, and why there are no data, else nothing; raises ValueError for wrong options.

    Without data the vocabulary is one whose words are not known, and nothing is taken from an earlier run.
    """
    import torch
    from fairseq import checkpoint_utils, tasks
    from omegaconf import OmegaConf

    from amos_fairseq import fairseq_options, supervision
    from amos_fairseq.methods import METHODS
    from amos_fairseq.methods.config import Vocabulary

    missing = ""
    if OmegaConf.is_missing(cfg.task, "data"):
        cfg.task.data, missing = "nowhere", "task.data is not given"
    elif not any(map(os.path.exists, cfg.task.data.split(":"))):
        missing = f"{seen_from(cfg.task.data.split(':')[0])} does not exist"
    fairseq_options.check_names(cfg)
    if cfg.task._name not in METHODS:
        raise ValueError(f"{OPTION} is for pre-training, not for task {cfg.task._name}: leave it out")
    supervision.check_options(cfg)
    checkpoint_utils.verify_checkpoint_directory(cfg.checkpoint.save_dir)
    if missing:
        task = type("WithoutData", (tasks.TASK_REGISTRY[cfg.task._name],), {
            "open_data": lambda self: None, "take_up": lambda self, *start: None,
            "vocabulary": Vocabulary(VOCABULARY_SIZE, 1, [0, 1, 2, 3]),
            "dictionary": SimpleNamespace(count=[1] * VOCABULARY_SIZE),
        })(cfg.task)
    else:
        task = tasks.setup_task(cfg.task)
    compiled, cfg.model.compile_layers = cfg.model.compile_layers, False  # which takes minutes, and less memory
    with torch.device("meta"):
        model = task.build_model(cfg.model)
    cfg.model.compile_layers = compiled
    return task, model, missing


def check_going_on(cfg, task, earlier, missing: str) -> None:
    """Raises ValueError if the run may not go on from the checkpoint at `earlier`."""
    from amos_fairseq.checkpoints import store
    from amos_fairseq.checkpoints.training import refuse_changes, refuse_no_rate

    if earlier.is_dir() and not missing:
        refuse_changes(earlier, SimpleNamespace(cfg=cfg, task=task))
    made = store.NAME.fullmatch(earlier.resolve().name)
    if made and int(made["updates"]) < (cfg.optimization.max_update or math.inf):  # else it is finished
        refuse_no_rate(cfg, int(made["updates"]))


def run_of(cfg, task, missing: str) -> Run:
    from amos_fairseq.fairseq_options import options_of

    length, train = cfg.task.tokens_per_sample, []
    if not missing:
        named = {os.path.basename(path) for path in task.shards}
        train = [shard for shard in task.manifest.splits["train"].shards
                 if next(iter(shard.files)).split("/")[0] in named]
        length = task.manifest.tokens_per_sample
    blocks, tokens = sum(shard.blocks for shard in train), sum(shard.tokens for shard in train)
    started = {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    devices = int(os.environ["WORLD_SIZE"]) if started else cfg.distributed_training.distributed_world_size
    most = cfg.dataset.max_tokens
    if most is not None and most < length:
        raise ValueError(f"max_tokens {most} is less than one block, {length}: raise it, or give --batch-size")
    limits = [cfg.dataset.batch_size, most and most // length]
    batch, update_freq = max(1, min(filter(None, limits))), cfg.optimization.update_freq[0]
    scheduled = int(float(options_of(cfg.lr_scheduler).get("total_num_update") or 0))
    shards, optimization = max(1, len(train)), cfg.optimization
    epoch = math.ceil(blocks / (shards * devices * batch * update_freq))  # fairseq's: of one shard
    ends = optimization.max_update, (optimization.max_epoch or 0) * epoch
    updates = min(filter(None, ends), default=scheduled or shards * epoch)
    return Run(length, blocks, tokens, shards, devices, batch, update_freq, max(1, updates))


def costs(cfg, model, run: Run) -> Iterator[Tuple[str, str]]:
    """Rows of the table: a label, or none, and a text."""
    from amos_fairseq.analysis.flops import Geometry, update_flops
    from amos_fairseq.flops import ASSUMED_MFU, PEAK_FLOPS

    method = model.method
    sizes = {
        group.name: sum(parameter.numel() for parameter in group.parameters)
        for group in method.learning_rate_groups()
    }
    sizes["frozen"] = sum(parameter.numel() for parameter in method.parameters() if not parameter.requires_grad)
    yield "parameters", f"{sum(sizes.values()):,}"
    yield "", ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)

    devices = f"{run.devices:,} device{'s' * (run.devices > 1)}"
    tokens = round(run.sequences * (run.tokens / run.blocks if run.blocks else run.length))
    layout = f"{devices} x {run.batch} x update_freq {run.update_freq}"
    yield "update", f"{run.sequences:,} sequences, {tokens:,} tokens: {layout}"

    alone, joint = update_flops(method, Geometry(run.sequences, run.length, run.updates, cfg.task.mask_prob))
    first = min(method.generator_warmup, run.updates)
    total = first * alone + (run.updates - first) * joint
    of_first = f", {alone:.3g} in the first {first:,} (generator alone)" if first else ""
    yield "FLOPs", f"{joint:.3g} an update{of_first}; {total:.3g} in {run.updates:,} updates"

    yield from memory_rows(cfg, method, run)
    times = [f"{name} {duration(total / (PEAK_FLOPS[name] * ASSUMED_MFU * run.devices))}" for name in DEVICES]
    yield "time", f"{', '.join(times)}, on {devices} if the MFU were {ASSUMED_MFU}"
    passes = f"{run.passes:.3g} over the data, {run.sequences * run.updates:,} sequences"
    yield "passes", passes if run.blocks else "not known without data"
    yield "checkpoints", checkpoints(cfg, model, run)


def memory_rows(cfg, method, run: Run) -> Iterator[Tuple[str, str]]:
    import torch

    from amos_fairseq.analysis.plan import batch_without_values, memory

    common, fused = cfg.common, not cfg.common.cpu
    dtype = torch.bfloat16 if common.bf16 else torch.half if common.fp16 else torch.float
    masters = dtype != torch.float and not memory_efficient(cfg)
    batch = batch_without_values(run.batch, run.length, cfg.task.mask_prob, cfg.task.get("crop_keep_fraction"))
    try:
        parts = memory(method.to(dtype), batch, masters, run.devices, fused)
    except (NotImplementedError, RuntimeError) as error:
        yield "memory", f"not known: {str(error).splitlines()[0]}"
        return
    yield "memory", f"{amount(parts.total)} of each device" + ", and about 0.6 GiB of CUDA's own" * fused
    notes = {
        "gradients": ", and the buckets that they are sent in" * (run.devices > 1),
        "optimizer": ": two moments" + " and the parameters in fp32" * masters,
        "activations": f" of {run.batch} sequences" + ", attention in full" * (not fused),
        "temporaries": ", fewer with the compiled ops" * fused,
    }
    for name, size in parts._asdict().items():
        yield "", f"{amount(size):>10} {name}{notes.get(name, '')}"


def memory_efficient(cfg) -> bool:
    """Half precision without fp32 copies of the parameters."""
    return cfg.common.memory_efficient_bf16 or cfg.common.memory_efficient_fp16


def checkpoints(cfg, model, run: Run) -> str:
    from amos_fairseq.analysis.plan import checkpoint_bytes

    options, epochs = cfg.checkpoint, math.ceil((run.passes or 1) * run.shards)
    if options.no_save:
        return "none"
    kept = 2 + max(0, options.keep_best_checkpoints)  # the best, and the next while it is written
    for interval, of_kind, keep in (
        (options.save_interval_updates, run.updates, options.keep_interval_updates),
        (0 if options.no_epoch_checkpoints else options.save_interval, epochs, options.keep_last_epochs),
    ):
        made = of_kind // interval if interval > 0 else 0
        kept += min(made, keep) if keep > 0 else made
    size = checkpoint_bytes(model, not memory_efficient(cfg))
    return f"{amount(size)} each, at most {kept:,}: {amount(size * kept)} in {options.save_dir}"


def amount(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
