"""`amos-fairseq corpus`: a text to try things on without a download."""

import argparse
import time

HELP = "collect a small English text corpus from the documentation on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE", help="text file to write; blank lines end documents")
    parser.add_argument("--megabytes", type=float, default=12, help="size to stop at")


def run(args: argparse.Namespace) -> None:
    from amos_fairseq.data.documentation import write_documentation

    started = time.monotonic()
    size = write_documentation(args.out, args.megabytes, progress=True)
    print(f"{args.out}: {size / 1e6:.1f} MB of documentation in {time.monotonic() - started:.0f} s")
    if size < 0.9e6 * args.megabytes:
        print(f"no more was found on this machine; {args.megabytes:g} MB were asked for")
