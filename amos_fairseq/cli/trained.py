"""What the commands share that use a trained model: which one, where it computes, and the text that it reads."""

import argparse
import os
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from amos_fairseq.files import check_ends


def add_run(parser: argparse.ArgumentParser, nargs: Optional[str] = None) -> None:
    parser.add_argument("run", type=Path, nargs=nargs, metavar="RUN",
                        help="run, one of its checkpoints, or an exported folder")
    parser.add_argument("--data", type=Path, help="prepared data, for a checkpoint that holds no vocabulary")


def add_text(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    text = parser.add_mutually_exclusive_group(required=required)
    text.add_argument("--text", help=help)
    text.add_argument("--file", help="text to read, line by line; - for standard input")


def add_batch_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-tokens", type=int, default=16384, help="tokens in one pass (default: 16384)")


def add_pooling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pooling", choices=("mean", "first"), default="mean",
                        help="mean of the hidden states of all tokens (the default), or the first, <s>'s")
    parser.add_argument("--layer", type=int, default=-1, metavar="N",
                        help="0: the embeddings, 1, 2, ..: after this layer; -1: the last one (the default), -2, ..")


def load(args: argparse.Namespace, run: Optional[Path] = None):
    """The model of `add_run`'s arguments, of several the one named, on a GPU if there is one."""
    if getattr(args, "batch_tokens", 1) < 1:
        raise ValueError(f"--batch-tokens must be at least 1, got {args.batch_tokens}")
    import torch

    from amos_fairseq.pretrained.loading import from_pretrained

    return from_pretrained(run or args.run, args.data).to("cuda" if torch.cuda.is_available() else "cpu")


def short_names(paths: Sequence[Path]) -> List[str]:
    """What tells paths apart: without the folders that all are in. Raises ValueError for one given twice."""
    whole = [os.path.abspath(path) for path in paths]
    for path, place in zip(paths, whole):
        if whole.count(place) > 1:
            raise ValueError(f"{path} is given twice")
    if len(paths) == 1:
        return [paths[0].name or str(paths[0])]
    shared = os.path.commonpath([os.path.dirname(path) for path in whole])
    return [os.path.relpath(path, shared) for path in whole]


def lines_of(args: argparse.Namespace) -> List[str]:
    """The lines of `add_text`'s arguments that are not blank; a line feed ends one, nothing else does."""
    text = checked(args.text) if args.file is None else read(args.file)
    lines = [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line.strip()]
    if not lines:
        raise ValueError(f"{args.file or '--text'}: there is no text to read")
    return lines


def checked(text: str, name: str = "--text") -> str:
    """Of the command line, of which Python keeps bytes that it cannot decode, as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds bytes that are no UTF-8: give the text in UTF-8") from None
    return text


def read(path: str) -> str:
    """A file's text; - for standard input."""
    if path != "-":
        check_ends(path)
    data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is no UTF-8") from None
