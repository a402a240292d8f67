"""`amos-fairseq fill-mask`: what a model's masked language model puts in the place of <mask>."""
import argparse

from amos_fairseq.cli import trained
from amos_fairseq.terminal import json_line, visible

HELP = "Print the likeliest tokens for each <mask> of a text, by the masked language model of any run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser)
    parser.add_argument("text", metavar="TEXT", help="text in which <mask> stands for each token to be filled in")
    parser.add_argument("--top", type=int, default=5, help="how many tokens for each (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON list for each <mask>")


def run(args: argparse.Namespace) -> None:
    text = trained.checked(args.text, "TEXT")
    for fillings in trained.load(args).fill_mask(text, args.top):
        if args.json:
            print(json_line([filling._asdict() for filling in fillings]))
        else:
            tokens = [filling.token.replace(chr(0x2581), " ").strip() or "(space)" for filling in fillings]
            print("  ".join(f"{visible(token)} {filling.probability:.3f}" for token, filling in zip(tokens, fillings)))
