"""GLUE from its public folders: files as distributed, the papers' metrics, predictions for the leaderboard's server.

    FOLDER/CoLA/train.tsv, dev.tsv, test.tsv and so on; MRPC also as msr_paraphrase_train.txt, msr_paraphrase_test.txt
    and dev_ids.tsv. MNLI's diagnostic set, FOLDER/diagnostic/diagnostic.tsv, is a further test set if it is there.

Source: Wang et al., 2019, and the files themselves.
"""

from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.finetune import labelled, tables
from amos_fairseq.finetune.labelled import Problem
from amos_fairseq.finetune.tables import Scale, Table

LIMITS = 0.0, 5.0  # scores of STS-B
STS_B_SCALE = Scale(0.0, 5.0)  # as the released AMOS and COCO-LM learn them


class Task(NamedTuple):
    """texts, label, index: columns; test files have the index and no label. labels: () for scores."""

    texts: Tuple[str, ...]
    label: str
    labels: Tuple[str, ...] = ("0", "1")
    metrics: Tuple[str, ...] = ("accuracy",)
    index: str = "index"
    files: Mapping[str, str] = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
    header: Optional[Tuple[str, ...]] = None  # of training and dev files whose first line is an example


ENTAILMENT = ("entailment", "not_entailment")
SENTENCES = ("sentence1", "sentence2")
COLA_COLUMNS = ("source", "label", "mark", "sentence")
TASKS: Dict[str, Task] = {
    "MNLI": Task(
        SENTENCES, "gold_label", ("contradiction", "entailment", "neutral"), files={
            "train": "train.tsv", "valid": "dev_matched.tsv", "valid1": "dev_mismatched.tsv",
            "test": "test_matched.tsv", "test1": "test_mismatched.tsv", "test2": "../diagnostic/diagnostic.tsv",
        },
    ),
    "QQP": Task(("question1", "question2"), "is_duplicate", metrics=("accuracy", "f1"), index="id"),
    "QNLI": Task(("question", "sentence"), "label", ENTAILMENT),
    "SST-2": Task(("sentence",), "label"),
    "CoLA": Task(("sentence",), "label", ("0", "1"), ("matthews", "accuracy"), header=COLA_COLUMNS),
    "RTE": Task(SENTENCES, "label", ENTAILMENT),
    "MRPC": Task(("#1 String", "#2 String"), "Quality", metrics=("accuracy", "f1")),
    "STS-B": Task(SENTENCES, "score", (), ("spearman", "pearson")),
    "WNLI": Task(SENTENCES, "label"),
}
SERVER_FILES = {("MNLI", "test"): "MNLI-m.tsv", ("MNLI", "test1"): "MNLI-mm.tsv", ("MNLI", "test2"): "AX.tsv"}
MSR_FILES = {"train": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}
MSR_DEV_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")


def prepare(out: Path, name: str, folder: Path, tokenizer: Tokenizer, max_length: int = 512) -> Problem:
    """Encode a task of FOLDER into `out`, unless that holds it already.

    Raises ValueError, in one line, for a file that is missing or another than expected, and for a label outside the
    task's. Lines of train and dev with too few or too many fields, as QQP has, are left out and counted.
    """
    if name not in TASKS:
        raise ValueError(f"GLUE has no task {name!r}: choose from {', '.join(TASKS)}")
    task, files = TASKS[name], files_of(name, Path(folder))
    source = tables.source_of(files, tokenizer, max_length)
    if tables.is_written(out, source):
        return labelled.read_problem(out)
    splits = read_paraphrases(files) if "dev_ids" in files else {
        split: read(task, split, path) for split, path in files.items()
    }
    about = {"source": source}
    if task.labels:
        kind, targets = "classification", {split: tables.classes(table, task.labels) for split, table in splits.items()}
    else:
        kind, about = "regression", {**about, "scale": STS_B_SCALE._asdict(), "limits": list(LIMITS)}
        targets = {split: tables.numbers(table, STS_B_SCALE, *LIMITS) for split, table in splits.items()}
    problem = Problem(name, kind, list(task.metrics), source["vocabulary"], list(task.labels), about=about)
    return tables.write(out, problem, splits, tokenizer, max_length, targets)


def files_of(name: str, folder: Path) -> Dict[str, Path]:
    """The task's files by split; test files need not be there. `dev_ids` stands for the dev set of MRPC's own files."""
    place, task = folder / name, TASKS[name]
    files = {split: place / file for split, file in task.files.items()}
    if name == "MRPC" and not files["train"].is_file() and (place / MSR_FILES["train"]).is_file():
        files = {split: place / file for split, file in MSR_FILES.items()}
        files["dev_ids"] = next((place / ids for ids in MSR_DEV_IDS if (place / ids).is_file()), place / MSR_DEV_IDS[0])
    for split, path in files.items():
        if not path.is_file() and not split.startswith("test"):
            expected = ", ".join(file for file in task.files.values() if not file.startswith(".."))
            raise ValueError(
                f"{path} does not exist: {folder} should have the folder {name} of GLUE, with {expected}"
                + (f", or {', '.join(MSR_FILES.values())} and {MSR_DEV_IDS[0]}" if name == "MRPC" else "")
            )
    return {split: path for split, path in files.items() if path.is_file()}


def read(task: Task, split: str, path: Path) -> Table:
    if split.startswith("test"):
        return tables.to_table(path, tables.tab_records(path), task.texts, None, task.index)
    if task.header:
        fields, names = next(tables.lines_of(path), (1, ""))[1].split("\t"), ", ".join(task.header)
        if len(fields) != len(task.header):
            expected = f"expected are {len(task.header)}, {names}, and no line that names them"
            raise ValueError(f"{path}, line 1: {len(fields)} fields; {expected}")
    skipped: List[int] = []
    return tables.to_table(path, tables.tab_records(path, task.header, skipped), task.texts, task.label, None, skipped)


def read_paraphrases(files: Mapping[str, Path]) -> Dict[str, Table]:
    """MRPC's own files: dev are the pairs of the training file whose ids a third file lists. Labels of test are left
    out, as GLUE does."""
    task, path = TASKS["MRPC"], files["dev_ids"]
    dev = {tuple(line.split("\t")[:2]) for _, line in tables.lines_of(path)}
    records = list(tables.tab_records(files["train"]))
    table = tables.to_table(files["train"], records, task.texts, task.label)
    is_dev = [(record.get("#1 ID"), record.get("#2 ID")) in dev for _, record in records]
    if sum(is_dev) != len(dev):
        raise ValueError(f"{path}: {sum(is_dev)} of its {len(dev)} pairs are in {files['train']}: they do not fit")
    splits = dict(zip(("train", "valid"), table.parted(is_dev)))
    if "test" in files:
        splits["test"] = tables.to_table(files["test"], tables.tab_records(files["test"]), task.texts, None)
    return splits


def server_file(name: str, split: str) -> str:
    """What the server calls the predictions for a test set."""
    return SERVER_FILES.get((name, split), f"{name}.tsv")
