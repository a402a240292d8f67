"""Files as streams of UTF-8, whatever they are compressed by and encoded in; damage is told, never taken for an end."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple, Optional

from amos_fairseq.user_errors import Damaged

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
MAGIC = {
    "gzip": rb"\x1f\x8b\x08", "bzip2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "xz": rb"\xfd7zXZ\0",
    "zstd": rb"\x28\xb5\x2f\xfd",
}
READ_BYTES = 1 << 16  # compressed, at a time
ZSTD_READ_BYTES = 1 << 11  # what comes of it is not limited: 128 KB for each 4 bytes at worst
DECOMPRESSED_BYTES = 1 << 20  # at a time
INVALID = "amos_fairseq.invalid"
# Made an invalid byte of UTF-8, to be counted as such.
codecs.register_error(INVALID, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


class Stream(NamedTuple):
    """bytes: of UTF-8; file: what they are made of, so that its `tell` says how far it has been read"""

    bytes: io.BufferedReader
    file: BinaryIO


def split_extension(path: str) -> tuple[str, Optional[str]]:
    """The path without what names its compression, and that compression."""
    stem, extension = os.path.splitext(path)
    compression = COMPRESSIONS.get(extension.lower())
    return (path if compression is None else stem), compression


def compression_of(path: str) -> Optional[str]:
    """By its name or, where that says none, as of what came by standard input, by its first bytes."""
    compression = split_extension(path)[1]
    if compression is None:
        with open(path, "rb") as file:
            start = file.read(16)
        compression = next((name for name, magic in MAGIC.items() if re.match(magic, start)), None)
    return compression


def need(package: str, why: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"{why} takes {package}, which is not installed: pip install 'amos-fairseq[data]'")


@contextlib.contextmanager
def opened(path: str, name: str, compression: Optional[str] = None, encoding: Optional[str] = None) -> Iterator[Stream]:
    """A file as UTF-8; `name` is how messages call it. Raises Damaged, while it is read, if it is not whole."""
    with open(path, "rb") as file:
        stream: Any = file
        if compression == "gzip":
            stream = gzip.GzipFile(fileobj=file)
        elif compression is not None:
            stream = io.BufferedReader(_Decompressed(file, *_decompressor(compression)), READ_BYTES)
        if encoding is not None:
            stream = _Transcoded(stream, encoding)
        if stream is not file:
            stream = io.BufferedReader(stream, READ_BYTES)
        try:
            yield Stream(stream, file)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise Damaged(f"{name} is no whole {compression} file ({error}): fetch it again") from None


def _decompressor(compression: str) -> tuple[Callable[[], Any], int]:
    """What makes a decompressor, and how many bytes it is given at a time."""
    if compression == "bzip2":
        return bz2.BZ2Decompressor, READ_BYTES
    if compression == "xz":
        return lzma.LZMADecompressor, READ_BYTES
    import zstandard

    class Zstd:
        """With the interface of the standard library's."""

        def __init__(self):
            self.frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()  # of zstd --long=31

        needs_input = True
        eof = property(lambda self: self.frame.eof)
        unused_data = property(lambda self: self.frame.unused_data)

        def decompress(self, data: bytes, most: int) -> bytes:
            try:
                return self.frame.decompress(data)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None

    return Zstd, ZSTD_READ_BYTES


class _Produced(io.RawIOBase):
    """A stream of what `produce` gives, a part at a time: None is the end, and an empty part is not."""

    output = memoryview(b"")

    def produce(self) -> Optional[bytes]:
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self.output:
            part = self.produce()
            if part is None:
                return 0
            self.output = memoryview(part)
        size = min(len(target), len(self.output))
        target[:size], self.output = self.output[:size], self.output[size:]
        return size


class _Decompressed(_Produced):
    """All compressed streams of a file, one after the other. The standard library's files of bzip2 and xz take what
    follows the first and is broken for no part of it, and zstandard's takes a file that breaks off for a whole one."""

    def __init__(self, file: BinaryIO, new: Callable[[], Any], read_bytes: int):
        self.file, self.new, self.read_bytes = file, new, read_bytes
        self.decompressor: Any = None  # of the stream that is not at its end
        self.input = b""

    def produce(self) -> Optional[bytes]:
        if not self.input and (self.decompressor is None or self.decompressor.needs_input):
            self.input = self.file.read(self.read_bytes)
            if not self.input and self.decompressor is not None:
                raise EOFError("it breaks off")
        if self.decompressor is None:
            if self.new is lzma.LZMADecompressor:  # between its streams may be padding
                while self.input and not self.input.strip(b"\0"):
                    self.input = self.file.read(self.read_bytes)
                self.input = self.input.lstrip(b"\0")
            if not self.input:
                return None
            self.decompressor = self.new()
        try:
            output = self.decompressor.decompress(self.input, DECOMPRESSED_BYTES)
        except OSError as error:  # of bzip2
            raise EOFError(str(error)) from None
        self.input = b""
        if self.decompressor.eof:
            self.input, self.decompressor = self.decompressor.unused_data, None
        return output


class _Transcoded(_Produced):
    """Text of any encoding as UTF-8, in which one invalid byte stands for whatever could not be decoded."""

    def __init__(self, stream: BinaryIO, encoding: str):
        self.text = io.TextIOWrapper(stream, encoding, INVALID, newline="")

    def produce(self) -> Optional[bytes]:
        return self.text.read(READ_BYTES).encode("utf-8", "surrogateescape") or None
