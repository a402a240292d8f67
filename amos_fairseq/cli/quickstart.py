"""`amos-fairseq quickstart`: from nothing to a small pre-trained model and what it learnt, in one command.

Corpus, vocabulary and binarised data, training, figures, examples, fine-tuning, export: all land in one folder. What is
there already is not done again, so the same command goes on where an interrupted one stopped.
"""
import argparse
import ast
import contextlib
import importlib.util
import math
import os
import re
import resource
import sys
import time
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from amos_fairseq import run_log
from amos_fairseq.analysis import expectations, quantities
from amos_fairseq.cli.main import run_command
from amos_fairseq.cli.processes import available_cores, held_interrupts, started, stoppable
from amos_fairseq.data.inputs import list_inputs
from amos_fairseq.files import claimed
from amos_fairseq.terminal import show_log, visible

if TYPE_CHECKING:
    from amos_fairseq.analysis.sentence_probes import Result
    from amos_fairseq.data.tokenizer import Tokenizer
    from amos_fairseq.pretrained.model import Pretrained

HELP = "Pre-train a small model on the CPU and show what it learnt. The same command goes on after an interruption."

FLOPS = 4e12  # of the training, matrix products alone
MFU = 0.2  # of training so small a network, the share of what a large product reaches
PARSES, TURN_PARSES = 4500, 3500  # of one module: all else takes as long, and each turn of fine-tuning
SMALLEST_CORPUS = 200_000  # bytes; enough words for the vocabulary
EXAMPLES_SHOWN = 10
WORDS_ONLY = re.compile(r"[A-Za-z][a-z]*( [a-z]+){4,}")  # a sentence that reads as English
POLL_SECONDS = 0.5

ALL = "all"  # --method
CORPUS, DATA, CHECKPOINT = "corpus.txt", "data", "checkpoint_last"
TASKS, HUGGINGFACE = "tasks", "huggingface"
FINETUNED = {"CoLA": "fine-tuned: does a sentence stand as written, or was half of it shuffled?"}
FROZEN = {"cloze": "which of eight words was left out of a sentence? of each fifth, a probe learns from the other four"}
UNTRAINED = "untrained"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus", type=Path, metavar="PATH",
        help="file or folder that `prepare` reads (default: documentation found on this machine)",
    )
    parser.add_argument(
        "--method", default="amos_rtd",
        help="what to train (default: amos_rtd); all: each method in turn, for as long, on the same text",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where everything goes (default: runs/quickstart-METHOD)"
    )
    parser.add_argument(
        "--updates", type=int, help=f"length of the training (default: as many as cost {FLOPS / 1e12:g} TFLOPs)"
    )


def run(args: argparse.Namespace) -> None:
    show_log()
    start = time.monotonic()
    settings = check_settings(args)
    out = args.out or Path("runs") / f"quickstart-{args.method}"
    words = "another quick start is at work", "is a quick start with"
    with claimed(out / expectations.SETTINGS_FILE, settings, *words) as lock, stoppable(out):
        make(args, settings, out, lock)
    print(visible(f"\n{out}: {time.monotonic() - start:.0f} s, {peak_memory() / 2**30:.1f} GiB of memory at most"))


def make(args: argparse.Namespace, settings: Dict, out: Path, lock: int) -> None:
    """All that is not there yet, one command after the other; of all methods each has a folder of its own."""
    from amos_fairseq.cli import recipe
    from amos_fairseq.methods import METHODS
    from amos_fairseq.pretrained.loading import from_pretrained

    runs = {method: out / method for method in METHODS} if args.method == ALL else {args.method: out}
    lengths = {method: args.updates or recipe_updates(method) for method in runs}
    missing = {method: run for method, run in runs.items() if not is_trained(run, lengths[method])}
    if missing:
        tell_time(missing, lengths, args.corpus is None)
        corpus = args.corpus or out / CORPUS
        if not corpus.exists():
            command("corpus", "--out", corpus)
        command("prepare", corpus, "--out", out / DATA, "--uncased", "--vocab-size", recipe.VOCAB_SIZE,
                "--tokens-per-sample", recipe.TOKENS_PER_SAMPLE)
        for method, run in missing.items():
            run.mkdir(exist_ok=True)
            train(method, lengths[method], out / DATA, run, lock)
    else:
        print(visible(f"{out} is done already: these are its results. Delete it to start anew.\n"))
    command("report", *runs.values(), "--out", out / "report")
    models = {method: from_pretrained(run) for method, run in runs.items()}
    one = next(iter(models.values()))
    texts = held_out_text(one, out / DATA, args.corpus)
    if args.method != ALL:
        show_examples(one.tokenizer, texts, out)
    judge(runs, models, texts, args.corpus is None, out)
    if args.method != ALL:
        export(out)


def command(name: str, *arguments: object) -> None:
    """`amos-fairseq` with these arguments, in this process."""
    run_command(name, list(map(str, arguments)))


def recipe_updates(method: str) -> int:
    from amos_fairseq.cli import recipe

    return recipe.updates_for(FLOPS, method, recipe.model_options(method, 10**6))


def tell_time(runs: Iterable[str], lengths: Dict[str, int], documentation: bool) -> None:
    """From how fast a large product and Python are here, before the work begins. documentation: as for judge()"""
    import torch

    from amos_fairseq.flops import peak_flops

    speed, cores = peak_flops(torch.device("cpu")), available_cores()
    module = Path(argparse.__file__).read_text("utf-8")
    parse = min(timeit.repeat(lambda: ast.parse(module), number=1))
    trainings = sum(lengths[method] / recipe_updates(method) for method in runs)
    turns = math.ceil((1 + len(lengths)) / cores) if documentation else 0  # the untrained network is fine-tuned, too
    seconds = trainings * FLOPS / MFU / speed + parse * (PARSES + turns * TURN_PARSES)
    print(f"about {max(1, round(seconds / 30) / 2):g} minutes: {cores} CPU cores multiply matrices at "
          f"{speed / 1e9:.0f} GFLOP/s, and one parses {len(module) / parse / 1e6:.1f} MB/s of Python", flush=True)


def train(method: str, updates: int, data: Path, out: Path, lock: int) -> None:
    """fairseq-train in a process of its own, its words in train.log, a progress bar here."""
    from amos_fairseq.cli import recipe

    log = out / run_log.LOG_NAME
    print(visible(f"training  {method}_tiny on {available_cores()} CPU cores, log in {log}"), flush=True)
    options = {**recipe.model_options(method, updates), **recipe.MASKING}
    with progress(out, updates) as show:
        arguments = recipe.training(data, out, method, options, updates)
        run_logged("the training", [(arguments, log)], show, pass_fds=[lock])


@contextlib.contextmanager
def progress(run: Path, updates: int) -> Iterator[Callable[[], None]]:
    """A function that shows how far a run is: as a progress bar, or in lines if nobody watches."""
    from tqdm import tqdm

    def rows() -> List[run_log.Row]:
        return run_log.read(run).train

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
            if not watched and done * 10 // updates > before * 10 // updates:  # a line each tenth
                print(f"  update {done} of {updates}  {losses}", flush=True)

        yield show


def held_out_text(model: "Pretrained", data: Path, corpus: Optional[Path]) -> List[str]:
    """What no training has seen: other documentation, or the validation blocks of the user's corpus, in a row."""
    if corpus is None:
        from amos_fairseq.demo.documentation import held_out_paragraphs

        return list(held_out_paragraphs())
    from amos_fairseq.analysis.checkpoint import held_out_blocks

    blocks = held_out_blocks(str(data), model, sys.maxsize)
    return [model.tokenizer.decode([token for block in blocks for token in block.tolist()[1:-1]])]


def show_examples(tokenizer: "Tokenizer", texts: Sequence[str], out: Path) -> None:
    """Sentences as long as the blocks of training, with the generator's replacements and the encoder's verdicts."""
    from amos_fairseq.analysis.sentence_probes import sentences
    from amos_fairseq.cli import recipe

    found = dict.fromkeys(text for text in sentences(texts) if WORDS_ONLY.fullmatch(text))
    lengths = ((text, len(tokenizer.sequence(tokenizer.encode(text)))) for text in found)
    short = [text for text, length in lengths if length == recipe.TOKENS_PER_SAMPLE]
    chosen = [short[len(short) * i // EXAMPLES_SHOWN] for i in range(min(len(short), EXAMPLES_SHOWN))]
    lines = out / "examples.txt"
    lines.write_text("".join(f"{text}\n" for text in chosen), encoding="utf-8")
    print()
    if chosen:
        command("inspect", out, "--file", lines, "--no-stages")
    else:
        command("inspect", out, "--count", EXAMPLES_SHOWN)


def judge(
    runs: Dict[str, Path], models: Dict[str, "Pretrained"], texts: Sequence[str], documentation: bool, out: Path
) -> None:
    """What pre-training is worth: encoders and one untrained, on text that none has seen, in one table.

    documentation: whether the text is, whose labelled tasks are fine-tuned on
    """
    from amos_fairseq.analysis.sentence_probes import untrained_twin

    models = {UNTRAINED: untrained_twin(next(iter(models.values()))), **models}
    questions, rows = probed(models, texts)
    if documentation:
        questions.update(FINETUNED | FROZEN)
        for (network, task), result in {**finetuned(runs, out), **frozen(models, out / TASKS)}.items():
            rows[network][task] = result
    width = max(map(len, rows)) + 2
    if questions:
        print("\n" + " " * width + "".join(f"{task:<14}" for task in questions).rstrip())
        for network, results in rows.items():
            cells = (cell(results[task], rows[UNTRAINED][task]) for task in questions)
            print((f"{network:<{width}}" + "".join(f"{text:<14}" for text in cells)).rstrip())
        print("% right and 95 % interval; *: above untrained, the intervals apart")
        for task, question in questions.items():
            print(f"  {task:<14}{question}")
    for network, run in runs.items():
        log = run_log.read(run).validation[-1]
        if "rtd_auc_words" in log:
            print(f"{network}: of a replaced and an original word it finds the replaced one in "
                  f"{100 * log['rtd_auc_words']:.1f} % (AUC; 50: by chance), the token alone tells it in "
                  f"{100 * log['rtd_auc_identity']:.1f} %")


def cell(result: "Result", untrained: "Result") -> str:
    low, high = result.interval
    mark = "*" if low > untrained.interval[1] else ""
    return f"{100 * result.accuracy:.1f} ± {50 * (high - low):.1f}{mark}"


def probed(
    models: Dict[str, "Pretrained"], texts: Sequence[str]
) -> Tuple[Dict[str, str], Dict[str, Dict[str, "Result"]]]:
    """By probe, its question; by network and probe, the result. A probe of too little text is told, and left out."""
    from amos_fairseq.analysis import sentence_probes

    questions: Dict[str, str] = {}
    rows: Dict[str, Dict[str, Result]] = {network: {} for network in models}
    for task, about in sentence_probes.TASKS.items():
        try:
            items = sentence_probes.make_items(task, texts, sentence_probes.HELD_OUT)
        except ValueError as error:
            print(f"\nprobe: {error}")
            continue
        questions[task] = about.question
        for network, model in models.items():
            rows[network][task] = sentence_probes.probe_items(model.encoder, model.tokenizer, items)
    return questions, rows


def finetuned(runs: Dict[str, Path], out: Path) -> Dict[Tuple[str, str], "Result"]:
    """By network and task, what one seed of fine-tuning on labelled sentences, which are in `out`, reaches."""
    from amos_fairseq.analysis.sentence_probes import Result, wilson
    from amos_fairseq.cli import recipe
    from amos_fairseq.demo.documentation_tasks import write_tasks

    tasks = out / TASKS
    if not tasks.exists():
        write_tasks(tasks, recipe.EXAMPLES)
    networks = {UNTRAINED: next(iter(runs.values())), **runs}
    folders = {(network, task): out / "finetuned" / f"{task}-{network}" for task in FINETUNED for network in networks}
    calls = []
    for (network, task), folder in folders.items():
        folder.parent.mkdir(exist_ok=True)
        arguments = recipe.finetuning(tasks, task, networks[network], folder, [1], from_scratch=network == UNTRAINED)
        calls.append(([*arguments, "--cpu"], folder.with_suffix(".log")))
    cores = available_cores()
    for first in range(0, len(calls), cores):
        run_logged("fine-tuning", calls[first : first + cores])
    found = {}
    for (network, task), folder in folders.items():
        score, items = recipe.accuracy(folder), recipe.items(tasks, task)
        found[network, task] = Result(score, wilson(round(score * items), items), items)
    return found


def frozen(models: Dict[str, "Pretrained"], tasks: Path) -> Dict[Tuple[str, str], "Result"]:
    """By network and task, what a linear probe of the last layer's frozen states reaches."""
    from amos_fairseq.analysis import folds, sentence_probes
    from amos_fairseq.cli import recipe

    (task,), found = FROZEN, {}
    texts = folds.read_texts(tasks / recipe.FINETUNED[task], ("before", "after"), "word")
    for network, model in models.items():
        (result,) = folds.probe(model, texts, [-1])
        interval = result.accuracy.low, result.accuracy.high
        found[network, task] = sentence_probes.Result(result.accuracy.value, interval, len(texts.labels))
    return found


def export(out: Path) -> None:
    folder, log = out / HUGGINGFACE, out / "export.log"
    if importlib.util.find_spec("transformers") is None:
        print(visible(f"\nExport: pip install transformers, then amos-fairseq export {out} --out {folder}"))
        return
    if not folder.exists():
        log.unlink(missing_ok=True)  # of an export that failed
        run_logged("the export", [(["export", out, "--out", folder], log)])
    lines = log.read_text().splitlines() if log.exists() else []
    told = next((line for line in lines if f"{HUGGINGFACE}  " in line), folder)  # its class, and by how much it differs
    print(visible(f"\nExport, to be loaded by transformers:\n  {told}"), flush=True)


def run_logged(
    what: str, calls: Sequence[Tuple[List, Path]], show: Callable[[], None] = lambda: None, pass_fds: Sequence[int] = ()
) -> None:
    """`amos-fairseq` with arguments, its words in a log, in a process of its own for each; `show` is called meanwhile.

    pass_fds: the folder's lock, for it to stay claimed for as long as a process lives
    """
    with held_interrupts() as interrupt_point, contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(started(arguments, log, len(calls), pass_fds=pass_fds)) for arguments, log in calls
        ]
        while any(process.poll() is None for process in processes):
            time.sleep(POLL_SECONDS)
            interrupt_point()
            show()
    for process, (_, log) in zip(processes, calls):
        if process.returncode:
            print(visible(last_lines(log, 15)), file=sys.stderr)
            sys.exit(f"amos-fairseq quickstart: error: {what} ended with status {process.returncode}; see {log}")


def check_settings(args: argparse.Namespace) -> Dict:
    """What the run is, as it is kept beside it; mistakes are told before any work."""
    from amos_fairseq.methods import METHODS

    if args.method not in (*METHODS, ALL):
        raise ValueError(f"unknown --method {args.method}: choose one of {', '.join(METHODS)}, or {ALL}")
    if args.updates is not None and args.updates < 1:
        raise ValueError(f"--updates must be at least 1, got {args.updates}")
    if args.corpus:
        size = sum(os.path.getsize(path) for path, _ in list_inputs([str(args.corpus)]).files)
        if size < SMALLEST_CORPUS:
            raise ValueError(
                f"--corpus {args.corpus} has {size:,} bytes, too few to learn from; {SMALLEST_CORPUS:,} is the least"
            )
    usual = args.corpus is None and args.updates is None
    return {
        "method": args.method, "corpus": str(args.corpus.resolve()) if args.corpus else "",
        "updates": args.updates or f"for {FLOPS / 1e12:g} TFLOPs",
        "setting": expectations.QUICKSTART if usual else "custom",
    }


def is_trained(out: Path, updates: int) -> bool:
    """Whether the last update was validated and fairseq then ended the training by itself."""
    log = out / run_log.LOG_NAME
    if not (log.exists() and (out / CHECKPOINT).exists()):
        return False
    validation = run_log.read(out).validation
    return bool(validation) and validation[-1]["num_updates"] >= updates and "done training" in last_lines(log, 20)


def last_lines(path: Path, count: int) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def peak_memory() -> int:
    """Bytes of the largest process, this one or a child."""
    unit = 1 if sys.platform == "darwin" else 1024
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return unit * max(usage.ru_maxrss for usage in usages)
