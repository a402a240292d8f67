"""Reading a corpus: from paths to bounded chunks of bytes, from chunks to documents of clean text.

A chunk ends before white space and the next one begins with that white space. So a chunk always continues the document
that the chunk before it left open, unless it is the first of its file: no seam between chunks needs a rule of its own.
"""

import os
import re
import stat
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 1 << 20  # longer lines are cut; also what a worker process encodes at a time
BLANK_BYTES = b" \t\n\r\f\v\0"
BLANK_LINE = re.compile(r"\n\s*\n", re.ASCII)
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # how "surrogateescape" shows an invalid byte
PROBE_BYTES = 1 << 16
BINARY_SHARE = 0.05
STANDARD_INPUT = "-"


class Chunk(NamedTuple):
    data: bytes
    starts_file: bool
    byte_order_mark: bool  # one was taken off
    cuts_line: bool  # the last line goes on in the next chunk


class CleanText(NamedTuple):
    text: str
    invalid_bytes: int
    nul_characters: int


def list_inputs(inputs: Sequence[str]) -> list[str]:
    """The files that `inputs` name, in order: files, `*.txt` below folders (sorted), `-` for standard input."""
    if not inputs:
        raise ValueError("no input: name text files, folders or - for standard input")
    paths = []
    for name in map(os.fspath, inputs):
        if name == STANDARD_INPUT:
            paths.append(name)
        elif os.path.isdir(name):
            found = sorted(str(path) for path in Path(name).rglob("*.txt") if path.is_file())
            if not found:
                raise ValueError(f"{name} holds no *.txt file")
            paths.extend(found)
        elif os.path.exists(name):
            paths.append(name)
        else:
            raise ValueError(f"{name} does not exist")
    if paths.count(STANDARD_INPUT) > 1:
        raise ValueError("standard input (-) can be read only once")
    return paths


def is_stream(path: str) -> bool:
    """Whether `path` can be read only once: standard input, or a pipe given by name."""
    return path == STANDARD_INPUT or not stat.S_ISREG(os.stat(path).st_mode)


def open_input(path: str):
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb") if path == STANDARD_INPUT else open(path, "rb")


def check_text(path: str, shown_as: str) -> None:
    """Refuse a binary file; a text with a few bad bytes passes and is repaired later."""
    with open(path, "rb") as stream:
        probe = stream.read(PROBE_BYTES)
    clean = clean_text(probe)
    share = (clean.invalid_bytes + clean.nul_characters) / max(1, len(probe))
    if share > BINARY_SHARE:
        raise ValueError(
            f"{shown_as} is not UTF-8 text ({share:.0%} of its first {len(probe)} bytes are NUL or invalid): "
            "decompress or convert it first"
        )


def clean_text(data: bytes) -> CleanText:
    """Text of `data` with invalid UTF-8 replaced by U+FFFD and NULs removed, and how many bytes of each there were."""
    text, invalid_bytes = ESCAPED_BYTE.subn("\ufffd", data.decode(errors="surrogateescape"))
    return CleanText(text.replace("\0", ""), invalid_bytes, text.count("\0"))


def read_chunks(path: str) -> Iterator[Chunk]:
    """The bytes of a file in chunks of at most CHUNK_BYTES that end between words."""
    with open(path, "rb") as stream:
        byte_order_mark = stream.read(len(BOM_UTF8)) == BOM_UTF8
        if not byte_order_mark:
            stream.seek(0)
        starts_file, rest = True, b""
        while True:
            block = rest + stream.read(CHUNK_BYTES - len(rest))
            at_end = len(block) < CHUNK_BYTES
            cut, cuts_line = (len(block), False) if at_end else _find_cut(block)
            yield Chunk(block[:cut], starts_file, byte_order_mark and starts_file, cuts_line)
            if at_end:
                return
            starts_file, rest = False, block[cut:]


def _find_cut(block: bytes) -> tuple[int, bool]:
    """Where to cut, and whether that is inside a line: at a blank line, else a line end, a space, any character."""
    cut = max(block.rfind(b"\n\n", 1), block.rfind(b"\n\r\n", 1))
    if cut <= 0:
        cut = block.rfind(b"\n", 1)
    if cut > 0:
        # White space stays together, in the next chunk or, where there is no more before it, in this one: a blank line
        # must not be halved.
        return len(block[:cut].rstrip(BLANK_BYTES)) or cut + 1, False
    cut = max(block.rfind(b" ", 1), block.rfind(b"\t", 1))
    if cut <= 0:
        cut = len(block) - 1
        while block[cut] & 0xC0 == 0x80 and cut > len(block) - 4:  # a continuation byte of UTF-8
            cut -= 1
    return max(cut, 1), True


def split_documents(text: str, documents: str) -> list[str]:
    """The documents of a chunk; the first one continues the open document of the chunk before."""
    return text.split("\n") if documents == "line" else BLANK_LINE.split(text)


def is_selected(index: int, share: float) -> bool:
    """Whether an item is among `share` of all items, evenly spaced; item 0 always is, item 1 never for share < 1."""
    return index == 0 or int(index * share) > int((index - 1) * share)


def sample_text(paths: Iterable[str], budget: int) -> Iterator[str]:
    """Clean text of evenly spaced chunks of the files, about `budget` bytes at most."""
    paths = list(paths)
    share = min(1.0, budget / max(1, sum(map(os.path.getsize, paths))))
    index = 0
    for path in paths:
        for chunk in read_chunks(path):
            if budget > 0 and is_selected(index, share):
                yield clean_text(chunk.data[:budget]).text
                budget -= len(chunk.data)
            index += 1
