"""`amos-fairseq finetune`: labelled tasks x settings x seeds from one checkpoint, and a table of what they reached."""
import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from amos_fairseq.cli.processes import interrupt, shared_cores, signals_handled
from amos_fairseq.user_errors import tell_mistakes

HELP = (
    "Fine-tune a run's checkpoint on GLUE, SQuAD, few-shot prompts or your own files, over seeds and settings, and "
    "print a table of the results. The same command goes on after an interruption; other settings and seeds, and of "
    "GLUE other tasks, may follow in the same folder."
)
# Of the process that runs are forked from. fairseq_cli sets up logging, so it is first; optimizers import dynamo.
PRELOAD = [
    "amos_fairseq.cli", "fairseq_cli.train", "amos_fairseq.tasks", "amos_fairseq.models.finetuned", "torch._dynamo"
]
MAX_LENGTH = 512
SHORTEST = 16
OVERRIDES = {  # option -> what a value is, the least, the most
    "lr": (float, 0.0, 1.0), "epochs": (float, 0.0, 1e6), "batch_size": (int, 1, 1e6), "warmup": (float, 0.0, 1.0),
    "weight_decay": (float, 0.0, 1.0), "layer_decay": (float, 0.0, 1.0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{glue,squad,file,prompt,results}")

    def kind(name: str, help: str) -> argparse.ArgumentParser:
        added = kinds.add_parser(name, help=help, description=help)
        tell_mistakes(added, added.prog)
        return added

    of_glue = kind("glue", "the tasks of GLUE, from its public folders")
    of_glue.add_argument("--glue", type=Path, required=True, metavar="FOLDER", help="holds CoLA/, RTE/ and so on")
    of_glue.add_argument("--tasks", metavar="NAME,..", help="default: the eight of the papers")
    of_squad = kind("squad", "SQuAD 1.1 or 2.0, from its public files")
    of_squad.add_argument("--train", type=Path, required=True, metavar="FILE", help="train-v2.0.json, or of 1.1")
    of_squad.add_argument("--valid", type=Path, required=True, metavar="FILE", help="dev-v2.0.json, or of 1.1")
    of_squad.add_argument("--test", type=Path, metavar="FILE", help="to predict")
    of_squad.add_argument("--stride", type=int, default=128, help="tokens from one window to the next (default: 128)")
    of_squad.add_argument("--max-question", type=int, default=64, help="tokens of a question (default: 64)")
    of_file = kind("file", "your own classification, pair or regression task: .tsv, .csv or .jsonl")
    of_file.add_argument("--train", type=Path, required=True, metavar="FILE")
    of_file.add_argument("--valid", type=Path, metavar="FILE", help="default: a tenth of --train")
    of_file.add_argument("--test", type=Path, metavar="FILE", help="to predict, or to measure if it has labels")
    add_columns(of_file)
    of_file.add_argument("--regression", action="store_true", help="labels are numbers")
    of_file.add_argument("--metric", metavar="NAME", help="selects the best; default: accuracy, for numbers spearman")
    of_file.add_argument("--name", help="of the task; default: that of --train")
    of_prompt = kind("prompt", "few examples, as prompts with demonstrations (LM-BFF; COCO-LM, Table 4)")
    of_prompt.add_argument("--glue", type=Path, metavar="FOLDER", help="holds MNLI/")
    of_prompt.add_argument("--train", type=Path, metavar="FILE", help="or your own examples, to draw from")
    of_prompt.add_argument("--test", type=Path, metavar="FILE", help="your own examples, to measure")
    add_columns(of_prompt, required=False)
    of_prompt.add_argument("--template", metavar="TEXT", help="default: that of MNLI, '{text} ? {mask} , {text_b}'")
    of_prompt.add_argument("--label-words", metavar="LABEL=WORD,..", help="default: Yes, Maybe, No")
    of_prompt.add_argument("--per-class", type=int, default=16, help="examples to train on (default: 16)")
    of_prompt.add_argument(
        "--samples", type=int, metavar="N",
        help="sets of demonstrations to average over, 0 for prompts alone (default: 16, of MNLI 4)",
    )
    for added in (of_glue, of_squad, of_file, of_prompt):
        add_common(added, predicts=added is not of_prompt)
    of_results = kind("results", "the table of finished runs, of one folder or several")
    of_results.add_argument("out", type=Path, nargs="+", metavar="OUT")
    of_results.add_argument("--paper", metavar="ROW", help="whose values to show; default: by method and size")


def add_columns(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--text", required=required, metavar="COLUMN")
    parser.add_argument("--text-b", metavar="COLUMN", help="of the second text of a pair")
    parser.add_argument("--label", required=required, metavar="COLUMN")


def add_common(parser: argparse.ArgumentParser, predicts: bool) -> None:
    parser.add_argument(
        "--model", required=True, metavar="RUN", help="a run's folder, or a checkpoint: of pre-training or another task"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    parser.add_argument("--preset", help="the settings to try, as examples/finetune lists them (default: quick, one)")
    parser.add_argument("--seeds", metavar="N,..", help="default: 1,2,3,4,5; of prompts LM-BFF's 13,21,42,87,100")
    for option, (kind, _, _) in OVERRIDES.items():
        parser.add_argument(
            f"--{option.replace('_', '-')}", metavar="VALUE,..", type=values_of(option),
            help=f"in place of the preset's; {'share of the updates; ' if option == 'warmup' else ''}"
            f"{'whole numbers' if kind is int else 'numbers'}",
        )
    parser.add_argument("--max-length", type=int, help="tokens of a sequence (default: 512, or the model's positions)")
    parser.add_argument("--from-scratch", action="store_true", help="the same network untrained, to compare with")
    if predicts:
        parser.add_argument("--export-predictions", action="store_true", help="of test files, by each task's best run")
    parser.add_argument("--paper", metavar="ROW", help="whose values to show; default: by method and size")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, on a GPU each (default: 1)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="default: bf16 on GPUs, else fp32")
    parser.add_argument("--cpu", action="store_true", help="even if there are GPUs")
    parser.add_argument("--keep-checkpoints", action="store_true", help="of every run, not only of each task's best")


def values_of(option: str) -> Callable[[str], List]:
    kind, least, most = OVERRIDES[option]

    def values(text: str) -> List:
        try:
            found = [kind(value) for value in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers: write 1 or 1,2") from None
        above = option in ("lr", "epochs", "layer_decay")  # 0 is none of theirs
        if not all(least <= value <= most and (value or not above) for value in found):
            raise argparse.ArgumentTypeError(f"{text!r} has values outside of {'above ' * above}{least:g} to {most:g}")
        return found

    return values


def run(args: argparse.Namespace) -> Optional[int]:
    if args.kind == "results":
        return show(args)
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    with signals_handled(numbers, interrupt):
        try:
            return finetune(args)
        except KeyboardInterrupt:
            return stopped(args.out)


def stopped(out: Path) -> int:
    from amos_fairseq.finetune import sweep

    print(f"Stopped. The same command goes on from what {out} holds.", file=sys.stderr)
    return sweep.STOPPED


class Prepared(NamedTuple):
    name: str
    data: Mapping[int, Path]  # labelled folder by seed


def finetune(args: argparse.Namespace) -> Optional[int]:
    from amos_fairseq.finetune import presets, sweep
    from amos_fairseq.finetune.model import load_start

    seeds = seeds_of(args)
    check_paper(args.paper)
    devices = devices_of(args)
    pretrained = load_start(args.model)
    positions = pretrained.encoder.config.max_positions
    max_length = args.max_length or min(MAX_LENGTH, positions)
    if not SHORTEST <= max_length <= positions:
        raise ValueError(
            f"--max-length {max_length}: the model reads up to {positions} tokens, and fewer than {SHORTEST} hold no "
            "example"
        )
    preset = args.preset or default_preset(args.kind, pretrained.name)
    overrides = {option: value for option in OVERRIDES if (value := getattr(args, option))}
    names = task_names(args)
    settings = {name: presets.settings(preset, name, overrides) for name in names}
    prepare = PREPARE[args.kind](args, names)

    about = {
        "model": str(Path(pretrained.source).resolve()), "method": pretrained.name,
        "width": pretrained.encoder.config.dim, "from_scratch": args.from_scratch, "max_length": max_length,
        "data": data_of(args),
    }
    with sweep.claimed(args.out, about):
        tasks = [Prepared(name, prepare(name, args.out / sweep.DATA, pretrained.tokenizer, max_length, seeds))
                 for name in names]
        runs = [run for task in tasks for run in sweep.plan(args.out, task.data, settings[task.name], seeds)]
        cpu = devices[0] is None
        model = sweep.Model(about["model"], args.from_scratch, cpu, args.precision or ("fp32" if cpu else "bf16"))
        outcome = carry_out(args, runs, model, devices)
        if outcome.stopped:
            return stopped(args.out)
        print_results([args.out], args.paper)
        for run, reason in outcome.failed.items():
            print(f"failed: {run.name}: {reason}", file=sys.stderr)
        if getattr(args, "export_predictions", False):
            export_predictions(args.out, tasks, "cpu" if cpu else "cuda")
        return 1 if outcome.failed else None


def seeds_of(args: argparse.Namespace) -> List[int]:
    from amos_fairseq.finetune import prompts

    if args.seeds is None:
        return list(prompts.SEEDS) if args.kind == "prompt" else [1, 2, 3, 4, 5]
    seeds = args.seeds.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds):
        raise ValueError(f"--seeds {args.seeds} is no list of whole numbers: write 1,2,3")
    return list(dict.fromkeys(map(int, seeds)))


def check_paper(paper: Optional[str]) -> None:
    from amos_fairseq.finetune.presets import PUBLISHED

    if paper is not None and paper not in PUBLISHED:
        raise ValueError(f"--paper {paper} is none of {', '.join(PUBLISHED)}")


def default_preset(kind: str, method: str) -> str:
    from amos_fairseq.finetune.presets import PRESETS
    from amos_fairseq.methods import METHODS

    if kind != "prompt":
        return "quick"
    own = f"prompts_{METHODS[method].short_name}"
    return own if own in PRESETS else "prompts"


def devices_of(args: argparse.Namespace) -> List[Optional[str]]:
    """For each job a GPU by CUDA's number, or None for the CPU."""
    import torch

    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    if args.cpu or not torch.cuda.is_available():
        return [None] * args.jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    if args.jobs > len(visible.split(",")):
        raise ValueError(f"--jobs {args.jobs}, but there are {len(visible.split(','))} GPUs: one run has one")
    return visible.split(",")[: args.jobs]


def data_of(args: argparse.Namespace) -> Dict[str, Any]:
    """The options that say what the labelled data are."""
    names = ("glue", "train", "valid", "test", "text", "text_b", "label", "regression", "metric", "template",
             "label_words", "per_class", "samples", "stride", "max_question")
    values = {name: getattr(args, name, None) for name in names}
    return {
        name: str(value.resolve()) if isinstance(value, Path) else value
        for name, value in values.items() if value not in (None, False)
    }


def task_names(args: argparse.Namespace) -> List[str]:
    from amos_fairseq.finetune import glue, squad
    from amos_fairseq.finetune.presets import EIGHT, FEW_SHOT

    if args.kind == "glue":
        names = list(EIGHT) if args.tasks is None else args.tasks.split(",")
        by_lower = {name.lower(): name for name in glue.TASKS}
        unknown = [name for name in names if name.lower() not in by_lower]
        if unknown:
            raise ValueError(f"--tasks {unknown[0]}: GLUE has {', '.join(glue.TASKS)}")
        return list(dict.fromkeys(by_lower[name.lower()] for name in names))
    if args.kind == "squad":
        return [f"SQuAD {squad.read(args.train).version}"]
    if args.kind == "prompt":
        check_prompt(args)
        return [FEW_SHOT if args.glue else f"few-shot {own_name(args.train)}"]
    if args.name and Path(args.name).name != args.name:
        raise ValueError(f"--name {args.name} is no name of a folder: leave out '/'")
    return [args.name or own_name(args.train)]


def own_name(path: Path) -> str:
    return path.stem if path.stem != "train" else path.resolve().parent.name


def check_prompt(args: argparse.Namespace) -> None:
    own = (args.train, args.test, args.text, args.label)
    if not (args.glue and not any(own)) and not (all(own) and not args.glue):
        raise ValueError("a prompt needs --glue FOLDER, or --train, --test, --text and --label of your own")
    if args.train and not (args.template and args.label_words):
        raise ValueError("your own prompt needs --template and --label-words")


# From files to labelled folders: each of these checks what it can before any work, and returns
# prepare(name, folder, tokenizer, max_length, seeds): labelled folder by seed.


def prepare_glue(args: argparse.Namespace, names: Sequence[str]) -> Callable:
    from amos_fairseq.finetune import glue

    for name in names:
        glue.files_of(name, args.glue)

    def prepare(name, folder, tokenizer, max_length, seeds):
        tell(glue.prepare(folder / name, name, args.glue, tokenizer, max_length))
        return {seed: folder / name for seed in seeds}

    return prepare


def prepare_file(args: argparse.Namespace, names: Sequence[str]) -> Callable:
    from amos_fairseq.finetune import tables

    files = {split: path for split in ("train", "valid", "test") if (path := getattr(args, split))}
    texts = [args.text, *([args.text_b] if args.text_b else [])]

    def prepare(name, folder, tokenizer, max_length, seeds):
        tell(tables.prepare(
            folder / name, name, files, texts, args.label, tokenizer, max_length, args.regression, args.metric
        ))
        return {seed: folder / name for seed in seeds}

    return prepare


def prepare_squad(args: argparse.Namespace, names: Sequence[str]) -> Callable:
    from amos_fairseq.finetune import squad

    files = {split: path for split in ("train", "valid", "test") if (path := getattr(args, split))}

    def prepare(name, folder, tokenizer, max_length, seeds):
        print(f"{name}: {', '.join(map(str, files.values()))}", flush=True)
        squad.prepare(folder / name, files, tokenizer, max_length, args.stride, args.max_question)
        return {seed: folder / name for seed in seeds}

    return prepare


def prepare_prompt(args: argparse.Namespace, names: Sequence[str]) -> Callable:
    from amos_fairseq.finetune import glue, prompts, tables

    if args.glue:
        task, files = glue.TASKS["MNLI"], glue.files_of("MNLI", args.glue)
        tests = {"test": glue.read(task, "valid", files["valid"]), "test1": glue.read(task, "valid1", files["valid1"])}
        train = glue.read(task, "train", files["train"])
    else:
        texts = [args.text, *([args.text_b] if args.text_b else [])]
        train, tests = tables.read(args.train, texts, args.label), {"test": tables.read(args.test, texts, args.label)}
    options = {
        "template": args.template or prompts.MNLI_TEMPLATE, "per_class": args.per_class,
        "samples": args.samples if args.samples is not None else (4 if args.glue else 16),
        "label_words": prompts.parse_label_words(args.label_words) if args.label_words else prompts.MNLI_LABEL_WORDS,
    }

    def prepare(name, folder, tokenizer, max_length, seeds):
        folders = {seed: folder / name / f"split{seed}" for seed in seeds}
        for seed, path in folders.items():
            prompts.prepare(path, name, train, tests, tokenizer, seed, max_length=max_length, **options)
        print(f"{name}: {len(seeds)} splits of {args.per_class} examples per class", flush=True)
        return folders

    return prepare


PREPARE = {"glue": prepare_glue, "file": prepare_file, "squad": prepare_squad, "prompt": prepare_prompt}


def tell(problem) -> None:
    """How many examples there are, and what was cut or left out."""
    about = problem.about
    counts = ", ".join(f"{count:,} {split}" for split, count in about["examples"].items())
    lengths = [f"{count:,} of {split}" for split, count in about["truncated"].items() if count]
    print(f"{problem.name}: {counts}", flush=True)
    if lengths:
        print(f"{problem.name}: cut to {about['source']['max_length']} tokens: {', '.join(lengths)}", flush=True)
    for split, lines in about["skipped"].items():
        if lines:
            print(f"{problem.name}: {len(lines):,} lines of {split} left out, whose fields are too few or too many: "
                  f"{', '.join(map(str, lines[:5]))}{' ..' * (len(lines) > 5)}", flush=True)


def carry_out(args: argparse.Namespace, runs, model, devices):
    from tqdm import tqdm

    from amos_fairseq.cli import train
    from amos_fairseq.finetune import results, sweep

    if devices[0] is None:
        os.environ.update(shared_cores(args.jobs))
    done = sum((run.folder / results.RESULT).exists() for run in runs)
    print(f"{len(runs):,} runs" + (f", {done:,} of them done before" if done else ""), flush=True)
    with tqdm(total=len(runs), initial=done, unit="run", dynamic_ncols=True, disable=None) as bar:

        def progress(run, result):
            bar.update()
            words = "failed" if result is None else " ".join(
                f"{metric} {100 * value:.1f}" for metric, value in result.scores["valid"].items()
                if metric in result.metrics[:2]
            ) + f" in {result.seconds:.0f} s"
            bar.write(f"{run.name}: {words}")
            sys.stdout.flush()

        return sweep.carry_out_all(runs, model, train.run, PRELOAD, devices, args.keep_checkpoints, progress)


def export_predictions(out: Path, tasks: Sequence[Prepared], device: str) -> None:
    from amos_fairseq.finetune import glue, labelled, squad, sweep
    from amos_fairseq.finetune.evaluation import predict

    for task in tasks:
        finetuned, data = sweep.load_best(out, task.name, task.data)
        problem, network = finetuned.problem, finetuned.network.to(device)
        for split in [split for split in sweep.splits_of(data) if split.startswith("test")]:
            path = out / "predictions" / (task.name if problem.kind == "span" else glue.server_file(task.name, split))
            if path.exists():
                print(f"{path} is there already, and stays as it is")
                continue
            outputs = predict(network, labelled.read_examples(data, split))
            if problem.kind == "span":
                squad.write_predictions(data, split, outputs, path)
            else:
                glue.write_predictions(path, data, problem, split, outputs)
            print(f"predictions  {path}")


def show(args: argparse.Namespace) -> None:
    from amos_fairseq.finetune import sweep

    check_paper(args.paper)
    for out in args.out:
        if not (out / sweep.ABOUT).exists():
            raise ValueError(f"{out} is no folder of amos-fairseq finetune")
    print_results(args.out, args.paper)


def print_results(outs: Sequence[Path], paper: Optional[str]) -> None:
    """The table of all finished runs; of one folder it is kept there."""
    from amos_fairseq.finetune import presets, results, sweep

    abouts = [json.loads((out / sweep.ABOUT).read_bytes()) for out in outs]
    model = {name: abouts[0][name] for name in ("model", "from_scratch")}
    for out, about in zip(outs, abouts):
        if any(about[name] != value for name, value in model.items()):
            raise ValueError(f"{outs[0]} and {out} are of different models: ask for one after the other")
    paper = paper or presets.published_for(abouts[0]["method"], abouts[0]["width"])
    found, places = {}, {}
    for out in outs:
        for run, result in results.read_all(out).items():
            other = places.setdefault((result.task, result.setting, result.seed), out)
            if other != out:
                raise ValueError(f"{other} and {out} both hold {result.task} with seed {result.seed}: leave one out")
            found[run] = result
    if not found:
        print("no run has finished yet")
        return
    if len(outs) == 1:
        title = f"{abouts[0]['method']}, {model['model']}" + ", from scratch" * model["from_scratch"]
        print(results.write_tables(outs[0], list(found.values()), paper, title))
        print(f"results  {outs[0] / 'results.md'}, results.json")
    else:
        print(results.format_table(list(found.values()), paper))
