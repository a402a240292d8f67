"""`amos-fairseq prepare`: text files to a vocabulary and binarised training data."""

import argparse
import logging
import os
import sys

HELP = "turn text into a vocabulary and binarised training data; the same command goes on after a kill"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="text files, folders (all *.txt below), or - for standard input"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR")
    parser.add_argument(
        "--documents", choices=["blank-line", "line"], default="blank-line", help="what separates documents"
    )
    parser.add_argument("--vocab-size", type=int, help="size of the dictionary, specials and <mask> included (32768)")
    parser.add_argument("--uncased", action="store_true", help="fold case")
    parser.add_argument(
        "--vocabulary", metavar="PATH", help="take this SentencePiece .model, or an earlier DIR's, instead of training"
    )
    parser.add_argument("--tokens-per-sample", type=int, default=512, help="length of a block")
    parser.add_argument("--shards", type=int, default=1, help="number of equal parts; fairseq reads one per epoch")
    parser.add_argument("--valid-fraction", type=float, default=0.01, help="share of the documents kept for validation")
    parser.add_argument(
        "--documents-whole", action="store_true", help="do not split documents that fit into a block; blocks vary"
    )
    parser.add_argument(
        "--deduplicate", action="store_true",
        help="leave out documents that repeat an earlier one (9 bytes of memory per document)",
    )
    parser.add_argument("--vocabulary-sample", type=int, default=100_000_000, help="bytes of text to train it on")
    parser.add_argument("--workers", type=int, help="number of processes (one per CPU)")
    parser.add_argument(
        "--part", metavar="I/N",
        help="do part I = 0 .. N-1 of the work, on one of N machines that share DIR; the last one puts all together",
    )


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.data.preparation import Part, prepare

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("amos_fairseq").setLevel(logging.INFO)
    part = None if args.part is None else Part.parse(args.part)
    manifest = prepare(**{**vars(args), "part": part}, progress=True)
    if manifest is None:  # other parts are not done
        return
    for line in summary(manifest, os.path.normpath(args.out)):
        print(line)


def summary(manifest, out: str) -> list[str]:
    """What was prepared, in lines for a person."""
    splits = manifest.splits
    counts = ("characters", "text_tokens", "unknown_tokens")
    characters, text_tokens, unknown = (sum(getattr(split, name) for split in splits.values()) for name in counts)
    lines = [
        f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.blocks:,} blocks"
        for name, split in splits.items()
    ]
    lines.append(
        f"vocabulary: {manifest.vocabulary_size:,} symbols, {characters / text_tokens:.2f} characters per token, "
        f"{unknown / text_tokens:.4%} unknown"
    )
    for title, counts in (("dropped", manifest.dropped), ("repaired", manifest.repaired)):
        found = [f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count]
        lines.append(f"{title}: {', '.join(found) or 'nothing'}")
    shards = ":".join(os.path.join(out, f"data{shard}") for shard in range(len(splits["train"].shards)))
    return [*lines, f"data: {out}", f"train with: fairseq-train {shards} --user-dir amos_fairseq ..."]
