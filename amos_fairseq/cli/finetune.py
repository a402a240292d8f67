"""`amos-fairseq finetune`: labelled tasks x settings x seeds from one checkpoint, and a table of what they reached."""
import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from amos_fairseq import json_files
from amos_fairseq.cli import train
from amos_fairseq.cli.processes import interrupt, shared_cores, signals_handled
from amos_fairseq.finetune.commands import COMMANDS, Command
from amos_fairseq.terminal import filled, table, visible
from amos_fairseq.user_errors import tell_mistakes

HELP = (
    "Fine-tune a run's checkpoint on GLUE, SQuAD, few-shot prompts, tagged words or your own texts, over seeds and "
    "settings, and print a table of the results. The same command goes on after an interruption; other settings and "
    "seeds, and of GLUE other tasks, may follow in the same folder."
)
# Of the process that runs are forked from. fairseq_cli sets up logging, so it is first; optimizers import dynamo.
PRELOAD = [
    "amos_fairseq.cli", "fairseq_cli.train", "amos_fairseq.tasks", "amos_fairseq.models.finetuned", "torch._dynamo"
]
MAX_LENGTH = 512
SHORTEST = 16
OVERRIDES = {  # option -> what a value is, the least, the most
    "lr": (float, 0.0, 1.0), "epochs": (float, 0.0, 1e6), "batch_size": (int, 1, 1e6), "warmup": (float, 0.0, 1.0),
    "weight_decay": (float, 0.0, 1.0), "layer_decay": (float, 0.0, 1.0), "layer_decay_top": (int, 0, 100),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    added = parser.add_subparsers(dest="command", required=True, metavar=f"{{{','.join([*COMMANDS, 'results'])}}}")

    def sub_command(name: str, help: str) -> argparse.ArgumentParser:
        sub_parser = added.add_parser(name, help=help, description=help)
        tell_mistakes(sub_parser, sub_parser.prog)
        return sub_parser

    for name, command in COMMANDS.items():
        sub_parser = sub_command(name, command.help)
        command.add_arguments(sub_parser)
        add_common(sub_parser, command)
    of_results = sub_command("results", "the table of finished runs, of one folder or several")
    of_results.add_argument("out", type=Path, nargs="+", metavar="OUT")
    add_paper(of_results)


def add_paper(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--paper", metavar="ROW", help="whose values to show; default: by method and size")


def add_common(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.add_argument(
        "--model", required=True, metavar="RUN",
        help="a run's folder, a checkpoint of pre-training or of another task, or a local folder of a stock model",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything goes")
    parser.add_argument("--preset", help="the settings to try, as examples/finetune lists them (default: quick, one)")
    parser.add_argument("--seeds", metavar="N,..", default=command.seeds, help=f"default: {command.seeds}")
    for option, (kind, _, _) in OVERRIDES.items():
        parser.add_argument(
            f"--{option.replace('_', '-')}", metavar="VALUE,..", type=values_of(option),
            help=f"in place of the preset's; {'share of the updates; ' if option == 'warmup' else ''}"
            f"{'whole numbers' if kind is int else 'numbers'}",
        )
    parser.add_argument("--max-length", type=int, help="tokens of a sequence (default: 512, or the model's positions)")
    parser.add_argument("--from-scratch", action="store_true", help="the same network untrained, to compare with")
    if command.predicts:
        parser.add_argument("--export-predictions", action="store_true", help="of test files, by each task's best run")
    add_paper(parser)
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
    if args.command == "results":
        return show(args)
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    with signals_handled(numbers, interrupt):
        try:
            return finetune(args)
        except KeyboardInterrupt:
            return stopped(args.out)


def stopped(out: Path) -> int:
    print(f"Stopped. The same command goes on from what {visible(out)} holds.", file=sys.stderr)
    return os.EX_TEMPFAIL


def finetune(args: argparse.Namespace) -> Optional[int]:
    from amos_fairseq.finetune import presets, sweep
    from amos_fairseq.finetune.model import load_start

    command = COMMANDS[args.command]
    seeds = seeds_of(args)
    check_paper(args.paper)
    devices = devices_of(args)
    pretrained = load_start(args.model)
    positions = pretrained.encoder.config.max_positions
    max_length = args.max_length or min(MAX_LENGTH, positions)
    if not SHORTEST <= max_length <= positions:
        limits = f"the model reads up to {positions} tokens, and fewer than {SHORTEST} hold no example"
        raise ValueError(f"--max-length {max_length}: {limits}")
    preset = args.preset or command.preset(pretrained.name)
    overrides = {option: value for option in OVERRIDES if (value := getattr(args, option))}
    names = command.tasks(args)
    settings = {name: presets.settings(preset, name, overrides) for name in names}

    about = {
        "model": str(Path(pretrained.source).resolve()), "method": pretrained.name,
        "width": pretrained.encoder.config.dim, "from_scratch": args.from_scratch, "max_length": max_length,
        "data": data_of(args, command),
    }
    with sweep.claimed(args.out, about):
        data, options = {}, (pretrained.tokenizer, max_length, seeds)
        for name in names:
            data[name] = command.prepare(args, name, args.out / sweep.DATA / name, *options)
        jobs = [job for name in names for job in sweep.plan(args.out, data[name], settings[name], seeds)]
        cpu = devices[0] is None
        model = sweep.Model(about["model"], args.from_scratch, cpu, args.precision or ("fp32" if cpu else "bf16"))
        outcome = carry_out(args, jobs, model, devices)
        if outcome.stopped:
            return stopped(args.out)
        print_results([args.out], args.paper or presets.paper_with_means(preset))
        for job, reason in outcome.failed.items():
            print(visible(f"failed: {job.name}: {reason}"), file=sys.stderr)
        if getattr(args, "export_predictions", False) and not outcome.disk:
            export_predictions(args.out, data, "cpu" if cpu else "cuda")
        return os.EX_IOERR if outcome.disk else 1 if outcome.failed else None


def seeds_of(args: argparse.Namespace) -> List[int]:
    seeds = args.seeds.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds):
        raise ValueError(f"--seeds {args.seeds} is no list of whole numbers: write 1,2,3")
    return list(dict.fromkeys(map(int, seeds)))


def check_paper(paper: Optional[str]) -> None:
    from amos_fairseq.finetune import presets

    if paper is not None and paper not in presets.PUBLISHED:
        raise ValueError(f"--paper {paper} is none of {', '.join(presets.PUBLISHED)}")


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


def data_of(args: argparse.Namespace, command: Command) -> Dict[str, Any]:
    """The options that say what the labelled data are."""
    given = {name: value for name in command.data_options if (value := getattr(args, name)) not in (None, False)}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in given.items()}


def carry_out(args: argparse.Namespace, jobs, model, devices):
    from tqdm import tqdm

    from amos_fairseq.finetune import results, sweep

    if devices[0] is None:
        os.environ.update(shared_cores(args.jobs))
    done = sum((job.folder / results.RESULT).exists() for job in jobs)
    print(f"{len(jobs):,} runs" + (f", {done:,} of them done before" if done else ""), flush=True)
    with tqdm(total=len(jobs), initial=done, unit="run", dynamic_ncols=True, disable=None) as bar:

        def progress(job, result):
            bar.update()
            words = "failed" if result is None else " ".join(
                f"{metric} {100 * value:.1f}" for metric, value in result.scores["valid"].items()
                if metric in result.metrics[:2]
            ) + f" in {result.seconds:.0f} s"
            bar.write(visible(f"{job.name}: {words}"))
            sys.stdout.flush()

        return sweep.carry_out_all(jobs, model, train.run, PRELOAD, devices, args.keep_checkpoints, progress)


def export_predictions(out: Path, data: Mapping[str, Mapping[int, Path]], device: str) -> None:
    """data: labelled folders by task and seed"""
    from amos_fairseq.finetune import labelled, results, sweep
    from amos_fairseq.finetune.evaluation import predict
    from amos_fairseq.finetune.kinds import kind_of

    for task, by_seed in data.items():
        if not results.read_all(out, task):
            continue  # all of its runs failed, which has been told
        (problem, network, *_), folder = sweep.load_best(out, task, by_seed)
        kind, network = kind_of(problem.kind), network.to(device)
        for split in [split for split in sweep.splits_of(folder) if split.startswith("test")]:
            path = out / "predictions" / kind.predictions_name(task, split)
            if path.exists():
                print(f"{visible(path)} is there already, and stays as it is")
                continue
            outputs = predict(network, labelled.read_examples(folder, split))
            kind.write_predictions(path, folder, problem, split, outputs)
            print(f"predictions  {visible(path)}")


def show(args: argparse.Namespace) -> None:
    from amos_fairseq.finetune import sweep

    check_paper(args.paper)
    for out in args.out:
        if not (out / sweep.ABOUT).exists():
            raise ValueError(f"{out} is no folder of amos-fairseq finetune")
    print_results(args.out, args.paper)


def print_results(outs: Sequence[Path], paper: Optional[str]) -> None:
    """The table of all finished runs, of several models a row each; that of one folder is kept there."""
    from amos_fairseq.finetune import presets, results, sweep

    abouts = [json_files.read(out / sweep.ABOUT, sweep.About) for out in outs]
    titles = [f"{about['method']}, {about['model']}{', from scratch' * about['from_scratch']}" for about in abouts]
    found: Dict[str, Dict[Path, results.Result]] = {title: {} for title in titles}
    places: Dict[Tuple[Any, ...], Path] = {}
    for out, title in zip(outs, titles):
        for folder, result in results.read_all(out).items():
            other = places.setdefault((title, result.task, result.setting, result.seed), out)
            if other != out:
                raise ValueError(f"{other} and {out} both hold {result.task} with seed {result.seed}: leave one out")
            found[title][folder] = result
    first, paper = titles[0], paper or presets.published_for(abouts[0]["method"], abouts[0]["width"])
    if not any(found.values()):
        print("no run has finished yet")
    elif len(found) > 1:
        print(filled(results.comparison(found, aligned)))
    else:
        of_model = list(found[first].values())
        if len(outs) == 1:
            results.write_tables(outs[0], of_model, paper, first)
        print(filled(f"{first}\n\n{results.format_table(of_model, paper, aligned)}"))
        if len(outs) == 1:
            print(f"results  {visible(outs[0] / 'results.md')}, results.json")


def aligned(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return table([titles, *rows], stream=sys.stdout)
