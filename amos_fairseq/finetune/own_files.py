"""A user's own task, from files of labelled texts: class, classes or number of a text or a pair, or the best choice."""

from pathlib import Path
from typing import Mapping, Optional, Sequence

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.finetune import labelled, tables
from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.labelled import Problem


def prepare(
    folder: Path, name: str, files: Mapping[str, Path], texts: Sequence[str], label: str, tokenizer: Tokenizer,
    max_length: int, kind: str = "classification", first_metric: Optional[str] = None,
) -> Problem:
    """Encode a user's own task, unless the folder holds it already.

    files   train; valid, or a tenth of train by a hash of its texts, so that equal texts stay together; test, which is
            measured if it has labels
    texts   column of the text, or columns of a pair; of a choice that of the text, and of each text to choose
    kind    classification: labels are classes; multi_label: sets of these; regression: numbers; choice: places from 0
    """
    of_kind = kind_of(kind)
    options = dict(texts=list(texts), label=label, kind=kind, metric=first_metric)
    source = tables.source_of(files, tokenizer, max_length, **options)
    if tables.is_written(folder, source):
        return labelled.read_problem(folder)
    splits = {}
    for split, path in files.items():
        table = tables.read(path, texts, label if split != "test" or tables.has_column(path, label) else None)
        unlabelled = [row for row, value in enumerate(table.labels or ()) if not value]
        if split == "test" and len(unlabelled) == len(table.lines):
            table = table._replace(labels=None)
        elif unlabelled and kind != "multi_label":
            raise ValueError(f"{table.where(unlabelled[0])}: there is no label")
        splits[split] = table
    labels, about = of_kind.learnt(splits["train"])  # before a rare label is set aside
    metrics = tables.selecting(of_kind.metrics_of(labels), first_metric)
    problem = Problem(name, kind, metrics, source["vocabulary"], labels, about={"source": source, **about})
    if "valid" not in splits:
        splits["train"], splits["valid"] = tables.split_by_hash(splits["train"])
    targets = {split: of_kind.targets(problem, table) for split, table in splits.items()}
    return tables.write(folder, problem, splits, tokenizer, max_length, targets)
