"""Reading: chunks lose nothing, documents end where blank lines are, bad bytes are counted."""

import itertools

import pytest

from amos_fairseq.data import corpus


def documents_through_chunks(path, documents="blank-line"):
    found = []
    for chunk in corpus.read_chunks(str(path)):
        first, *others = corpus.split_documents(corpus.clean_text(chunk.data).text, documents)
        if chunk.starts_file:
            found.append([first])
        else:
            found[-1].append(first)
        found.extend([other] for other in others)
    joined = (" ".join(" ".join(parts).split()) for parts in found)
    return [document for document in joined if document]


@pytest.mark.parametrize("documents", ["blank-line", "line"])
def test_documents_do_not_depend_on_where_chunks_end(tmp_path, monkeypatch, documents):
    path = tmp_path / "text"
    white_space = [" ", "\n", "\n\n", "\r\n \r\n", " \0\n", "\n\0\t\n"]
    for spaces in itertools.islice(itertools.product(white_space, repeat=5), 0, None, 7):
        path.write_bytes("".join(space + "bc" for space in spaces).encode())
        monkeypatch.setattr(corpus, "CHUNK_BYTES", 1 << 20)
        expected = documents_through_chunks(path, documents)
        for size in (9, 10, 11, 13):  # more than any word with its white space
            monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
            assert documents_through_chunks(path, documents) == expected, (spaces, size)


def test_chunks_put_together_are_the_file(tmp_path, monkeypatch):
    path = tmp_path / "text"
    data = "Zwölf Boxkämpfer\n\n日本語 jagen".encode() * 20 + b"\x80" * 30
    path.write_bytes(data)
    for size in (4, 7, 16, 100, 10_000):
        monkeypatch.setattr(corpus, "CHUNK_BYTES", size)
        chunks = list(corpus.read_chunks(str(path)))
        assert b"".join(chunk.data for chunk in chunks) == data
        assert max(len(chunk.data) for chunk in chunks) <= size
        assert sum(corpus.clean_text(chunk.data).invalid_bytes for chunk in chunks) == 30  # no character is cut


def test_byte_order_mark_is_taken_off(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfab")
    assert list(corpus.read_chunks(str(tmp_path / "text"))) == [corpus.Chunk(b"ab", True, True, False)]


def test_clean_text_replaces_invalid_bytes_and_removes_nuls():
    assert corpus.clean_text(b"a\xff\xfeb\0\0c") == ("a\ufffd\ufffdbc", 2, 2)
    assert corpus.clean_text("a\ufffdb".encode()) == ("a\ufffdb", 0, 0)


def test_selection_is_evenly_spaced_and_leaves_both_sides_one():
    assert [index for index in range(40) if corpus.is_selected(index, 0.1)] == [0, 10, 20, 30]
    assert [index for index in range(5) if corpus.is_selected(index, 1e-9)] == [0]
    assert [index for index in range(3) if corpus.is_selected(index, 0.99)] == [0, 2]


def test_sample_is_spread_over_the_corpus_and_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 16)
    (tmp_path / "text").write_text("".join(f"line {number:04d}\n" for number in range(1000)))
    sample = list(corpus.sample_text([str(tmp_path / "text")], budget=1000))
    assert 900 <= sum(map(len, sample)) <= 1000
    assert "line 0000" in sample[0] and int(sample[-1].split()[-1]) > 950


def test_folders_are_searched_for_txt_files_in_order(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b.txt", "c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = corpus.list_inputs([str(tmp_path), str(tmp_path / "c.md")])
    assert found == [str(tmp_path / name) for name in ("a/b.txt", "a/z.txt", "b.txt", "c.md")]
