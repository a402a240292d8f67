"""Labelled data in one format, wherever they come from: what fine-tuning reads.

    FOLDER/problem.json   what is asked: `Problem`
    FOLDER/<split>.npz    its `Examples`; splits are train, valid, test and more of the last two: valid1, test1, ..

Written once for a vocabulary, complete or absent, and read by every run on it.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import numpy as np

from amos_fairseq.data.manifest import durably_written

KINDS = ("classification", "regression", "span", "prompt")
PROBLEM = "problem.json"


@dataclass(frozen=True)
class Problem:
    """What is asked of each sequence.

    kind           classification: one of `labels`, read at <s>; regression: a number, read at <s>
                   span: first and last token of the answer, <s> if there is none; prompt: one of `label_tokens`, in
                   the order of `labels`, at the only <mask>
    metrics        names as in `finetune.metrics`; the first one selects the best checkpoint, higher is better
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

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")


class Examples(NamedTuple):
    """N sequences, each <s> .. </s>, one after the other.

    tokens      (sum of lengths,) int32
    lengths     (N,)
    targets     (N,) classes, (N,) float numbers, (N, 2) positions; None where nobody knows them
    candidates  (sum of lengths,) bool, of spans: where an answer may lie, <s> included
    """

    tokens: np.ndarray
    lengths: np.ndarray
    targets: Optional[np.ndarray] = None
    candidates: Optional[np.ndarray] = None


def write(folder: Path, problem: Problem, splits: Mapping[str, Examples]) -> None:
    """Write a new folder; problem.json comes last, so that a folder without it is not complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in splits.items():
        with durably_written(os.fspath(folder / f"{split}.npz")) as stream:
            np.savez(stream, **{name: array for name, array in examples._asdict().items() if array is not None})
    with durably_written(os.fspath(folder / PROBLEM)) as stream:
        stream.write(json.dumps(asdict(problem), indent=1, ensure_ascii=False).encode())


def read_problem(folder: Path) -> Problem:
    path = Path(folder) / PROBLEM
    if not path.exists():
        raise ValueError(f"{folder} holds no {PROBLEM}: it is written by `amos-fairseq finetune`")
    try:
        return Problem(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete {folder} and give the same command again") from None


def read_examples(folder: Path, split: str) -> Examples:
    path = Path(folder) / f"{split}.npz"
    if not path.exists():
        raise ValueError(f"{folder} holds no split {split!r}")
    with np.load(path, allow_pickle=False) as arrays:
        return Examples(**arrays)
