"""Reading a corpus: from paths to slices, from these to bounded chunks of bytes, from these to documents of clean text.

A chunk ends before white space and the next one begins with that white space. So a chunk always continues the document
that the chunk before it left open, unless it is the first of its file: no seam between chunks needs a rule of its own.
The same holds for slices, which are encoded by different processes: where one ends follows from the bytes around it.
"""

import os
import re
import stat
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

CHUNK_BYTES = 1 << 20  # longer lines are cut; also what is encoded at a time
SLICE_BYTES = 32 << 20  # what is kept of the work of a killed process is whole slices
SLICES = 256  # of a corpus too small for so many of that size, so that all workers have something to do
BLANK_BYTES = b" \t\n\r\f\v\0"
BLANK_LINE = re.compile(r"\n\s*\n", re.ASCII)
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # how "surrogateescape" shows an invalid byte
PROBE_BYTES = 1 << 16
BINARY_SHARE = 0.05
STANDARD_INPUT = "-"


class Span(NamedTuple):
    """Bytes of a file from `begin` to `end`, each moved back to the next place where a chunk may end."""

    path: str
    begin: int
    end: int


class Chunk(NamedTuple):
    data: bytes
    starts_file: bool
    byte_order_mark: bool  # one was taken off
    continues_line: bool  # the first line began in the chunk before
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


def divide(path: str, size: int, most: int) -> Iterator[Span]:
    """A file of `size` bytes as spans of `most` bytes and a rest; an empty file has an empty one."""
    for begin in range(0, max(size, 1), most):
        yield Span(path, begin, min(begin + most, size))


def plan_slices(sizes: Sequence[tuple[str, int]]) -> list[list[Span]]:
    """The corpus, (path, bytes) of each file, in slices of at least `slice_bytes` but the last; at most twice that."""
    slice_bytes = min(max(sum(size for _, size in sizes) // SLICES, CHUNK_BYTES), SLICE_BYTES)
    slices: list[list[Span]] = [[]]
    filled = 0
    for path, size in sizes:
        for span in divide(path, size, slice_bytes):
            if filled >= slice_bytes:
                slices.append([])
                filled = 0
            slices[-1].append(span)
            filled += span.end - span.begin
    return slices


def read_chunks(span: Span) -> Iterator[Chunk]:
    """The bytes of a span in chunks of at most CHUNK_BYTES that end between words."""
    with open(span.path, "rb") as stream:
        end, cut_by_end = _find_boundary(stream, span.end)
        begin, continues_line = _find_boundary(stream, span.begin)
        stream.seek(begin)
        byte_order_mark = begin == 0 and stream.read(len(BOM_UTF8)) == BOM_UTF8
        if byte_order_mark:
            begin += len(BOM_UTF8)
        stream.seek(begin)
        starts_file, rest = span.begin == 0, b""
        while True:
            fresh = stream.read(min(CHUNK_BYTES - len(rest), end - begin))
            begin += len(fresh)
            block = rest + fresh
            at_end = len(block) < CHUNK_BYTES
            cut, cuts_line = (len(block), cut_by_end) if at_end else _find_cut(block)
            yield Chunk(block[:cut], starts_file, byte_order_mark and starts_file, continues_line, cuts_line)
            if at_end:
                return
            starts_file, rest, continues_line = False, block[cut:], cuts_line


def _find_boundary(stream: BinaryIO, position: int) -> tuple[int, bool]:
    """Where the spans that meet at `position` end and begin, and whether that is inside a line."""
    if position == 0 or position >= os.fstat(stream.fileno()).st_size:
        return position, False
    start = max(0, position - CHUNK_BYTES)
    stream.seek(start)
    cut, cuts_line = _find_cut(stream.read(position - start))
    return start + cut, cuts_line


def _find_cut(block: bytes) -> tuple[int, bool]:
    """Where to cut, and whether that is inside a line: at a blank line, else a line end, a space, any character."""
    cut = max(block.rfind(b"\n\n", 1), block.rfind(b"\n\r\n", 1))
    if cut <= 0:
        cut = block.rfind(b"\n", 1)
    if cut > 0:
        # White space stays together, in the next chunk or, where there is no more before it, in this one: a blank line
        # must not be halved.
        return len(block[:cut].rstrip(BLANK_BYTES)) or len(block) - len(block[cut:].lstrip(BLANK_BYTES)), False
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


def sample_text(sizes: Sequence[tuple[str, int]], budget: int) -> Iterator[str]:
    """Clean text of evenly spaced parts of the files, (path, bytes) each, about `budget` bytes at most."""
    share = min(1.0, budget / max(1, sum(size for _, size in sizes)))
    spans = (span for path, size in sizes for span in divide(path, size, CHUNK_BYTES))
    for index, span in enumerate(spans):
        if is_selected(index, share):
            for chunk in read_chunks(span):
                if budget <= 0:
                    return
                yield clean_text(chunk.data[:budget]).text
                budget -= len(chunk.data)
