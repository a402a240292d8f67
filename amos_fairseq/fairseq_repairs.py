"""What fairseq-fixed 0.12.3.1 gets wrong and users of this package would meet: one function per defect.

Each takes the fairseq function that it is written for and returns the one to use in its place.
"""
import argparse
import collections
import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import os
import pickle
import pkgutil
import re
import sys
import types
import typing
from typing import Callable, Dict, Iterator, List, Tuple

import numpy
import omegaconf
import torch

from amos_fairseq.random import mixed_seed

Repair = Callable[[Callable], Callable]
REPAIRS: Dict[str, Tuple[str, Repair]] = {}  # fairseq function: (first digits of its source's sha256, its repair)
_installed = False


def install() -> None:
    """Repair fairseq in this process: all of it or, with a RuntimeError, nothing. Further calls change nothing."""
    global _installed
    if _installed:
        return
    originals = {target: checked_original(target, source) for target, (source, _) in REPAIRS.items()}
    for target, original in originals.items():
        owner, name = target.replace(":", ".").rsplit(".", 1)
        _, repair = REPAIRS[target]
        setattr(pkgutil.resolve_name(owner), name, functools.wraps(original)(repair(original)))
    _installed = True


def checked_original(target: str, source: str) -> Callable:
    """fairseq's function `target`, provided that it still is the one that its repair was written for."""
    try:
        original = pkgutil.resolve_name(target)
        digest = hashlib.sha256(inspect.getsource(original).encode()).hexdigest()
    except (ImportError, AttributeError, OSError):
        digest = "absent"
    if not digest.startswith(source):
        raise RuntimeError(
            f"{target} of {_fairseq_version()} is not the function that amos_fairseq knows how to repair; "
            "use the tested version: pip install fairseq-fixed==0.12.3.1"
        )
    return original


def _fairseq_version() -> str:
    for distribution in ("fairseq-fixed", "fairseq"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{distribution} {importlib.metadata.version(distribution)}"
    return "this fairseq"


def repairs(target: str, source: str) -> Callable[[Repair], Repair]:
    """Decorator: enter a repair of `target` into REPAIRS."""
    def enter(repair: Repair) -> Repair:
        REPAIRS[target] = (source, repair)
        return repair
    return enter


@repairs("fairseq.options:parse_args_and_arch", source="535ef04316810361")
def bf16_does_not_ask_for_a_tpu(original: Callable) -> Callable:
    """On the command line, fairseq takes `--bf16` for `--bf16 --tpu` and then looks for torch_xla.

    So bf16, the natural precision of an A100, trains from yaml only. Here the TPU is used if `--tpu` is given.
    """
    def parse_args_and_arch(parser, input_args=None, *args, **kwargs):
        parsed = original(parser, input_args, *args, **kwargs)
        options = parsed[0] if isinstance(parsed, tuple) else parsed  # a tuple with parse_known=True
        if getattr(options, "tpu", False):
            options.tpu = "--tpu" in (sys.argv[1:] if input_args is None else input_args)
        return parsed
    return parse_args_and_arch


def _harmless() -> List[Callable]:
    """What fairseq's checkpoints hold beside tensors and plain Python; building it runs no code of theirs."""
    from fairseq.distributed.utils import _TensorPlaceholder

    numpy_scalars = [numpy.float64(0), numpy.float32(0), numpy.int64(0), numpy.bool_(0)]  # from logged metrics
    return [
        argparse.Namespace,  # options of architectures without a dataclass
        numpy.float64(0).__reduce__()[0], numpy.dtype, *{type(scalar.dtype) for scalar in numpy_scalars},
        omegaconf.DictConfig, omegaconf.ListConfig, omegaconf.AnyNode,  # from here on: what ranks send each other
        omegaconf.base.ContainerMetadata, omegaconf.base.Metadata, typing.Any,
        collections.defaultdict, dict, list, int, _TensorPlaceholder,
    ]


@contextlib.contextmanager
def _data_only(source: str) -> Iterator[None]:
    """Inside, torch.load builds tensors and what is harmless; if `source` asks for more, it is refused, not run."""
    torch.serialization.add_safe_globals(_harmless())  # for good: torch 2.4 cannot take them back
    load = torch.load
    torch.load = functools.partial(load, weights_only=True)  # the default only since torch 2.6
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = re.search(r"(Unsupported|Trying to|Can only) .*?(?=\. |\.?$)", str(error), re.MULTILINE)
        reason = reason.group() if reason else "it holds more than data"
        raise RuntimeError(f"{source} is refused, since to load it could run code: {reason}") from None
    finally:
        torch.load = load


@repairs("fairseq.checkpoint_utils:load_checkpoint_to_cpu", source="96f7d33cde8e1582")
def checkpoints_load_and_run_no_code(original: Callable) -> Callable:
    """Since torch 2.6, torch.load refuses the argparse.Namespace in checkpoints of fairseq's older architectures.

    Before, it ran whatever code a checkpoint held. Both end here: fairseq's own checkpoints load, for training,
    fairseq-validate and hub alike, and one that asks for anything else is refused before it can run.
    """
    def load_checkpoint_to_cpu(path, *args, **kwargs):
        with _data_only(str(path)):
            return original(path, *args, **kwargs)
    return load_checkpoint_to_cpu


@repairs("fairseq.distributed.utils:_broadcast_object_slow", source="9fc3ef1939a94874")
def checkpoints_reach_every_rank(original: Callable) -> Callable:
    """Rank 0 sends a loaded checkpoint, which holds omegaconf nodes, to the others, where torch >= 2.6 refuses it."""
    def _broadcast_object_slow(*args, **kwargs):
        with _data_only("what rank 0 sent"):
            return original(*args, **kwargs)
    return _broadcast_object_slow


@repairs("fairseq.trainer:Trainer._set_seed", source="231713ebb624ce42")
def ranks_draw_different_numbers(original: Callable) -> Callable:
    """fairseq seeds every rank with `seed + update`: all ranks draw the same dropout masks and the same noise.

    N GPUs then average over correlated noise, and seed 1 at update 10 repeats seed 2 at update 9. A mixed seed of
    (seed, update, data-parallel rank) has neither fault and still repeats itself after a resume.
    """
    def _set_seed(self):
        from fairseq import utils

        seed = mixed_seed(self.cfg.common.seed, self.get_num_updates(), self.data_parallel_rank)
        utils.set_torch_seed(seed)
    return _set_seed


@repairs("fairseq.distributed.utils:infer_init_method", source="340321c1d2a184da")
def torchrun_starts_one_training(original: Callable) -> Callable:
    """With one visible GPU per process, or on CPU, fairseq ignores torchrun: N processes train N models, silently.

    Its world size defaults to the number of visible GPUs, and it returns at world size 1 before it looks at what
    torchrun says; past that, a machine without GPU divides by zero. fairseq-hydra-train imports the user directory
    after this function, so there the repair acts only if install() ran before, as our own command does.
    """
    def infer_init_method(cfg, force_distributed=False):
        started_by_torchrun = {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"} <= os.environ.keys()
        if (
            not started_by_torchrun or int(os.environ["WORLD_SIZE"]) == 1
            or cfg.distributed_init_method is not None or cfg.tpu or cfg.pipeline_model_parallel
        ):
            return original(cfg, force_distributed)
        cfg.distributed_init_method = "env://"
        cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
        cfg.distributed_rank = int(os.environ["RANK"])
        cfg.device_id = cfg.distributed_rank % max(1, torch.cuda.device_count())
        cfg.distributed_no_spawn = True
    return infer_init_method


@repairs("fairseq.distributed.utils:distributed_init", source="766a47046fcaf6df")
def processes_on_cpu_talk_through_gloo(original: Callable) -> Callable:
    """fairseq's default backend is NCCL, which needs GPUs."""
    def distributed_init(cfg):
        on_cpu = cfg.common.cpu or not torch.cuda.is_available()
        if on_cpu and cfg.distributed_training.distributed_backend == "nccl":
            cfg.distributed_training.distributed_backend = "gloo"
        return original(cfg)
    return distributed_init


@repairs("fairseq.models:DistributedFairseqModel", source="caa68bcad9ada051")
def default_ddp_backend_runs_on_cpu(original: Callable) -> Callable:
    """fairseq names a device id for PyTorch's DDP, which raises if the model is on the CPU."""
    class DataParallel(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, module, device_ids, output_device, **options):
            if all(parameter.device.type == "cpu" for parameter in module.parameters()):
                device_ids = output_device = None
            super().__init__(module, device_ids=device_ids, output_device=output_device, **options)

    # the original's own code, in which one name means another class
    return types.FunctionType(original.__code__, {**original.__globals__, "DistributedDataParallel": DataParallel})


@repairs("fairseq.trainer:Trainer.train_step", source="8cbf0406b1fe5093")
def updates_start_with_empty_micro_batches(original: Callable) -> Callable:
    """At the ragged end of an epoch, a rank drops an update's real micro-batches from sample_size and from the logs.

    It does so whenever the last one is empty, though their gradients are applied: the step is too long. Here the
    empty ones come first, so this happens only if all are empty, when it is right. The order has no other effect.
    Also, no task ever sees the micro-batches of an update together; one that has `begin_update(samples, device)`
    is called with them before anything else (and again if AMP repeats the update).
    """
    def train_step(self, samples, raise_oom=False):
        samples = sorted(samples, key=lambda sample: bool(sample))  # stable, False first; empty: {} or None
        if hasattr(self.task, "begin_update"):
            self.task.begin_update(samples, self.device)
        return original(self, samples, raise_oom)
    return train_step
