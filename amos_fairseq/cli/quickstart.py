"""`amos-fairseq quickstart`: from nothing to a small pre-trained model and what it learnt, in one command.

Corpus, vocabulary and binarised data, training, figures, examples, fine-tuning, export: all land in one folder. What is
there already is not done again, so the same command goes on where an interrupted one stopped.
"""
import argparse
import importlib.util
import logging
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, ContextManager, Dict, List, Optional

from amos_fairseq import files
from amos_fairseq.analysis import expectations, run_log
from amos_fairseq.cli import inspect, report
from amos_fairseq.cli.processes import available_cores, held_interrupts, interrupt, signals_handled

HELP = "Pre-train a small model on the CPU and show what it learnt. The same command goes on after an interruption."

# A model this small learns within minutes from short blocks and short words: near neighbours tell it most.
UPDATES = 4000  # about four minutes on two cores
BATCH_SIZE = 64
TOKENS_PER_SAMPLE = 16
VOCAB_SIZE = 1024
SMALLEST_CORPUS = 200_000  # bytes; enough words for the vocabulary
SAVE_INTERVAL = 500
LOG_INTERVAL = 25
HELD_OUT_BLOCKS = 10
POLL_SECONDS = 0.5

ALL = "all"  # --method
CORPUS, DATA, CHECKPOINT = "corpus.txt", "data", "checkpoint_last"
TASKS, HUGGINGFACE = "tasks", "huggingface"
EXAMPLES = 800
PROGRAM = [sys.executable, "-m", "amos_fairseq.cli.main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus", type=Path, metavar="PATH",
        help="text file, or folder of .txt files (default: documentation found on this machine)",
    )
    parser.add_argument(
        "--method", default="amos_rtd",
        help="what to train (default: amos_rtd); all: each method in turn, for as long, on the same text",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where everything goes (default: runs/quickstart-METHOD)"
    )
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"length of the training (default: {UPDATES})")


def run(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # before fairseq's imports do it otherwise
    start = time.monotonic()
    settings = check_settings(args)
    out = args.out or Path("runs") / f"quickstart-{args.method}"
    with claimed(out, settings) as lock, signals_handled([signal.SIGTERM, signal.SIGHUP], interrupt):
        try:
            if args.method == ALL:
                train_all(args, settings, out, lock)
            else:
                train_one(args, settings, out, lock)
                report.show(out)
                print()
                inspect.show(out, HELD_OUT_BLOCKS, threshold=None)
                if args.corpus is None:  # the labelled sentences are of the documentation, too
                    finetune(out, args.method)
                export(out)
        except KeyboardInterrupt:
            print(f"\nStopped. The same command goes on from what {out} holds.", file=sys.stderr)
            raise
    print(f"\n{out}: {time.monotonic() - start:.0f} s, {peak_memory() / 2**30:.1f} GiB of memory at most")


def train_one(args: argparse.Namespace, settings: Dict, out: Path, lock: int) -> None:
    if is_trained(out, args.updates):
        print(f"{out} is done already: these are its results. Delete it to start anew.\n")
        return
    prepare_data(args.corpus, out)
    train(settings, out / DATA, out, lock)


def train_all(args: argparse.Namespace, settings: Dict, out: Path, lock: int) -> None:
    """Every method in a folder of its own, on one data folder; then a report of all."""
    from amos_fairseq.methods import METHODS

    prepare_data(args.corpus, out)
    for method in METHODS:
        (out / method).mkdir(exist_ok=True)
        if not is_trained(out / method, args.updates):
            train({**settings, "method": method}, out / DATA, out / method, lock)
    print()
    report.show(*(out / method for method in METHODS), out=out / "report")


def finetune(out: Path, method: str) -> None:
    """What pre-training is worth: the network of this run and the same one untrained, on a task of held-out text."""
    from amos_fairseq.demo.documentation_tasks import LEFT_OUT, write_tasks
    from amos_fairseq.finetune import results
    from amos_fairseq.finetune.model import LM_HEADS

    tasks = out / TASKS
    if not tasks.exists():
        partial = tasks.with_name(f"{TASKS}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_tasks(partial, examples=EXAMPLES)
        partial.rename(tasks)
    if method in LM_HEADS:  # the encoder itself can say it
        question, split = "which of eight words was left out of a sentence?", "test"
        task = ["prompt", "--train", tasks / "cloze/train.tsv", "--test", tasks / "cloze/test.tsv", "--text", "before",
                "--text-b", "after", "--label", "word", "--template", "{text} {mask} {text_b}", "--samples", "0",
                "--label-words", ",".join(f"{word}={word}" for word in LEFT_OUT), "--per-class", "50", "--epochs", "1"]
    else:
        question, split = "which of eight packages is a sentence from?", "valid"
        task = ["file", "--train", tasks / "package/train.tsv", "--valid", tasks / "package/valid.tsv", "--text",
                "sentence", "--label", "package", "--epochs", "3"]
    print(f"\nFine-tuning: {question} Accuracy, median of three seeds (chance 0.125)", flush=True)
    for kind, options in (("pre-trained", []), ("untrained", ["--from-scratch"])):
        folder = out / f"finetuned-{kind}"
        common = ["--model", out, "--out", folder, "--cpu", "--seeds", "1,2,3", "--batch-size", "16", "--lr", "5e-4",
                  "--max-length", "64"]
        run_quietly(["finetune", *task, *common, *options], out / f"finetuned-{kind}.log")
        scores = [result.scores[split]["accuracy"] for result in results.read_all(folder).values()]
        print(f"  {kind:<12}{statistics.median(scores):.3f}  ({min(scores):.3f} to {max(scores):.3f})", flush=True)
    if method not in LM_HEADS:
        print("  (An encoder that learns by detection alone takes a longer run than this to be worth starting from.)")


def export(out: Path) -> None:
    folder, log_path = out / HUGGINGFACE, out / "export.log"
    if importlib.util.find_spec("transformers") is None:
        print(f"\nExport: pip install transformers, then amos-fairseq export {out} --out {folder}")
        return
    if not folder.exists():
        run_quietly(["export", out, "--out", folder], log_path)
    print(f"\nExport, to be loaded by transformers:\n  {log_path.read_text().strip().splitlines()[0]}", flush=True)


def run_quietly(arguments: List, log_path: Path) -> None:
    """`amos-fairseq` with these arguments in a process of its own, its words in a log."""
    with open(log_path, "wb") as log:
        done = subprocess.run([*PROGRAM, *map(str, arguments)], stdout=log, stderr=log)
    if done.returncode:
        print(last_lines(log_path, 15), file=sys.stderr)
        sys.exit(f"amos-fairseq quickstart: error: {arguments[0]} ended with status {done.returncode}; see {log_path}")


def check_settings(args: argparse.Namespace) -> Dict:
    """What the run is, as it is kept beside it; mistakes are told before any work."""
    from amos_fairseq.methods import METHODS

    if args.method not in (*METHODS, ALL):
        raise ValueError(f"unknown --method {args.method}: choose one of {', '.join(METHODS)}, or {ALL}")
    if args.updates < 1:
        raise ValueError(f"--updates must be at least 1, got {args.updates}")
    if args.corpus:
        check_corpus(args.corpus)
    usual = args.corpus is None and args.updates == UPDATES
    return {
        "method": args.method,
        "corpus": str(args.corpus.resolve()) if args.corpus else "",
        "updates": args.updates,
        "setting": expectations.QUICKSTART if usual else "custom",
    }


def check_corpus(path: Path) -> None:
    from amos_fairseq.data.corpus import list_inputs

    size = sum(os.path.getsize(file) for file in list_inputs([str(path)]))
    if size < SMALLEST_CORPUS:
        raise ValueError(f"--corpus {path} has {size:,} bytes, too few to learn from; {SMALLEST_CORPUS:,} is the least")


def claimed(out: Path, settings: Dict) -> ContextManager[int]:
    return files.claimed(
        out / expectations.SETTINGS_FILE, settings, "another quick start is at work", "is a quick start with"
    )


def is_trained(out: Path, updates: int) -> bool:
    """Whether the last update was validated and fairseq then ended the training by itself."""
    log = out / run_log.FILE_NAME
    if not (log.exists() and (out / CHECKPOINT).exists()):
        return False
    validation = run_log.read(log).validation
    return bool(validation) and validation[-1]["num_updates"] >= updates and "done training" in last_lines(log, 20)


def prepare_data(corpus: Optional[Path], out: Path) -> None:
    """Corpus, vocabulary and binarised blocks."""
    from amos_fairseq.data.preparation import prepare
    from amos_fairseq.demo.documentation import write_documentation

    if corpus is None:
        corpus = out / CORPUS
        if not corpus.exists():
            size = write_documentation(str(corpus), progress=True)
            print(f"corpus    {corpus}, {size / 1e6:.1f} MB of documentation found on this machine", flush=True)
    data = out / DATA
    manifest = prepare(
        [str(corpus)], str(data), vocab_size=VOCAB_SIZE, tokens_per_sample=TOKENS_PER_SAMPLE, progress=True
    )
    sizes = ", ".join(f"{split.tokens:,} tokens to {name}" for name, split in manifest.splits.items())
    print(f"data      {data}, {manifest.vocabulary_size:,} symbols, {sizes}", flush=True)


def train(settings: Dict, data: Path, out: Path, lock: int) -> None:
    """fairseq-train in a process of its own, its words in train.log, a progress bar here."""
    log_path = out / run_log.FILE_NAME
    threads = str(available_cores())
    # A thread that waits should spin for a moment only. For long, as is the default, a training is six times slower
    # with anything else at work on the machine; not at all, it is a third slower with nothing else.
    environment = {"GOMP_SPINCOUNT": "20000", "OMP_NUM_THREADS": threads, **os.environ}
    print(f"training  {settings['method']}_tiny on {threads} CPU cores, log in {log_path}", flush=True)
    with open(log_path, "ab") as log, held_interrupts() as interrupt_point:
        process = subprocess.Popen(
            training_command(settings, data, out), stdout=log, stderr=log, env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends the training
            pass_fds=[lock],  # the folder stays claimed for as long as it trains
        )
        try:
            follow(process, log_path, settings["updates"], interrupt_point)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        print(last_lines(log_path, 15), file=sys.stderr)
        sys.exit(f"amos-fairseq quickstart: error: the training ended with status {process.returncode}; see {log_path}")


def training_command(settings: Dict, data: Path, out: Path) -> List[str]:
    """The training as a shell would start it."""
    method, updates = settings["method"], settings["updates"]
    options = {
        "task": method,
        "arch": f"{method}_tiny",
        "criterion": method,
        "tokens-per-sample": TOKENS_PER_SAMPLE,
        "batch-size": BATCH_SIZE,
        "optimizer": "adam",
        "adam-betas": "(0.9, 0.98)",
        "adam-eps": 1e-6,
        "weight-decay": 0.01,
        "clip-norm": 2.0,
        "lr": 1e-3,
        "dropout": 0.0,
        "attention-dropout": 0.0,
        "lr-scheduler": "polynomial_decay",
        "warmup-updates": max(1, updates // 10),
        "total-num-update": updates,
        "max-update": updates,
        "save-dir": out,
        "save-interval-updates": SAVE_INTERVAL,
        "keep-interval-updates": 1,
        "validate-interval-updates": SAVE_INTERVAL,
        "log-format": "json",
        "log-interval": min(LOG_INTERVAL, max(1, updates // 5)),
        "num-workers": 0,
        "seed": 1,
    }
    pairs = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*PROGRAM, "train", str(data.resolve()), *pairs, "--cpu", "--no-epoch-checkpoints"]


def follow(process: subprocess.Popen, log_path: Path, updates: int, interrupt_point: Callable[[], None]) -> None:
    """Show the run's log as a progress bar, or as lines if nobody watches, until its process ends."""
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    done = last_update(log_path)
    with tqdm(total=updates, initial=done, unit=" updates", dynamic_ncols=True, disable=not watched) as bar:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            interrupt_point()
            rows = run_log.read(log_path).train
            if not rows or rows[-1]["num_updates"] == done:
                continue
            bar.update(rows[-1]["num_updates"] - done)
            done = int(rows[-1]["num_updates"])
            terms = {name: value for name, value in rows[-1].items() if run_log.split_depth(name)[0] in ("mlm", "rtd")}
            losses = "  ".join(f"{name} {value:.2f}" for name, value in terms.items())
            bar.set_postfix_str(losses)
            if not watched and done * 10 // updates > (done - LOG_INTERVAL) * 10 // updates:  # a line each tenth
                print(f"  update {done} of {updates}  {losses}", flush=True)


def last_update(log_path: Path) -> int:
    rows = run_log.read(log_path).train
    return int(rows[-1]["num_updates"]) if rows else 0


def last_lines(path: Path, count: int) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def peak_memory() -> int:
    """Bytes of the largest process, this one or a child."""
    unit = 1 if sys.platform == "darwin" else 1024
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * max(usage.ru_maxrss for usage in usages)
