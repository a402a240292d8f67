"""Files of labelled texts: the rows of three formats, and how long texts are cut."""
import json

import numpy as np
import pytest

from amos_fairseq.finetune import tables

ROWS = [("alpha", "one"), ("beta, gamma", "two"), ('say "delta"', "one"), ("eta\ttheta", "two")]
CONTENTS = {
    "csv": 'text,label\nalpha,one\n"beta, gamma",two\r\n"say ""delta""",one\neta\ttheta,two\n',
    "jsonl": "".join(json.dumps({"label": label, "more": 1, "text": text}) + "\n" for text, label in ROWS),
    "tsv": 'label\ttext\n\none\talpha\r\ntwo\tbeta, gamma\none\tsay "delta"\n',
}


@pytest.mark.parametrize("suffix", CONTENTS)
def test_three_formats_hold_the_same_rows(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(("\ufeff" + CONTENTS[suffix]).encode())
    table = tables.read(path, ["text"], "label")
    assert list(zip([text for text, in table.texts], table.labels)) == ROWS[: 3 if suffix == "tsv" else 4]
    assert table.lines == {"csv": [2, 3, 4, 5], "jsonl": [1, 2, 3, 4], "tsv": [3, 4, 5]}[suffix]


def test_a_quoted_csv_field_may_hold_lines_and_the_next_row_is_found(tmp_path):
    (tmp_path / "rows.csv").write_text('text,label\n"alpha\nbeta",1\n\n"gamma",2\n')
    table = tables.read(tmp_path / "rows.csv", ["text"], "label")
    assert table.texts == [("alpha\nbeta",), ("gamma",)] and table.lines == [2, 5]


def test_json_labels_may_be_numbers_and_words_of_json(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"t": "a", "y": 1}\n{"t": "b", "y": true}\n{"t": "c", "y": " x "}\n')
    assert tables.read(tmp_path / "rows.jsonl", ["t"], "y").labels == ["1", "true", "x"]


def test_half_characters_of_json_are_replaced_and_counted_and_only_a_line_feed_ends_a_line(tmp_path, caplog):
    rows = '{"t": "a \\ud800 b\u2028c", "y": "\\udfff"}\r\n{"t": "\\ud83d\\ude00", "y": "z"}\n'
    (tmp_path / "rows.jsonl").write_text(rows, newline="")
    table = tables.read(tmp_path / "rows.jsonl", ["t"], "y")
    assert table.texts == [("a \ufffd b\u2028c",), ("\U0001f600",)] and table.labels == ["\ufffd", "z"]
    assert caplog.messages == [f"{tmp_path}/rows.jsonl: 2 lone surrogates became U+FFFD"]


def test_json_that_is_nested_too_deeply_is_told(tmp_path):
    (tmp_path / "rows.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="line 1: is no JSON .nested too deeply."):
        tables.read(tmp_path / "rows.jsonl", ["t"], "y")


@pytest.mark.parametrize("lengths, room, kept", [
    ((3, 10), 8, (3, 5)), ((10, 3), 8, (5, 3)), ((10, 5), 9, (5, 4)), ((5, 10), 9, (5, 4)), ((4, 4), 7, (4, 3)),
    ((2, 3), 5, (2, 3)), ((0, 9), 4, (0, 4)), ((9,), 4, (4,)), ((3,), 4, (3,)),
])
def test_the_longer_text_loses_tokens_first(lengths, room, kept):
    parts = [list(range(length)) for length in lengths]
    assert tables.truncate(parts, room) == [list(range(length)) for length in kept]


def test_truncation_equals_dropping_one_token_at_a_time():
    draw = np.random.default_rng(1)
    for _ in range(200):
        first, second, room = draw.integers(0, 20, 3)
        expected = [list(range(first)), list(range(second))]
        while len(expected[0]) + len(expected[1]) > room:
            expected[0 if len(expected[0]) > len(expected[1]) else 1].pop()
        assert tables.truncate([list(range(first)), list(range(second))], room) == expected
