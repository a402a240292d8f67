"""Which claims of the five papers show at a size that anyone can afford:

    python examples/replication/replicate.py cpu --out runs/replication

All variants are pre-trained with the same FLOPs on the same text with several seeds, then fine-tuned on labelled tasks
made from text that pre-training has not seen. Writes OUT/results.json, OUT/results.md and OUT/results.png. What is
finished is not done again: the same command goes on where an interrupted one stopped. Budgets: smoke (minutes), cpu
(two cores, an hour or two), gpu (one GPU).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import torch
from claims import CLAIMS, Measured, Runs, judge
from matplotlib.figure import Figure
from tqdm import tqdm
from variants import ENCODER, VARIANTS, Variant, arguments

from amos_fairseq.analysis import run_log
from amos_fairseq.analysis.figures import COLORS
from amos_fairseq.analysis.flops import Geometry, updates_within
from amos_fairseq.cli.processes import available_cores, started, stoppable
from amos_fairseq.demo.documentation_tasks import COLUMNS
from amos_fairseq.files import durably_written
from amos_fairseq.finetune import results
from amos_fairseq.methods import METHODS, size_options
from amos_fairseq.methods.base import Vocabulary

CHANCE = 12.5  # %, of eight classes
DETECTION_WEIGHTS = ("rtd_weight", "tqr_weight", "critic_weight")  # a method has one of them, but for BERT


@dataclass(frozen=True)
class Budget:
    """flops: of each pre-training run, forward and backward, matrix products alone
    detection_weight: of detection, ranking or the critic in every method's loss; None: each paper's
    """

    flops: float
    seeds: int
    size: str = "tiny"
    megabytes: float = 12
    vocab_size: int = 512
    tokens_per_sample: int = 16
    batch_size: int = 64
    lr: float = 1e-3
    detection_weight: Optional[float] = None
    examples: int = 1600
    epochs: int = 3
    finetuning_lr: float = 1e-3
    finetuning_seeds: int = 2


BUDGETS = {
    "smoke": Budget(flops=2e10, seeds=2, megabytes=0.3, vocab_size=300, examples=64, epochs=1, finetuning_seeds=1),
    "cpu": Budget(flops=8e12, seeds=3, detection_weight=5.0),
    "gpu": Budget(
        flops=2e14, seeds=3, megabytes=100, vocab_size=2048, tokens_per_sample=32, batch_size=512, detection_weight=5.0
    ),
}


class Replication:
    """The work of one budget in the folder `out`."""

    def __init__(self, budget: Budget, variants: Dict[str, Variant], out: Path, jobs: int):
        self.budget, self.variants, self.out, self.jobs = budget, variants, out, jobs
        self.processes: List[subprocess.Popen] = []
        self.stopped = threading.Event()

    # Processes

    def call(self, log: Path, *arguments: object) -> None:
        """Run `amos-fairseq` with these arguments, what it prints in `log`. Raises RuntimeError if it fails."""
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.stopped.is_set():
            raise InterruptedError
        with started(arguments, log, self.jobs) as process:
            self.processes.append(process)
            if self.stopped.is_set():  # while it started
                process.terminate()
            process.wait()
        if process.returncode:
            raise RuntimeError(f"amos-fairseq {arguments[0]} ended with status {process.returncode}: see {log}")

    def stop(self) -> None:
        """Every process saves and ends; the same command goes on."""
        self.stopped.set()
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    # Steps

    def prepare(self) -> None:
        """Text, labelled tasks, vocabulary and blocks, one after the other."""
        budget, corpus, tasks, log = self.budget, self.out / "corpus.txt", self.out / "tasks", self.out / "prepare.log"
        if not corpus.exists():
            self.call(log, "corpus", "--out", corpus, "--megabytes", budget.megabytes)
        if not tasks.exists():
            self.call(log, "corpus", "--tasks", tasks, "--examples", budget.examples)
        self.call(
            log, "prepare", corpus, "--out", self.out / "data", "--uncased", "--vocab-size", budget.vocab_size,
            "--tokens-per-sample", budget.tokens_per_sample,
        )

    def options(self, variant: Variant) -> Dict[str, object]:
        """Of its network and objectives, beside those of the size."""
        weight = self.budget.detection_weight
        known = {field.name for field in fields(METHODS[variant.method].config_class)}
        weights = {name: weight for name in DETECTION_WEIGHTS if weight is not None and name in known}
        return {**ENCODER, **weights, **variant.options}

    def updates(self, variant: Variant) -> int:
        """As many as the FLOPs allow."""
        if not variant.pretrained:
            return 1
        budget = self.budget
        geometry = Geometry(budget.batch_size, budget.tokens_per_sample, 1)
        config = METHODS[variant.method].config_class(
            **{**size_options(variant.method, budget.size), **self.options(variant)}
        )
        with torch.device("meta"):
            vocabulary = Vocabulary(budget.vocab_size, 1, [0, 1, 2, 3])
            method = METHODS[variant.method](config, vocabulary, total_updates=sys.maxsize)
        return max(4, updates_within(method, geometry, budget.flops))

    def measure(self, name: str, seed: int) -> Measured:
        """Pre-train, fine-tune, read what both say."""
        run = self.out / "runs" / name.replace(", ", "-").replace(" ", "_") / str(seed)
        done = run / "measured.json"
        if not done.exists():
            start = time.monotonic()
            self.pretrain(self.variants[name], seed, run)
            scores = self.finetune(run, *([] if self.variants[name].pretrained else ["--from-scratch"]))
            validation = run_log.read(run / run_log.FILE_NAME).validation
            seconds = round(time.monotonic() - start, 1)
            measured = Measured(statistics.mean(scores.values()), {**validation[-1], **scores}, validation[0], seconds)
            with durably_written(os.fspath(done)) as stream:
                stream.write(json.dumps(measured._asdict()).encode())
        return Measured(**json.loads(done.read_text()))

    def pretrain(self, variant: Variant, seed: int, run: Path) -> None:
        budget, updates = self.budget, self.updates(variant)
        precision = ["--bf16"] if torch.cuda.is_available() else ["--cpu"]
        self.call(
            run / run_log.FILE_NAME, "train", self.out / "data",
            *arguments(variant.method, budget.size, self.options(variant)), *precision,
            "--seed", seed, "--tokens-per-sample", budget.tokens_per_sample, "--batch-size", budget.batch_size,
            "--optimizer", "fused_adamw", "--adam-betas", "(0.9, 0.999)", "--adam-eps", 1e-6, "--weight-decay", 0.01,
            "--clip-norm", 2.0, "--lr", budget.lr, "--lr-scheduler", "polynomial_decay",
            "--warmup-updates", max(1, updates // 5), "--total-num-update", updates, "--max-update", updates,
            "--validate-interval-updates", max(1, updates // 4), "--save-interval-updates", max(1, updates // 2),
            "--keep-interval-updates", 1, "--no-epoch-checkpoints", "--log-format", "json",
            "--log-interval", max(1, updates // 40), "--num-workers", 0, "--save-dir", run,
        )

    def finetune(self, run: Path, *options: str) -> Dict[str, float]:
        """By task, the mean accuracy over seeds."""
        budget, found = self.budget, []
        for name, valid in {"package": "valid.tsv", "cloze": "test.tsv"}.items():
            tables = self.out / "tasks" / name
            self.call(
                run / "finetune.log", "finetune", "file", "--train", tables / "train.tsv", "--valid", tables / valid,
                *COLUMNS[name], *options, "--model", run, "--out", run / name,
                "--epochs", budget.epochs, "--seeds", ",".join(map(str, range(1, budget.finetuning_seeds + 1))),
                "--lr", budget.finetuning_lr, "--batch-size", 32, "--max-length", 64, "--jobs", 1,
            )
            found += results.read_all(run / name).values()
        scores: Dict[str, List[float]] = {}
        for result in found:
            scores.setdefault(result.task, []).append(result.score)
        return {f"finetuned_{task}": statistics.mean(values) for task, values in scores.items()}

    def run(self) -> Runs:
        self.prepare()
        work = [(name, seed) for seed in range(1, self.budget.seeds + 1) for name in self.variants]
        measured = {}
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(work), unit="run", disable=None) as bar:
            futures = {pool.submit(self.measure, *item): item for item in work}
            try:
                for future in as_completed(futures):
                    name, seed = futures[future]
                    measured[name, seed] = run = future.result()
                    tqdm.write(f"{name}, seed {seed}: {100 * run.score:.1f} % in {run.seconds:.0f} s", file=sys.stderr)
                    bar.update()
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise
        return {name: [measured[name, seed] for seed in range(1, self.budget.seeds + 1)] for name in self.variants}


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def markdown(replication: Replication, runs: Runs) -> str:
    budget = replication.budget
    seconds = sum(run.seconds for measured in runs.values() for run in measured) / replication.jobs
    tasks = [name for name in next(iter(runs.values()))[0].validation if name.startswith("finetuned_")]
    header = ["variant", "updates", *(task.removeprefix("finetuned_") for task in tasks), "mean"]
    lines = [
        f"{budget.flops:.1e} FLOPs for each of {budget.seeds} pre-training seeds, {budget.finetuning_seeds} seeds of "
        f"fine-tuning; {seconds / 60:.0f} minutes, {replication.jobs} runs at a time. Mean ± standard deviation over "
        f"pre-training seeds of the accuracy in percent; chance is {CHANCE}.", "",
        "| " + " | ".join(header) + " |", "|" + "---|" * len(header),
    ]
    for name, measured in runs.items():
        cells = [spread([run.validation[task] for run in measured]) for task in tasks]
        updates = replication.updates(replication.variants[name])
        lines.append("| " + " | ".join([name, f"{updates:,}", *cells, spread([run.score for run in measured])]) + " |")
    lines += ["", "| claim | source | difference | 90 % interval | verdict |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        try:
            verdict = judge(claim.differences(runs))
        except KeyError:  # of a variant that this call leaves out
            continue
        lines.append(
            f"| {claim.text} | {claim.source} | {verdict.mean:+.3g} {claim.unit} | {verdict.low:+.3g} to "
            f"{verdict.high:+.3g} | **{verdict.words}** |"
        )
    lines += ["", "A claim is seen, or not seen, if a t-test over pre-training seeds finds the difference above, or "
              "below, zero at the 5 % level; else it is undecided at this size."]
    return "\n".join(lines) + "\n"


def picture(runs: Runs) -> Figure:
    """Each pre-training seed's score as a dot, their mean as a bar, chance and the untrained network as lines."""
    figure = Figure(figsize=(7.0, 0.8 + 0.28 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for row, (name, measured) in enumerate(runs.items()):
        scores = [100 * run.score for run in measured]
        axes.plot(scores, [row] * len(scores), "o", color=COLORS[0], alpha=0.6, markersize=5)
        axes.plot(statistics.mean(scores), row, "|", color="black", markersize=13, markeredgewidth=2)
    axes.axvline(CHANCE, color="0.5", linestyle=":", label="chance")
    if "untrained" in runs:
        mean = statistics.mean(100 * run.score for run in runs["untrained"])
        axes.axvline(mean, color="0.5", linestyle="--", label="untrained, mean")
    axes.set_yticks(range(len(runs)), list(runs))
    axes.invert_yaxis()
    axes.set_xlabel("% right after fine-tuning (dots: pre-training seeds, bar: their mean)")
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("budget", choices=BUDGETS)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    parser.add_argument("--variants", help=f"some of: {'; '.join(VARIANTS)}, separated by semicolons (default: all)")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: a core each, three on a GPU)")
    args = parser.parse_args()
    names = [name.strip() for name in args.variants.split(";")] if args.variants else list(VARIANTS)
    for name in names:
        if name not in VARIANTS:
            sys.exit(f"replicate: error: --variants {name!r} is none of {'; '.join(VARIANTS)}")
    jobs = args.jobs or (3 if torch.cuda.is_available() else available_cores())
    budget = BUDGETS[args.budget]
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "budget.json"
    if kept.exists() and json.loads(kept.read_text()) != asdict(budget):
        sys.exit(f"replicate: error: --out {args.out} holds another budget: choose another folder, or delete it")
    kept.write_text(json.dumps(asdict(budget)))

    replication = Replication(budget, {name: VARIANTS[name] for name in names}, args.out, jobs)
    try:
        with stoppable(args.out):
            runs = replication.run()
    except KeyboardInterrupt:
        sys.exit(os.EX_TEMPFAIL)
    except RuntimeError as error:
        sys.exit(f"replicate: error: {error}")
    (args.out / "results.json").write_text(json.dumps(
        {"budget": asdict(budget), "jobs": jobs, "torch": torch.__version__,
         "runs": {name: [run._asdict() for run in measured] for name, measured in runs.items()}}, indent=1))
    (args.out / "results.md").write_text(markdown(replication, runs))
    picture(runs).savefig(args.out / "results.png", dpi=150)
    print((args.out / "results.md").read_text())


if __name__ == "__main__":
    main()
