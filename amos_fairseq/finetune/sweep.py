"""Many fine-tunings of one model: tasks x settings x seeds, each run once, in processes that start warm.

    OUT/sweep.json                       what is fine-tuned
    OUT/data/<task>                      labelled data (`finetune.labelled`)
    OUT/runs/<task>/<setting>/seed<N>    train.log, predictions.npz, result.json; of each task's best run the
                                         checkpoint, too

A run is a `fairseq-train` of its own. A finished one is not repeated, one that was stopped goes on from its checkpoint.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import threading
import time
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypedDict

import torch

from amos_fairseq import files
from amos_fairseq.checkpoints import store
from amos_fairseq.finetune import labelled, results
from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.model import Finetuned, load_finetuned
from amos_fairseq.finetune.presets import Setting
from amos_fairseq.finetune.results import RESULT, RUNS, Result
from amos_fairseq.user_errors import told_in_one_line

ABOUT, DATA, LOG = "sweep.json", "data", "train.log"
SPLIT = re.compile(r"(train|valid|test)\d*")
LAUNCHED = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")  # by which srun's tasks find each other
VALIDATIONS = 10  # of runs whose length is a number of updates, as in LM-BFF
PRECISIONS = {
    "fp32": [],
    "bf16": ["--bf16"],
    "fp16": ["--fp16", "--fp16-init-scale", "4", "--threshold-loss-scale", "1", "--fp16-scale-window", "128"],
}


class About(TypedDict):
    """What a sweep is about, as far as its results tell of it."""

    method: str
    model: str
    width: int
    from_scratch: bool


class Model(NamedTuple):
    """What is fine-tuned, and in which arithmetic."""

    pretrained: str  # a checkpoint
    from_scratch: bool = False
    cpu: bool = False
    precision: str = "fp32"


class Job(NamedTuple):
    """One run that is to be made, of which a `results.Result` tells when it is finished."""

    task: str
    data: Path
    setting: Setting
    seed: int
    folder: Path  # out/runs/task/setting/seedN

    @property
    def name(self) -> str:
        return f"{self.task} {self.setting.name} seed {self.seed}"

    @property
    def out(self) -> Path:
        """Of its sweep."""
        return self.folder.parents[3]


class Outcome(NamedTuple):
    """failed: why, by job. stopped: before all jobs were done. disk: one failed for want of room, the last."""

    failed: Dict[Job, str]
    stopped: bool
    disk: bool = False


@contextlib.contextmanager
def claimed(out: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Hold OUT for this process: a new folder, or one of a sweep that was `about` the same.

    A mistake that is told before anything is there leaves no folder, so that the next command may be about another.
    """
    path = out / ABOUT
    with files.claimed(path, about, "another sweep is at work", "was begun with"):
        try:
            yield
        except ValueError:
            if list(out.iterdir()) == [path]:
                path.unlink()
                out.rmdir()
            raise


def plan(out: Path, data: Mapping[int, Path], settings: Sequence[Setting], seeds: Sequence[int]) -> List[Job]:
    """A task's jobs, one for each setting and seed.

    data: the task's labelled folder by seed, the same for all unless the data are drawn, too
    """
    task = labelled.read_problem(data[seeds[0]]).name
    return [
        Job(task, data[seed], setting, seed, out / RUNS / task / setting.name / f"seed{seed}")
        for setting in settings for seed in seeds
    ]


# One job


@cache
def splits_of(data: Path) -> List[str]:
    return sorted(path.stem for path in data.glob("*.npz") if SPLIT.fullmatch(path.stem))


@cache
def num_examples(data: Path) -> int:
    return len(labelled.read_examples(data, "train").lengths)


def training_arguments(job: Job, model: Model) -> List[str]:
    """The job as `fairseq-train` takes it; the length follows from the data, the batch size and the epochs."""
    setting, examples = job.setting, num_examples(job.data)
    updates = setting.num_updates(examples)
    options: Dict[str, Any] = {
        "task": "finetuning", "arch": "finetuned", "criterion": "finetuning",
        "pretrained": model.pretrained, "layer-decay": setting.layer_decay, "layer-decay-top": setting.layer_decay_top,
        "optimizer": "fused_adamw", "adam-betas": setting.adam_betas, "adam-eps": 1e-6,
        "weight-decay": setting.weight_decay, "clip-norm": 0.0,
        "lr": setting.lr, "lr-scheduler": "polynomial_decay",
        "warmup-updates": setting.num_warmup_updates(examples), "total-num-update": updates, "max-update": updates,
        "batch-size": setting.batch_size, "seed": job.seed, "distributed-world-size": 1, "num-workers": 0,
        "valid-subset": ",".join(split for split in splits_of(job.data) if split.startswith("valid")),
        "best-checkpoint-metric": labelled.read_problem(job.data).metrics[0],
        "save-dir": job.folder.resolve(), "log-format": "json", "log-interval": 100,
    }
    if setting.updates:
        interval = max(1, updates // VALIDATIONS)
        options |= dict.fromkeys(("validate-interval-updates", "save-interval-updates"), interval)
        options["keep-interval-updates"] = 1
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    switches = ["--maximize-best-checkpoint-metric", "--no-epoch-checkpoints", *PRECISIONS[model.precision]]
    switches += ["--cpu"] * model.cpu + ["--from-scratch"] * model.from_scratch
    return [str(job.data.resolve()), *words, *switches]


@told_in_one_line(OSError)
def carry_out(job: Job, model: Model, device: Optional[str], train: Callable[[List[str]], None]) -> None:
    """Train and measure, in a process of its own; the last thing is the result. device: CUDA's number of a GPU."""
    os.setsid()  # Ctrl-C is for the sweep, which stops its runs
    for name in LAUNCHED:
        os.environ.pop(name, None)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    threading.Thread(target=end_with_sweep, daemon=True).start()
    with open(job.folder / LOG, "ab") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    start = time.monotonic()
    try:
        train(training_arguments(job, model))
    except SystemExit as ended:  # of a run that was stopped between its last update and its result: with status 0
        if ended.code:
            raise
    problem, network, *_ = load_finetuned(job.folder)
    network = network.to("cuda" if torch.cuda.is_available() and not model.cpu else "cpu")
    scores, predictions, kind = {}, {}, kind_of(problem.kind)
    for split in splits_of(job.data):
        examples = labelled.read_examples(job.data, split)
        if split != "train" and examples.targets is not None:
            outputs = predict(network, examples)
            predictions[split] = kind.judged(job.data, problem, split, outputs)
            scores[split] = kind.measure(problem.metrics, *predictions[split])
    results.write_predictions(job.folder, predictions)
    updates = job.setting.num_updates(num_examples(job.data))
    made = (scores, updates, round(time.monotonic() - start, 1))
    results.write(job.folder, Result(job.task, problem.kind, problem.metrics, job.setting, job.seed, *made))


def end_with_sweep() -> None:
    """Of a sweep that was killed no run goes on in folders that the next one is to use."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os._exit(os.EX_TEMPFAIL)


def reason_of(job: Job, status: Optional[int]) -> str:
    """Why a job failed: its last word."""
    path, lines = job.folder / LOG, []
    if path.exists():  # as it does unless the process died before all else
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = lines or ["no word"]
    told = [line for line in lines if "error:" in line] or lines
    return f"{told[-1].strip()[:300]} (status {status}, {path})"


# All jobs


def carry_out_all(
    jobs: Sequence[Job], model: Model, train: Callable[[List[str]], None], preload: Sequence[str] = (),
    devices: Sequence[Optional[str]] = (None,), keep_checkpoints: bool = False,
    progress: Callable[[Job, Optional[Result]], object] = lambda job, result: None,
) -> Outcome:
    """Every job that has no result yet; a KeyboardInterrupt stops them where they can go on.

    train: what takes the words of fairseq-train, in a process forked from one that has imported the modules `preload`
    devices: one for each job at a time: GPUs by CUDA's numbers, or None for what a job finds
    progress: told of each job that has ended, with its result unless it failed
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting = [job for job in jobs if not (job.folder / RESULT).exists()]
    free, running, failed, stopped, disk = list(devices), {}, {}, False, False
    if not keep_checkpoints:  # of runs that finished as their sweep was stopped or killed
        for out, task in dict.fromkeys((job.out, job.task) for job in jobs):
            prune(out, task)
    try:
        while running or (waiting and not stopped and not disk):
            while waiting and free and not stopped and not disk:
                job, device = waiting.pop(0), free.pop(0)
                job.folder.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=carry_out, args=(job, model, device, train))
                running[process] = job, device
                process.start()
            wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                job, device = running.pop(process)
                free.append(device)
                if process.exitcode == os.EX_TEMPFAIL:  # saved, the same command goes on
                    stopped = True
                elif (job.folder / RESULT).exists():
                    if not keep_checkpoints:
                        prune(job.out, job.task)
                    progress(job, results.read(job.folder))
                else:
                    failed[job] = reason_of(job, process.exitcode)
                    disk |= process.exitcode == os.EX_IOERR
                    progress(job, None)
    except KeyboardInterrupt:
        stopped = True
        for process in running:
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
        for process in running:
            process.join()
    return Outcome(failed, stopped, disk)


def prune(out: Path, task: str) -> None:
    """Delete the checkpoints of the task's finished runs, but for the best of the run that scored highest."""
    found = results.read_all(out, task)
    best = results.best_run(found)
    for folder in found:
        store.remove_remains(folder)
        kept = os.path.realpath(folder / store.BEST) if folder == best else ""
        for checkpoint in store.listed(folder):
            if os.path.realpath(checkpoint.path) != kept:
                store.remove(checkpoint.path)
        for pointer in (folder / store.LAST, folder / store.BEST):
            if pointer.is_symlink() and not pointer.exists():
                pointer.unlink()


def load_best(out: Path, task: str, data: Mapping[int, Path]) -> Tuple[Finetuned, Path]:
    """The task's best run, and the labelled folder that it was trained on."""
    best = results.best_run(results.read_all(out, task))
    if best is None:
        raise ValueError(f"{out} has no finished run of {task} to predict with")
    if not (best / store.BEST).exists():
        raise ValueError(f"{best} holds no checkpoint any more: delete its {RESULT} to train it again")
    return load_finetuned(best), data[results.read(best).seed]
