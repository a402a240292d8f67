"""Sources: every format gives the documents of plain text, to the last bit, however it is cut; what is bad is told."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amos_fairseq.data import corpus, encoding, inputs, preparation, sources, streams
from amos_fairseq.data.options import Options
from amos_fairseq.data.preparation import prepare
from amos_fairseq.user_errors import status_of

pyarrow = pytest.importorskip("pyarrow")
zstandard = pytest.importorskip("zstandard")
from pyarrow import parquet  # noqa: E402

COMPRESS = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
NAMES = [f"{kind}{end}" for kind in ("txt", "jsonl", "ndjson", "json") for end in COMPRESS]
NAMES += ["parquet", "stream.arrow", "file.arrow", "JSONL.GZ"]
OPTIONS = dict(vocab_size=200, tokens_per_sample=32, shards=2, valid_fraction=0.1, deduplicate=True)


def make_documents(count=300):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyzäö", k=draw.randint(2, 7))) for _ in range(120)]
    documents = [" ".join(draw.choices(words, k=draw.randint(3, 40))) for _ in range(count)]
    return [*documents, documents[7]]


DOCUMENTS = make_documents()


def records(documents=DOCUMENTS):
    return [{"id": number, "about": {"text": text}, "text": text} for number, text in enumerate(documents)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(folder, name, documents=DOCUMENTS, rows=None):
    """A file of the kind that its name says."""
    rows = rows or records(documents)
    path = folder / f"corpus.{name}"
    kind, end = os.path.splitext(name.lower())
    if name == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=50)
    elif end == ".arrow":
        table = pyarrow.Table.from_pylist(rows)
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with pyarrow.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=40)
    else:
        kind, end = (kind, end) if end in COMPRESS else (name, "")
        data = "\n\n".join(documents).encode()
        if kind != "txt":
            data = json.dumps(rows, indent=1).encode() if kind == "json" else lines(rows)
        path.write_bytes(COMPRESS[end](data))
    return str(path)


def tree_of(folder):
    """All but the manifest, which names the input."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Of plain text in one slice."""
    folder = tmp_path_factory.mktemp("expected")
    prepare([write(folder, "txt")], str(folder / "out"), workers=1, **OPTIONS)
    return tree_of(folder / "out")


@pytest.fixture
def small(monkeypatch):
    """Chunks, slices and portions of a few documents."""
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 700)
    monkeypatch.setattr(encoding, "PORTION_BYTES", 2000)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_bytes_of_plain_text(name, workers, expected, tmp_path, small):
    manifest = prepare([write(tmp_path, name)], str(tmp_path / "out"), workers=workers, **OPTIONS)
    assert tree_of(tmp_path / "out") == expected
    assert manifest.dropped["duplicate_documents"] == 1 and not any(manifest.repaired.values())


KILLED = ["jsonl", "jsonl.zst", "txt.gz", "json", "parquet", "stream.arrow"]
START = (
    "import sys; from amos_fairseq.data import corpus, encoding, preparation; corpus.CHUNK_BYTES = 700; "
    "encoding.PORTION_BYTES = 2000; write = encoding.write_encoded; left = iter(range(int(sys.argv[3]))); "
    "encoding.write_encoded = lambda *a: write(*a) if next(left, None) is not None else __import__('os').kill(0, 9); "
    f"preparation.prepare([sys.argv[1]], sys.argv[2], workers=1, **{OPTIONS!r})"
)


@pytest.mark.parametrize("name", KILLED)
def test_a_kill_between_any_portions_changes_no_byte(name, expected, tmp_path, small, monkeypatch):
    path, out = write(tmp_path, name), tmp_path / "out"
    for portions in (1, 2, 1):
        command = [sys.executable, "-c", START, path, str(out), str(portions)]
        assert subprocess.run(command, start_new_session=True).returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in Path(f"{out}.partial", "encoded").iterdir()}
    assert len(kept) == 4
    shutil.copytree(f"{out}.partial", tmp_path / "other.partial")
    prepare([path], str(out), workers=1, **OPTIONS)
    assert tree_of(out) == expected
    prepare([path], str(tmp_path / "other"), workers=3, **OPTIONS)  # by other processes than it was begun with
    assert tree_of(tmp_path / "other") == expected


def test_strands_that_were_killed_go_on_as_one_process(expected, tmp_path, small):
    path, folder = write(tmp_path, "jsonl.gz"), tmp_path / "encoded"
    folder.mkdir()
    prepare([path], str(tmp_path / "out"), workers=1, **OPTIONS)
    encoder = encoding.TextEncoder(preparation.read_vocabulary(str(tmp_path / "out")))
    source = sources.open_source(path, path, "jsonl", Options())
    (spans,) = corpus.plan_slices([source])
    for target, strands in (("one", [(0, 1)]), ("two", [(1, 2), (0, 1)]), ("three", [(0, 3), (2, 3), (0, 1)])):
        for strand, count in strands:
            encoding.encode_slice(encoder, str(folder / f"{target}.npz"), spans, strand, count)
    of = {target: [Path(path).read_bytes() for path in encoding.portions(str(folder / f"{target}.npz"))]
          for target in ("one", "two", "three")}
    assert len(of["one"]) > 10 and of["one"] == of["two"] == of["three"]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_files_of_all_kinds_are_shared_by_parts(order, tmp_path, small):
    documents = [DOCUMENTS[begin : begin + 60] for begin in range(0, 300, 60)]
    folder, plain = tmp_path / "mixed", tmp_path / "plain"
    for number, (name, some) in enumerate(zip(["jsonl.zst", "txt", "parquet", "json.gz", "stream.arrow"], documents)):
        for place, kind in ((folder, name), (plain, "txt")):
            (place / str(number)).mkdir(parents=True)
            write(place / str(number), kind, some)
    manifest = prepare([str(plain)], str(tmp_path / "expected"), workers=1, **OPTIONS)
    for index in order:
        mixed = prepare([str(folder)], str(tmp_path / "out"), workers=1, part=(index, 3), **OPTIONS)
    assert mixed.splits == manifest.splits
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "expected")


def test_a_record_is_a_document_whatever_its_text_holds_and_its_field_may_lie_deep(tmp_path):
    rows = [{"a": {"b": f"one ab\n\ntwo cd\r\n{number}"}, "a.c": "never"} for number in range(40)]
    for name in ("jsonl", "parquet"):
        path = write(tmp_path, name, rows=rows)
        options = dict(text_field="a.b", vocab_size=30, workers=1, valid_fraction=0.1)
        manifest = prepare([path], str(tmp_path / name), **options)
        assert [split.documents for split in manifest.splits.values()] == [36, 4]
        assert sum(split.characters for split in manifest.splits.values()) == sum(len(row["a"]["b"]) for row in rows)
    manifest = prepare([path], str(tmp_path / "dotted"), **{**options, "text_field": "a.c", "vocab_size": 13})
    assert manifest.splits["train"].characters == 36 * len("never")  # a name with a dot goes before a path


@pytest.mark.parametrize("name", ["jsonl", "json", "parquet", "file.arrow"])
def test_records_with_the_id_of_an_earlier_one_are_left_out(name, tmp_path):
    rows = [{"id": number % 90, "text": text} for number, text in enumerate(DOCUMENTS[:100])]
    manifest = prepare([write(tmp_path, name, rows=rows)], str(tmp_path / "out"), id_field="id", workers=1,
                       vocab_size=200)
    assert manifest.dropped["repeated_ids"] == 10
    assert sum(split.documents for split in manifest.splits.values()) == 90


def test_ids_may_be_times_or_bytes(tmp_path):
    for number, kind in enumerate((pyarrow.timestamp("s"), pyarrow.binary(4))):
        ids = pyarrow.array([row % 20 for row in range(40)], pyarrow.int64())
        ids = ids.cast(kind) if number == 0 else pyarrow.array([b"%04d" % row for row in ids.to_pylist()], kind)
        table = pyarrow.table({"id": ids, "text": DOCUMENTS[:40]})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
        manifest = prepare([str(tmp_path / f"{number}.parquet")], str(tmp_path / f"out{number}"), id_field="id",
                           workers=1, vocab_size=60)
        assert manifest.dropped["repeated_ids"] == 20


def test_an_array_of_json_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf " + json.dumps(records(DOCUMENTS[:40]), indent=1).encode())
    manifest = prepare([str(path)], str(tmp_path / "out"), workers=1, vocab_size=60)
    assert sum(split.documents for split in manifest.splits.values()) == 40
    path.rename(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="holds records of JSON, not plain text: add --format json, "):
        prepare([str(tmp_path / "a.txt")], str(tmp_path / "other"), workers=1)


def test_standard_input_is_of_the_format_that_is_named_and_may_be_compressed(expected, tmp_path):
    path = write(tmp_path, "jsonl.zst")
    words = ["--format", "jsonl", "--out", tmp_path / "out", "--vocab-size", 200, "--tokens-per-sample", 32, "--shards",
             2, "--valid-fraction", 0.1, "--deduplicate", "--workers", 1]
    command = [sys.executable, "-m", "amos_fairseq.cli.main", "prepare", "-", *map(str, words)]
    with open(path, "rb") as stream:
        done = subprocess.run(command, stdin=stream, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert tree_of(tmp_path / "out") == expected


def test_lines_end_at_a_line_feed_only(tmp_path):
    odd = "one\x85two\u2028three\x0bfour\x1cfive\r"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": odd}, ensure_ascii=False) + "\n" for _ in range(9)))
    (tmp_path / "a.txt").write_text(f"{odd}\n" * 9, newline="")
    for name in ("a.jsonl", "a.txt"):
        manifest = prepare([str(tmp_path / name)], str(tmp_path / "out"), documents="line", vocab_size=30, workers=1,
                           overwrite=True)
        assert sum(split.documents for split in manifest.splits.values()) == 9


def test_repairs_of_records_are_counted(tmp_path):
    rows = [{"text": "a \ud800 b \udcff"}, {"text": "c \0 d \U0001f600"}, {"text": "plain text"}] * 5
    data = b"\xef\xbb\xbf" + lines(rows) + '{"text": "ä'.encode() + b'\xff"}\n'
    (tmp_path / "a.jsonl").write_bytes(data)
    manifest = prepare([str(tmp_path / "a.jsonl")], str(tmp_path / "out"), vocab_size=25, workers=1)
    expected = {"invalid_utf8_bytes": 1, "nul_characters": 5, "byte_order_marks": 1, "lone_surrogates": 10}
    assert {name: count for name, count in manifest.repaired.items() if count} == expected


def test_text_in_another_encoding_is_refused_until_it_is_named(tmp_path):
    text = "\n\n".join(f"Straße und Grüße Nummer {number}" for number in range(100))
    for name, encoded in (("latin-1", text.encode("latin-1")), ("utf-16", text.encode("utf-16"))):
        path, out = tmp_path / f"{name}.txt", str(tmp_path / name)
        path.write_bytes(encoded)
        with pytest.raises(ValueError, match=f"{path} is not UTF-8.*--encoding {name}"):
            prepare([str(path)], out, workers=1)
        manifest = prepare([str(path)], out, encoding=name, vocab_size=40, workers=1)
        assert sum(split.characters for split in manifest.splits.values()) == len(text) - 2 * 99
        assert not any(manifest.repaired.values())
    manifest = prepare([str(tmp_path / "latin-1.txt")], out, encoding="utf-8", vocab_size=40, workers=1, overwrite=True)
    assert manifest.repaired["invalid_utf8_bytes"] == 300


def test_a_late_letter_in_another_encoding_is_refused_too(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"plain words\n\n" * 10_000 + "Größe ".encode("latin-1") * 20)
    with pytest.raises(ValueError, match="a.txt is not UTF-8: of 40 characters beyond ASCII in .* bytes 40 are inval"):
        prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), vocab_size=20, workers=1)
    assert os.listdir(tmp_path) == ["a.txt"]


def deep(row):
    return lines(records()[:100]) + row + b"\n"


ARRAY = json.dumps(records(), indent=1).encode()
BAD = {  # name, bytes, options, status, message
    "no field": ("jsonl", lines(records()), {"text_field": "content"}, 64,
                 "301 of 301 records have no field 'content', the first on line 1, with the fields 'id', 'about'"),
    "some without": ("jsonl", lines([*records()[:250], {"a": 1}, {"text": None}]), {}, 64,
                     "2 of 252 records have no field 'text', the first on line 251, with the fields 'a': name"),
    "number": ("jsonl", deep(b'{"text": 5}'), {}, 64, "line 101: field 'text' is 5, no text: name another with"),
    "late list": ("jsonl", deep(b'{"a": [{"b": 1}]}'), {"text_field": "a.b"}, 64, "100 of 101 records have no field"),
    "list": ("jsonl", b'{"a": [{"b": "x"}]}\n', {"text_field": "a.b"}, 64, "line 1: field 'a.b' leads through a list"),
    "not JSON": ("jsonl", deep(b'{"text": "x'), {}, 65, "line 101: is no JSON (Unterminated string starting at"),
    "no object": ("jsonl.gz", gzip.compress(deep(b'"text"')), {}, 64, "line 101: is no JSON object"),
    "deep": ("jsonl", deep(b'{"text":' + b"[" * 99999), {}, 65, "line 101: is JSON nested too deeply"),
    "array cut": ("json", ARRAY[:-300], {}, 65, ": is no JSON (Unterminated string"),
    "array without": ("json", b'[{"text": "x"},\n\n{"b": 1}]', {}, 64, "1 of 2 records have no field 'text', the"),
    "gzip cut": ("jsonl.gz", gzip.compress(lines(records()))[:-9], {}, 65, " is no whole gzip file (Compressed file"),
    "gzip and more": ("txt.gz", gzip.compress(b"a b c") + b"more", {}, 65, " is no whole gzip file (Not a gzipped"),
    "bzip2 and more": ("txt.bz2", bz2.compress(b"a b c") + b"more", {}, 65, " is no whole bzip2 file ("),
    "xz cut": ("jsonl.xz", lzma.compress(lines(records()))[:-9], {}, 65, " is no whole xz file (it breaks off)"),
    "zstd cut": ("jsonl.zst", COMPRESS[".zst"](lines(records()))[:-9], {}, 65, " is no whole zstd file (it breaks"),
    "zstd flipped": ("txt.zst", COMPRESS[".zst"](os.urandom(99))[:-1] + b"\0", {}, 65, " is no whole zstd file ("),
    "no zstd": ("jsonl.zst", b"<html>", {}, 65, " is no whole zstd file (zstd decompressor error: "),
    "no parquet": ("parquet", b"<html>" * 9, {}, 65, " is no whole Parquet file (Parquet magic bytes not found"),
    "no arrow": ("arrow", b"<html>" * 9, {}, 65, " is no whole Arrow file ("),
    "JSON as text": ("txt", lines(records()), {}, 64, " holds records of JSON, not plain text: add --format jsonl, or"),
    "array as text": ("md", ARRAY, {}, 64, " holds records of JSON, not plain text: add --format json, or"),
}


def test_padding_between_streams_of_xz_ends_no_file(tmp_path):
    (tmp_path / "text.xz").write_bytes(lzma.compress(b"first\n") + bytes(10**6) + lzma.compress(b"second\n") + bytes(8))
    with streams.opened(str(tmp_path / "text.xz"), "text.xz", "xz") as stream:
        assert stream.bytes.read() == b"first\nsecond\n"


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_is_one_line_and_leaves_nothing(case, workers, tmp_path, small):
    name, data, options, status, message = BAD[case]
    (tmp_path / f"a.{name}").write_bytes(data)
    with pytest.raises(ValueError) as error:
        prepare([str(tmp_path / f"a.{name}")], str(tmp_path / "out"), vocab_size=60, workers=workers, **options)
    assert message in str(error.value) and str(error.value).startswith(str(tmp_path / f"a.{name}"))
    assert "\n" not in str(error.value) and status_of(error.value) == status
    assert os.listdir(tmp_path) == [f"a.{name}"]


COLUMNS = {
    "number": ([1, 2], {}, "column 'text' is int64, no text: name another with --text-field"),
    "list": ([["a"], ["b"]], {}, "column 'text' is list<.*>, no text"),
    "through a list": ([["a"]], {"text_field": "text.b"}, "column 'text.b' leads through list<.*>: name another"),
    "missing": (["a"], {"text_field": "content"}, " has no column 'content', only 'text': name one of these with --te"),
    "nothing": (["a", "b", None, "c", None], {}, "2 of 5 rows have no 'text', the first is row 3: leave them out, or"),
    "id": (["a"], {"id_field": "key"}, "has no column 'key', only 'text': name one of these with --id-field"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_bad_columns_are_one_line(case, tmp_path):
    column, options, message = COLUMNS[case]
    good, bad = tmp_path / "a.parquet", tmp_path / "b.parquet"
    parquet.write_table(pyarrow.table({"text": DOCUMENTS}), good)
    parquet.write_table(pyarrow.table({"text": column}), bad)
    with pytest.raises(ValueError, match=message):
        prepare([str(bad if options else tmp_path)], str(tmp_path / "out"), vocab_size=200, workers=1, **options)
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("package, name", [("pyarrow", "parquet"), ("zstandard", "txt.zst")])
def test_what_is_not_installed_is_named_before_any_work(package, name, tmp_path, monkeypatch):
    path = write(tmp_path, name)
    monkeypatch.setattr(streams, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        prepare([path], str(tmp_path / "out"))
    remedy = "pip install 'amos-fairseq[data]'"
    assert str(error.value) == f"reading {path} takes {package}, which is not installed: {remedy}"


def mixed_folder(folder):
    for name in ("b.txt", "a/z.TXT", "a/b.jsonl", "c.md", ".hidden/x.txt", "a/.x.txt", "picture.png", "e.jsonl.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    os.mkfifo(folder / "pipe.txt")
    os.symlink(folder, folder / "a" / "loop")
    os.symlink("gone", folder / "link.txt")
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "d.json").write_text("x")
    os.symlink(folder.parent / "elsewhere", folder / "linked")


def test_folders_are_searched_in_order_and_what_is_not_read_is_named_by_reason(tmp_path):
    folder = tmp_path / "folder"
    mixed_folder(folder)
    found = inputs.list_inputs([str(folder), str(folder / "c.md")])
    expected = [("a/b.jsonl", "jsonl"), ("a/z.TXT", "text"), ("b.txt", "text"), ("e.jsonl.gz", "jsonl")]
    expected += [("linked/d.json", "json"), ("c.md", "text")]
    assert found.files == [(str(folder / name), format) for name, format in expected]
    assert found.not_read == {reason: [str(folder / name) for name in names] for reason, names in {
        "hidden": [".hidden/x.txt", "a/.x.txt"], "unknown extension": ["c.md", "picture.png"],
        "link to nothing": ["link.txt"], "no regular file": ["pipe.txt"],
        "links to a folder that is read already": ["a/loop"],
    }.items()}
    found = inputs.list_inputs([str(folder)], "jsonl")
    assert [path for path, _ in found.files] == [str(folder / name) for name in ("a/b.jsonl", "e.jsonl.gz")]
    assert len(found.not_read["not in the format jsonl"]) == 5


def test_data_sets_saved_to_disk_are_read_as_their_state_says(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        for name in ("data-00000-of-00001", "cache-1"):
            os.rename(write(folder, "stream.arrow"), folder / f"{name}.arrow")
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = inputs.list_inputs([str(tmp_path / "saved")])
    data = [str(tmp_path / "saved" / split / "data-00000-of-00001.arrow") for split in ("test", "train")]
    assert found.files == [(path, "arrow") for path in data]
    assert {reason: len(paths) for reason, paths in found.not_read.items()} == {
        "not of the saved data set": 2, "description of data sets": 5,
    }
    (folder / "state.json").write_text('{"_data_files": [], "_indices_files": [{"filename": "indices.arrow"}]}')
    with pytest.raises(ValueError, match="state.json is of no data set that can be read .its rows are chosen by indic"):
        inputs.list_inputs([str(folder)])


def test_what_is_not_read_is_in_the_summary_and_the_manifest(tmp_path):
    from amos_fairseq.cli.prepare import summary

    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, "jsonl.gz")
    for name in "abcd":
        (folder / f"{name}.png").write_text("x")
    manifest = prepare([str(folder)], str(tmp_path / "out"), vocab_size=200, workers=1)
    assert manifest.not_read == {"unknown extension": [str(folder / f"{name}.png") for name in "abcd"]}
    assert "not read, unknown extension: 4 (a.png, b.png, c.png, ..)" in summary(manifest, str(tmp_path / "out"))


def test_folders_pipes_and_devices_with_nothing_to_read_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=f"^{tmp_path}/pipe is a FIFO: give what comes out of it as standard input"):
        inputs.list_inputs([str(tmp_path / "pipe")])
    with pytest.raises(ValueError, match=f"^{tmp_path} holds no .*parquet.* file, compressed or not, but 1 others$"):
        inputs.list_inputs([str(tmp_path)])
    with pytest.raises(OSError, match="it is a device, not a text"):
        inputs.list_inputs(["/dev/zero"])


def test_a_path_that_is_relative_says_from_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        inputs.list_inputs(["text"])
    assert str(error.value) == f"text (in {tmp_path}) does not exist"


HUGE = {
    "record": ("jsonl", lambda: b'{"text": "' + b"abcd efgh " * 10_000_000 + b'"}\n'),
    "array": ("json", lambda: b'[{"text": "' + b"abcd efgh " * 10_000_000 + b'"}]'),
    "bomb": ("txt.gz", lambda: gzip.compress(b"abcd efgh " * 100_000_000, 1)),
    "zstd bomb": ("txt.zst", lambda: COMPRESS[".zst"](b"a" * 500_000_000)),
}


@pytest.mark.soak
@pytest.mark.parametrize("case", HUGE)
def test_huge_records_and_bombs_take_bounded_memory(case, tmp_path):
    name, data = HUGE[case]
    (tmp_path / f"a.{name}").write_bytes(data())
    source = sources.open_source(str(tmp_path / f"a.{name}"), "a", name.split(".")[0].replace("txt", "text"), Options())
    program = (
        "import sys, pickle\nsource = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "for span in source.spans(1 << 25):\n  for block in source.blocks(span): source.passages(block)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # ru_maxrss would hold this process's
    )
    command = [sys.executable, "-c", program, pickle.dumps(source).hex()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 700_000  # KB
