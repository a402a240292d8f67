"""`amos-fairseq average`: one checkpoint of several."""
import argparse
from pathlib import Path

from amos_fairseq.terminal import visible

HELP = (
    "Write a checkpoint whose parameters are the mean of several checkpoints', of one run or of runs of one network. "
    "All else in it is the last one's, so everything that reads a checkpoint reads it, training included."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT",
        help="two or more, in order; a run's folder stands for its last",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder to write")
    parser.add_argument(
        "--decay", type=float, metavar="D", help="weigh each checkpoint D times its successor (default: all alike)"
    )


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.pretrained.averaging import average, weights_of

    folders = average(args.checkpoints, args.out, args.decay)
    for folder, weight in zip(folders, weights_of(len(folders), args.decay)):
        print(visible(f"{weight:.3f}  {folder}"))
    print(visible(f"{args.out}  their mean"))
