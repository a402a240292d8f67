"""Supervision of fairseq's trainer. There is one supervisor in a process that trains, and none elsewhere."""

import contextlib
import copy
import logging
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Optional

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics

from amos_fairseq.supervision import faults, lock, options, watch
from amos_fairseq.supervision.faults import UpdateSkipped
from amos_fairseq.user_errors import stop, told_in_one_line

logger = logging.getLogger(__name__)

STOPPED, FAULTS = os.EX_TEMPFAIL, os.EX_PROTOCOL  # 75, 76
PHASES = ("startup", "update", "validation", "save")
_current: Optional["Supervisor"] = None


def current() -> Optional["Supervisor"]:
    return _current


def begin(cfg) -> Optional["Supervisor"]:
    """The supervisor of the run that fairseq's whole configuration describes; None if its task has no such options."""
    global _current
    if _current is None and hasattr(cfg.task, options.NAMES[0]):
        with told_in_one_line():
            options.check(cfg.task, cfg.checkpoint.no_save)
        _current = Supervisor(cfg.task)
    return _current


def end() -> None:
    global _current
    if _current is not None:
        _current.watch.close()
        _current = None


def _in_fork() -> None:
    if _current is not None:
        _current.watch.leave_signals_to_parent()


os.register_at_fork(after_in_child=_in_fork)


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Around the writing of a checkpoint."""
    supervisor = current()
    if supervisor is None:
        yield
        return
    supervisor.watch.enter("save", supervisor.update)
    yield
    supervisor.saved_at = supervisor.attempts
    supervisor.watch.enter("update", supervisor.update)


def spawns(cfg) -> bool:
    """Whether fairseq is going to train in processes of its own, one per GPU, rather than in this one."""
    distributed = cfg.distributed_training
    if distributed.distributed_init_method is None:
        distributed_utils.infer_init_method(distributed)
    return distributed.distributed_init_method is not None and not distributed.distributed_no_spawn


def run_in_processes(run: Callable[[], None]) -> None:
    """run(), which spawns the processes that train: they get the signals that this one gets, it their status 75."""
    def forward(number, frame):
        for child in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    handlers = {number: signal.signal(number, forward) for number in watch.SIGNALS}
    try:
        run()
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code not in (STOPPED, FAULTS, watch.TIMED_OUT, os.EX_USAGE):
            raise
        raise SystemExit(error.exit_code) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Supervisor:
    """update: number of the current one. attempts: how many updates' data the run has read, to make or skip them."""

    def __init__(self, task_options):
        limits = {phase: (f"{phase}_timeout", getattr(task_options, f"{phase}_timeout")) for phase in PHASES}
        self.watch = watch.Watch(limits, 60 * task_options.stop_after_minutes)
        self.budget = faults.Budget(task_options.max_skipped_updates)
        self.losses = faults.RecentLosses(task_options.loss_spike_factor)
        self.update = self.attempts = self.saved_at = self.to_skip = self.rewinds = 0
        self.epoch_itr = self.batches = None  # fairseq's, of the current epoch; the latter by update
        self.stop_votes: Optional[torch.Tensor] = None  # summed over processes with what else an update begins with
        self._stopping = self._stepping = False
        self._micro_batches: List[tuple] = []  # of the current update: sample ids and logs

    # Start

    def lock(self, trainer) -> None:
        """Keep the folder to this run, or end it on all processes."""
        from amos_fairseq.checkpoints.training import decided_by_first

        def lock_folder():
            self._lock = lock.lock(Path(trainer.cfg.checkpoint.save_dir))

        if not trainer.cfg.checkpoint.no_save:
            decided_by_first(trainer, lock_folder, {lock.Locked: (str, os.EX_USAGE)})

    def resume(self, extra_state: Optional[Dict[str, Any]]) -> None:
        """Go on with what a checkpoint says about the run."""
        self.attempts = (extra_state or {}).get("attempts", 0)
        self.losses = faults.RecentLosses(self.losses.factor, (extra_state or {}).get("recent_losses", ()))

    def state_dict(self) -> Dict[str, Any]:
        """Part of a checkpoint's extra state."""
        losses = {"recent_losses": list(self.losses.losses)} if self.losses.factor else {}
        return {"attempts": self.attempts, **losses}

    # Updates

    def begin_update(self, trainer, samples) -> Optional[list]:
        """What to make the update with: `samples`, unless they are to be skipped; None if that ends the epoch."""
        self.update = trainer.get_num_updates()
        self._micro_batches, self._stepping = [], False
        self._take()
        while self.to_skip:
            self.to_skip -= 1
            if not self.batches.has_next():
                return None
            samples = next(self.batches)
            self._take()
        return samples

    def _take(self) -> None:
        self.attempts += 1
        self.watch.enter("update", self.update)

    def guarded(self, criterion: Callable, sample: Dict[str, Any], repeatable: bool) -> Callable:
        """The criterion of one micro-batch; see `faults.reversible`."""
        self.watch.enter("update", self.update)
        sample_ids = sample["net_input"]["sample_ids"]

        def tell() -> None:
            logger.warning("rank %d is out of memory in the forward pass of update %d", watch.rank(), self.update)

        def noted(model, sample):
            output = criterion(model, sample)
            self._micro_batches.append((sample_ids, output[2]))
            return output

        return faults.reversible(noted, repeatable, tell)

    def train_step(self, trainer, original: Callable, samples) -> Optional[Dict[str, Any]]:
        """fairseq's `Trainer.train_step`; None if the update was skipped, by all processes."""
        # Without fairseq's decorator, which does not expect exceptions.
        with metrics.aggregate("train"):
            try:
                output = original.__wrapped__(trainer, samples, raise_oom=True)
            except UpdateSkipped as skipped:
                output = self._skip(trainer, skipped)
            except RuntimeError as error:
                if not faults.is_out_of_memory(error):
                    raise
                # Too late for this process to take part in what others wait for, or to take the update back.
                if trainer.data_parallel_world_size > 1 or self._stepping:
                    self._fail_alone(f"out of memory in update {self.update}: give a smaller --batch-size, a larger "
                                     f"--update-freq ({' '.join(str(error).split())[:200]})")
                output = self._skip(trainer, UpdateSkipped("out of memory"))
        if output is not None and self.losses.factor and self.losses.spikes(output["loss"]):
            output = self._rewind(trainer, output["loss"])
        return output

    def clip_grad_norm(self, trainer, original: Callable, clip_norm: float) -> torch.Tensor:
        """fairseq's `Trainer.clip_grad_norm` of the gradients summed over all processes. Raises UpdateSkipped."""
        try:
            norm = original(trainer, clip_norm)
        except OverflowError as error:  # the fp16 loss scaler's, which lowers its scale: nothing unusual
            raise UpdateSkipped(str(error), counts=False) from None
        except FloatingPointError as error:
            reason = " ".join(str(error).split()).split(". ")[0]
            self._fail(trainer, f"update {self.update}: {reason}: train with --bf16, or a smaller --lr")
        if not trainer.cfg.common.amp and not torch.isfinite(norm).all():
            raise UpdateSkipped("loss or gradient is nan or infinite")
        self._count_votes()
        self._stepping = True
        return norm

    def _count_votes(self) -> None:
        """Where the device is waited for anyway: fairseq, too, asks here whether the norm is finite."""
        if self.stop_votes is not None and self.stop_votes.item():
            self._stopping = True

    def _skip(self, trainer, skipped: UpdateSkipped) -> None:
        self._count_votes()
        trainer.zero_grad()
        if getattr(trainer.optimizer, "scaler", 0) is None:  # bf16, in whose factor the norm is already
            trainer.optimizer._multiply_factor = 1.0
        if not skipped.counts:
            logger.info("NOTE: gradient overflow detected, ignoring gradient, %s", skipped)
            return
        for found in faults.not_finite(self._micro_batches):
            logger.warning("rank %d: nan or inf in %s", watch.rank(), found)
        count, allowed = self.budget.spend(self.attempts), self.budget.allowed
        told = f"{count} of the last {faults.BUDGET_WINDOW} updates skipped, {allowed} allowed"
        if trainer.is_data_parallel_master:
            logger.warning("update %d is skipped: %s (%s)", self.update, skipped, told)
        if count > allowed:
            remedy = "lower --lr, look at the samples named above, or raise --max-skipped-updates"
            self._fail(trainer, f"update {self.update}: {skipped}: {told}; the last checkpoint is good: {remedy}")

    def _fail(self, trainer, message: str) -> NoReturn:
        """On all processes."""
        if trainer.is_data_parallel_master:
            stop(message, FAULTS)
        raise SystemExit(FAULTS)

    def _fail_alone(self, message: str) -> NoReturn:
        """Without what Python does at its end, which may wait for other processes: those see this one gone."""
        watch.say(f"error: {message}")
        os._exit(FAULTS)

    # Loss spikes

    def _rewind(self, trainer, loss: float) -> None:
        from amos_fairseq.checkpoints import Damaged, store
        from amos_fairseq.checkpoints.training import as_file, decided_by_first, set_scaler_state

        def checkpoint() -> Optional[str]:
            """The one of the fewest updates that is not too far back."""
            paths = [checkpoint.path for checkpoint in store.listed(Path(trainer.cfg.checkpoint.save_dir))]
            behind = {path: self.update - int(path.name.split("-")[0].split("_")[2]) for path in paths}
            for path in sorted(paths, key=behind.get, reverse=True):
                if 0 <= behind[path] <= faults.REWIND:
                    with contextlib.suppress(Damaged):
                        return as_file(path)
            return None

        path = decided_by_first(trainer, checkpoint, {})
        spike = f"the loss of update {self.update}, {loss:g}, is above {self.losses.factor:g} times the median"
        if path is None:
            logger.warning("%s; no checkpoint of the last %d updates to go back to", spike, faults.REWIND)
            return
        extra_state = trainer.load_checkpoint(path, False, False, {}, reset_meters=True)
        set_scaler_state(trainer.optimizer, extra_state.get("scaler", {}))
        read = self.attempts
        self.resume(extra_state)
        self.to_skip = max(0, faults.SKIP - (read - self.attempts))
        self.attempts, self.rewinds = read, self.rewinds + 1
        logger.warning(
            "%s: back to update %d, the next %d updates' data are skipped (rewind %d of this process)",
            spike, trainer.get_num_updates(), self.to_skip, self.rewinds,
        )

    # Between updates

    def after_update(self, trainer) -> None:
        """Called between an update and its validation: stop here if that was agreed."""
        updates, limit = trainer.get_num_updates(), trainer.cfg.optimization.max_update
        if self._stopping and not (limit and updates >= limit):
            self._leave(trainer)
        interval = trainer.cfg.checkpoint.save_interval_updates
        due = self.losses.factor and self.saved_at < self.attempts and not self.to_skip
        if due and updates and updates % faults.REWIND == 0 and not (interval > 0 and updates % interval == 0):
            self._save(trainer)

    def before_validation_step(self, trainer) -> None:
        """Called by all processes before each validation batch: stop here if any was asked to."""
        self.watch.enter("validation", self.update)
        votes = torch.tensor(float(bool(self.watch.requested)), device=trainer.device)
        if trainer.data_parallel_world_size > 1:
            distributed_utils.all_reduce(votes, group=trainer.data_parallel_process_group)
        if votes.item():
            self._leave(trainer)

    def _leave(self, trainer) -> NoReturn:
        self._save(trainer)
        reason = self.watch.requested or "another process"
        logger.info("stopped by %s after update %d; the same command goes on", reason, trainer.get_num_updates())
        raise SystemExit(STOPPED)

    def _save(self, trainer) -> None:
        self._stopping, self.saved_at = False, self.attempts  # a checkpoint has the training time, asked after updates
        cfg = copy.deepcopy(trainer.cfg.checkpoint)
        cfg.no_last_checkpoints = False
        checkpoint_utils.save_checkpoint(cfg, trainer, self.epoch_itr, None)
