"""Labelled data in one format, wherever they come from: what fine-tuning reads.

    FOLDER/problem.json   what is asked: `Problem`
    FOLDER/<split>.npz    its `Examples`; splits are train, valid, test and more of the last two: valid1, test1, ..

Written once for a vocabulary, complete or absent, and read by every run on it.
"""

import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from amos_fairseq import json_files
from amos_fairseq.files import durably_written, replace_durably
from amos_fairseq.user_errors import Damaged

PROBLEM = "problem.json"
IGNORED = -100  # the target of a token of which nothing is asked


@dataclass(frozen=True)
class Problem:
    """What is asked of each sequence.

    kind           a name of `finetune.kinds`
    metrics        names as the kind has them; the first one selects the best checkpoint, higher is better
    labels         of classes
    label_tokens   of prompts: the labels' words, in the same order
    sentencepiece_sha256   of the vocabulary that the examples are encoded with
    about          where they come from and how they were encoded, for the reader
    """

    name: str
    kind: str
    metrics: List[str]
    sentencepiece_sha256: str
    labels: List[str] = field(default_factory=list)
    label_tokens: List[int] = field(default_factory=list)
    about: Dict[str, Any] = field(default_factory=dict)


class Examples(NamedTuple):
    """N examples, each a sequence <s> .. </s>, or one for each of C choices; all sequences one after the other.

    tokens      (sum of lengths,) int32
    lengths     (N,), or (N, C) of choices
    targets     (N,) classes or choices, (N, L) 0 or 1, (N,) float numbers, (N, 2) positions, or of each token,
                (sum of lengths,), its class or IGNORED; None where nobody knows them
    candidates  (sum of lengths,) bool; of spans: where an answer may lie, <s> included; of tags: where one is asked
    """

    tokens: np.ndarray
    lengths: np.ndarray
    targets: Optional[np.ndarray] = None
    candidates: Optional[np.ndarray] = None

    @property
    def starts(self) -> np.ndarray:
        """The place of each sequence's first token, as `lengths`."""
        lengths = self.lengths.astype(np.int64)
        return np.cumsum(lengths).reshape(lengths.shape) - lengths

    @property
    def longest(self) -> np.ndarray:
        """(N,) the length of each example's longest sequence."""
        return self.lengths.astype(np.int64).reshape(len(self.lengths), -1).max(axis=1)

    @property
    def sizes(self) -> np.ndarray:
        """(N,) positions that each example takes in a batch, beside none that is longer."""
        return self.longest * (self.lengths.size // len(self.lengths))

    def number_in_each(self, places: np.ndarray) -> np.ndarray:
        """(sum of lengths,) bool -> (N,)"""
        return np.add.reduceat(places, self.starts.ravel(), dtype=np.int64).reshape(len(self.lengths), -1).sum(axis=1)


class Batch(NamedTuple):
    """B examples, right-padded to the longest, of T tokens; (B, C, T) where each has C choices."""

    tokens: Tensor  # (B, T)
    padding_mask: Optional[Tensor] = None  # (B, T) bool, True = padding; None: no padding at all
    targets: Optional[Tensor] = None  # (B,) or (B, T) classes, (B,) numbers in fp64, (B, 2) positions
    candidates: Optional[Tensor] = None  # (B, T) bool


class Collater:
    """Batches of some of the examples, padded with the id `padding`."""

    def __init__(self, examples: Examples, padding: int):
        self.examples, self.padding = examples, padding
        self.lengths, self.starts = examples.lengths.astype(np.int64), examples.starts

    def __call__(self, rows: Sequence[int]) -> Batch:
        rows, examples = np.asarray(rows), self.examples
        lengths = self.lengths[rows][..., None]
        positions = np.arange(lengths.max())
        valid = positions < lengths
        places = (self.starts[rows][..., None] + positions)[valid]

        def padded(values: np.ndarray, fill) -> Tensor:
            array = np.full(valid.shape, fill)
            array[valid] = values[places]
            return torch.from_numpy(array)

        targets = examples.targets
        if targets is not None and len(targets) == len(examples.tokens):  # a sequence has two tokens and more
            targets = padded(targets, IGNORED)
        elif targets is not None:  # numbers in fp64, which fairseq does not round to half precision
            targets = torch.from_numpy(targets[rows].astype(np.float64 if targets.dtype.kind == "f" else np.int64))
        padding_mask = None if valid.all() else torch.from_numpy(~valid)
        candidates = None if examples.candidates is None else padded(examples.candidates, False)
        return Batch(padded(examples.tokens, self.padding), padding_mask, targets, candidates)


def write(folder: Path, problem: Problem, splits: Mapping[str, Examples]) -> None:
    """Write a new folder; problem.json comes last, so that a folder without it is not complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in splits.items():
        with durably_written(folder / f"{split}.npz") as stream:
            np.savez(stream, **{name: array for name, array in examples._asdict().items() if array is not None})
    replace_durably(folder / PROBLEM, json.dumps(asdict(problem), indent=1, ensure_ascii=False).encode())


def read_problem(folder: Path) -> Problem:
    path = Path(folder) / PROBLEM
    if not path.exists():
        raise ValueError(f"{folder} holds no {PROBLEM}: it is written by `amos-fairseq finetune`")
    try:
        return json_files.read(path, Problem)
    except Damaged as error:
        raise Damaged(f"{error}: delete {folder} and give the same command again") from None


def read_examples(folder: Path, split: str) -> Examples:
    path = Path(folder) / f"{split}.npz"
    if not path.exists():
        raise ValueError(f"{folder} holds no split {split!r}")
    return Examples(**arrays(path))


def arrays(path: Path) -> Dict[str, np.ndarray]:
    """Of a file beside `problem.json`. Raises Damaged."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Damaged(f"{path} is damaged ({error}): delete {path.parent} and give the same command again") from None
