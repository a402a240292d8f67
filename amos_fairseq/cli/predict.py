"""`amos-fairseq predict`: what a fine-tuned model says of new texts."""
import argparse
import sys
from pathlib import Path

from amos_fairseq.cli import trained
from amos_fairseq.terminal import json_line, visible

HELP = (
    "Print for each line of a text what a fine-tuned model says: the labels, likeliest first, a number, or of a tagger "
    "its words with their tags, one a line."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run that was fine-tuned: OUT/runs/TASK/SETTING/seedN")
    parser.add_argument("file", metavar="FILE", nargs="?", default="-",
                        help="texts, one a line; with tabs between, both of a pair, or a text and its choices "
                        "(default: -, standard input)")
    parser.add_argument("--json", action="store_true", help="one JSON object for each line")


def run(args: argparse.Namespace) -> None:
    lines = trained.read(args.file).removesuffix("\n").split("\n")
    texts = [tuple(line.removesuffix("\r").split("\t")) for line in lines]

    import torch

    from amos_fairseq.finetune.model import load_finetuned
    from amos_fairseq.finetune.prediction import predictions

    finetuned = load_finetuned(args.run)
    wanted = finetuned.problem.about.get("texts", len(texts[0]))
    for number, columns in enumerate(texts, start=1):
        if len(columns) != wanted or not all(column.strip() for column in columns):
            reads = "one text, without a tab" if wanted == 1 else f"{wanted} texts with tabs between"
            found = "an empty one is" if len(columns) == wanted else f"{len(columns)} are"
            raise ValueError(f"{args.file}, line {number}: {finetuned.problem.name} reads {reads}, but here {found}")
    finetuned.network.to("cuda" if torch.cuda.is_available() else "cpu")
    all_told, cut = predictions(finetuned, texts)
    if cut:
        print(visible(f"{args.file}: {cut:,} texts lost their ends: training read no more"), file=sys.stderr)
    for told in all_told:
        if args.json:
            print(json_line(told))
        elif "value" in told:
            print(f"{told['value']:.5g}")
        elif "tags" in told:
            print(visible("\n".join(map(" ".join, zip(told["words"], told["tags"]))) + "\n"))
        else:
            ranked = sorted(told["probabilities"].items(), key=lambda pair: -pair[1])
            print(visible("  ".join(f"{label} {probability:.3f}" for label, probability in ranked)))
