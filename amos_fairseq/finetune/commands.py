"""What a sub-command of `amos-fairseq finetune` is, which makes labelled folders of a user's files."""

import argparse
from pathlib import Path
from typing import Dict, List, Mapping, Sequence, Tuple

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.finetune.labelled import Problem


class Command:
    """One sub-command, without state.

    name, help     on the command line
    data_options   those of its options that say what the labelled data are: the same in all runs of a folder
    seeds          by default
    predicts       whether there can be test files to predict
    """

    name: str
    help: str
    data_options: Tuple[str, ...]
    seeds: Sequence[int] = (1, 2, 3, 4, 5)
    predicts = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        raise NotImplementedError

    def preset(self, method: str) -> str:
        """Which of `presets` is the default for an encoder that `method` trained."""
        return "quick"

    def tasks(self, args: argparse.Namespace) -> List[str]:
        """The names of the tasks that are asked for; raises ValueError for what can be refused before any work."""
        raise NotImplementedError

    def prepare(
        self, args: argparse.Namespace, name: str, folder: Path, tokenizer: Tokenizer, max_length: int,
        seeds: Sequence[int],
    ) -> Mapping[int, Path]:
        """Encode a task into the new `folder`, unless it is there already; the labelled folder of each seed."""
        raise NotImplementedError


# What several have


def add_columns(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--text", required=required, metavar="COLUMN")
    parser.add_argument("--text-b", metavar="COLUMN", help="of the second text of a pair")
    parser.add_argument("--label", required=required, metavar="COLUMN")


def texts_of(args: argparse.Namespace) -> List[str]:
    return [args.text, *([args.text_b] if args.text_b else [])]


def splits_of(args: argparse.Namespace) -> Dict[str, Path]:
    return {split: path for split in ("train", "valid", "test") if (path := getattr(args, split))}


def own_name(path: Path) -> str:
    return path.stem if path.stem != "train" else path.resolve().parent.name


def tell(problem: Problem) -> None:
    """How many examples there are, and what was cut or left out, as `tables.write` found it."""
    about = problem.about
    counts = ", ".join(f"{count:,} {split}" for split, count in about["examples"].items())
    lengths = [f"{count:,} of {split}" for split, count in about["truncated"].items() if count]
    print(f"{problem.name}: {counts}", flush=True)
    if lengths:
        print(f"{problem.name}: cut to {about['source']['max_length']} tokens: {', '.join(lengths)}", flush=True)
    for split, lines in about["skipped"].items():
        if lines:
            print(f"{problem.name}: {len(lines):,} lines of {split} left out, whose fields are too few or too many: "
                  f"{', '.join(map(str, lines[:5]))}{' ..' * (len(lines) > 5)}", flush=True)
