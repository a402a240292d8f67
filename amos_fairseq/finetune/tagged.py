"""Sentences with a tag for each word: their files to windows of tokens, and answers to files.

.jsonl     a sentence a line, an object with a list of words and one of tags
.conllu    CoNLL-U; comments, words in one (1-2) and empty words (8.1) are left out
others     CoNLL: a word a line, columns between tabs or spaces, blank lines between sentences; -DOCSTART- is left out

    words  ->  <s> part of their tokens </s>: windows, each of which overlaps half of the one before
    a word's tag is asked of its first token (Devlin et al., 2019, Sec. 5.3), in the window where that has most context

Words are encoded one by one, as they stand between spaces. A folder that `prepare` wrote holds, beside what training
reads, <split>.words.json: the words of each sentence.
"""

import itertools
import json
import re
from array import array
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.files import replace_durably
from amos_fairseq.finetune import labelled, tables, windows
from amos_fairseq.finetune.labelled import IGNORED, Examples, Problem
from amos_fairseq.finetune.tables import Table

COLUMNS = {".jsonl": ("tokens", "tags"), ".conllu": ("2", "4")}  # of words and tags, if none are named
FIRST_AND_LAST = ("1", "-1")
SPAN_TAG = re.compile(r"O|[BIESLU]-.+")
SPAN_METRICS, TAG_METRICS = ["span_f1", "span_precision", "span_recall", "accuracy"], ["accuracy", "macro_f1"]


# Files to sentences


def records(path: Path) -> Iterator[Tuple[int, Dict[str, Any]]]:
    """The number of each sentence's first line, and its values by column: of CoNLL "1", "2", .."""
    if path.suffix.lower() == ".jsonl":
        yield from tables.json_records(path)
        return
    universal, rows, begin, width = path.suffix.lower() == ".conllu", [], 0, 0
    for number, line in enumerate(itertools.chain(tables.decoded_lines(path), [""]), start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if not line.strip() or line.startswith("-DOCSTART-"):
            if rows:
                yield begin, {str(place): list(column) for place, column in enumerate(zip(*rows), start=1)}
            rows = []
            continue
        fields = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
        if universal and not fields[0].isdecimal():
            continue
        width, begin = width or len(fields), begin if rows else number
        if len(fields) != width:
            raise ValueError(f"{path}, line {number}: {len(fields)} columns, but {width} before")
        rows.append(fields)


def columns_of(path: Path, words: Optional[str], tags: Optional[str]) -> Tuple[str, str]:
    """The columns of a training file; -1 is its last, which a file without tags does not have."""
    _, first = next(records(path), (0, {}))
    names = (given or usual for given, usual in zip((words, tags), COLUMNS.get(path.suffix.lower(), FIRST_AND_LAST)))
    return tuple(str(len(first) + 1 + int(name)) if re.fullmatch(r"-\d+", name) else name for name in names)


def read(path: Path, words: str, tags: Optional[str]) -> Table:
    """Sentences: `texts` are their words, `labels` lists of tags."""
    table, names = Table(path, [], [], tags and []), [*filter(None, (words, tags))]
    for number, record in records(path):
        where = f"{path}, line {number}"
        tables.check_columns(record, names, where)
        for name in names:
            if not isinstance(record[name], list):
                raise ValueError(f"{where}: {name} is {json.dumps(record[name])[:80]}, not a list")
        if not all(isinstance(word, str) for word in record[words]):
            raise ValueError(f"{where}: {words} has what is no text")
        table.lines.append(number)
        table.texts.append(tuple(record[words]))
        if tags:
            found = [tag if isinstance(tag, str) else json.dumps(tag) for tag in record[tags]]
            if len(found) != len(record[words]) or not all(found):
                raise ValueError(f"{where}: {sum(map(bool, found))} tags for {len(record[words])} words")
            table.labels.append(found)
    if not any(table.texts):
        raise ValueError(f"{path} holds no words")
    return table


# Sentences to examples


def prepare(
    out: Path, name: str, files: Mapping[str, Path], tokenizer: Tokenizer, max_length: int, words: Optional[str] = None,
    tags: Optional[str] = None, first_metric: Optional[str] = None,
) -> Problem:
    """Encode the tags of words, unless the folder `out` holds them already.

    files         train; valid, or a tenth of train by a hash of its words; test, with the column of tags or without
    words, tags   columns: keys of JSON, numbers of CoNLL's from 1, -1 the last; None: `COLUMNS`, or first and last

    Labels are the tags of all files, so that one which train lacks counts as missed. Raises ValueError, in one line.
    """
    source = tables.source_of(files, tokenizer, max_length, words=words, tags=tags, metric=first_metric)
    if tables.is_written(out, source):
        return labelled.read_problem(out)
    words, tags = columns_of(files["train"], words, tags)
    splits = {split: read(path, words, tags_in(path, tags) if split == "test" else tags)
              for split, path in files.items()}
    known = sorted(set(itertools.chain(*splits["train"].labels)))
    if len(known) < 2:
        raise ValueError(f"{files['train']}: all tags are {known[0]}: there is nothing to learn")
    if "valid" not in splits:
        splits["train"], splits["valid"] = tables.split_by_hash(splits["train"])
    seen = {split: set(itertools.chain(*table.labels or [])) for split, table in splits.items()}
    labels = sorted(set.union(*seen.values()))
    names = SPAN_METRICS if all(map(SPAN_TAG.fullmatch, labels)) else TAG_METRICS
    encoded = {split: encode(table, labels, tokenizer, max_length) for split, table in splits.items()}
    absent = [label for label in labels if label not in seen["train"]]
    longer = [f"{split} {len(encoded[split].lengths):,}" for split, table in splits.items()
              if len(encoded[split].lengths) > len(table.lines)]
    about = {
        "source": source, "texts": 1, "examples": {split: len(table.lines) for split, table in splits.items()},
        "unlabelled": [split for split, table in splits.items() if table.labels is None],
        "notes": [f"tags that train lacks: {', '.join(absent)}"] * bool(absent)
        + [f"longer sentences are read in windows: {', '.join(longer)} in all"] * bool(longer),
    }
    problem = Problem(name, "token", tables.selecting(names, first_metric), source["vocabulary"], labels, about=about)
    out.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        replace_durably(out / f"{split}.words.json", json.dumps(table.texts, ensure_ascii=False).encode())
    labelled.write(out, problem, encoded)
    return problem


def tags_in(path: Path, tags: str) -> Optional[str]:
    """The column, if the first sentence has it."""
    return tags if tags in next(records(path), (0, {}))[1] else None


def encode(table: Table, labels: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Examples:
    """The windows of all sentences, one after the other. `candidates` are where a tag is asked: in the words' order."""
    room = max_length - len(tokenizer.sequence([]))
    place = {label: number for number, label in enumerate(labels)}
    tokens, lengths, targets = array("i"), [], []
    for row, words in enumerate(table.texts):
        parts = [tokens_of(word, number > 0, tokenizer) for number, word in enumerate(words)]
        ids, sizes = [token for part in parts for token in part], [len(part) for part in parts]
        firsts = np.cumsum(sizes, dtype=np.int64) - sizes
        asked = np.full(len(ids), IGNORED)
        asked[firsts] = [place[tag] for tag in table.labels[row]] if table.labels else 0
        begins = windows.begins_of(len(ids), room, room // 2)
        ends = np.minimum(begins + room, len(ids))
        window_of = windows.of_most_context(begins, ends, len(ids))
        for window, (begin, end) in enumerate(zip(begins, ends)):
            tokens.extend(tokenizer.sequence(ids[begin:end]))
            answers = np.where(window_of[begin:end] == window, asked[begin:end], IGNORED)
            targets.append(np.concatenate([[IGNORED], answers, [IGNORED]]))
            lengths.append(len(targets[-1]))
    answers = np.concatenate(targets)
    return Examples(
        np.array(tokens, dtype=np.int32), np.array(lengths), answers if table.labels else None, answers != IGNORED
    )


def tokens_of(word: str, follows: bool, tokenizer: Tokenizer) -> List[int]:
    """One or more, whatever the word is made of. follows: a space stands before it"""
    nothing = tokenizer.mask if tokenizer.unk is None else tokenizer.unk
    return tokenizer.encode(f" {word}" if follows else word) or [nothing]


# Answers


def tags_of(classes: np.ndarray, labels: Sequence[str], sentences: Sequence[Sequence[str]]) -> List[List[str]]:
    """Tags of each sentence; classes: (words,) of all of them, one after the other."""
    tags = iter([labels[place] for place in classes])
    return [list(itertools.islice(tags, len(words))) for words in sentences]


def answers(folder: Path, problem: Problem, split: str, outputs: np.ndarray):
    """Of each sentence of a split its words, the tags by outputs (tokens, L), and the known ones or None."""
    examples = labelled.read_examples(folder, split)
    sentences = json.loads((Path(folder) / f"{split}.words.json").read_bytes())
    predicted, known = (
        None if classes is None else tags_of(classes[examples.candidates], problem.labels, sentences)
        for classes in (outputs.argmax(axis=-1), examples.targets)
    )
    return sentences, predicted, known


def write_predictions(path: Path, sentences, predicted, known: Optional[Sequence[Sequence[str]]]) -> None:
    """CoNLL, as the script conlleval reads it: word, known tag if there is one, predicted tag."""
    columns = [sentences, predicted] if known is None else [sentences, known, predicted]
    lines = []
    for words, *tags in zip(*columns):
        spelled = ["_".join(word.split()) or "_" for word in words]  # a space ends a column
        lines += [" ".join(row) for row in zip(spelled, *tags)] + [""]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, "\n".join([*lines, ""]).encode())
