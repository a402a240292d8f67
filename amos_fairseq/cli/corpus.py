"""`amos-fairseq corpus`: a text to try things on without a download."""

import argparse
import time
from pathlib import Path

from amos_fairseq.files import check_new
from amos_fairseq.terminal import visible

HELP = "collect a small English text corpus from the documentation on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="FILE", help="text file to write; blank lines end documents")
    parser.add_argument("--megabytes", type=float, default=12, help="size to stop at")
    parser.add_argument(
        "--tasks", metavar="FOLDER", help="new folder for labelled tasks, in GLUE's and SQuAD's layouts, made from "
        "documentation that --out leaves out"
    )
    parser.add_argument("--examples", type=int, default=1000, help="of each task for training, at most (default: 1000)")


def run(args: argparse.Namespace) -> None:
    if not (args.out or args.tasks):
        raise ValueError("there is nothing to write: give --out, --tasks, or both")
    if args.out:
        check_new("--out", Path(args.out))
    if args.examples < 16:
        raise ValueError(f"--examples {args.examples} are too few: give at least 16")
    if args.tasks:
        from amos_fairseq.demo.documentation_tasks import write_tasks

        for task, count in write_tasks(args.tasks, args.examples).items():
            print(visible(f"{args.tasks}: {task}, {count:,} examples for training"))
    if args.out:
        from amos_fairseq.demo.documentation import write_documentation

        started = time.monotonic()
        size = write_documentation(args.out, args.megabytes, progress=True)
        print(visible(f"{args.out}: {size / 1e6:.1f} MB of documentation in {time.monotonic() - started:.0f} s"))
        if size < 0.9e6 * args.megabytes:
            print(f"no more was found on this machine; {args.megabytes:g} MB were asked for")
