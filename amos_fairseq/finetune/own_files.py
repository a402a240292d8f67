"""A user's own task, from files of labelled texts: a classification or a regression, of a text or a pair."""

import hashlib
from pathlib import Path
from typing import Mapping, Optional, Sequence, Tuple

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.finetune import labelled, tables
from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.labelled import Problem
from amos_fairseq.finetune.tables import READERS, Table

VALID_FRACTION = 0.1  # of the training file, if no file is given for validation


def prepare(
    folder: Path, name: str, files: Mapping[str, Path], texts: Sequence[str], label: str, tokenizer: Tokenizer,
    max_length: int, kind: str = "classification", first_metric: Optional[str] = None,
) -> Problem:
    """Encode a user's own task, unless the folder holds it already.

    files   train; valid, or a tenth of train by a hash of its texts, so that equal texts stay together; test
    texts   column of the text, or columns of a pair
    kind    classification: labels are classes; regression: they are numbers
    """
    of_kind = kind_of(kind)
    if first_metric is not None and first_metric not in of_kind.metrics:
        raise ValueError(f"--metric {first_metric} is none of {kind}: choose from {', '.join(of_kind.metrics)}")
    options = dict(texts=list(texts), label=label, kind=kind, metric=first_metric)
    source = tables.source_of(files, tokenizer, max_length, **options)
    if tables.is_written(folder, source):
        return labelled.read_problem(folder)
    splits = {}
    for split, path in files.items():
        splits[split] = tables.read(path, texts, label if split != "test" or has_column(path, label) else None)
    if "valid" not in splits:
        splits["train"], splits["valid"] = split_by_hash(splits["train"])
    for split in ("train", "valid"):
        unlabelled = [row for row, value in enumerate(splits[split].labels) if not value]
        if unlabelled:
            raise ValueError(f"{splits[split].where(unlabelled[0])}: there is no label")
    problem = of_kind.own_problem(name, splits["train"], source, first_metric)
    targets = {split: of_kind.targets(problem, table) for split, table in splits.items()}
    return tables.write(folder, problem, splits, tokenizer, max_length, targets)


def has_column(path: Path, column: str) -> bool:
    _, first = next(READERS[path.suffix.lower()](path), (0, {}))
    return column in first


def split_by_hash(table: Table) -> Tuple[Table, Table]:
    """Two parts, the second of about VALID_FRACTION: which one a row is in depends on its texts alone."""
    def share(texts: Sequence[str]) -> float:
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    parts = table.parted([share(texts) < VALID_FRACTION for texts in table.texts])
    if not all(part.lines for part in parts):
        raise ValueError(f"{table.path} has {len(table.lines)} rows, too few to set some aside: give --valid")
    return parts
