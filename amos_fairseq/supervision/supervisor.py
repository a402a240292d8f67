"""Supervision of fairseq's trainer. There is one supervisor in a process that trains, and none elsewhere."""

import atexit
import contextlib
import copy
import gc
import importlib
import itertools
import logging
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterable, Iterator, List, NoReturn, Optional, TypedDict

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.tasks import TASK_REGISTRY

from amos_fairseq import fairseq_options, json_files
from amos_fairseq.checkpoints import Damaged, store, verify
from amos_fairseq.checkpoints.training import Place, as_file, decided_by_first, scaler_state, set_scaler_state
from amos_fairseq.supervision import display, faults, history, lock, options, watch
from amos_fairseq.supervision.faults import UpdateSkipped
from amos_fairseq.user_errors import one_line, stop, suggestion, told_in_one_line

logger = logging.getLogger(__name__)

STOPPED, FAULTS = os.EX_TEMPFAIL, os.EX_PROTOCOL  # 75, 76
FOR_ONE_SEQUENCE = "take shorter --tokens-per-sample, --bf16, or a smaller model"
FOR_THE_BATCH = "give a smaller --batch-size and a larger --update-freq"
FOR_THE_STEP = "the optimizer's state does not fit: take a smaller model, or --memory-efficient-bf16"
NUMBER = re.compile(r"_\d+$")  # of a layer, as in mlm_4
PHASES = ("startup", "update", "validation", "save")
_current: Optional["Supervisor"] = None


def current() -> Optional["Supervisor"]:
    return _current


def check(cfg) -> bool:
    """Whether the task of fairseq's whole configuration has the options of supervision; ends the run if any is wrong,
    or if it asks for devices that are not here.
    """
    supervised = hasattr(cfg.task, "update_timeout")
    if supervised:
        with fairseq_options.told_with_recipe_named():
            check_options(cfg)
            fairseq_options.check_devices(cfg.distributed_training)
    return supervised


def check_options(cfg) -> None:
    """Raises ValueError, in one line, whatever machine this is."""
    fairseq_options.check(cfg)
    options.check(cfg.task, cfg.checkpoint.no_save)
    metric, logged = cfg.checkpoint.best_checkpoint_metric, TASK_REGISTRY[cfg.task._name].logged(cfg.task)
    if logged is not None and not {metric, NUMBER.sub("", metric)} & {*logged}:
        likely = suggestion(metric, logged) or f": choose from {', '.join(logged)}"
        raise ValueError(f"best_checkpoint_metric {metric} is nothing that validation logs{likely}")


def begin(cfg) -> Optional["Supervisor"]:
    """The supervisor of the run that fairseq's whole configuration describes; None if its task has no such options."""
    global _current
    if _current is None and check(cfg):
        with told_in_one_line():
            fairseq_options.check_ops(cfg)
        _current = Supervisor(cfg.task)
        freeze()
    return _current


def freeze() -> None:
    """Collecting what an epoch leaves takes milliseconds if what is imported is not visited."""
    if not gc.get_freeze_count():  # of a process that was frozen before, as in the tests, the end is its own matter
        atexit.register(gc.unfreeze)  # for triton's bindings report at the end all that was never freed
    gc.freeze()


def end() -> None:
    global _current
    if _current is not None:
        _current.watch.close()
        _current = None
    display.end()


os.register_at_fork(after_in_child=lambda: _current is not None and _current.watch.leave_signals_to_parent())


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

    handlers = {number: signal.signal(number, forward) for number in watch.heard_signals()}
    try:
        run()
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code not in (STOPPED, FAULTS, watch.TIMED_OUT, os.EX_USAGE, os.EX_DATAERR, os.EX_IOERR):
            raise
        if error.exit_code == STOPPED:  # which it stays, whatever signal comes until this process has ended, too
            handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        raise SystemExit(error.exit_code) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def training_loop() -> ModuleType:
    """fairseq's, which may be the program itself."""
    main = sys.modules["__main__"]
    return main if hasattr(main, "validate_and_save") else importlib.import_module("fairseq_cli.train")


class Unfinished(TypedDict):
    """Of a checkpoint that was written before what was due after its update, validating and saving."""

    epoch: json_files.Natural
    ends: bool  # with that update


class Kept(TypedDict, total=False):
    """Part of a checkpoint's extra state."""

    attempts: json_files.Natural
    recent_losses: List[float]
    patience: Dict[str, float]  # what fairseq's function that ends a run early has for attributes
    unfinished: Unfinished
    train_iterator: Dict[str, Any]


def to_host(dictionaries: Iterable[Dict[str, Any]]) -> None:
    """Put numbers in the place of tensors of one element: one transfer, hence one wait, for all those of a device."""
    places: Dict[torch.device, Dict[torch.dtype, list]] = {}
    for values in dictionaries:
        for key, value in values.items():
            if torch.is_tensor(value) and value.numel() == 1:
                places.setdefault(value.device, {}).setdefault(value.dtype, []).append((values, key))
    for by_type in places.values():  # a stack of one type is one kernel
        stacks = [torch.stack([values[key].detach().view(()) for values, key in alike]) for alike in by_type.values()]
        numbers = torch.cat([stack.double() for stack in stacks]).tolist()
        for (values, key), number in zip(itertools.chain(*by_type.values()), numbers):
            values[key] = number


class Supervisor:
    """update: number of the current one. attempts: how many updates' data the run has read, to make or skip them."""

    def __init__(self, task_options):
        limits = {phase: (f"{phase}_timeout", getattr(task_options, f"{phase}_timeout")) for phase in PHASES}
        self.watch = watch.Watch(limits, 60 * task_options.stop_after_minutes)
        # A lost worker is noticed where its batch is asked for, not by an error of torch's wherever this process is.
        torch.utils.data._utils.signal_handling._SIGCHLD_handler_set = True
        self.budget = faults.Budget(task_options.max_skipped_updates)
        self.losses = faults.RecentLosses(task_options.loss_spike_factor)
        self.update = self.attempts = self.saved_at = self.to_skip = self.rewinds = 0
        self.epoch_itr = self.batches = None  # fairseq's, of the current epoch; the latter by update
        self.cut_short: Optional[Place] = None  # after the update that the run goes on from, until it is finished
        self.logs: List[Dict[str, Any]] = []  # of the current update: by micro-batch, or summed over processes
        self.history: Optional[history.History] = None  # on the first process
        self.stop_votes: Any = None  # summed over processes with what else an update begins with
        self._stopping = self._stepping = False
        self.parts = 1  # that each micro-batch is made in since memory ran out
        self._out_of_memory = False  # on this process, in the current update
        self._micro_batches: List[tuple] = []  # of the current update: samples and their logs
        self._reached: Optional[set] = None  # the parameters that the current backward pass has reached

    # Start

    def lock(self, trainer) -> None:
        """Keep the folder to this run, or end it on all processes."""
        def lock_folder():
            self._lock = lock.lock(Path(trainer.cfg.checkpoint.save_dir))

        if not trainer.cfg.checkpoint.no_save:
            failures = {lock.Locked: (str, os.EX_USAGE), OSError: (one_line, os.EX_USAGE)}
            decided_by_first(trainer, lock_folder, failures)

    def resume(self, extra_state: Optional[Dict[str, Any]]) -> None:
        """Go on with what a checkpoint says about the run. Raises Damaged."""
        kept = json_files.formed(extra_state or {}, Kept, "extra_state of the checkpoint")
        self.attempts = self.saved_at = kept.get("attempts", 0)
        self.losses = faults.RecentLosses(self.losses.factor, kept.get("recent_losses", ()))
        vars(training_loop().should_stop_early).update(kept.get("patience", {}))

    def finish_update(self, trainer, extra_state: Optional[Dict[str, Any]]) -> None:
        """Validate and save as is due after the update that the run goes on from, if a stop has cut that short."""
        loop, cfg, self.update = training_loop(), trainer.cfg, trainer.get_num_updates()
        is_end = 0 < cfg.checkpoint.patience <= getattr(loop.should_stop_early, "num_runs", 0)
        if extra_state is not None and "unfinished" in extra_state:
            self.cut_short = at = Place(**extra_state["unfinished"], position=extra_state["train_iterator"])
            subsets = cfg.dataset.valid_subset.split(",")
            losses, is_end = loop.validate_and_save(cfg, trainer, trainer.task, at, subsets, at.ends)
            self.cut_short = None
            if at.ends:
                trainer.lr_step(at.epoch, losses[0])
        if is_end:
            logger.info("done training: nothing follows update %d", self.update)
            raise SystemExit(0)

    def begin_history(self, trainer) -> None:
        """The run goes on after as many updates as it has, which only the first process writes down, and shows."""
        folder = None if trainer.cfg.checkpoint.no_save else Path(trainer.cfg.checkpoint.save_dir)

        def begin():
            if folder is not None:
                self.history = history.History(folder)
                self.history.start(trainer.get_num_updates(), trainer.cfg)
            if display.current() is not None:
                display.current().start(trainer, folder)

        decided_by_first(trainer, begin, {OSError: (one_line, os.EX_IOERR)})

    def noted(self, show: Callable) -> Callable:
        """`log` or `print` of fairseq's progress bar, with what it shows written down, and shown our way."""
        def note_and_show(stats, tag=None, step=None):
            if self.history is not None:
                read = self.epoch_itr.epoch - 1 + self.epoch_itr.iterations_in_epoch / len(self.epoch_itr)
                self.history.note(stats, tag, step, read)
            if display.current() is not None:
                display.current().note(stats, tag, step)
            show(stats, tag=tag, step=step)
        return note_and_show

    def state_dict(self) -> Dict[str, Any]:
        """Part of a checkpoint's extra state."""
        losses = {"recent_losses": list(self.losses.losses)} if self.losses.factor else {}
        return {"attempts": self.attempts, **losses, "patience": vars(training_loop().should_stop_early)}

    # Updates

    def train_step(self, trainer, make: Callable, samples) -> Optional[Dict[str, Any]]:
        """One update, make(samples), or None: it was skipped by all processes, or the epoch ends before it.

        If memory runs out on any process, all make it anew with every micro-batch in twice as many parts, where the
        task allows that, and so all updates from then on, until this process ends.
        """
        samples = self._begin_update(trainer, samples)
        with metrics.aggregate("train"):
            try:
                output = None if samples is None else self._made(trainer, make, samples)
            except UpdateSkipped as skipped:
                output = self._skip(trainer, skipped)
            if output is not None and self.parts > 1:
                metrics.log_scalar("micro_batch_parts", self.parts, weight=0)
        if output is not None and self.losses.factor and self.losses.spikes(output["loss"]):
            output = self._rewind(trainer, output["loss"])
        return output

    def _begin_update(self, trainer, samples) -> Optional[list]:
        """What to make the update with: `samples`, unless they are to be skipped; None if that ends the epoch."""
        self.update = trainer.get_num_updates()
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

    def _made(self, trainer, make: Callable, samples) -> Optional[Dict[str, Any]]:
        while True:
            parts = [part for sample in samples for part in trainer.task.split_batch(sample, self.parts)]
            self._micro_batches, self.logs, self.stop_votes = [], [], None
            self._stepping = self._out_of_memory = False
            try:
                return make(parts)
            except faults.OutOfMemory:
                pass
            except RuntimeError as error:
                if not faults.is_out_of_memory(error):
                    raise
                # Too late for this process to take part in what others wait for, or to take the update back.
                if trainer.data_parallel_world_size > 1 or self._stepping:
                    self._fail_alone(f"update {self.update}", FOR_THE_STEP if self._stepping else FOR_THE_BATCH, error)
            self._make_smaller(trainer, parts)

    def _make_smaller(self, trainer, parts: list) -> None:
        """Let micro-batches be made in twice as many parts. Raises UpdateSkipped if they must not be divided."""
        if not trainer.task.divides_batches:
            raise UpdateSkipped("out of memory")
        if self._greatest(trainer, max((part["nsentences"] for part in parts if part), default=0)) == 1:
            self._fail(trainer, f"update {self.update}: out of memory for one sequence: {FOR_ONE_SEQUENCE}")
        self._clear(trainer)
        self.parts *= 2
        if trainer.is_data_parallel_master:
            logger.warning(
                "update %d: out of memory: from here on micro-batches are made in %d parts; a --batch-size so much "
                "smaller with an --update-freq so much larger saves this attempt", self.update, self.parts,
            )

    def _greatest(self, trainer, value: float) -> float:
        """Of all processes, which all have to call this."""
        if trainer.data_parallel_world_size == 1:
            return value
        greatest = torch.tensor(float(value), device=trainer.device)
        distributed_utils.all_reduce(greatest, group=trainer.data_parallel_process_group, op="max")
        return greatest.item()

    def micro_batch(self, task, step: Callable, sample, model, criterion: Callable, *arguments, **options):
        """step(sample, model, criterion, ..), forward and backward; see `faults.finite_or_nan`.

        If memory runs out, one sequence stands in, whose gradients are nan: so this process takes part in what the
        others wait for. A backward pass that was cut short has had some gradients summed over all processes already;
        the stand-in's is for the rest. A forward pass in which the others wait, too, cannot be made up for.
        """
        self.watch.enter("update", self.update)
        module = model
        while hasattr(module, "module"):
            module = module.module
        if self._reached is None:
            self._reached = set()
            for parameter in filter(lambda parameter: parameter.requires_grad, module.parameters()):
                parameter.register_post_accumulate_grad_hook(self._reached.add)
        self._reached.clear()
        try:
            output = step(sample, model, faults.finite_or_nan(criterion), *arguments, **options)
        except RuntimeError as error:
            if not (faults.is_out_of_memory(error) and task.forward_is_local):
                raise
            output = None
        if output is None:  # here, where the failed pass's frames, and with them its memory, are gone
            self._out_of_memory = True
            logger.warning("rank %d is out of memory in update %d", watch.rank(), self.update)
            faults.empty_cache()
            sample = task.split_batch(sample, sample["nsentences"])[0]
            # The wrapper that sums gradients expects a new pass only where none has begun.
            with faults.frozen(self._reached):
                whole = model if not self._reached else module
                output = step(sample, whole, faults.nan_that_does_not_count(criterion), *arguments, **options)
        self._micro_batches.append((sample, output[2]))
        self.logs.append(output[2])
        return output

    def clip_grad_norm(self, trainer, original: Callable, clip_norm: float) -> torch.Tensor:
        """fairseq's `Trainer.clip_grad_norm` of the gradients summed over all processes.

        Raises UpdateSkipped or OutOfMemory, the same on all processes: what makes gradients nan, they all see.
        """
        scaler = scaler_state(trainer.optimizer)
        try:
            norm, fault = self._awaited(original(trainer, clip_norm)), None
            if not trainer.cfg.common.amp and not torch.isfinite(norm).all():
                fault = UpdateSkipped("loss or gradient is nan or infinite")
        except (OverflowError, FloatingPointError) as error:  # of the fp16 loss scaler
            fault = error
        if fault is not None:
            if self._greatest(trainer, self._out_of_memory):
                set_scaler_state(trainer.optimizer, scaler)
                raise faults.OutOfMemory
            if isinstance(fault, OverflowError):  # it lowers its scale: nothing unusual
                raise UpdateSkipped(str(fault), counts=False)
            if isinstance(fault, FloatingPointError):
                reason = " ".join(str(fault).split()).split(". ")[0]
                self._fail(trainer, f"update {self.update}: {reason}: train with --bf16, or a smaller --lr")
            self._tell_origin(trainer)
            raise fault
        self._count_votes(trainer)
        self._stepping = True
        return norm

    def _awaited(self, norm: torch.Tensor) -> torch.Tensor:
        """The norm, and in their places votes and logs, in the host's memory: nothing more is waited for."""
        awaited = {"norm": norm, "stop_votes": self.stop_votes}
        to_host([awaited, *self.logs])
        self.stop_votes = awaited["stop_votes"]
        return torch.tensor(awaited["norm"], dtype=norm.dtype)

    def _count_votes(self, trainer) -> None:
        """Where the device has been waited for: fairseq, too, asks here whether the norm is finite."""
        if self.stop_votes is None:  # the task has not summed them with what it sums
            votes = self._greatest(trainer, bool(self.watch.requested))
        else:
            votes = float(self.stop_votes)
        if votes:
            self._stopping = True

    def _clear(self, trainer) -> None:
        trainer.zero_grad()
        if getattr(trainer.optimizer, "scaler", 0) is None:  # bf16, in whose factor the norm is already
            trainer.optimizer._multiply_factor = 1.0

    def _skip(self, trainer, skipped: UpdateSkipped) -> None:
        self._count_votes(trainer)
        self._clear(trainer)
        if not skipped.counts:
            logger.info("NOTE: gradient overflow detected, ignoring gradient, %s", skipped)
            return
        count, allowed = self.budget.spend(self.attempts), self.budget.allowed
        told = f"{count} of the last {faults.BUDGET_WINDOW} updates skipped, {allowed} allowed"
        if trainer.is_data_parallel_master:
            logger.warning("update %d is skipped: %s (%s)", self.update, skipped, told)
        if count > allowed:
            remedy = "lower --lr, look at the samples named above, or raise --max-skipped-updates"
            self._fail(trainer, f"update {self.update}: {skipped}: {told}; the last checkpoint is good: {remedy}")

    def _tell_origin(self, trainer) -> None:
        """Which samples have a loss that is nan or infinite, and where it begins; if none have, which gradients are."""
        told = False
        for sample, logs in self._micro_batches:
            names = faults.not_finite(logs)
            if names:
                told = True
                logger.warning(
                    "rank %d: nan or inf in %s of samples %s, first in %s", watch.rank(), ", ".join(names),
                    " ".join(map(str, trainer.task.sample_ids(sample))), self._origin(trainer, sample),
                )
        if not told and trainer.is_data_parallel_master:
            gradients = {name: p.grad for name, p in trainer.get_model().named_parameters() if p.grad is not None}
            names = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            logger.warning("nan or inf in the gradients of %d parameters: %s", len(names), ", ".join(names[:3]))

    def _origin(self, trainer, sample) -> str:
        """Of a loss that is not finite, by a repetition of the forward pass."""
        if not trainer.task.forward_is_local:
            return "what one process cannot repeat alone"
        trainer._set_seed()  # as the update has begun: the dropout of its first micro-batch
        model, criterion = trainer.get_model(), trainer.get_criterion()
        module = faults.first_not_finite(model, lambda: criterion(model, sample))
        return f"the output of {module}" if module else "no module's output when repeated"

    def _fail(self, trainer, message: str) -> NoReturn:
        """On all processes."""
        display.end()
        if trainer.is_data_parallel_master:
            stop(message, FAULTS)
        raise SystemExit(FAULTS)

    def _fail_alone(self, when: str, remedy: str, error: RuntimeError) -> NoReturn:
        """For want of memory, without what Python does at its end, which may wait for others: they see this one gone.
        """
        watch.say(f"error: out of memory in {when}: {remedy} ({' '.join(str(error).split())[:200]})")
        watch.end_at_once(FAULTS)

    # Loss spikes

    def _rewind(self, trainer, loss: float) -> None:
        def checkpoint() -> Optional[str]:
            """The one of the fewest updates that is not too far back."""
            made = store.listed(Path(trainer.cfg.checkpoint.save_dir))
            for path, updates, *_ in sorted(made, key=lambda checkpoint: checkpoint.updates):
                if 0 <= self.update - updates <= faults.REWIND:
                    with contextlib.suppress(Damaged):
                        verify(path)
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
        updates = trainer.get_num_updates()
        if display.current() is not None:
            display.current().updated(updates)
        limit = trainer.cfg.optimization.max_update
        if self._stopping and not (limit and updates >= limit):
            self._leave(trainer)
        interval = trainer.cfg.checkpoint.save_interval_updates
        due = self.losses.factor and self.saved_at < self.attempts and not self.to_skip
        if due and updates and updates % faults.REWIND == 0 and not (interval > 0 and updates % interval == 0):
            self._save(trainer)

    def valid_step(self, trainer, original: Callable, sample, again: bool) -> Dict[str, Any]:
        """fairseq's `Trainer.valid_step`, unless any process was asked to stop, which stops all before the batch.

        again: this process repeats the step by itself, having freed what memory it could.
        """
        if not again:
            self.watch.enter("validation", self.update)
            if self._greatest(trainer, bool(self.watch.requested)):
                self._leave(trainer)
        try:
            return original(trainer, sample, again)
        except RuntimeError as error:
            if not (again and faults.is_out_of_memory(error)):
                raise
            self._fail_alone(f"validation at update {self.update}", "give a smaller --batch-size-valid", error)

    def _leave(self, trainer) -> NoReturn:
        self.watch.leave()
        self._save(trainer)
        reason = self.watch.requested or "another process"
        logger.info("stopped by %s after update %d; the same command goes on", reason, trainer.get_num_updates())
        raise SystemExit(STOPPED)

    def _save(self, trainer) -> None:
        """Before what is due after this update, which `finish_update` then does in its place."""
        self._stopping, self.saved_at = False, self.attempts  # a checkpoint has the training time, asked after updates
        cfg = copy.deepcopy(trainer.cfg.checkpoint)
        cfg.no_last_checkpoints, cfg.no_epoch_checkpoints, cfg.save_interval_updates = False, True, 0
        itr = self.epoch_itr
        at = self.cut_short or Place(itr.epoch, not self.batches.has_next(), itr.state_dict())
        checkpoint_utils.save_checkpoint(cfg, trainer, at._replace(finished=False), None)
