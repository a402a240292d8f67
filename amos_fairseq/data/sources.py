"""The formats of corpora: text, JSON, Parquet and Arrow, the first two compressed or not.

    Text        documents between blank lines, or lines
    JsonLines   an object a line, its text a document
    JsonArray   objects in one array
    Parquet     a column of texts, by row groups
    Arrow       the same in a stream or file of record batches, as `datasets` saves them
"""

import codecs
import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Optional

from amos_fairseq.data import corpus
from amos_fairseq.data.corpus import Block, Passages, Source, Span, clean_text
from amos_fairseq.data.options import Options
from amos_fairseq.data.streams import Stream, compression_of, need, opened
from amos_fairseq.user_errors import Damaged

EXPANSION = 3  # bytes of text to one that is compressed, about: for plans and progress, never for what is read
PROBE_BYTES = 1 << 16
BINARY_SHARE = 0.05
ODD_BYTES = 16  # invalid ones, from which a text is taken for one in another encoding if they are most of its letters
RECORD_BYTES = 1 << 28  # a longer record of JSON is refused: it has to be in memory as a whole
COUNTED_BYTES = 1 << 28  # of records that are looked through for the count in a message
JSON_START = re.compile(rb'\s*\[?\s*\{\s*"(?:[^"\\]|\\.)*"\s*:')
SEPARATORS = re.compile(r"[\s,]*")


def open_source(path: str, name: str, format: str, reading: Options) -> Source:
    """Raises ValueError if what it takes to read it is not installed."""
    compression = compression_of(path) if format in STREAMED else None
    if compression == "zstd":
        need("zstandard", f"reading {name}")
    if format not in STREAMED:
        need("pyarrow", f"reading {name}")
    if format == "json":
        with _stream(path, name, compression, reading.encoding) as stream:
            format = "array" if is_array(stream.bytes.read(PROBE_BYTES)) else "jsonl"
    return KINDS[format](path, name, reading, compression)


def _stream(path: str, name: str, compression: Optional[str], encoding: Optional[str]):
    return opened(path, name, compression, None if encoding is None or is_utf8(encoding) else encoding)


def is_array(probe: bytes) -> bool:
    """Whether JSON that begins so is an array."""
    return probe.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


class _Streamed(Source):
    """What is read byte by byte."""

    def open(self) -> contextlib.AbstractContextManager[Stream]:
        return _stream(self.path, self.name, self.compression, self.reading.encoding)

    @property
    def size(self) -> int:
        return os.path.getsize(self.path) * (1 if self.compression is None else EXPANSION)

    @property
    def divisible(self) -> bool:
        return self.compression is None and (self.reading.encoding is None or is_utf8(self.reading.encoding))

    def spans(self, most: int) -> Iterator[Span]:
        if self.divisible:
            for begin in range(0, max(self.size, 1), most):  # nothing has one empty part
                end = min(begin + most, self.size)
                yield Span(self, begin, end, end - begin)
        else:
            yield Span(self, 0, 1, self.size)

    def progress(self, stream: Stream) -> Callable[[int], int]:
        """Of the source's size, what each next block of so many bytes took."""
        if self.divisible:
            return lambda size: size
        rate, before = self.size / max(1, os.path.getsize(self.path)), 0

        def done(size: int) -> int:
            nonlocal before
            position = int(stream.file.tell() * rate)
            before, part = position, position - before
            return part

        return done

    def checked(self, text: str, invalid: int, data: bytes) -> None:
        """Refuse what is evidently in another encoding, unless the user has said that it is not."""
        if self.reading.encoding is None and invalid >= ODD_BYTES:
            others = sum(character > "\x7f" for character in text) - invalid
            if invalid > others:
                raise ValueError(
                    f"{self.name} is not UTF-8: of {invalid + others:,} characters beyond ASCII in {len(data):,} bytes "
                    f"{invalid:,} are invalid: name its encoding, as in --encoding latin-1, or give --encoding utf-8 "
                    "to have them replaced by U+FFFD"
                )


class Text(_Streamed):
    def blocks(self, span: Span) -> Iterator[Block]:
        with self.open() as stream:
            done = self.progress(stream)
            end = span.end if self.divisible else None
            for chunk in corpus.read_chunks(stream.bytes, span.begin, end):
                yield Block(chunk, len(chunk.data), done(len(chunk.data)))

    def passages(self, block: Block) -> Passages:
        chunk: corpus.Chunk = block.data
        text, invalid_bytes, nul_characters = clean_text(chunk.data)
        self.checked(text, invalid_bytes, chunk.data)
        first, *others = (part.strip() for part in corpus.split_documents(text, self.reading.documents))
        texts = [first, *filter(None, others[:-1]), *others[-1:]]  # an empty last one ends the document before it
        kinds = [corpus.STARTS_DOCUMENT] * len(texts)
        kinds[0] = corpus.STARTS_FILE if chunk.starts_file else corpus.CONTINUES
        splits_line = chunk.cuts_line and not chunk.continues_line
        return Passages(
            texts, kinds, [invalid_bytes, nul_characters, chunk.byte_order_mark, splits_line, 0],
            [0] * len(texts),
        )

    def sample(self, block: Block, most: int) -> str:
        return clean_text(block.data.data[:most])[0]

    def check(self) -> None:
        """Refuse what is binary, JSON or of another encoding; a text with a few bad bytes passes and is repaired."""
        with self.open() as stream:
            probe = stream.bytes.read(PROBE_BYTES)
        text, invalid_bytes, nul_characters = clean_text(probe)
        bad = invalid_bytes + nul_characters
        if nul_characters and bad > BINARY_SHARE * len(probe):
            utf16 = probe[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            raise ValueError(
                f"{self.name} is not UTF-8 text ({bad / len(probe):.0%} of its first {len(probe)} bytes are NUL or "
                f"invalid): {'add --encoding utf-16' if utf16 else 'convert it first, or leave it out'}"
            )
        self.checked(text, invalid_bytes, probe)
        probe = probe.removeprefix(codecs.BOM_UTF8)
        lines = [line for line in probe.split(b"\n") if line.strip()][:10]
        array = is_array(probe) and JSON_START.match(probe)
        if self.reading.format is None and lines and (array or all(map(JSON_START.match, lines))):
            kind = "json" if array else "jsonl"
            raise ValueError(
                f"{self.name} holds records of JSON, not plain text: add --format {kind}, or --format text to have "
                "them taken as they are"
            )


class _NotJson(Exception):
    """(reason, number of the line)"""


class _NotText(Exception):
    """(reason)"""


class _Records:
    """Gathers passages of texts that are whole documents."""

    def __init__(self, starts_file: bool, invalid_bytes: int = 0, byte_order_mark: bool = False):
        self.texts, self.kinds = ([""], [corpus.STARTS_FILE]) if starts_file else ([], [])
        self.ids = [0] * len(self.texts)
        self.repaired = dict.fromkeys(corpus.REPAIRED, 0)
        self.repaired.update(invalid_utf8_bytes=invalid_bytes, byte_order_marks=int(byte_order_mark))

    def add(self, text: str, identity: Any = None) -> None:
        text, surrogates = corpus.without_surrogates(text)
        self.repaired["nul_characters"] += text.count("\0")
        self.repaired["lone_surrogates"] += surrogates
        text = text.replace("\0", "").strip()
        kind = corpus.STARTS_DOCUMENT
        digest = b""
        if identity is not None:
            digest = hashlib.blake2b(json.dumps(identity, default=str).encode(), digest_size=8).digest()
        for part in [text] if len(text) <= corpus.CHUNK_BYTES else self._cut(text):
            self.texts.append(part)
            self.kinds.append(kind)
            self.ids.append(int.from_bytes(digest, "big"))
            kind = corpus.CONTINUES

    def _cut(self, text: str) -> Iterator[str]:
        for chunk in corpus.read_chunks(io.BytesIO(text.encode())):
            self.repaired["long_lines_split"] += chunk.cuts_line and not chunk.continues_line
            yield chunk.data.decode().strip()

    def passages(self) -> Passages:
        return Passages(self.texts, self.kinds, list(self.repaired.values()), self.ids)


class _Json(_Streamed):
    """Objects, each with the text of a document."""

    @abstractmethod
    def records(self, block: Block) -> Iterator[tuple[int, Any]]:
        """Those of a block, each with the number of its line counted from the block's first. Raises _NotJson."""

    @abstractmethod
    def start_of(self, block: Block) -> tuple[bool, int, bool]:
        """Whether it starts the file; its invalid bytes; whether it has a byte order mark."""

    def text_of(self, record: Any) -> Optional[str]:
        """None if the record has no such field, or null in it. Raises _NotText."""
        field = self.reading.text_field
        value = _value_of(record, field, "--text-field")
        if value is not None and not isinstance(value, str):
            raise _NotText(f"field {field!r} is {json.dumps(value)[:40]}, no text: name another with --text-field")
        return value

    def id_of(self, record: Any) -> Any:
        return None if self.reading.id_field is None else _value_of(record, self.reading.id_field, "--id-field")

    def passages(self, block: Block) -> Passages:
        gathered = _Records(*self.start_of(block))
        try:
            for _, record in self.records(block):
                text = self.text_of(record)
                if text is None:
                    self.refuse()
                gathered.add(text, self.id_of(record))
        except (_NotJson, _NotText):
            self.refuse()
        return gathered.passages()

    def refuse(self) -> NoReturn:
        """Say what is wrong with the first bad record, on which line, and of missing fields how many there are."""
        first: Optional[tuple[int, Any]] = None
        records = missing = looked_through = number = 0
        line = 1  # of a block's start
        for block in self.blocks(Span(self, 0, 1 << 62, 0)):
            try:
                for number, record in self.records(block):
                    records += 1
                    if self.text_of(record) is None:
                        missing += 1
                        first = first or (line + number, record)
                    else:
                        self.id_of(record)
            except (_NotJson, _NotText) as error:
                if first is not None:
                    break
                kind, *place = error.args
                if isinstance(error, _NotJson):
                    raise Damaged(f"{self.name}, line {line + place[0]}: {kind}") from None
                raise ValueError(f"{self.name}, line {line + number}: {kind}") from None
            line += self.lines_of(block)
            looked_through += block.size if first else 0
            if looked_through > COUNTED_BYTES:
                break
        assert first is not None
        fields = ", ".join(map(repr, first[1])) or "none"
        raise ValueError(
            f"{self.name}: {missing:,} of {records:,} records have no field {self.reading.text_field!r}, the first on "
            f"line {first[0]}, with the fields {fields[:200]}: name the field of the text with --text-field"
        )

    @abstractmethod
    def lines_of(self, block: Block) -> int: ...

    def check(self) -> None:
        self.passages(next(self.blocks(next(self.spans(corpus.CHUNK_BYTES)))))


def _value_of(record: Any, field: str, option: str) -> Any:
    """Of a field, or at the end of a dotted path through objects; None if there is none. Raises _NotText."""
    if not isinstance(record, dict):
        raise _NotText("is no JSON object")
    if field in record:
        return record[field]
    value: Any = record
    for key in field.split("."):
        if isinstance(value, list):
            raise _NotText(f"field {field!r} leads through a list: name a field of objects with {option}")
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _loads(text: str, number: int) -> Any:
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise _NotJson("is JSON nested too deeply", number) from None
    except json.JSONDecodeError as error:
        raise _NotJson(f"is no JSON ({error.msg}, character {error.pos + 1})", number) from None


# int refuses many digits.
DECODER = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 1000 else float(digits))


class JsonLines(_Json):
    """Data of a block: bytes of whole lines, and whether they start the file."""

    def blocks(self, span: Span) -> Iterator[Block]:
        with self.open() as stream:
            done = self.progress(stream)
            read, place, end = stream.bytes, 0, span.end if self.divisible else 1 << 62
            if self.divisible and span.begin:  # a line belongs to the span that it begins in
                read.seek(span.begin - 1)
                place = span.begin - 1
                while (line := read.readline(corpus.CHUNK_BYTES)) and not line.endswith(b"\n"):
                    place += len(line)
                place += len(line)
            starts_file, is_first = span.begin == 0, True
            while place < end or is_first:
                data = read.read(max(0, min(corpus.CHUNK_BYTES, end - place)))
                if data and not data.endswith(b"\n"):
                    data += read.readline(RECORD_BYTES)
                    if len(data) > RECORD_BYTES and not data.endswith(b"\n"):
                        longest = f"a line longer than {RECORD_BYTES >> 20} MB, which is no record of JSON"
                        raise Damaged(f"{self.name} has {longest}")
                if not data and not is_first:
                    return
                yield Block((data, starts_file), len(data), done(len(data)))
                starts_file, is_first, place = False, False, place + len(data)

    def start_of(self, block: Block) -> tuple[bool, int, bool]:
        data, starts_file = block.data
        text, invalid = corpus.decoded(data)
        self.checked(text, invalid, data)
        return starts_file, invalid, starts_file and data.startswith(codecs.BOM_UTF8)

    def records(self, block: Block) -> Iterator[tuple[int, Any]]:
        data, starts_file = block.data
        if starts_file:
            data = data.removeprefix(codecs.BOM_UTF8)
        for number, line in enumerate(corpus.decoded(data)[0].split("\n")):
            if line and not line.isspace():
                yield number, _loads(line, number)

    def lines_of(self, block: Block) -> int:
        return block.data[0].count(b"\n")


class JsonArray(_Json):
    """Data of a block: records with their lines counted from its first, how many lines it has, and its `start_of`."""

    @property
    def divisible(self) -> bool:
        return False

    def blocks(self, span: Span) -> Iterator[Block]:
        decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        with self.open() as stream:
            done, invalid, size = self.progress(stream), 0, 0

            def read(most: int) -> str:
                nonlocal invalid, size
                data = stream.bytes.read(most)
                text, bad = corpus.ESCAPED_BYTE.subn("\ufffd", decode(data, len(data) < most))
                self.checked(text, bad, data)
                invalid, size = invalid + bad, size + len(data)
                return text

            records: list[tuple[int, Any]] = []
            starts_file, first = True, 0
            for line, record in _elements(read, self.name):
                records.append((line - first, record))
                if size > corpus.CHUNK_BYTES:
                    yield Block((records, line - first, (starts_file, invalid, False)), size, done(size))
                    starts_file, records, first, invalid, size = False, [], line, 0, 0
            yield Block((records, 0, (starts_file, invalid, False)), size, done(size))

    def start_of(self, block: Block) -> tuple[bool, int, bool]:
        return block.data[2]

    def records(self, block: Block) -> Iterator[tuple[int, Any]]:
        yield from block.data[0]

    def lines_of(self, block: Block) -> int:
        return block.data[1]


def _elements(read: Callable[[int], str], name: str) -> Iterator[tuple[int, Any]]:
    """Elements of the JSON array that `read` gives parts of, with the line that each begins on, from 0."""
    buffer = read(corpus.CHUNK_BYTES)
    place = buffer.index("[") + 1
    line = buffer.count("\n", 0, place)
    while True:
        begin = SEPARATORS.match(buffer, place).end()  # type: ignore[union-attr]  # it matches nothing, too
        line += buffer.count("\n", place, begin)
        if buffer.startswith("]", begin):
            if (buffer[begin + 1 :] + read(corpus.CHUNK_BYTES)).strip():
                raise Damaged(f"{name}, line {line + 1}: more follows the end of the array")
            return
        try:
            record, place = DECODER.raw_decode(buffer, begin)
        except RecursionError:
            raise Damaged(f"{name}, line {line + 1}: is JSON nested too deeply") from None
        except json.JSONDecodeError as error:  # it is broken, or goes on
            rest = buffer[begin:]
            more = read(max(corpus.CHUNK_BYTES, len(rest))) if len(rest) < RECORD_BYTES else ""
            if not more:
                raise Damaged(f"{name}, line {line + 1}: is no JSON ({error.msg})") from None
            buffer, place = rest + more, 0
            continue
        yield line, record
        line += buffer.count("\n", begin, place)


class _Columns(Source):
    """A column of texts. Data of a block: the texts, their ids or None, and whether they start the file."""

    @abstractmethod
    def batches(self, span: Span) -> Iterator[Any]:
        """Record batches of the span."""

    @abstractmethod
    def schema(self) -> Any: ...

    def blocks(self, span: Span) -> Iterator[Block]:
        starts_file = span.begin == 0
        with self.whole():
            for batch in self.batches(span):
                column = self.column(batch, self.reading.text_field)
                ids = None if self.reading.id_field is None else self.column(batch, self.reading.id_field)
                rows = max(1, corpus.CHUNK_BYTES * len(column) // max(1, column.nbytes))
                for begin in range(0, len(column), rows):
                    part = column.slice(begin, rows)
                    yield Block((part, ids and ids.slice(begin, rows), starts_file), part.nbytes, part.nbytes)
                    starts_file = False
            if starts_file:
                yield Block(([], None, True), 0, 0)

    def column(self, batch: Any, field: str) -> Any:
        from pyarrow import compute

        if field in batch.schema.names:
            column = batch.column(field)
        else:
            first, *others = field.split(".")
            column = compute.struct_field(batch.column(first), others)
        return column.dictionary_decode() if hasattr(column, "dictionary") else column

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise Damaged(f"{self.name} is no whole {type(self).__name__} file ({reason}): fetch it again") from None

    def passages(self, block: Block) -> Passages:
        column, ids, starts_file = block.data
        gathered = _Records(starts_file)
        texts = column.to_pylist() if len(column) else []
        for text, identity in zip(texts, itertools.repeat(None) if ids is None else ids.to_pylist()):
            if text is None:
                self.refuse()
            gathered.add(text, identity)
        return gathered.passages()

    def refuse(self) -> NoReturn:
        rows = missing = first = 0
        for block in (block for span in self.spans(1 << 62) for block in self.blocks(span)):
            column = block.data[0]
            if len(column) and column.null_count:
                missing += column.null_count
                first = first or rows + 1 + column.to_pylist().index(None)
            rows += len(column)
        raise ValueError(
            f"{self.name}: {missing:,} of {rows:,} rows have no {self.reading.text_field!r}, the first is row {first}: "
            "leave them out, or name another column with --text-field"
        )

    def check(self) -> None:
        import pyarrow

        with self.whole():
            schema = self.schema()
        field = self.reading.text_field
        kind = self.kind_of(schema, field, "--text-field")
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        views = getattr(pyarrow.types, "is_string_view", lambda kind: False)
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or views(kind)):
            raise ValueError(f"{self.name}: column {field!r} is {kind}, no text: name another with --text-field")
        if self.reading.id_field is not None:
            field = self.reading.id_field
            kind = self.kind_of(schema, field, "--id-field")
            if pyarrow.types.is_nested(kind) or pyarrow.types.is_binary(kind):
                raise ValueError(f"{self.name}: column {field!r} is {kind}, no id: name another with --id-field")

    def kind_of(self, schema: Any, field: str, option: str) -> Any:
        """The type of a column, or of what a dotted path through structs leads to. Raises ValueError."""
        import pyarrow

        if field in schema.names:
            return schema.field(field).type
        names: list[str] = schema.names
        kind: Any = None
        for key in field.split("."):
            if kind is not None and not pyarrow.types.is_struct(kind):
                raise ValueError(f"{self.name}: column {field!r} leads through {kind}: name another with {option}")
            if key not in names:
                raise ValueError(
                    f"{self.name} has no column {field!r}, only {', '.join(map(repr, names))[:200]}: name one of these "
                    f"with {option}"
                )
            kind = schema.field(key).type if kind is None else kind.field(key).type
            names = [kind.field(index).name for index in range(kind.num_fields)]
        return kind


class Parquet(_Columns):
    """Units of spans: row groups."""

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Bytes of the column in each row group."""
        import pyarrow.parquet

        field, sizes = self.reading.text_field, []
        with self.whole():
            metadata = pyarrow.parquet.read_metadata(self.path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = map(group.column, range(group.num_columns))
            sizes.append(sum(column.total_uncompressed_size for column in columns if column.path_in_schema == field))
        return sizes

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def spans(self, most: int) -> Iterator[Span]:
        begin = size = 0
        for end, group in enumerate(self.sizes, start=1):
            size += group
            if size >= most or end == len(self.sizes):
                yield Span(self, begin, end, size)
                begin, size = end, 0
        if not self.sizes:
            yield Span(self, 0, 0, 0)

    def schema(self) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.read_schema(self.path)

    def batches(self, span: Span) -> Iterator[Any]:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self.path, buffer_size=corpus.CHUNK_BYTES) as file:
            groups = range(span.begin, span.end)
            fields = [*filter(None, (self.reading.text_field, self.reading.id_field))]
            rows = sum(file.metadata.row_group(group).num_rows for group in groups)
            some = min(1 << 16, max(1, corpus.CHUNK_BYTES * rows // max(1, span.size)))
            yield from file.iter_batches(some, list(groups), fields, use_threads=False)


class Arrow(_Columns):
    def spans(self, most: int) -> Iterator[Span]:
        yield Span(self, 0, 1, self.size)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        from pyarrow import ipc, memory_map

        with memory_map(self.path) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            with (ipc.open_file if is_file else ipc.open_stream)(file) as reader:
                yield reader

    def schema(self) -> Any:
        with self.opened() as reader:
            return reader.schema

    def batches(self, span: Span) -> Iterator[Any]:
        with self.opened() as reader:
            count = getattr(reader, "num_record_batches", None)
            yield from reader if count is None else map(reader.get_batch, range(count))


KINDS: dict[str, Callable[..., Source]] = {
    "text": Text, "jsonl": JsonLines, "array": JsonArray, "parquet": Parquet, "arrow": Arrow
}
STREAMED = ("text", "jsonl", "json")

