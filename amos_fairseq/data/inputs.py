"""Which files a corpus is of, and in which format each of them is."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Optional

from amos_fairseq import json_files
from amos_fairseq.data.sources import STREAMED
from amos_fairseq.data.streams import split_extension
from amos_fairseq.files import check_ends
from amos_fairseq.user_errors import seen_from

STANDARD_INPUT = "-"
FORMATS = {
    ".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"
}
DESCRIPTIONS = "dataset_info.json", "dataset_infos.json", "dataset_dict.json"  # what `datasets` writes beside its data
STATE = "state.json"


@dataclass
class Inputs:
    """Files to read, in order, with their formats, and by reason those in the same folders that are not."""

    files: list[tuple[str, str]] = field(default_factory=list)
    not_read: dict[str, list[str]] = field(default_factory=dict)


def format_of(path: str) -> Optional[str]:
    """As the name says, compressed or not; None for no format that is known."""
    stem, compression = split_extension(path)
    format = FORMATS.get(os.path.splitext(stem)[1].lower())
    return format if compression is None or format in STREAMED else None


def list_inputs(inputs: Sequence[str], format: Optional[str] = None) -> Inputs:
    """What `inputs` name: files, all below folders that has a format (sorted), `-` for standard input.

    format: of files whose name says none or another, instead of text; of folders then those in this format, or with
    no extension, are read
    """
    if not inputs:
        raise ValueError("no input: name text files, folders or - for standard input")
    found = Inputs()
    for name in map(os.fspath, inputs):
        if os.path.isdir(name):
            _add_folder(found, name, format)
        elif name == STANDARD_INPUT or os.path.exists(name):
            if name != STANDARD_INPUT:
                check_ends(name)
                if stat.S_ISFIFO(os.stat(name).st_mode) and not name.startswith("/dev/"):
                    raise ValueError(f"{name} is a FIFO: give what comes out of it as standard input, - < {name}")
            found.files.append((name, format or format_of(name) or "text"))
        else:
            raise ValueError(f"{seen_from(name)} does not exist")
    if [path for path, _ in found.files].count(STANDARD_INPUT) > 1:
        raise ValueError("standard input (-) can be read only once")
    return found


def is_stream(path: str) -> bool:
    """Whether `path` can be read only once: standard input, or a pipe given by name."""
    return path == STANDARD_INPUT or not stat.S_ISREG(os.stat(path).st_mode)


def _add_folder(found: Inputs, folder: str, format: Optional[str]) -> None:
    before, others = len(found.files), sum(map(len, found.not_read.values()))
    for path in sorted(_files_below(found, folder)):
        if reason := _reason_to_leave(path, folder, format):
            found.not_read.setdefault(reason, []).append(path)
        else:
            found.files.append((path, format or format_of(path) or ""))
    if len(found.files) == before:
        others = sum(map(len, found.not_read.values())) - others
        known = ", ".join(f"*{end}" for end, kind in FORMATS.items() if format in (None, kind))
        more = f", but {others:,} others" if others else ""
        raise ValueError(f"{seen_from(folder)} holds no {known} file, compressed or not{more}")


def _files_below(found: Inputs, folder: str) -> Iterator[str]:
    """Of linked folders, too, each folder once."""
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        for name in sorted(folders):
            path = os.path.join(place, name)
            if os.path.realpath(path) in seen:
                found.not_read.setdefault("links to a folder that is read already", []).append(path)
                folders.remove(name)
            seen.add(os.path.realpath(path))
        yield from (os.path.join(place, name) for name in files)


def _reason_to_leave(path: str, folder: str, format: Optional[str]) -> Optional[str]:
    place, name = os.path.split(path)
    if not os.path.exists(path):
        return "link to nothing"
    if not os.path.isfile(path):
        return "no regular file"
    if any(part.startswith(".") for part in os.path.relpath(path, folder).split(os.sep)):
        return "hidden"
    saved = all(os.path.exists(os.path.join(place, name)) for name in (STATE, DESCRIPTIONS[0]))
    if name in DESCRIPTIONS or saved and name == STATE:
        return "description of data sets"
    if saved and name.endswith(".arrow") and name not in _saved_files(os.path.join(place, STATE)):
        return "not of the saved data set"
    known = format_of(path)
    if format is None:
        return None if known else "unknown extension"
    if known == format or (known is None and not os.path.splitext(split_extension(name)[0])[1]):
        return None
    return f"not in the format {format}"


def _saved_files(path: str) -> list[str]:
    """Those of a data set that `datasets` saved to disk. Raises ValueError for what this cannot know."""
    try:
        state = json_files.read(path)
        if state.get("_indices_files"):
            raise ValueError("its rows are chosen by indices")
        return [file["filename"] for file in state["_data_files"]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is of no data set that can be read ({error}): save it again with datasets") from None
