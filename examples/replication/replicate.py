"""Which claims of the five papers show at a size that anyone can afford:

    python examples/replication/replicate.py cpu --out runs/replication

All variants are pre-trained with the same FLOPs on the same text with several seeds, then judged as protocol.md says:
by probes of the frozen encoder, and by fine-tuning on labelled tasks made from text that pre-training has not seen.
Writes OUT/results.json, OUT/results.md and OUT/results.png of all runs that OUT holds. What is finished is not done
again: the same command goes on where an interrupted one stopped; --dry-run says what a budget costs. Budgets: smoke
(minutes), search (the recipe), cpu (two cores, hours), amos (its ablations with four times the FLOPs), gpu (one GPU),
node (eight GPUs, a day: the papers' settings of size small on data of your own, --data FOLDER as `amos-fairseq
prepare` wrote it).
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from claims import LEVEL, Measured, Runs, verdicts
from matplotlib.figure import Figure
from tqdm import tqdm
from variants import AMOS, METHODS, PLAIN, SEARCH, Variant

from amos_fairseq import run_log
from amos_fairseq.analysis.figures import COLORS
from amos_fairseq.cli import recipe
from amos_fairseq.cli.processes import available_cores, started, stoppable
from amos_fairseq.data.manifest import read_manifest
from amos_fairseq.files import durably_written
from amos_fairseq.flops import ASSUMED_MFU, PEAK_FLOPS, peak_flops

PROBES = ("swap", "acceptability")
DEVELOPMENT, HELD_OUT = "development", "held_out"  # items of the probes
MEASURED = "measured.json"  # in the folder of a finished run


@dataclass(frozen=True)
class Budget:
    """flops: of each pre-training run, forward and backward, matrix products alone

    papers: the settings are the papers', not those of the recipe, which is for tiny networks
    """

    flops: float
    seeds: Tuple[int, ...]
    items: str = HELD_OUT
    size: str = "tiny"
    papers: bool = False
    lr: float = 1e-3
    megabytes: float = 12
    vocab_size: int = recipe.VOCAB_SIZE
    tokens_per_sample: int = recipe.TOKENS_PER_SAMPLE
    batch_size: int = recipe.BATCH_SIZE
    examples: int = recipe.EXAMPLES
    epochs: int = 2
    finetuning_lr: float = 1e-3
    finetuning_seeds: int = 1  # 0: judged by the probes alone


SEARCHED, CONFIRMED = (1, 2), (21, 22, 23, 24, 25)  # seeds
BUDGETS = {
    "smoke": Budget(
        flops=2e10, seeds=SEARCHED, items=DEVELOPMENT, megabytes=0.3, vocab_size=300, examples=64, epochs=1
    ),
    "search": Budget(flops=4e12, seeds=SEARCHED, items=DEVELOPMENT, finetuning_seeds=0),
    "cpu": Budget(flops=4e12, seeds=CONFIRMED),
    "amos": Budget(flops=1.6e13, seeds=CONFIRMED),
    "gpu": Budget(
        flops=2e14, seeds=CONFIRMED[:3], megabytes=100, vocab_size=2048, tokens_per_sample=32, batch_size=512
    ),
    "node": Budget(  # ELECTRA's FLOPs
        flops=1.4e18, seeds=(31, 32, 33), size="small", papers=True, lr=5e-4, tokens_per_sample=128, batch_size=512
    ),
}
VARIANTS_OF = {"search": SEARCH, "amos": AMOS, "node": PLAIN}  # the others: all methods
DEVICES = ("A100", "H100")  # of --dry-run


class Replication:
    """The work of one budget in the folder `out`."""

    def __init__(self, budget: Budget, variants: Dict[str, Variant], out: Path, jobs: int, data: Optional[Path] = None):
        self.budget, self.variants, self.out, self.jobs = budget, variants, out, jobs
        self.given, self.data = data is not None, data or out / "data"
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
        if not tasks.exists():
            self.call(log, "corpus", "--tasks", tasks, "--examples", budget.examples)
        if self.given:
            return
        if not corpus.exists():
            self.call(log, "corpus", "--out", corpus, "--megabytes", budget.megabytes)
        self.call(
            log, "prepare", corpus, "--out", self.data, "--uncased", "--vocab-size", budget.vocab_size,
            "--tokens-per-sample", budget.tokens_per_sample,
        )

    def updates(self, variant: Variant) -> int:
        """As many as the FLOPs allow, those of the generator alone being cheaper."""
        if not variant.pretrained:
            return 1
        budget = self.budget
        return recipe.updates_for(
            budget.flops, variant.method, variant.options(10**6, budget.papers),
            0.0 if budget.papers else variant.generator_alone, budget.size, budget.vocab_size,
            budget.tokens_per_sample, variant.batch_size or budget.batch_size,
            **{"mask_prob": 0.15, **variant.masking(budget.papers)},
        )

    def measure(self, name: str, seed: int) -> Measured:
        """Pre-train, probe, fine-tune, read what all say."""
        run = self.folder(name) / str(seed)
        done = run / MEASURED
        if not done.exists():
            start, variant = time.monotonic(), self.variants[name]
            self.pretrain(variant, seed, run)
            scores = self.probe(run)
            if self.budget.finetuning_seeds:
                scores.update(self.finetune(run, not variant.pretrained))
                scores["fine-tuning"] = statistics.mean(scores[task] for task in recipe.FINETUNED)
            score = statistics.mean(scores[name] for name in (*PROBES, "fine-tuning") if name in scores)
            validation = run_log.read(run).validation
            measured = Measured(score, scores, validation[-1], validation[0], round(time.monotonic() - start, 1))
            with durably_written(os.fspath(done)) as stream:
                stream.write(json.dumps(measured._asdict()).encode())
        return read(done)

    def folder(self, name: str) -> Path:
        return self.out / "runs" / name.replace(", ", "-").replace(" ", "_")

    def pretrain(self, variant: Variant, seed: int, run: Path) -> None:
        budget, updates = self.budget, self.updates(variant)
        options = {**variant.options(updates, budget.papers), **variant.masking(budget.papers)}
        self.call(run / run_log.LOG_NAME, *recipe.training(
            self.data, run, variant.method, options, updates, budget.size, budget.tokens_per_sample,
            (variant.batch_size or budget.batch_size) // max(1, torch.cuda.device_count()), seed, logs=40,
            gpu=torch.cuda.is_available(), lr=budget.lr,
        ))

    def probe(self, run: Path) -> Dict[str, float]:
        """By task, the share of items that are right."""
        log = run / "probe.json"
        log.unlink(missing_ok=True)
        self.call(log, "probe", run, "--tasks", ",".join(PROBES), "--part", self.budget.items, "--json")
        rows = json.loads(log.read_text().splitlines()[-1])["probes"]
        return {row["task"]: row["accuracy"] for row in rows if row["network"] == str(run)}

    def finetune(self, run: Path, from_scratch: bool) -> Dict[str, float]:
        """By task, the mean accuracy over seeds."""
        budget, scores = self.budget, {}
        for task in recipe.FINETUNED:
            seeds = range(1, budget.finetuning_seeds + 1)
            self.call(run / "finetune.log", *recipe.finetuning(
                self.out / "tasks", task, run, run / task, seeds, from_scratch, budget.epochs, budget.finetuning_lr
            ), "--jobs", 1)
            scores[task] = recipe.accuracy(run / task)
        return scores

    def run(self, names: Sequence[str], seeds: Sequence[int]) -> None:
        self.prepare()
        work = [(name, seed) for seed in seeds for name in names]
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(work), unit="run", disable=None) as bar:
            futures = {pool.submit(self.measure, *item): item for item in work}
            try:
                for future in as_completed(futures):
                    name, seed = futures[future]
                    run = future.result()
                    tqdm.write(f"{name}, seed {seed}: {100 * run.score:.1f} % in {run.seconds:.0f} s", file=sys.stderr)
                    bar.update()
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def finished(self) -> Runs:
        """All that OUT holds."""
        found = {name: sorted(self.folder(name).glob(f"*/{MEASURED}"), key=seed_of) for name in self.variants}
        return {name: {seed_of(path): read(path) for path in paths} for name, paths in found.items() if paths}


def seed_of(measured: Path) -> int:
    return int(measured.parent.name)


def read(measured: Path) -> Measured:
    return Measured(**json.loads(measured.read_text()))


def cost(replication: Replication, names: Sequence[str], seeds: Sequence[int]) -> str:
    """What --dry-run prints."""
    budget, gpus = replication.budget, torch.cuda.device_count() or (8 if replication.budget.papers else 0)
    total = 0.0
    lines = [f"{'variant':<22}{'updates':>9}{'FLOPs':>10}"]
    for name in names:
        variant = replication.variants[name]
        flops = budget.flops if variant.pretrained else 0.0
        total += flops * len(seeds)
        lines.append(f"{name:<22}{replication.updates(variant):>9,}{flops:>10.1e}")
    if gpus:
        speeds = {f"{gpus} x {name}": gpus * PEAK_FLOPS[name] for name in DEVICES}
    else:
        speeds = {f"{available_cores()} cores of this CPU": peak_flops(torch.device("cpu"))}
    hours = (f"{total / (ASSUMED_MFU * peak) / 3600:.3g} h on {name}" for name, peak in speeds.items())
    lines += [
        f"{len(seeds)} seeds: {total:.1e} FLOPs of pre-training; probes and fine-tuning come on top",
        f"if the MFU were {ASSUMED_MFU} {', '.join(hours)}",
    ]
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def markdown(replication: Replication, runs: Runs, level: float) -> str:
    budget = replication.budget
    seconds = sum(run.seconds for measured in runs.values() for run in measured.values())
    numbers = {len(measured) for measured in runs.values()}
    columns = [*PROBES, *([*recipe.FINETUNED, "fine-tuning"] if budget.finetuning_seeds else [])]
    header = ["variant", "seeds", "updates", "nats", "AUC words", "identity", "cosine", "rank", *columns, "score"]
    seeds = f"{min(numbers)}" if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
    lines = [
        f"{budget.flops:.1e} FLOPs for each of {seeds} pre-training seeds; {budget.finetuning_seeds} of fine-tuning; "
        f"{budget.items} items of the probes; {seconds / 3600:.1f} hours of runs. Mean ± standard deviation over "
        "pre-training seeds, from the AUC on in percent but for the rank.", "",
        "| " + " | ".join(header) + " |", "|" + "---|" * len(header),
    ]
    for name, measured in runs.items():
        of_seeds = list(measured.values())
        logged = [logged_of([run.validation for run in of_seeds], *quantity) for quantity in LOGGED]
        cells = [spread([run.scores[column] for run in of_seeds]) for column in columns]
        updates = replication.updates(replication.variants[name])
        score = spread([run.score for run in of_seeds])
        lines.append("| " + " | ".join([name, str(len(of_seeds)), f"{updates:,}", *logged, *cells, score]) + " |")
    found = verdicts(runs, level)
    if found:
        lines += ["", "| claim | source | difference | 95 % interval | p, corrected | verdict |",
                  "|---|---|---|---|---|---|"]
    for claim, verdict in found:
        decided = f" ({verdict.seeds_needed} seeds would decide)" if verdict.seeds_needed else ""
        if verdict.words == "no difference":
            decided = f" (within ±{claim.margin:g})"
        lines.append(
            f"| {claim.text} | {claim.source} | {verdict.mean:+.3g} {claim.unit} | {verdict.low:+.3g} to "
            f"{verdict.high:+.3g} | {verdict.p:.2g} | **{verdict.words}**{decided} |"
        )
    return "\n".join(lines) + "\n"


LOGGED = [  # names in the log, digits, factor
    (("mlm_2", "mlm"), 2, 1), (("rtd_auc_words",), 1, 100), (("rtd_auc_identity",), 1, 100),
    (("hidden_cosine",), 1, 100), (("hidden_rank",), 1, 1),
]


def logged_of(validations: Sequence[Dict[str, float]], names: Sequence[str], digits: int, factor: float) -> str:
    """The mean of what was logged, by the first of the names that is there; nothing if none is."""
    name = next((name for name in names if name in validations[0]), None)
    return "" if name is None else f"{factor * statistics.mean(row[name] for row in validations):.{digits}f}"


def picture(runs: Runs) -> Figure:
    """Each pre-training seed's score as a dot, their mean as a bar, the untrained network as a line."""
    figure = Figure(figsize=(7.0, 0.8 + 0.28 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for row, (name, measured) in enumerate(runs.items()):
        scores = [100 * run.score for run in measured.values()]
        axes.plot(scores, [row] * len(scores), "o", color=COLORS[0], alpha=0.6, markersize=5)
        axes.plot(statistics.mean(scores), row, "|", color="black", markersize=13, markeredgewidth=2)
    if "untrained" in runs:
        mean = statistics.mean(100 * run.score for run in runs["untrained"].values())
        axes.axvline(mean, color="0.5", linestyle="--", label="untrained, mean")
        figure.legend(loc="outside upper center", frameon=False, fontsize="small")
    axes.set_yticks(range(len(runs)), list(runs))
    axes.invert_yaxis()
    axes.set_xlabel("score, % (dots: pre-training seeds, bar: their mean)")
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def chosen_variants(given: Optional[str], known: List[str]) -> List[str]:
    names = [name.strip() for name in given.split(";")] if given else known
    for name in names:
        if name not in known:
            sys.exit(f"replicate: error: --variants {name!r} is none of {'; '.join(known)}")
    return names


def chosen_seeds(given: str) -> List[int]:
    try:
        return [int(seed) for seed in given.split(",")]
    except ValueError:
        sys.exit(f"replicate: error: --seeds {given!r} are not whole numbers with commas between them")


def on_data(budget: Budget, data: Path) -> Budget:
    """With the data's vocabulary and length, and as many tokens of an update."""
    try:
        manifest = read_manifest(str(data))
    except ValueError as error:
        sys.exit(f"replicate: error: {error}")
    length = manifest.tokens_per_sample
    sequences = max(1, budget.batch_size * budget.tokens_per_sample // length)
    return replace(
        budget, megabytes=0, vocab_size=manifest.vocabulary_size, tokens_per_sample=length, batch_size=sequences
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("budget", choices=BUDGETS)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    parser.add_argument("--variants", metavar="NAME;..", help="some of the budget's (default: all)")
    parser.add_argument("--seeds", metavar="N,..", help="pre-training seeds (default: the budget's)")
    parser.add_argument(
        "--level", type=float, default=LEVEL, metavar="P",
        help="of all claims together (default: %(default)s; half of it for a second look, at more seeds)",
    )
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one a core, three on a GPU, one on several)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="prepared data of your own; node needs them")
    parser.add_argument("--dry-run", action="store_true", help="what it costs; nothing is run")
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.WARNING)  # fairseq's imports have it at DEBUG, for all libraries
    budget = BUDGETS[args.budget]
    if args.data is not None:
        budget = on_data(budget, args.data)
    elif budget.papers:
        sys.exit(f"replicate: error: {args.budget} is for data of your own: name them, --data FOLDER")
    if not 0 < args.level < 1:
        sys.exit(f"replicate: error: --level {args.level} is not between 0 and 1")
    known = VARIANTS_OF.get(args.budget, METHODS)
    names = chosen_variants(args.variants, list(known))
    seeds = chosen_seeds(args.seeds) if args.seeds else budget.seeds
    jobs = args.jobs or {0: available_cores(), 1: 3}.get(torch.cuda.device_count(), 1)
    replication = Replication(budget, known, args.out, jobs, args.data)
    if args.dry_run:
        print(cost(replication, names, seeds))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "budget.json"
    if kept.exists() and json.loads(kept.read_text()) != json.loads(json.dumps(asdict(budget))):
        sys.exit(f"replicate: error: --out {args.out} holds another budget: choose another folder, or delete it")
    kept.write_text(json.dumps(asdict(budget)))

    try:
        with stoppable(args.out):
            replication.run(names, seeds)
    except KeyboardInterrupt:
        sys.exit(os.EX_TEMPFAIL)
    except RuntimeError as error:
        sys.exit(f"replicate: error: {error}")
    runs = replication.finished()
    (args.out / "results.json").write_text(json.dumps(
        {"budget": asdict(budget), "jobs": jobs, "torch": torch.__version__,
         "runs": {name: {seed: run._asdict() for seed, run in measured.items()} for name, measured in runs.items()}},
        indent=1,
    ))
    (args.out / "results.md").write_text(markdown(replication, runs, args.level))
    picture(runs).savefig(args.out / "results.png", dpi=150)
    print((args.out / "results.md").read_text())


if __name__ == "__main__":
    main()
