"""Reading: chunks lose nothing, documents end where blank lines are, bad bytes are counted."""

import itertools

import pytest

from amos_fairseq.data import corpus
from amos_fairseq.data.options import Options
from amos_fairseq.data.sources import Text


def source(path):
    return Text(str(path), str(path), Options())


def chunks_of(path, most=1 << 30):
    text = source(path)
    return [block.data for span in text.spans(most) for block in text.blocks(span)]


def documents_through_chunks(path, documents="blank-line", most=None):
    found = []
    for chunk in chunks_of(path, most or 1 << 30):
        first, *others = corpus.split_documents(corpus.clean_text(chunk.data)[0], documents)
        if chunk.starts_file:
            found.append([first])
        else:
            found[-1].append(first)
        found.extend([other] for other in others)
    joined = (" ".join(" ".join(parts).split()) for parts in found)
    return [document for document in joined if document]


@pytest.mark.parametrize("documents", ["blank-line", "line"])
def test_documents_do_not_depend_on_where_chunks_and_spans_end(tmp_path, monkeypatch, documents):
    path = tmp_path / "text"
    white_space = [" ", "\n", "\n\n", "\r\n \r\n", " \0\n", "\n\0\t\n"]
    for spaces in itertools.islice(itertools.product(white_space, repeat=5), 0, None, 19):
        path.write_bytes("".join(space + "bc" for space in spaces).encode())
        monkeypatch.setattr(corpus, "CHUNK_BYTES", 1 << 20)
        expected = documents_through_chunks(path, documents)
        for size in (9, 10, 11, 13):  # more than any word with its white space
            monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
            for most in (None, size, 2 * size):  # bytes of a span
                assert documents_through_chunks(path, documents, most) == expected, (spaces, size, most)


def test_chunks_put_together_are_the_file(tmp_path, monkeypatch):
    path = tmp_path / "text"
    data = "Zwölf Boxkämpfer\n\n日本語 jagen".encode() * 20 + b"\x80" * 30
    path.write_bytes(data)
    for size in (4, 7, 16, 100, 10_000):
        monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
        chunks = chunks_of(path)
        assert b"".join(chunk.data for chunk in chunks) == data
        assert max(len(chunk.data) for chunk in chunks) <= size
        assert sum(corpus.clean_text(chunk.data)[1] for chunk in chunks) == 30  # no character is cut
        for most in (size, 3 * size):
            parts = chunks_of(path, most)
            assert b"".join(chunk.data for chunk in parts) == data
            assert sum(corpus.clean_text(chunk.data)[1] for chunk in parts) == 30
            assert [chunk.starts_file for chunk in parts] == [True] + [False] * (len(parts) - 1)
            assert [chunk.continues_line for chunk in parts[1:]] == [chunk.cuts_line for chunk in parts[:-1]]


def test_byte_order_mark_is_taken_off(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfab")
    assert chunks_of(tmp_path / "text") == [corpus.Chunk(b"ab", True, True, False, False)]


class Sized(Text):
    """A text of so many bytes as its path says."""

    size = property(lambda self: int(self.path))


def test_slices_hold_every_byte_once_and_are_of_one_size_but_the_last(monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 10)
    monkeypatch.setattr(corpus, "SLICE_BYTES", 20)

    def plan(**sizes):
        slices = corpus.plan_slices([Sized(str(size), name, Options()) for name, size in sizes.items()])
        return [[(span.source.name, span.begin, span.end) for span in spans] for spans in slices]

    assert plan(a=50, b=0, c=3, d=4, e=21, f=1) == [  # 79 bytes are few: slices of at least CHUNK_BYTES
        [("a", 0, 10)], [("a", 10, 20)], [("a", 20, 30)], [("a", 30, 40)], [("a", 40, 50)],
        [("b", 0, 0), ("c", 0, 3), ("d", 0, 4), ("e", 0, 10)], [("e", 10, 20)], [("e", 20, 21), ("f", 0, 1)],
    ]
    assert [len(spans) for spans in plan(a=256 * 20, b=40)] == [1] * 258
    assert plan(a=0) == [[("a", 0, 0)]]


def test_clean_text_replaces_invalid_bytes_and_removes_nuls():
    assert corpus.clean_text(b"a\xff\xfeb\0\0c") == ("a\ufffd\ufffdbc", 2, 2)
    assert corpus.clean_text("a\ufffdb".encode()) == ("a\ufffdb", 0, 0)


def test_selection_is_evenly_spaced_and_leaves_both_sides_one():
    assert [index for index in range(40) if corpus.is_selected(index, 0.1)] == [0, 10, 20, 30]
    assert [index for index in range(5) if corpus.is_selected(index, 1e-9)] == [0]
    assert [index for index in range(3) if corpus.is_selected(index, 0.99)] == [0, 2]


def test_sample_is_spread_over_the_corpus_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 100)
    (tmp_path / "text").write_text("".join(f"line {number:04d}\n" for number in range(1000)))
    sample = list(corpus.sample_text([source(tmp_path / "text")], budget=1000))
    assert 900 <= sum(map(len, sample)) <= 1000
    assert "line 0000" in sample[0] and int(sample[-1].split()[-1]) > 900
