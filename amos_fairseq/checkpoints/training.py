"""fairseq's trainer and the checkpoints: what is saved, which is loaded, and what ends the run instead."""

import ast
import copy
import logging
import os
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import numpy
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.distributed import utils as distributed_utils
from omegaconf import OmegaConf

from amos_fairseq.checkpoints import differences, storage, store
from amos_fairseq.options import options_of
from amos_fairseq.user_errors import one_line, status_of, stop

logger = logging.getLogger(__name__)

FAIRSEQ_DEFAULT = "checkpoint_last.pt"  # of --restore-file: go on from the newest
COUNTERS = ("loss_scale", "_iter", "_last_overflow_iter", "_last_rescale_iter", "_overflows_since_rescale")


# Saving

class Place(NamedTuple):
    """In place of fairseq's iterator of an epoch, where a run is after an update.

    finished: what is due after the update, validating and saving, has been done
    """

    epoch: int
    ends: bool  # with that update
    position: Dict[str, Any]
    finished: bool = True

    def end_of_epoch(self) -> bool:
        return self.ends

    def state_dict(self) -> Dict[str, Any]:
        return self.position


def save(cfg, trainer, epoch_itr, val_loss: Optional[float]) -> Optional[str]:
    """In place of fairseq's `save_checkpoint`: all processes call it after the same update, whichever that is.

    If the disk takes no checkpoint, every process ends with status 74.
    """
    best = note_score(cfg, val_loss)
    if cfg.no_save:
        return None
    trainer.consolidate_optimizer()
    epoch, updates, ends = epoch_itr.epoch, trainer.get_num_updates(), epoch_itr.end_of_epoch()
    purposes = []
    if ends and not cfg.no_epoch_checkpoints and epoch % cfg.save_interval == 0:
        purposes.append("epoch")
    if not ends and cfg.save_interval_updates > 0 and updates % cfg.save_interval_updates == 0:
        purposes.append("interval")
    is_best = val_loss is not None and val_loss == best
    scored = val_loss is not None and cfg.keep_best_checkpoints > 0
    if cfg.no_last_checkpoints and not purposes and not is_best and not scored:
        return None
    random_states = gathered(random_state())

    def write() -> str:
        state = trainer.state_dict()
        state["extra_state"].update(
            train_iterator=epoch_itr.state_dict(), val_loss=val_loss, random_states=random_states,
            scaler=scaler_state(trainer.optimizer), **({} if best is None else {"best": best}),
        )
        if hasattr(trainer.task, "get_checkpoint_dict"):
            state["extra_state"].update(trainer.task.get_checkpoint_dict())
        save_dir, name = Path(cfg.save_dir), f"checkpoint_{epoch}_{updates}"
        if isinstance(epoch_itr, Place) and not epoch_itr.finished:
            state["extra_state"]["unfinished"] = {"epoch": epoch, "ends": ends}
            name += "-0"  # of this update another will follow
        save_dir.mkdir(parents=True, exist_ok=True)
        path = store.save(save_dir, name, state, val_loss, purposes, is_best, cfg)
        logger.info("Saved checkpoint %s (epoch %d @ %d updates, score %s)", path, epoch, updates, val_loss)
        return str(path.absolute())

    def failure(error: OSError) -> str:
        return f"no checkpoint can be written, earlier ones stay: {one_line(error, cfg.save_dir)}"

    return decided_by_first(trainer, write, {OSError: (failure, os.EX_IOERR)})


def note_score(cfg, val_loss: Optional[float]) -> Optional[float]:
    """The best score so far, kept where fairseq keeps it; None before the first validation."""
    function = checkpoint_utils.save_checkpoint
    if val_loss is not None:
        better = max if cfg.maximize_best_checkpoint_metric else min
        function.best = better(val_loss, getattr(function, "best", val_loss))
    return getattr(function, "best", None)


def random_state() -> Dict[str, Any]:
    """Of all generators of this process."""
    name, keys, *rest = numpy.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": (name, torch.from_numpy(keys.astype(numpy.int64)), *rest),
        "python": (version, torch.tensor(numbers), gauss),
    }


def set_random_state(state: Dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.cpu().numpy().astype(numpy.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))


def scaler_state(optimizer) -> Dict[str, Any]:
    """Of the loss scaler, with the counters of its window, which fairseq forgets; empty without one."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return {}
    if hasattr(scaler, "state_dict"):  # torch's, for --amp
        return scaler.state_dict()
    return {name: getattr(scaler, name) for name in COUNTERS}


def set_scaler_state(optimizer, state: Dict[str, Any]) -> None:
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not state:
        return
    if hasattr(scaler, "load_state_dict"):
        scaler.load_state_dict(state)
    elif state.keys() == set(COUNTERS):
        vars(scaler).update(state)


# Loading

def load(original: Callable, cfg, trainer, **passthrough):
    """Around fairseq's `load_checkpoint`: let it load the checkpoint that this run goes on from, or end the run.

    Status 65: all checkpoints are damaged; 64: the one named does not exist, the command has changed otherwise than
    `--allow-change` says, or the learning rate has ended; 0: the run is finished. Each with a message.

    The extra state that is returned is that of the run which this one goes on with; None if it is a new one.
    """
    overrides = decided_by_first(
        trainer, lambda: chosen(cfg, trainer), {storage.Damaged: (str, os.EX_DATAERR), ValueError: (str, os.EX_USAGE)}
    )
    cfg = copy.deepcopy(cfg)
    for name, value in overrides.items():
        setattr(cfg, name, value)
    if overrides.get("restore_file"):  # its moments, but decay and such as this command has them
        own = {name: value for name, value in trainer.optimizer.optimizer_config.items() if name != "lr"}
        cfg.optimizer_overrides = repr({**own, **ast.literal_eval(cfg.optimizer_overrides)})
    extra_state, epoch_itr = original(cfg, trainer, **passthrough)
    if extra_state is not None and overrides.get("restore_file") and not cfg.reset_optimizer:
        set_scaler_state(trainer.optimizer, extra_state.get("scaler", {}))
        states = extra_state.get("random_states", [])
        if trainer.data_parallel_rank < len(states):
            set_random_state(states[trainer.data_parallel_rank])
    if cfg.reset_optimizer or cfg.reset_dataloader or not overrides.get("restore_file"):
        extra_state = None
    limit, updates = trainer.cfg.optimization.max_update, trainer.get_num_updates()
    if limit and updates >= limit:
        if extra_state is not None and "unfinished" in extra_state:  # a stop has cut its last validation short
            return extra_state, epoch_itr
        logger.info("done training: %s has %d of %d updates already", cfg.restore_file, updates, limit)
        raise SystemExit(0)
    decided_by_first(trainer, lambda: refuse_no_rate(trainer.cfg, updates), {ValueError: (str, os.EX_USAGE)})
    return extra_state, epoch_itr


def chosen(cfg, trainer) -> Dict[str, Optional[str]]:
    """What the options that name checkpoints are to be, so that fairseq finds a file: an old .pt, or a manifest."""
    save_dir = Path(cfg.save_dir)
    store.remove_remains(save_dir)
    if cfg.restore_file != FAIRSEQ_DEFAULT:
        path = store.find(cfg.restore_file, verify=True)
    else:
        path = newest(save_dir, trainer)
    if path is None:  # a new run, from what an earlier one learned or from nothing
        starts = {name: getattr(cfg, name) for name in ("continue_once", "finetune_from_model")}
        return {name: as_file(store.find(start, verify=True)) for name, start in starts.items() if start}
    if path.is_dir() and not (cfg.reset_optimizer or cfg.reset_dataloader):  # else here, too, a new run starts
        refuse_changes(path, trainer)
    return {"restore_file": as_file(path), "continue_once": None, "finetune_from_model": None}


def as_file(path: Path) -> str:
    """What stands for a checkpoint where fairseq wants a file."""
    return str(path if path.is_file() else path / storage.MANIFEST)


def goes_on_from(task_options) -> Optional[Path]:
    """The checkpoint that a run with such `save_dir` and `restore_file` takes up; None if it is a new run."""
    given = task_options.restore_file != FAIRSEQ_DEFAULT
    try:
        return store.find(Path(task_options.restore_file if given else task_options.save_dir))
    except ValueError:
        return None


def newest(save_dir: Path, trainer) -> Optional[Path]:
    try:
        path = store.newest_valid(save_dir)
    except storage.Damaged as error:
        if not getattr(trainer.cfg.task, "allow_scratch", False):
            raise storage.Damaged(f"{error}; --allow-scratch starts anew, as does another --save-dir") from None
        logger.warning("starting from scratch as --allow-scratch says: %s", error)
        return None
    old = save_dir / FAIRSEQ_DEFAULT
    return old if path is None and old.is_file() else path


def refuse_no_rate(cfg, updates: int) -> None:
    """Raise ValueError if a run goes on, after so many updates, where its learning rate has fallen to 0 for good."""
    options = options_of(cfg.lr_scheduler)
    total = options.get("total_num_update")
    if total and updates >= float(total) and not options.get("end_learning_rate"):
        raise ValueError(
            f"total_num_update {float(total):g}: the learning rate is 0 from there on, and the run has {updates} "
            "updates already: raise --total-num-update, to --max-update for instance"
        )


def refuse_changes(path: Path, trainer) -> None:
    """Raise ValueError if the verified checkpoint at `path` is of a run that did otherwise than this one does.

    What may change and makes a difference is logged: rates, their schedule and the length.
    """
    then, task_state = storage.read_verified(path, ["cfg", "task_state"]).values()
    now = OmegaConf.to_container(trainer.cfg, resolve=True, enum_to_str=True)
    allowed = str(getattr(trainer.cfg.task, "allow_change", "")).split(",")
    free = getattr(trainer.task, "free_options", ())
    try:
        before = differences.characteristics(then, task_state, free)
    except (LookupError, TypeError, AttributeError) as error:
        raise storage.Damaged(f"{path / storage.STATE}: cfg is not as training writes it: {error!r}") from None
    now_so = differences.characteristics(now, trainer.task.state_dict(), free)
    found = differences.differences(before, now_so, allowed)
    if found:
        names = ",".join(difference.option for difference in found)
        raise ValueError(
            f"{path} was trained otherwise than this command says:\n{differences.table(found)}\n"
            f"set what changed as it was, or allow it by name: --allow-change {names}"
        )
    told = differences.differences(differences.schedule(then), differences.schedule(now), [])
    if told:
        changes = ", ".join(f"{name} {before} -> {now}" for name, before, now in told)
        logger.warning("the run goes on with what is not as it was: %s", changes)


def load_to_cpu(path: Path, arg_overrides: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """A checkpoint's state as fairseq's `load_checkpoint_to_cpu` gives that of its files."""
    state = storage.read(path)
    storage.check_finite(state["model"], path)
    state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    if arg_overrides is not None:
        overwrite_args_by_name(state["cfg"], arg_overrides)
    return checkpoint_utils._upgrade_state_dict(state)


# Several processes

def gathered(value: Any) -> List[Any]:
    """`value` of every process."""
    values = [value] * distributed_utils.get_data_parallel_world_size()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value, group=distributed_utils.get_data_parallel_group())
    return values


def decided_by_first(trainer, decide: Callable[[], Any], failures: Dict[type, tuple]) -> Any:
    """decide() of the first process, for all. One of `failures`, {type: (words, status)}, ends all, told by the first.

    What the disk refuses has the status 74 whatever failures say.
    """
    answer = None
    if trainer.is_data_parallel_master:
        try:
            answer = ("value", decide())
        except tuple(failures) as error:
            words, status = next(failures[kind] for kind in type(error).__mro__ if kind in failures)
            answer = ("failure", words(error), os.EX_IOERR if status_of(error) == os.EX_IOERR else status)
    if trainer.data_parallel_world_size > 1:
        answer = distributed_utils.broadcast_object(
            answer, src_rank=0, group=trainer.data_parallel_process_group, dist_device=trainer.device
        )
    kind, content, *status = answer
    if kind == "value":
        return content
    if trainer.is_data_parallel_master:
        stop(content, *status)
    raise SystemExit(*status)
