"""What fairseq-fixed 0.12.3.1 gets wrong and users of this package would meet: one function per defect.

Each is called in place of the fairseq function that it is written for, with that one before the arguments.
"""
import argparse
import collections
import contextlib
import copy
import errno
import functools
import gc
import hashlib
import importlib.metadata
import inspect
import os
import pickle
import pkgutil
import sys
import types
import typing
from typing import Callable, Dict, Iterator, List, Sequence, Tuple

import numpy
import omegaconf
import torch
from fairseq import utils
from fairseq.optim import OPTIMIZER_REGISTRY

from amos_fairseq import fairseq_help, fairseq_options, hydra_options, silenced, supervision
from amos_fairseq.checkpoints import position, storage, store, training
from amos_fairseq.data import loading
from amos_fairseq.random import mixed_seed
from amos_fairseq.supervision import display
from amos_fairseq.user_errors import Damaged, one_line, stop, tell_mistakes, told_in_one_line

Repair = Callable[..., object]
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
        setattr(pkgutil.resolve_name(owner), name, repaired(original, REPAIRS[target][1]))
    silenced.install()
    display.install()
    _installed = True


def repaired(original: Callable, repair: Repair) -> Callable:
    @functools.wraps(original)
    def in_its_place(*args, **kwargs):
        return repair(original, *args, **kwargs)
    return in_its_place


def with_names(original: Callable, **meanings) -> Callable:
    """The original's own code, in which some names of its module mean something else."""
    code = types.FunctionType(original.__code__, {**original.__globals__, **meanings})
    code.__defaults__, code.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
    return code


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
            "use the tested versions: pip install fairseq-fixed==0.12.3.1 hydra-core==1.3.2"
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
def bf16_does_not_ask_for_a_tpu(original: Callable, parser, input_args=None, *args, **kwargs):
    """On the command line, fairseq takes `--bf16` for `--bf16 --tpu` and then looks for torch_xla.

    So bf16, the natural precision of an A100, trains from yaml only. Here the TPU is used if `--tpu` is given.
    Mistakes in the command, which fairseq answers with pages of usage, end in one line; see `fairseq_options`, too.
    The default of --total-num-update is --max-update, as fairseq has it in configurations. With --help, fairseq lists
    its own options alone; here those of the task, model, criterion and optimizer that are named come before.
    """
    given = sys.argv[1:] if input_args is None else input_args
    fairseq_help.show(parser, given)
    tell_mistakes(parser)
    with told_in_one_line():
        try:
            parsed = original(parser, input_args, *args, **kwargs)
        except ValueError as error:
            if "tpu" not in str(error).lower():
                raise
            fairseq_options.check_precision({"fp16": True, "bf16": "--tpu" not in given})
            raise
        except RuntimeError as error:
            if str(error):
                raise
            raise ValueError(
                "there is no --arch: name a method by --task, --arch and --criterion, as in --task amos_rtd --arch "
                "amos_rtd_base --criterion amos_rtd"
            ) from None
        options = parsed[0] if isinstance(parsed, tuple) else parsed  # a tuple with parse_known=True
        fairseq_options.check_literals(vars(options))
    if getattr(options, "tpu", False):
        options.tpu = "--tpu" in given
    if getattr(options, "total_num_update", 0) is None:  # fairseq's default, from which it makes None
        options.total_num_update = options.max_update
    return parsed


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
        raise Damaged(storage.refusal(source, error)) from None
    finally:
        torch.load = load


@repairs("fairseq.checkpoint_utils:load_checkpoint_to_cpu", source="96f7d33cde8e1582")
def checkpoints_load_and_run_no_code(original: Callable, path, arg_overrides=None, load_on_all_ranks=False):
    """Since torch 2.6, torch.load refuses the argparse.Namespace in checkpoints of fairseq's older architectures.

    Before, it ran whatever code a checkpoint held. Both end here: fairseq's own checkpoints load, for training,
    fairseq-validate and hub alike, and one that asks for anything else is refused before it can run. The folders that
    stand for them with `checkpoints_are_complete_or_absent` load wherever a file does.
    """
    if os.path.isdir(path) or os.path.basename(path) == storage.MANIFEST:
        path = store.find(path)
        if path.is_dir():
            return training.load_to_cpu(path, arg_overrides)
    try:
        with _data_only(str(path)):
            return original(path, arg_overrides, load_on_all_ranks)
    except (RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error) or "it ends early").splitlines()[0].split(". ")[0]
        raise Damaged(f"{path} is no checkpoint that training wrote: {reason}") from None


@repairs("fairseq.checkpoint_utils:save_checkpoint", source="61513534b9b33e6a")
def checkpoints_are_complete_or_absent(original: Callable, cfg, trainer, epoch_itr, val_loss):
    """fairseq copies each checkpoint over checkpoint_last.pt, the only file that it resumes from.

    A kill or a full disk during the copy leaves half a file and no way on. Here each is a folder that appears under
    its name once it is on the disk as a whole; `checkpoint_last` and `checkpoint_best` are links.
    """
    with supervision.saving():
        if trainer.checkpoint_suffix:  # a file for each process, of models in shards
            return original(cfg, trainer, epoch_itr, val_loss)
        return training.save(cfg, trainer, epoch_itr, val_loss)


@repairs("fairseq.checkpoint_utils:load_checkpoint", source="08e4fa03a2ab86a9")
def runs_resume_from_the_newest_valid_checkpoint(original: Callable, cfg, trainer, **passthrough):
    """If fairseq does not find the checkpoint that it is to load, it trains from scratch and overwrites.

    It also goes on with another seed, batch, corpus or model without a word, and trains a finished run for one more
    update. Here a damaged checkpoint is named and the one before is taken; with nothing to take, or after such a
    change that was not allowed by name, the run ends and says why; a finished one ends with success.
    """
    supervisor = supervision.begin(trainer.cfg)
    if supervisor is not None:
        supervisor.lock(trainer)
    if trainer.checkpoint_suffix:
        return original(cfg, trainer, **passthrough)
    with told_in_one_line(Damaged):
        extra_state, epoch_itr = training.load(original, cfg, trainer, **passthrough)
        if supervisor is not None:
            supervisor.resume(extra_state)
    if supervisor is not None:
        supervisor.begin_history(trainer)
        supervisor.finish_update(trainer, extra_state)
    return extra_state, epoch_itr


@repairs("fairseq.checkpoint_utils:verify_checkpoint_directory", source="413f93d9a158f8d4")
def a_wrong_command_makes_no_folder(original: Callable, save_dir):
    """fairseq makes the folder for checkpoints before it has looked at data and options, or dies of an OSError.

    Here it is made when the run takes its lock, and one that cannot be is told in one line.
    """
    folder = os.path.abspath(save_dir)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            stop(one_line(OSError(errno.EROFS, os.strerror(errno.EROFS), save_dir)), os.EX_IOERR)
        stop(f"save_dir {save_dir}: {folder} is no folder that can be written to", os.EX_USAGE)


@repairs("fairseq.dataclass.utils:merge_with_parent", source="799b14fda91be311")
def unknown_keys_of_a_configuration_are_told(original: Callable, dc, cfg, *args, **kwargs):
    """A key of a yaml file that a task or model does not have, or a value of another type, ends in a traceback."""
    try:
        return original(dc, cfg, *args, **kwargs)
    except omegaconf.errors.OmegaConfBaseException as error:
        stop(fairseq_options.described(error, cfg._get_full_key(None)), os.EX_USAGE)


@repairs("fairseq.dataclass.utils:eval_str_list", source="415343fc24115100")
def lists_that_do_not_parse_are_told(original: Callable, x, x_type=float):
    """argparse words a ValueError of the function that reads an option, and lets others through."""
    try:
        return original(x, x_type)
    except (SyntaxError, MemoryError, RecursionError, OverflowError):
        raise ValueError from None


@repairs("fairseq.data.iterators:EpochBatchIterator.state_dict", source="9ca3004ba26d6279")
def data_position_is_saved_in_samples(original: Callable, self):
    """fairseq saves how many batches one process has read: resumed by half as many processes, it reads data again."""
    return position.with_samples(self, original(self))


@repairs("fairseq.data.iterators:EpochBatchIterator.load_state_dict", source="a0f27922a05bd774")
def data_position_is_loaded_in_samples(original: Callable, self, state_dict):
    """The other half of `data_position_is_saved_in_samples`; states without samples load as before."""
    original(self, position.with_iterations(self, state_dict))


@repairs("fairseq.data.iterators:CountingIterator.__next__", source="3784bbd3e690cfb0")
def loader_workers_end_with_their_epoch(original: Callable, self):
    """fairseq leaves an epoch's loader with its workers waiting for another epoch.

    Whenever the last reference to it goes, in the middle of an update or in a thread at the process's end, torch waits
    seconds for the workers. Here they end with the last batch, told by the thread that takes it. A worker that is
    killed, by the system for want of memory, ends the run without a checkpoint; here the process loads what is left of
    the epoch by itself, and the run is asked to stop.
    """
    try:
        batch = original(self)
    except (RuntimeError, OSError, EOFError):
        if supervision.current() is None or not loading.lost_worker(self):
            raise
        loading.go_on_without_workers(self)
        supervision.current().watch.ask_to_stop("a worker process of the data loader is gone")
        batch = original(self)
    self.drawn = getattr(self, "drawn", 0) + 1
    if not self.has_next():
        loading.end_workers(self._itr)
    return batch


@repairs("fairseq.data.iterators:FrozenBatchSampler.__init__", source="fb864395b5ef6841")
def earlier_epochs_are_freed_when_one_begins(original: Callable, self, *args, **kwargs):
    """Its iterator, loader and progress bar, and what omegaconf raised meanwhile, refer to each other in circles.

    They would wait for the garbage collector's rare full round, each with 2 x workers + 2 open pipes: 1,024 descriptors
    are used up after some 50 validations.
    """
    gc.collect()
    original(self, *args, **kwargs)


@repairs("fairseq.data.indexed_dataset:_warmup_mmap_file", source="4c060907a1fe9cd5")
def shards_are_not_read_whole_at_start(original: Callable, path):
    """Every rank and every loader worker reads all of a shard, to warm the page cache; a map reads what is used."""


@repairs("fairseq.distributed.utils:_broadcast_object_slow", source="9fc3ef1939a94874")
def checkpoints_reach_every_rank(original: Callable, *args, **kwargs):
    """Rank 0 sends a loaded checkpoint, which holds omegaconf nodes, to the others, where torch >= 2.6 refuses it."""
    with _data_only("what rank 0 sent"):
        return original(*args, **kwargs)


@repairs("fairseq.trainer:Trainer._set_seed", source="231713ebb624ce42")
def ranks_draw_different_numbers(original: Callable, self):
    """fairseq seeds every rank with `seed + update`: all ranks draw the same dropout masks and the same noise.

    N GPUs then average over correlated noise, and seed 1 at update 10 repeats seed 2 at update 9. A mixed seed of
    (seed, update, data-parallel rank) has neither fault and still repeats itself after a resume.
    """
    seed = mixed_seed(self.cfg.common.seed, self.get_num_updates(), self.data_parallel_rank)
    torch.default_generator.manual_seed(seed)  # torch's and fairseq's own ways also note a stack trace or read states
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


@repairs("fairseq.distributed.utils:infer_init_method", source="340321c1d2a184da")
def torchrun_starts_one_training(original: Callable, cfg, force_distributed=False):
    """With one visible GPU per process, or on CPU, fairseq ignores torchrun: N processes train N models, silently.

    Its world size defaults to the number of visible GPUs, and it returns at world size 1 before it looks at what
    torchrun says; past that, a machine without GPU divides by zero. fairseq-hydra-train imports the user directory
    after this function, so there the repair acts only if install() ran before, as our own command does.
    """
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


@repairs("fairseq.distributed.utils:distributed_init", source="766a47046fcaf6df")
def processes_on_cpu_talk_through_gloo(original: Callable, cfg):
    """fairseq's default backend is NCCL, which needs GPUs."""
    on_cpu = cfg.common.cpu or not torch.cuda.is_available()
    if on_cpu and cfg.distributed_training.distributed_backend == "nccl":
        cfg.distributed_training.distributed_backend = "gloo"
    return original(cfg)


@repairs("fairseq.models:DistributedFairseqModel", source="caa68bcad9ada051")
def default_ddp_backend_runs_on_cpu(original: Callable, *args, **kwargs):
    """fairseq names a device id for PyTorch's DDP, which raises if the model is on the CPU."""
    class DataParallel(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, module, device_ids, output_device, **options):
            if all(parameter.device.type == "cpu" for parameter in module.parameters()):
                device_ids = output_device = None
            super().__init__(module, device_ids=device_ids, output_device=output_device, **options)

    return with_names(original, DistributedDataParallel=DataParallel)(*args, **kwargs)


@repairs("fairseq.trainer:Trainer.train_step", source="8cbf0406b1fe5093")
def updates_start_with_empty_micro_batches(original: Callable, self, samples, raise_oom=False):
    """At the ragged end of an epoch, a rank drops an update's real micro-batches from sample_size and from the logs.

    It does so whenever the last one is empty, though their gradients are applied: the step is too long. Here the
    empty ones come first, so this happens only if all are empty, when it is right. The order has no other effect.
    Also, no task ever sees the micro-batches of an update together; one that has `begin_update(samples, device)`
    is called with them before anything else (and again if the update is repeated). The update itself is made under
    supervision, where there is one: see `updates_with_nan_are_skipped`.
    """
    supervisor = supervision.current()

    def make(samples):
        samples = sorted(samples, key=bool)  # stable, False first; empty: {} or None
        if hasattr(self.task, "begin_update"):
            self.task.begin_update(samples, self.device)
        if supervisor is None:
            return original(self, samples, raise_oom)
        return original.__wrapped__(self, samples, raise_oom=True)  # the decorator does not expect exceptions

    return make(samples) if supervisor is None else supervisor.train_step(self, make, samples)


@repairs("fairseq.optim.fp16_optimizer:FP16Optimizer.build_optimizer", source="c7ff6d890b7d4239")
def fp16_keeps_parameters_apart_where_the_optimizer_needs_it(original: Callable, cfg, params, **kwargs):
    """With --fp16, fairseq joins all parameters to one flat tensor, in which an optimizer cannot tell their kinds.

    One that sets `supports_flat_params = False` in its class is refused unless `--fp16-no-flatten-grads` is given.
    Here that option is set for it; its copies between the precisions are one per parameter with or without.
    """
    if OPTIMIZER_REGISTRY[cfg.optimizer._name].supports_flat_params is False:  # elsewhere a property
        cfg = copy.deepcopy(cfg)  # a checkpoint has the options as they were given
        cfg.common.fp16_no_flatten_grads = True
    return original(cfg, params, **kwargs)


@repairs("fairseq.optim.fp16_optimizer:_FP16OptimizerMixin.state_dict", source="5da060f6579a98bf")
def checkpoints_keep_the_fp32_parameters(original: Callable, self):
    """With --bf16 or --fp16, fairseq trains fp32 parameters and saves them rounded to half precision, nothing else.

    So a resumed run goes on from other parameters than a run that was not stopped. Here the optimizer's state has the
    exact ones, which costs 4 bytes for each in the checkpoint, a third more.
    """
    exact = [parameter.data for parameter in self.fp32_optimizer.params]
    return {**original(self), "fp32_params": exact}


@repairs("fairseq.optim.fp16_optimizer:_FP16OptimizerMixin.load_state_dict", source="04a88bf4795eb98f")
def runs_resume_from_the_fp32_parameters(original: Callable, self, state_dict, optimizer_overrides=None):
    """The other half of `checkpoints_keep_the_fp32_parameters`; older checkpoints load as before."""
    original(self, state_dict, optimizer_overrides)
    for parameter, exact in zip(self.fp32_optimizer.params, state_dict.get("fp32_params", [])):
        parameter.data.copy_(exact)


@repairs("fairseq.optim.fp16_optimizer:_FP16OptimizerMixin.zero_grad", source="82e360fb470d16e3")
def half_precision_drops_gradients(original: Callable, self):
    """fairseq fills the fp32 gradients, one after another, with zeros that the next copies overwrite.

    Here there are none until there are gradients in half precision, so their memory is free for activations.
    """
    if not self.has_flat_params:
        for exact in self.fp32_params:
            exact.grad = None
    original(self)


@repairs("fairseq.optim.fp16_optimizer:_FP16OptimizerMixin._sync_fp16_grads_to_fp32", source="9a06568699ab4d06")
def gradients_reach_fp32_together(original: Callable, self):
    """fairseq launches a copy for each, and makes zeros of a gradient that is None, by which a parameter decays.

    Here it stays None, and the parameter as it is, as in full precision.
    """
    if self.has_flat_params or not self._needs_sync:
        return original(self)
    pairs = list(zip(self.fp16_params, self.fp32_params))
    for half, exact in pairs:
        exact.grad = None if half.grad is None else torch.empty_like(exact)
    copy_together([(exact.grad, half.grad) for half, exact in pairs if half.grad is not None])
    self._needs_sync = False


@repairs("fairseq.optim.fp16_optimizer:_FP16OptimizerMixin._sync_fp32_params_to_fp16", source="a53fdba609963e2d")
def parameters_reach_half_precision_together(original: Callable, self):
    """The same of the parameters after a step."""
    if self.has_flat_params:
        return original(self)
    copy_together([(half, exact) for half, exact in zip(self.fp16_params, self.fp32_params) if half.requires_grad])


@torch.no_grad()
def copy_together(pairs: Sequence[Tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Give the first tensor of each pair the values of the second."""
    if pairs:  # PyTorch refuses empty lists
        torch._foreach_copy_(*map(list, zip(*pairs)))


@repairs("fairseq.utils:clip_grad_norm_", source="0e9a45d266e19456")
def norms_are_computed_together(original: Callable, *args, **kwargs):
    """Without apex, fairseq launches a kernel for each gradient's norm, and warns of it."""
    if utils.multi_tensor_l2norm_available:
        return original(*args, **kwargs)
    inside = inspect.unwrap(original)  # of torch.no_grad
    meanings = dict(multi_tensor_l2norm_available=True, multi_tensor_total_norm=total_norm)
    with torch.no_grad():
        return with_names(inside, **meanings)(*args, **kwargs)


def total_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)))


@repairs("fairseq.trainer:Trainer._aggregate_logging_outputs", source="525e3237868e982b")
def logs_are_known_before_the_step(original: Callable, self, *args, **kwargs):
    """fairseq reads each logged value, which waits for the device, after the optimizer's step.

    Here the supervisor, which waits for the norm before it, has all values of the update come along, by one transfer:
    those of a single process are its micro-batches', those of several are the sums that are made here.
    """
    logs, sums = original(self, *args, **kwargs)
    if supervision.current() is not None:
        supervision.current().logs = logs
    return logs, sums


@repairs("fairseq.trainer:Trainer.clip_grad_norm", source="637d588c4d2cdcd5")
def updates_with_nan_are_skipped(original: Callable, self, clip_norm):
    """If a gradient is nan or infinite, fairseq ends the run, except for what its fp16 loss scaler causes.

    Here is the last point before the step, with the gradients summed over all processes, so all decide alike. See
    `amos_fairseq.supervision`, where what follows is decided for this repair and all below.
    """
    supervisor = supervision.current()
    return original(self, clip_norm) if supervisor is None else supervisor.clip_grad_norm(self, original, clip_norm)


@repairs("fairseq.trainer:Trainer.cumulative_training_time", source="e44724a5c7dbe537")
def signals_and_time_limits_stop_between_updates(original: Callable, self):
    """SIGTERM ends fairseq without a checkpoint; its time limit is in hours of all jobs, and validates first.

    Here is where fairseq asks for the time after each update has been logged, before it validates or saves: the one
    place of the library that its training loop visits then.
    """
    if supervision.current() is not None:
        supervision.current().after_update(self)
    return original(self)


@repairs("fairseq.trainer:Trainer.valid_step", source="e53165a7b4786aad")
def signals_stop_validation(original: Callable, self, sample, raise_oom=False):
    """Validation may last longer than the time between a signal and the end of a job."""
    if supervision.current() is None:
        return original(self, sample, raise_oom)
    return supervision.current().valid_step(self, original, sample, raise_oom)


@repairs("fairseq.trainer:Trainer.get_train_iterator", source="aa4fd14cf2924782")
def the_data_position_is_known_between_updates(original: Callable, self, *args, **kwargs):
    """fairseq keeps the iterator, which a checkpoint needs, in a local variable of its training loop."""
    epoch_itr = original(self, *args, **kwargs)
    if supervision.current() is not None:
        supervision.current().epoch_itr = epoch_itr
    return epoch_itr


@repairs("fairseq.logging.progress_bar:progress_bar", source="ccff0ad64057ea6b")
def what_is_logged_is_kept(original: Callable, *args, **kwargs):
    """fairseq prints what it measures, in a format that another option chooses, and keeps none of it with the run.

    Without that option it prints all of it, a dozen lines to a screen; see `amos_fairseq.supervision.display`.
    """
    if display.current() is not None:
        kwargs["log_format"] = "none"
    bar = original(*args, **kwargs)
    if supervision.current() is not None:
        for name in ("log", "print"):
            setattr(bar, name, supervision.current().noted(getattr(bar, name)))
    return bar


@repairs("fairseq.data.iterators:GroupedIterator.__init__", source="3c8bbf2ae5907b8f")
def data_can_be_skipped_between_updates(original: Callable, self, *args, **kwargs):
    """The same for the iterator over updates, from which those are taken that a loss spike lets the run skip."""
    original(self, *args, **kwargs)
    if supervision.current() is not None:
        supervision.current().batches = self


@repairs("fairseq.distributed.utils:call_main", source="c2a32fa44fa277a6")
def training_is_supervised_from_its_start(original: Callable, cfg, main, **kwargs):
    """fairseq's launcher of processes, one per GPU, dies of a signal before they have saved, and loses their status.

    Where it launches none, supervision begins here, with the meeting of processes and the building of the model; where
    it does, in each when it loads a checkpoint.
    """
    if os.path.join("fairseq_cli", "train.py") not in main.__code__.co_filename:
        with told_in_one_line((Damaged, OSError)):
            return original(cfg, main, **kwargs)
    with told_in_one_line():
        fairseq_options.check_names(cfg)
    supervision.check(cfg)
    if supervision.spawns(cfg):
        return supervision.run_in_processes(lambda: original(cfg, main, **kwargs))
    supervision.begin(cfg)
    try:
        return original(cfg, main, **kwargs)
    finally:
        supervision.end()


# hydra, which `amos-fairseq train` starts with this package imported; fairseq-hydra-train composes before it is

@repairs("hydra._internal.config_loader_impl:ConfigLoaderImpl.load_configuration", source="ec847da1d7601786")
def configurations_run_no_code(original: Callable, self, config_name, *args, **kwargs):
    """hydra calls what a configuration names: a file from elsewhere could run a shell command before anything else.

    Nor does it end for values that refer to each other, as `${b}${b}` of b, `${c}${c}`, and so on.
    """
    omegaconf.OmegaConf.clear_resolver("oc.create")  # YAML in a text
    try:
        cfg = original(self, config_name, *args, **kwargs)
    except (UnicodeDecodeError, RecursionError) as error:
        stop(f"configuration {config_name}: {error}", os.EX_USAGE)
    with told_in_one_line():
        hydra_options.check(omegaconf.OmegaConf.to_container(cfg.hydra, resolve=False))
        hydra_options.check_references(cfg)
    return cfg


@repairs("hydra._internal.defaults_list:_create_defaults_tree_impl", source="d3ba5bb22c8018d9")
def defaults_do_not_grow(original: Callable, repo, *args, **kwargs):
    """Files whose defaults name other files twice, as these do, are as many as their aliases would be."""
    repo.files = getattr(repo, "files", 0) + 1
    with told_in_one_line():
        hydra_options.check_count(repo.files)
    return original(repo, *args, **kwargs)


@repairs("hydra._internal.config_search_path_impl:ConfigSearchPathImpl.append", source="71956c993710a1c0")
def search_paths_import_nothing(original: Callable, self, provider, path, *args, **kwargs):
    """The same of `hydra.searchpath`, which is read before all else."""
    with told_in_one_line():
        hydra_options.check_search(provider, path)
    original(self, provider, path, *args, **kwargs)


@repairs("omegaconf:OmegaConf.load", source="d66145781447a346")
def configurations_do_not_grow(original: Callable, file):
    """A few lines of YAML whose aliases hold each other take all memory there is."""
    path = file if isinstance(file, (str, os.PathLike)) else file.name
    with told_in_one_line():
        hydra_options.check_file(path)
        try:
            return original(file)
        except ValueError as error:  # a number of too many digits
            raise ValueError(f"{path}: {error}") from None


@repairs("hydra.main:_get_rerun_conf", source="541b7e7d76b4b8f8")
def nothing_is_unpickled_to_be_run_again(original: Callable, file_path, overrides):
    """Of --experimental-rerun, whose file can hold code."""
    stop(f"--experimental-rerun {file_path} is refused, since it could run code: give the configuration", os.EX_USAGE)
