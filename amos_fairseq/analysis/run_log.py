"""A training run's log, `train.log`, as rows of numbers.

Written by `fairseq-train --log-format json`: one JSON object a line, with or without a time stamp in front, among lines
of other text. A row maps a name (`loss`, `mlm_4`, `rtd`, ...) to its value; `num_updates` says when it was taken.
"""
import json
import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

FILE_NAME = "train.log"

Row = Dict[str, float]


class RunLog(NamedTuple):
    train: List[Row]       # means over --log-interval updates
    validation: List[Row]  # means over the validation data, same names as in training


def read(path: Path) -> RunLog:
    """Rows in order of updates. A resumed run overwrites what it repeats; a truncated line is skipped."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        return parse(lines)


def parse(lines) -> RunLog:
    train: Dict[int, Row] = {}
    validation: Dict[int, Row] = {}
    for line in lines:
        stats = parse_line(line)
        if stats is None:
            continue
        if "num_updates" in stats:
            forget_after(stats["num_updates"], train, validation)
            train[int(stats["num_updates"])] = stats
        elif "valid_num_updates" in stats:
            stats = {name.removeprefix("valid_"): value for name, value in stats.items()}
            validation[int(stats["num_updates"])] = stats
    return RunLog(*([rows[update] for update in sorted(rows)] for rows in (train, validation)))


def parse_line(line: str) -> Optional[Row]:
    """The numbers of one line's JSON object; None if it holds none."""
    start = line.find("{")
    if start < 0:
        return None
    try:
        stats = json.loads(line[start:])
    except json.JSONDecodeError:
        return None
    row = {}
    for name, value in stats.items():
        try:
            row[name] = float(value)
        except (TypeError, ValueError):  # None, or text
            continue
    return row


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
