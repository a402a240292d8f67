"""`amos-fairseq quickstart`: from nothing to a small pre-trained model and what it learnt, in one command.

Corpus, vocabulary and binarised data, training, figures, examples, fine-tuning, export: all land in one folder. What is
there already is not done again, so the same command goes on where an interrupted one stopped.
"""
import argparse
import contextlib
import importlib.util
import logging
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Sequence

from amos_fairseq.analysis import expectations, quantities, run_log
from amos_fairseq.cli.main import run_command
from amos_fairseq.cli.processes import available_cores, held_interrupts, started, stoppable
from amos_fairseq.data.inputs import list_inputs
from amos_fairseq.files import claimed

HELP = "Pre-train a small model on the CPU and show what it learnt. The same command goes on after an interruption."

# A model this small learns within minutes from short blocks and short words: near neighbours tell it most.
UPDATES = 4000  # about four minutes on two cores
BATCH_SIZE, TOKENS_PER_SAMPLE, VOCAB_SIZE = 64, 16, 1024
SMALLEST_CORPUS = 200_000  # bytes; enough words for the vocabulary
SAVE_INTERVAL, LOG_INTERVAL = 500, 25
HELD_OUT_BLOCKS = 10
POLL_SECONDS = 0.5

ALL = "all"  # --method
CORPUS, DATA, CHECKPOINT = "corpus.txt", "data", "checkpoint_last"
TASKS, HUGGINGFACE = "tasks", "huggingface"
EXAMPLES = 800


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
    words = "another quick start is at work", "is a quick start with"
    with claimed(out / expectations.SETTINGS_FILE, settings, *words) as lock, stoppable(out):
        make(args, settings, out, lock)
    print(f"\n{out}: {time.monotonic() - start:.0f} s, {peak_memory() / 2**30:.1f} GiB of memory at most")


def make(args: argparse.Namespace, settings: Dict, out: Path, lock: int) -> None:
    """All that is not there yet, one command after the other; of all methods each has a folder of its own."""
    from amos_fairseq.methods import METHODS

    runs = {method: out / method for method in METHODS} if args.method == ALL else {args.method: out}
    missing = {method: run for method, run in runs.items() if not is_trained(run, args.updates)}
    if missing:
        corpus = args.corpus or out / CORPUS
        if not corpus.exists():
            command("corpus", "--out", corpus)
        command("prepare", corpus, "--out", out / DATA, "--vocab-size", VOCAB_SIZE, "--tokens-per-sample",
                TOKENS_PER_SAMPLE)
        for method, run in missing.items():
            run.mkdir(exist_ok=True)
            train({**settings, "method": method}, out / DATA, run, lock)
    else:
        print(f"{out} is done already: these are its results. Delete it to start anew.\n")
    command("report", *runs.values(), "--out", out / "report")
    if args.method != ALL:
        print()
        command("inspect", out, "--count", HELD_OUT_BLOCKS, "--threshold", "matched")
        if args.corpus is None:  # the labelled sentences are of the documentation, too
            finetune(out, args.method)
        export(out)


def command(name: str, *arguments: object) -> None:
    """`amos-fairseq` with these arguments, in this process."""
    run_command(name, list(map(str, arguments)))


def train(settings: Dict, data: Path, out: Path, lock: int) -> None:
    """fairseq-train in a process of its own, its words in train.log, a progress bar here."""
    log = out / run_log.FILE_NAME
    print(f"training  {settings['method']}_tiny on {available_cores()} CPU cores, log in {log}", flush=True)
    with progress(log, settings["updates"]) as show:
        run_logged("the training", training_arguments(settings, data, out), log, show, pass_fds=[lock])


def training_arguments(settings: Dict, data: Path, out: Path) -> List:
    """The training as a shell would start it."""
    method, updates = settings["method"], settings["updates"]
    return [
        "train", data.resolve(), "--task", method, "--arch", f"{method}_tiny", "--criterion", method, "--cpu",
        "--tokens-per-sample", TOKENS_PER_SAMPLE, "--batch-size", BATCH_SIZE, "--optimizer", "adam", "--adam-betas",
        "(0.9, 0.98)", "--adam-eps", 1e-6, "--weight-decay", 0.01, "--clip-norm", 2.0, "--lr", 1e-3, "--dropout", 0.0,
        "--attention-dropout", 0.0, "--lr-scheduler", "polynomial_decay", "--warmup-updates", max(1, updates // 10),
        "--total-num-update", updates, "--max-update", updates, "--save-dir", out, "--no-epoch-checkpoints",
        "--save-interval-updates", SAVE_INTERVAL, "--keep-interval-updates", 1, "--validate-interval-updates",
        SAVE_INTERVAL, "--log-format", "json", "--log-interval", min(LOG_INTERVAL, max(1, updates // 5)),
        "--num-workers", 0, "--seed", 1,
    ]


@contextlib.contextmanager
def progress(log: Path, updates: int) -> Iterator[Callable[[], None]]:
    """A function that shows how far a run's log is: as a progress bar, or in lines if nobody watches."""
    from tqdm import tqdm

    def rows() -> List[run_log.Row]:
        return run_log.read(log).train if log.exists() else []

    watched = sys.stderr.isatty()
    done = int(rows()[-1]["num_updates"]) if rows() else 0
    with tqdm(total=updates, initial=done, unit=" updates", dynamic_ncols=True, disable=not watched) as bar:

        def show() -> None:
            nonlocal done
            *_, row = [{"num_updates": done}, *rows()]
            before, done = done, int(row["num_updates"])
            if done == before:
                return
            terms = {name: value for name, value in row.items() if quantities.of(name).is_loss}
            losses = "  ".join(f"{name} {value:.2f}" for name, value in terms.items())
            bar.update(done - before)
            bar.set_postfix_str(losses)
            if not watched and done * 10 // updates > (done - LOG_INTERVAL) * 10 // updates:  # a line each tenth
                print(f"  update {done} of {updates}  {losses}", flush=True)

        yield show


def finetune(out: Path, method: str) -> None:
    """What pre-training is worth: the network of this run and the same one untrained, on a task of held-out text."""
    from amos_fairseq.demo.documentation_tasks import COLUMNS, LEFT_OUT, write_tasks
    from amos_fairseq.finetune import results
    from amos_fairseq.methods import METHODS

    tasks = out / TASKS
    if not tasks.exists():
        write_tasks(tasks, EXAMPLES)
    if METHODS[method].encoder_lm_head_class is not None:  # the encoder itself can say it
        question, split = "which of eight words was left out of a sentence?", "test"
        task = ["prompt", "--train", tasks / "cloze/train.tsv", "--test", tasks / "cloze/test.tsv", *COLUMNS["cloze"],
                "--template", "{text} {mask} {text_b}", "--label-words", ",".join(f"{w}={w}" for w in LEFT_OUT),
                "--samples", 0, "--per-class", 50, "--epochs", 1]
    else:
        question, split = "which of eight packages is a sentence from?", "valid"
        task = ["file", "--train", tasks / "package/train.tsv", "--valid", tasks / "package/valid.tsv",
                *COLUMNS["package"], "--epochs", 3]
    print(f"\nFine-tuning: {question} Accuracy, median of three seeds (chance 0.125)", flush=True)
    for kind, options in (("pre-trained", []), ("untrained", ["--from-scratch"])):
        folder = out / f"finetuned-{kind}"
        common = ["--model", out, "--out", folder, "--cpu", "--seeds", "1,2,3", "--batch-size", 16, "--lr", 5e-4,
                  "--max-length", 64]
        run_logged("fine-tuning", ["finetune", *task, *common, *options], out / f"finetuned-{kind}.log")
        scores = [result.scores[split]["accuracy"] for result in results.read_all(folder).values()]
        print(f"  {kind:<12}{statistics.median(scores):.3f}  ({min(scores):.3f} to {max(scores):.3f})", flush=True)
    if METHODS[method].encoder_lm_head_class is None:
        print("  (An encoder that learns by detection alone takes a longer run than this to be worth starting from.)")


def export(out: Path) -> None:
    folder, log = out / HUGGINGFACE, out / "export.log"
    if importlib.util.find_spec("transformers") is None:
        print(f"\nExport: pip install transformers, then amos-fairseq export {out} --out {folder}")
        return
    if not folder.exists():
        log.unlink(missing_ok=True)  # of an export that failed
        run_logged("the export", ["export", out, "--out", folder], log)
    print(f"\nExport, to be loaded by transformers:\n  {log.read_text().strip().splitlines()[0]}", flush=True)


def run_logged(
    what: str, arguments: List, log: Path, show: Callable[[], None] = lambda: None, pass_fds: Sequence[int] = ()
) -> None:
    """`amos-fairseq` with these arguments in a process of its own, its words in a log, `show` called meanwhile.

    pass_fds: the folder's lock, for it to stay claimed for as long as that process lives
    """
    with held_interrupts() as interrupt_point, started(arguments, log, pass_fds=pass_fds) as process:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            interrupt_point()
            show()
    if process.returncode:
        print(last_lines(log, 15), file=sys.stderr)
        sys.exit(f"amos-fairseq quickstart: error: {what} ended with status {process.returncode}; see {log}")


def check_settings(args: argparse.Namespace) -> Dict:
    """What the run is, as it is kept beside it; mistakes are told before any work."""
    from amos_fairseq.methods import METHODS

    if args.method not in (*METHODS, ALL):
        raise ValueError(f"unknown --method {args.method}: choose one of {', '.join(METHODS)}, or {ALL}")
    if args.updates < 1:
        raise ValueError(f"--updates must be at least 1, got {args.updates}")
    if args.corpus:
        size = sum(os.path.getsize(path) for path, _ in list_inputs([str(args.corpus)]).files)
        if size < SMALLEST_CORPUS:
            raise ValueError(
                f"--corpus {args.corpus} has {size:,} bytes, too few to learn from; {SMALLEST_CORPUS:,} is the least"
            )
    usual = args.corpus is None and args.updates == UPDATES
    return {
        "method": args.method, "corpus": str(args.corpus.resolve()) if args.corpus else "", "updates": args.updates,
        "setting": expectations.QUICKSTART if usual else "custom",
    }


def is_trained(out: Path, updates: int) -> bool:
    """Whether the last update was validated and fairseq then ended the training by itself."""
    log = out / run_log.FILE_NAME
    if not (log.exists() and (out / CHECKPOINT).exists()):
        return False
    validation = run_log.read(log).validation
    return bool(validation) and validation[-1]["num_updates"] >= updates and "done training" in last_lines(log, 20)


def last_lines(path: Path, count: int) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def peak_memory() -> int:
    """Bytes of the largest process, this one or a child."""
    unit = 1 if sys.platform == "darwin" else 1024
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * max(usage.ru_maxrss for usage in usages)
