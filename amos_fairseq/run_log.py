"""A run's history as rows of numbers: of `metrics.jsonl`, which training writes beside its checkpoints, or of a log.

A line of metrics.jsonl is one JSON object. Its `kind` is

    start         training begins or goes on after `num_updates`: options in fairseq's groups, versions
    train         means over --log-interval updates
    validation    means over a validation subset
    epoch         means over an epoch's training

and all have `time`; but for `start`, they have `update`, the epochs read so far, and every value that was logged.
A log, `train.log`, is what `fairseq-train --log-format json` prints: the same rows, with or without a time stamp in
front, among lines of other text. A row maps a name (`loss`, `mlm_4`, `rtd`, ...) to its value; `num_updates` says when
it was taken.
"""
import ast
import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

FILE_NAME, LOG_NAME = "metrics.jsonl", "train.log"
START, TRAIN, VALIDATION, EPOCH = "start", "train", "validation", "epoch"
OPTIONS_START = "{'_name': None, 'common': {"  # of the line on which fairseq prints its whole configuration

# Options that say where a run was, not what it was.
PLACES = ("save_dir", "log_file", "restore_file", "tensorboard_logdir", "distributed_init_method", "distributed_port")

# Speeds, of training whatever validation logs.
RATES = ("wps", "tflops", "mfu")

# Logged, too, but no measure of what was learned.
BOOKKEEPING = (
    "loss", "best_loss", "epoch", "update", "num_updates", "wpb", "bsz", "ups", "clip", "train_wall", "wall", "gb_free",
    "micro_batch_parts",
)

Row = Dict[str, float]


class RunLog(NamedTuple):
    train: List[Row]       # means over --log-interval updates
    validation: List[Row]  # means over the validation data, same names as in training


class Run(NamedTuple):
    name: str
    folder: Path             # where its checkpoints are, if there are any
    log: RunLog
    options: Dict[str, Any]  # by name, as training printed them; `task`, `model`, `optimizer` are registered names


def open_run(path: Path, name: str = "") -> Run:
    """A run by its folder, which holds FILE_NAME or LOG_NAME, or by its log. Default name: the folder's.

    Raises ValueError, in one line, if there is no log or no training row in it.
    """
    if not files(path):
        trouble = f"holds no {FILE_NAME}" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {trouble}: name a run's folder, or its log")
    log, options = read(path), read_options(path)
    if not log.train:
        raise ValueError(f"{path} holds no training row yet: there is one every --log-interval updates")
    folder = path if path.is_dir() else Path(str(options.get("save_dir", path.parent)))
    return Run(name or (path.resolve().name if path.is_dir() else path.stem), folder, log, options)


def files(path: Path) -> List[Path]:
    """What holds the history of a run's folder, the older first; a file is its own."""
    return [file for file in ([path / LOG_NAME, path / FILE_NAME] if path.is_dir() else [path]) if file.is_file()]


def lines_of(path: Path) -> Iterator[str]:
    for file in files(path):
        with open(file, encoding="utf-8", errors="replace") as lines:
            yield from lines


def read(path: Path) -> RunLog:
    """Rows in order of updates. A resumed run overwrites what it repeats; a truncated line is skipped.

    Of a folder with both files, the history's first start says up to where the log's rows hold: none, or those of
    before there was a history.
    """
    return parse(lines_of(path))


def parse(lines) -> RunLog:
    train: Dict[int, Row] = {}
    validation: Dict[int, Row] = {}
    for line in lines:
        found = parse_line(line)
        if found is None:
            continue
        kind, stats = found
        if kind in (START, TRAIN):
            forget_after(stats["num_updates"], train, validation)
        if kind == TRAIN:
            if stats.get("wps") == 0:  # the row of a start's first update alone, in which fairseq sets its clock
                stats = {name: value for name, value in stats.items() if name not in RATES}
            train[int(stats["num_updates"])] = stats
        elif kind == VALIDATION:
            validation.setdefault(int(stats["num_updates"]), stats)  # of several subsets the first
    return RunLog(*([rows[update] for update in sorted(rows)] for rows in (train, validation)))


def parse_line(line: str) -> Optional[Tuple[str, Row]]:
    """(kind, numbers) of one line's JSON object; None if it holds none, or no finite number of updates."""
    stats = json_of(line)
    row = {}
    for name, value in stats.items():
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # None, or text
            row[name] = float(value)
    kind = stats.get("kind", TRAIN)
    if "valid_num_updates" in row:
        kind, row = VALIDATION, {name.removeprefix("valid_"): value for name, value in row.items()}
    return (kind, row) if math.isfinite(row.get("num_updates", math.nan)) else None


def json_of(line: str) -> Dict[str, Any]:
    """The object that a line holds, or ends with; empty if it holds none."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line[line.index("{") :])
    return {}


def read_options(path: Path) -> Dict[str, Any]:
    """The options of the last start of training; none if its log lacks them."""
    options: Dict[str, Any] = {}
    for line in lines_of(path):
        if OPTIONS_START in line:
            options = parse_options(line) or options
        elif line.startswith('{"kind": "start"'):
            groups = json_of(line).get("options")
            if groups is not None and not isinstance(groups, dict):
                raise ValueError(f"{path}: options of a start of training are no object: {line[:40]}..")
            options = flat(groups or {}) or options
    return options


def parse_options(line: str) -> Dict[str, Any]:
    """Of the line on which fairseq prints them."""
    try:
        groups = ast.parse(line[line.index(OPTIONS_START) :].strip(), mode="eval").body
    except SyntaxError:
        return {}
    options: Dict[str, Any] = {}
    for key, group in zip(groups.keys, groups.values):
        with contextlib.suppress(ValueError):  # an argparse.Namespace: it repeats the other groups
            options[key.value] = ast.literal_eval(group)
    return flat(options)


def flat(groups: Dict[str, Any]) -> Dict[str, Any]:
    """fairseq's groups of options as one dictionary: on the command line, too, they share one namespace."""
    options: Dict[str, Any] = {}
    for group, values in groups.items():
        if isinstance(values, dict):
            name = values.get("_name")
            options.update({key: value for key, value in values.items() if key != "_name"})
            options.update({group: name} if name else {})
    return options


def differing_options(runs: Sequence[Run]) -> Dict[str, List[Any]]:
    """By name, the values of options that are not the same in all runs that have them; None where one has it not.

    Options of one run only, as those of its method are, tell no two runs apart.
    """
    names = dict.fromkeys(name for run in runs for name in run.options if name not in PLACES)
    values = {name: [run.options.get(name) for run in runs] for name in names}
    return {name: row for name, row in values.items() if len({plain(value) for value in row if value is not None}) > 1}


def plain(value: Any) -> str:
    """Lists, tuples and what fairseq reads as a tuple alike."""
    return re.sub(r"[][()' ]", "", str(value))


def forget_after(update: float, *tables: Dict[int, Row]) -> None:
    """Drop rows later than `update`: the run went back to a checkpoint, so they belong to a branch it left."""
    for rows in tables:
        while rows and next(reversed(rows)) > update:
            rows.popitem()


def series(rows: List[Row], name: str) -> Tuple[List[float], List[float]]:
    """(updates, values) of one quantity, over the rows that have it."""
    having = [row for row in rows if name in row]
    return [row["num_updates"] for row in having], [row[name] for row in having]


def names(log: RunLog, base: str) -> List[str]:
    """Logged names that are `base` with a generator's depth, in order of depth, else `base`: mlm_4, mlm_6, not mlm."""
    logged = {name for rows in log for row in rows for name in row}
    by_depth = {name for name in logged if split_depth(name)[0] == base} - {base}
    return sorted(by_depth or logged & {base}, key=lambda name: (len(split_depth(name)[1].rstrip("abcdefgh")), name))


def split_depth(name: str) -> Tuple[str, str]:
    """mlm_4 -> (mlm, 4); generators of equal depth are told apart by a letter, mlm_4b -> (mlm, 4b); rtd -> (rtd, "")"""
    match = re.fullmatch(r"(.+)_(\d+[a-z]?)", name)
    return match.groups() if match else (name, "")
