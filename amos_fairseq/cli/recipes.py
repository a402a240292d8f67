"""`amos-fairseq recipes`: the yaml files that come with the package, listed or copied."""
import argparse
from pathlib import Path

from amos_fairseq import recipes
from amos_fairseq.terminal import filled, visible

HELP = "List the recipes, or copy their yaml files and the Slurm scripts into a folder, to change them there."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list", help="default: list")
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="of copy: a new one")


def run(args: argparse.Namespace) -> None:
    if (args.action == "copy") != (args.folder is not None):
        raise ValueError("copy needs a folder: amos-fairseq recipes copy DIR" if args.action == "copy" else
                         f"list takes no folder, got {args.folder}")
    if args.action == "copy":
        recipes.copy(args.folder)
        print(visible(
            f"{args.folder}: examples/METHOD/NAME.yaml, slurm/*.sh. Change a recipe, then, in that folder:\n"
            "amos-fairseq train --config-dir $PWD/examples/METHOD --config-name NAME task.data=FOLDER\n"
            "sbatch slurm/pretrain.sh METHOD/NAME task.data=FOLDER"
        ))
        return
    found = recipes.recipes()
    width = 2 + max(map(len, found))
    for name, about in found.items():
        print(filled(name.ljust(width) + about, hanging=width))
    print("\nTo train by one: amos-fairseq train --config-name METHOD/NAME task.data=FOLDER")
