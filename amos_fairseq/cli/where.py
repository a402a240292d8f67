"""`amos-fairseq where`: the folders that fairseq's own commands have to be told."""
import argparse

from amos_fairseq import recipes

HELP = "Print the package's folder, for fairseq's --user-dir, or that of the recipes or the Slurm scripts."
FOLDERS = {"user-dir": recipes.PACKAGE, "recipes": recipes.EXAMPLES, "slurm": recipes.SLURM}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=FOLDERS, default="user-dir", help="default: user-dir")


def run(args: argparse.Namespace) -> None:
    print(FOLDERS[args.what])
