"""Files of labelled texts, one example a row: read, checked, encoded.

TSV (.tsv, .txt)    the first line names the columns; fields between tabs, quotes as they are
CSV (.csv)          the first line names the columns; fields quoted where need be
JSON (.jsonl)       one object a line

Half a character, which JSON can spell, becomes U+FFFD and is counted.
"""

import csv
import hashlib
import itertools
import json
import logging
import math
import re
import sys
from array import array
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from amos_fairseq.data.corpus import without_surrogates
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.files import replace_durably, sha256_of
from amos_fairseq.finetune import labelled
from amos_fairseq.finetune.labelled import Examples, Problem
from amos_fairseq.json_files import formed

VALID_FRACTION = 0.1  # of the training file, if no file is given for validation
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")  # without any, JSON has no half of a character
logger = logging.getLogger(__name__)
Records = Iterable[Tuple[int, Dict[str, Any]]]  # numbers of lines, and values by column


class Table(NamedTuple):
    """Rows of a file.

    lines     number of each row's first line
    texts     one or two of each row, or one and the C > 1 choices that go with it
    labels    as they are written; None where nobody knows them
    indices   what predictions are filed under; None if they are counted from 0
    skipped   lines that have another number of fields than the first
    """

    path: Path
    lines: List[int]
    texts: List[Tuple[str, ...]]
    labels: Optional[List[str]] = None
    indices: Optional[List[str]] = None
    skipped: Sequence[int] = ()

    def where(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}"

    def place(self, row: int, label: str, labels: Mapping[str, int]) -> int:
        """Of a label of the row among all."""
        if label not in labels:
            raise ValueError(f"{self.where(row)}: label {label!r} is none of {', '.join(labels)}"[:500])
        return labels[label]

    def part(self, rows: Sequence[int]) -> "Table":
        def of(column):
            return column and [column[row] for row in rows]

        return Table(self.path, *map(of, self[1:5]), self.skipped)

    def parted(self, marks: Sequence[bool]) -> Tuple["Table", "Table"]:
        """The rows without a mark, and those with one."""
        return tuple(self.part([row for row, mark in enumerate(marks) if mark == asked]) for asked in (False, True))


# Files to rows


def decoded_lines(path: Path) -> Iterator[str]:
    """Lines with their ends. Only a line feed ends one: texts may hold what Unicode counts as line ends."""
    check_exists(path)
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{path}, line {number}: is no UTF-8: save the file in this encoding") from None


def check_exists(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")


def lines_of(path: Path) -> Iterator[Tuple[int, str]]:
    """Numbers and texts of the lines that are not blank."""
    for number, line in enumerate(decoded_lines(path), start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if line.strip():
            yield number, line


def tab_records(path: Path, header: Optional[Sequence[str]] = None, skipped: Optional[List[int]] = None) -> Records:
    """Rows of a TSV file.

    header: the columns of a file whose first line does not name them
    skipped: gets the lines with too few or too many fields, which otherwise are refused
    """
    for number, line in lines_of(path):
        fields = line.split("\t")
        if header is None:
            header = fields
        elif len(fields) == len(header):
            yield number, dict(zip(header, fields))
        elif skipped is not None:
            skipped.append(number)
        else:
            raise ValueError(f"{path}, line {number}: {len(fields)} fields, but {len(header)} columns")


def csv_records(path: Path) -> Records:
    csv.field_size_limit(sys.maxsize)  # a field may be a book
    reader = csv.reader(decoded_lines(path), strict=True)
    header, number = None, 1
    try:
        for fields in reader:
            if header is None:
                header = fields
            elif len(fields) == len(header):
                yield number, dict(zip(header, fields))
            elif fields:
                raise ValueError(f"{path}, line {number}: {len(fields)} fields, but {len(header)} columns")
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: {error}") from None


def json_records(path: Path) -> Records:
    surrogates = 0
    for number, line in lines_of(path):
        try:
            record, found = load_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: is no JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: is no JSON object")
        surrogates += found
        yield number, record
    tell_surrogates(path, surrogates)


def load_json(text: str) -> Tuple[Any, int]:
    """The value, with U+FFFD for every lone surrogate, and how many there were. Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return whole_characters(value) if SURROGATE_ESCAPE.search(text) else (value, 0)


def whole_characters(value: Any) -> Tuple[Any, int]:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, dict):
        pairs, found = whole_characters([part for pair in value.items() for part in pair])
        return dict(zip(pairs[::2], pairs[1::2])), found
    if isinstance(value, list):
        parts = [whole_characters(part) for part in value]
        return [part for part, _ in parts], sum(found for _, found in parts)
    return value, 0


def tell_surrogates(path: Path, count: int) -> None:
    if count:
        logger.warning("%s: %d lone surrogates became U+FFFD", path, count)


READERS = {".tsv": tab_records, ".txt": tab_records, ".csv": csv_records, ".jsonl": json_records}


def records_of(path: Path) -> Records:
    """Of a user's file, whose name says what it is."""
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path} is none of {', '.join(READERS)}: rename or convert it")
    return READERS[path.suffix.lower()](path)


def read(path: Path, texts: Sequence[str], label: Optional[str]) -> Table:
    """The named columns of a user's file."""
    path = Path(path)
    columns = [name for text in texts for name in (text, *text.split("+"))] + [label] * bool(label)
    return to_table(path, rows_of(path, columns), texts, label)


def rows_of(path: Path, columns: Sequence[str]) -> Records:
    """Of .jsonl with the rows of `unnested`."""
    records = records_of(path)
    if path.suffix.lower() != ".jsonl":
        return records
    return ((number, row) for number, record in records for row in unnested(record, columns))


def unnested(record: Dict[str, Any], columns: Sequence[str]) -> List[Dict[str, Any]]:
    """Rows with the columns that a record holds inside: a.b is `b` of the object a, or of each object of the list a,
    which makes a row of each; a.0, a.1 are the items of a list of others."""
    rows = [record]
    for name, value in record.items():
        inside = [column.removeprefix(f"{name}.") for column in columns if column.startswith(f"{name}.")]
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            parts = [{str(place): part for place, part in enumerate(parts)}]
        if inside:
            found = [row for part in parts for row in unnested(part, inside)]
            rows = [{**row, **{f"{name}.{key}": part[key] for key in part}} for row in rows for part in found]
    return rows


def has_column(path: Path, column: str) -> bool:
    """Of a user's file, by its first row."""
    _, first = next(iter(rows_of(path, [column])), (0, {}))
    return column in first


def selecting(metrics: Sequence[str], first: Optional[str]) -> List[str]:
    """With the one that a user wants to select by before the others."""
    if first is not None and first not in metrics:
        raise ValueError(f"--metric {first} does not measure these labels: choose from {', '.join(metrics)}")
    return sorted(metrics, key=lambda name: name != first)


def to_table(
    path: Path, records: Records, texts: Sequence[str], label: Optional[str], index: Optional[str] = None,
    skipped: Sequence[int] = (),
) -> Table:
    """The named columns of records that were read from `path`; of texts, a+b is column a, a space and column b.

    Raises ValueError for a column that is not there.
    """
    table = Table(path, [], [], label and [], index and [], skipped)
    for number, record in records:
        parts = [[name] if name in record else name.split("+") for name in texts]
        names = [*itertools.chain(*parts), *filter(None, (label, index))]
        check_columns(record, names, f"{path}, line {number}")
        table.lines.append(number)
        for name in itertools.chain(*parts):
            if not isinstance(record[name], str):
                raise ValueError(f"{path}, line {number}: {name} is {json.dumps(record[name])}, not a text")
        table.texts.append(tuple(" ".join(record[name] for name in part) for part in parts))
        if label:
            value = record[label]  # JSON's numbers and words as they are written there
            table.labels.append(value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value))
        if index:
            table.indices.append(record[index])
    if not table.lines:
        raise ValueError(f"{path} holds no examples: expected are columns {', '.join(filter(None, (*texts, label)))}")
    return table


def check_columns(record: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    missing = [name for name in names if name not in record]
    if missing:
        raise ValueError(f"{where}: there is no column {missing[0]!r}, needed are {', '.join(names)}; "
                         f"its columns are {', '.join(map(str, record))}"[:500])


# Rows to examples


def hash_of(*texts: str) -> int:
    """Evenly in 0 .. 2^64 - 1, the same on every machine: by it a row falls into a part of a file."""
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()[:8], "big")


def split_by_hash(table: Table) -> Tuple[Table, Table]:
    """Two parts, the second of about VALID_FRACTION: which one a row is in depends on its texts alone."""
    parts = table.parted([hash_of(*texts) / 2**64 < VALID_FRACTION for texts in table.texts])
    if not all(part.lines for part in parts):
        raise ValueError(f"{table.path} has {len(table.lines)} rows, too few to set some aside: give --valid")
    return parts


def encode(table: Table, tokenizer: Tokenizer, max_length: int, targets: Optional[np.ndarray]) -> Tuple[Examples, int]:
    """Sequences of at most `max_length` tokens, special tokens included; how many were longer, see `truncate`."""
    tokens, lengths, truncated = array("i"), [], 0
    choices = max(len(table.texts[0]) - 1, 1) if table.texts else 1
    for texts in table.texts:
        first, *others = map(tokenizer.encode, texts)
        for parts in [[first, other] for other in others] or [[first]]:
            room = max_length - len(tokenizer.sequence(*([] for _ in parts)))
            truncated += sum(map(len, parts)) > room
            sequence = tokenizer.sequence(*truncate(parts, room))
            tokens.extend(sequence)
            lengths.append(len(sequence))
    shape = (-1, choices) if choices > 1 else -1
    return Examples(np.array(tokens, dtype=np.int32), np.array(lengths).reshape(shape), targets), truncated


def truncate(parts: Sequence[List[int]], room: int) -> List[List[int]]:
    """One or two lists cut at their ends to `room` tokens in all: always the longer loses a token, of equals the
    second, as in google-research/bert."""
    if len(parts) == 1:
        return [parts[0][:room]]
    first, second = parts
    first = first[: max(room - len(second), (room + 1) // 2)]
    return [first, second[: room - len(first)]]


def classes(table: Table, labels: Sequence[str]) -> Optional[np.ndarray]:
    """(N,) place of each row's label in `labels`; None without labels."""
    if table.labels is None:
        return None
    places = {label: number for number, label in enumerate(labels)}
    return np.array([table.place(row, label, places) for row, label in enumerate(table.labels)], dtype=np.int64)


class Scale(NamedTuple):
    """What a model learns of a number: (number - offset) / unit."""

    offset: float
    unit: float


def numbers(table: Table, scale: Scale, lowest: float = -math.inf, highest: float = math.inf) -> Optional[np.ndarray]:
    """(N,) scaled labels; None without labels."""
    if table.labels is None:
        return None
    values = []
    for row, label in enumerate(table.labels):
        try:
            values.append(float(label))
        except ValueError:
            raise ValueError(f"{table.where(row)}: label {label!r} is no number") from None
        if not (math.isfinite(values[-1]) and lowest <= values[-1] <= highest):
            limits = f"from {lowest:g} to {highest:g}" if math.isfinite(highest) else "finite"
            raise ValueError(f"{table.where(row)}: label {label!r} is no number {limits}")
    return ((np.array(values) - scale.offset) / scale.unit).astype(np.float32)


# Tasks


def write(
    folder: Path, problem: Problem, tables: Mapping[str, Table], tokenizer: Tokenizer, max_length: int,
    targets: Mapping[str, Optional[np.ndarray]],
) -> Problem:
    """Encode the splits into a new folder; the problem, with what was found added to its `about`.

    Beside the splits, <split>.json lists what predictions are filed under, where the file has its own indices.
    """
    encoded = {split: encode(table, tokenizer, max_length, targets[split]) for split, table in tables.items()}
    cut = [f"{truncated:,} of {split}" for split, (_, truncated) in encoded.items() if truncated]
    notes = [f"cut to {max_length} tokens: {', '.join(cut)}"] * bool(cut)
    for split, table in tables.items():
        if table.skipped:
            lines = ", ".join([*map(str, table.skipped[:5]), *[".."] * (len(table.skipped) > 5)])
            what = f"lines of {split} left out, whose fields are too few or too many"
            notes.append(f"{len(table.skipped):,} {what}: {lines}")
    problem.about.update(
        texts=len(next(iter(tables.values())).texts[0]), notes=notes,
        examples={split: len(table.lines) for split, table in tables.items()},
        unlabelled=[split for split, table in tables.items() if table.labels is None],
    )
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        if table.indices is not None:
            replace_durably(folder / f"{split}.json", json.dumps(table.indices).encode())
    labelled.write(folder, problem, {split: examples for split, (examples, _) in encoded.items()})
    return problem


def is_written(folder: Path, source: Mapping[str, Any]) -> bool:
    """Whether the folder holds the examples of `source`; raises ValueError if those of another."""
    if not (folder / labelled.PROBLEM).exists():
        return False
    about = labelled.read_problem(folder).about.get("source", {})
    formed(about, Dict[str, Any], folder / labelled.PROBLEM, "about.source")
    changed = [name for name in {**about, **source} if about.get(name) != json.loads(json.dumps(source)).get(name)]
    if changed:
        raise ValueError(f"{folder} was encoded with other {', '.join(changed)}: choose another --out, or delete it")
    return True


def source_of(files: Mapping[str, Path], tokenizer: Tokenizer, max_length: int, **options) -> Dict[str, Any]:
    """What decides the examples, as `about` keeps it."""
    for path in files.values():
        check_exists(Path(path))
    return {
        "files": {split: sha256_of(path) for split, path in files.items()},
        "vocabulary": tokenizer.sha256, "max_length": max_length, **options,
    }
