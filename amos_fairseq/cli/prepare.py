"""`amos-fairseq prepare`: text in files of many kinds to a vocabulary and binarised training data."""

import argparse
import logging
import os
import shlex
import typing

from amos_fairseq.data.options import Options
from amos_fairseq.options import declared
from amos_fairseq.terminal import show_log, visible

HELP = "turn text into a vocabulary and binarised training data; the same command goes on after a kill"

NAMED = 3  # files of those that are not read, for each reason
LONGEST_BY_DEFAULT = 512
OPTIMIZER = "--optimizer fused_adamw --adam-betas '(0.9,0.98)' --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 2.0"
SEQUENCES, BATCH_SIZE = 2048, 32  # of an update of AMOS base, as in the paper; of those, what fits any GPU of today


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT",
        help="files; folders, of which all *.txt, *.jsonl, *.ndjson, *.json, *.parquet and *.arrow are read, the first "
        "four compressed (.gz, .bz2, .xz, .zst) or not; or - for standard input",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR")
    kinds = typing.get_type_hints(Options)
    for option in declared(Options):
        kind = (typing.get_args(kinds[option.name]) or (kinds[option.name],))[0]
        if kind is bool:
            parser.add_argument(option.flag, action="store_true", help=option.help)
        else:
            choices, default = option.choices or None, option.default
            parser.add_argument(option.flag, type=kind, choices=choices, default=default, help=option.help)
    parser.add_argument("--workers", type=int, help="number of processes (one per CPU)")
    parser.add_argument(
        "--part", metavar="I/N",
        help="do part I = 0 .. N-1 of the work, on one of N machines that share DIR; the last one puts all together",
    )


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.data.preparation import parse_part, prepare

    show_log()
    logging.getLogger("amos_fairseq").setLevel(logging.INFO)
    part = None if args.part is None else parse_part(args.part)
    manifest = prepare(**{**vars(args), "part": part}, progress=True)
    if manifest is None:  # other parts are not done
        return
    import torch

    for line in summary(manifest, os.path.normpath(args.out), torch.cuda.device_count()):
        print(visible(line))


def summary(manifest, out: str, gpus: int = 0) -> list[str]:
    """What was prepared, in lines for a person; the last can be typed as it is, in any folder."""
    splits = manifest.splits
    counts = ("characters", "text_tokens", "unknown_tokens")
    characters, text_tokens, unknown = (sum(getattr(split, name) for split in splits.values()) for name in counts)
    lines = [
        f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.blocks:,} blocks"
        for name, split in splits.items()
    ]
    lines[-1] += f", {splits['valid'].text_tokens / text_tokens:.2%} of the tokens"
    lines.append(
        f"vocabulary: {manifest.vocabulary_size:,} symbols, {characters / text_tokens:.2f} characters per token, "
        f"{unknown / text_tokens:.4%} unknown"
    )
    for title, counts in (("dropped", manifest.dropped), ("repaired", manifest.repaired)):
        found = [f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count]
        lines.append(f"{title}: {', '.join(found) or 'nothing'}")
    for reason, paths in manifest.not_read.items():
        named = ", ".join(os.path.basename(path) for path in paths[:NAMED])
        lines.append(f"not read, {reason}: {len(paths):,} ({named}{', ..' if len(paths) > NAMED else ''})")
    return [*lines, f"data: {os.path.abspath(out)}", f"train with: {train_command(manifest, out, gpus)}"]


def train_command(manifest, out: str, gpus: int) -> str:
    """With GPUs the paper's base setting, without one the smallest network and some updates, an hour of two cores."""
    length = manifest.tokens_per_sample
    size, updates, warmup, sequences = ("base", 125_000, 10_000, BATCH_SIZE) if gpus else ("tiny", 2_000, 200, 8)
    on_gpus = f"--update-freq {max(1, SEQUENCES // BATCH_SIZE // gpus)} --bf16" if gpus else ""
    return " ".join(filter(None, [
        f"amos-fairseq train {shlex.quote(os.path.abspath(out))} --task amos_rtd --arch amos_rtd_{size}",
        f"--criterion amos_rtd --batch-size {sequences}", on_gpus,
        f"{OPTIMIZER} --lr 5e-4 --lr-scheduler polynomial_decay --warmup-updates {warmup} --total-num-update {updates}",
        f"--max-update {updates} --save-dir checkpoints --tokens-per-sample {length}",
        f"--max-positions {length}" if length > LONGEST_BY_DEFAULT else "",
    ]))
