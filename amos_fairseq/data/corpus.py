"""A corpus: sources cut into spans, spans read in bounded blocks, blocks made into documents of clean text.

A chunk of text ends before white space and the next one begins with that white space. So a chunk always continues the
document that the chunk before it left open, unless it is the first of its file: no seam between chunks needs a rule of
its own. The same holds for slices, which are encoded by different processes: where one ends follows from the bytes
around it.
"""

import abc
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Optional

from amos_fairseq.data.options import Options

CHUNK_BYTES = 1 << 20  # longer lines are cut; also what is encoded at a time
SLICE_BYTES = 32 << 20  # what is kept of the work of a killed process is whole slices
SLICES = 256  # of a corpus too small for so many of that size, so that all workers have something to do
BLANK_BYTES = b" \t\n\r\f\v\0"
BLANK_LINE = re.compile(r"\n\s*\n", re.ASCII)
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # how "surrogateescape" shows an invalid byte
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which JSON can spell
REPAIRED = ("invalid_utf8_bytes", "nul_characters", "byte_order_marks", "long_lines_split", "lone_surrogates")
CONTINUES, STARTS_DOCUMENT, STARTS_FILE = range(3)  # what a passage does


class Span(NamedTuple):
    """A piece of a source that can be read on its own: what its units `begin` to `end` hold, `size` bytes of text.

    Units are the source's own: bytes, row groups, or one for all of a file that can only be read from its start.
    """

    source: "Source"
    begin: int
    end: int
    size: int


class Block(NamedTuple):
    """What is read of a span at a time. data: as its source has it; size: bytes of text; done: of the span's size"""

    data: Any
    size: int
    done: int


class Passages(NamedTuple):
    """Documents in parts. kinds: what each starts; repaired: how often each of REPAIRED; ids: digests, 0 for none"""

    texts: list[str]
    kinds: list[int]
    repaired: Sequence[int]
    ids: list[int]


@dataclass(frozen=True)
class Source(abc.ABC):
    """One input file. path: where its bytes lie; name: how messages call it; reading: how; compression: of all."""

    path: str
    name: str
    reading: Options
    compression: Optional[str] = None

    @property
    def size(self) -> int:
        """Bytes of text, about."""
        return os.path.getsize(self.path)

    @property
    def divisible(self) -> bool:
        """Whether spans can have any size, so that any part of it is reached at once."""
        return False

    @abc.abstractmethod
    def spans(self, most: int) -> Iterator[Span]:
        """All of it in pieces of `most` bytes where that is possible; an empty file has an empty one."""

    @abc.abstractmethod
    def blocks(self, span: Span) -> Iterator[Block]:
        """Bounded, and fast, for some are passed over. Raises Damaged."""

    @abc.abstractmethod
    def passages(self, block: Block) -> Passages:
        """The documents of a block; that of a file's start begins with one that STARTS_FILE. Raises ValueError."""

    def sample(self, block: Block, most: int) -> str:
        """Text of a block to learn a vocabulary from, of about `most` bytes at most."""
        return "\n".join(self.passages(block).texts)[:most]

    @abc.abstractmethod
    def check(self) -> None:
        """Refuse, by a look at its start, what cannot be read as intended: a ValueError."""


class Chunk(NamedTuple):
    data: bytes
    starts_file: bool
    byte_order_mark: bool  # one was taken off
    continues_line: bool  # the first line began in the chunk before
    cuts_line: bool  # the last line goes on in the next chunk


def decoded(data: bytes) -> tuple[str, int]:
    """Text of `data` with invalid UTF-8 replaced by U+FFFD, and how many bytes of it there were."""
    try:
        return data.decode(), 0
    except UnicodeDecodeError:
        return ESCAPED_BYTE.subn("\ufffd", data.decode(errors="surrogateescape"))


def clean_text(data: bytes) -> tuple[str, int, int]:
    """Text of `data` as `decoded` and without NULs, and how many invalid bytes and NULs there were."""
    text, invalid_bytes = decoded(data)
    return text.replace("\0", ""), invalid_bytes, text.count("\0")


def without_surrogates(text: str) -> tuple[str, int]:
    """The text with lone surrogates, which no encoding of Unicode has, replaced by U+FFFD, and how many there were."""
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError:
        return SURROGATE.subn("\ufffd", text)


def one_line(text: str) -> str:
    """Lines as words of one sequence; only some models' normalisation would do so by itself."""
    return text.replace("\n", " ").replace("\r", " ")


def read_chunks(stream: BinaryIO, begin: int = 0, end: Optional[int] = None) -> Iterator[Chunk]:
    """A text in chunks of at most CHUNK_BYTES that end between words.

    begin, end: of a part of it, each moved back to the next place where a chunk may end; None: all to the end
    """
    starts_file = begin == 0
    cut_by_end = continues_line = False
    if end is not None:
        end, cut_by_end = _find_boundary(stream, end)
        begin, continues_line = _find_boundary(stream, begin)
        stream.seek(begin)
    rest = b""
    if begin == 0:
        rest = stream.read(len(BOM_UTF8) if end is None else min(len(BOM_UTF8), end))
        begin = len(rest)
    byte_order_mark = rest == BOM_UTF8
    rest = b"" if byte_order_mark else rest
    while True:
        most = CHUNK_BYTES - len(rest)
        fresh = stream.read(most if end is None else min(most, end - begin))
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


def plan_slices(sources: Sequence[Source]) -> list[list[Span]]:
    """The corpus in slices of at least `slice_bytes` but the last; at most twice that, of divisible sources."""
    slice_bytes = min(max(sum(source.size for source in sources) // SLICES, CHUNK_BYTES), SLICE_BYTES)
    slices: list[list[Span]] = [[]]
    filled = 0
    for span in (span for source in sources for span in source.spans(slice_bytes)):
        if filled >= slice_bytes:
            slices.append([])
            filled = 0
        slices[-1].append(span)
        filled += span.size
    return slices


def sample_text(sources: Sequence[Source], budget: int) -> Iterator[str]:
    """Clean text of evenly spaced parts of the sources, about `budget` bytes at most; all of a source that is not
    divisible is read for that."""
    share = min(1.0, budget / max(1, sum(source.size for source in sources)))
    index = 0  # of parts of divisible sources
    for source in sources:
        done = taken = 0  # bytes of this source
        for span in source.spans(CHUNK_BYTES):
            if source.divisible:
                index += 1
                if not is_selected(index - 1, share):
                    continue
            for block in source.blocks(span):
                if budget <= 0:
                    return
                if source.divisible or share == 1 or taken <= share * done:
                    yield source.sample(block, budget)
                    budget, taken = budget - block.size, taken + block.size
                done += block.done
