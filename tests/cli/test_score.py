"""Scoring as a user runs it, on a tiny trained run, and what it refuses."""
import io
import json
import random
import sys

import pytest

from amos_fairseq.cli import main
from tests.runs import AMOS_FAIRSEQ

TINY = (
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2 "
    "--max-positions 32 --tokens-per-sample 32 --batch-size 8 --max-update 2 --optimizer adam --lr 0.01 --cpu "
    "--num-workers 0 --disable-validation --no-epoch-checkpoints"
).split()


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory):
    """Folder of prepared data, and of the run `script_selfcritic` of two updates."""
    from amos_fairseq.data.preparation import prepare

    folder = tmp_path_factory.mktemp("runs")
    draw = random.Random(1)
    words = ["".join(draw.choice("bdfgklmn") + draw.choice("aeiou") for _ in range(2)) for _ in range(40)]
    lines = [" ".join(draw.choices(words, k=8)) + "\n" for _ in range(200)]
    (folder / "text.txt").write_text("\n".join(lines))
    data = str(folder / "data")
    prepare([str(folder / "text.txt")], data, vocab_size=80, tokens_per_sample=32, valid_fraction=0.1, workers=1)
    name = "script_selfcritic"
    names = ["--task", name, "--arch", f"{name}_tiny", "--criterion", name, "--save-dir", str(folder / name)]
    launch(AMOS_FAIRSEQ, ["train", data, *names, *TINY])
    return folder


@pytest.fixture
def score(runs, tmp_path, capsys):
    """score(text, *options): exit status, lines of standard output, standard error."""

    def score(text, *options):
        (tmp_path / "text").write_bytes(text if isinstance(text, bytes) else text.encode())
        status = main.main(["score", str(runs / "script_selfcritic"), str(tmp_path / "text"), *options])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.replace(str(tmp_path), "")

    return score


def test_a_line_is_a_sentence_with_its_score_and_its_number_of_tokens(score):
    status, out, _ = score("bada kolu\n\nmufe\r\n")
    assert status == 0 and out[0] == "pll\ttokens\tsentence"
    rows = [line.split("\t") for line in out[1:]]
    assert [row[2] for row in rows] == ["bada kolu", "mufe"]
    assert all(float(row[0]) < 0 and int(row[1]) >= 1 for row in rows)


def test_json_tells_the_same_and_special_tokens_count_on_request(score):
    table, (_, lines, _) = score("bada kolu\n")[1], score("bada kolu\n", "--json")
    plain, special = json.loads(lines[0]), json.loads(score("bada kolu\n", "--json", "--include-special")[1][0])
    assert table[1] == f"{plain['pll']:.4f}\t{plain['tokens']}\tbada kolu"
    assert special["tokens"] == plain["tokens"] + 2 and special["pll"] < plain["pll"]


def test_the_likeliest_of_each_id_is_marked(score):
    text = "b\tmufe bada\na\tbada kolu mufe\nb\tbada\na\tbada\n"
    _, out, _ = score(text, "--nbest", "--json")
    rows = [json.loads(line) for line in out]
    assert [(row["id"], row["sentence"]) for row in rows] == [tuple(line.split("\t")) for line in text.splitlines()]
    for name in "ab":
        group = [row for row in rows if row["id"] == name]
        assert [row["best"] for row in group] == [row["pll"] == max(r["pll"] for r in group) for row in group]
    table = score(text, "--nbest")[1]
    assert table[0] == "id\tbest\tpll\ttokens\tsentence"
    assert [line.split("\t")[1] for line in table[1:]] == ["*" if row["best"] else "" for row in rows]


def test_an_empty_hypothesis_is_not_the_best_of_others(score):
    rows = [json.loads(line) for line in score("a\t\na\tmufe bada\nb\t\n", "--nbest", "--json")[1]]
    assert [(row["tokens"] > 0, row["best"]) for row in rows] == [(False, False), (True, True), (False, True)]


def test_the_first_of_equals_is_the_best(score):
    rows = [json.loads(line) for line in score("a\tmufe\na\tmufe\n", "--nbest", "--json")[1]]
    assert [row["best"] for row in rows] == [True, False]


def test_standard_input_is_read(runs, score, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffmufe\n".encode())))
    assert main.main(["score", str(runs / "script_selfcritic"), "-"]) == 0
    assert capsys.readouterr().out.splitlines() == score("mufe\n")[1]


FIRST = ["--nbest", "--first-pass", "--weight"]


def test_a_first_pass_is_weighted_and_word_errors_are_told(score, tmp_path):
    text = "a\t-3\tmufe bada\na\t-1\tkolu\nb\t-2\tbada\n"
    (tmp_path / "references").write_text("a\tmufe bada\nb\tbada\n")
    (tmp_path / "held_out").write_text(text)
    told = ["--references", str(tmp_path / "references"), "--json"]
    _, lines, err = score(text, *FIRST, "0.25", *told)
    rows = [json.loads(line) for line in lines]
    assert [row["score"] for row in rows] == pytest.approx(
        [0.75 * row["first_pass"] + 0.25 * row["pll"] for row in rows]
    )
    assert [row["first_pass"] for row in rows] == [-3.0, -1.0, -2.0]
    highest = max(row["score"] for row in rows[:2])
    assert [row["best"] for row in rows] == [*(row["score"] == highest for row in rows[:2]), True]
    rate = 0.0 if rows[0]["best"] else 200 / 3
    expected = f"{rate:.2f} % word errors; first in the first pass 66.67, the best that there are 0.00"
    assert err.endswith(f"/text: {expected}\n")
    (tmp_path / "twice").write_text("a\tmufe bada\nb\tbada\na\tkolu\n")
    assert score(text, *FIRST, "0.25", "--references", str(tmp_path / "twice"))[2].endswith(
        "/twice, line 3: a second reference for 'a': leave one\n"
    )
    _, out, err = score(text, *FIRST[:2], "--tune", str(tmp_path / "held_out"), str(tmp_path / "references"))
    assert out[0] == "id\tbest\tscore\tfirst_pass\tpll\ttokens\tsentence"
    assert err.startswith("weight 0.") or err.startswith("weight 1.")


def test_within_words_scores_are_others_than_masked_ones(score):
    masked, within = (json.loads(score("bada kolu\n", "--json", f"--{way}")[1][0]) for way in ("masked", "within-word"))
    assert within["tokens"] == masked["tokens"] and within["pll"] != masked["pll"]


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("\n \n", [], "/text: there is no sentence to score"),
        ("a\tbada\nbada\n", ["--nbest"], "/text, line 2: n-best lines are id<TAB>sentence, got 'bada'"),
        (b"bada \xff", [], "/text: byte 5 is no UTF-8"),
        ("mufe\n" + 40 * "b ", [], "/text, line 2: 82 tokens, but the model reads 32: split the sentence"),
        ("a\tx\tbada\n", [*FIRST, "1"], "/text, line 1: the first pass's score 'x' is no number"),
        ("a\tbada\n", [*FIRST, "1"], "/text, line 1: n-best lines are id<TAB>score<TAB>sentence, got 'a\\tbada'"),
        ("bada", ["--first-pass"], "--first-pass goes with --nbest: give both"),
        ("bada", [*FIRST, "2"], "--weight must lie between 0, the first pass alone, and 1, got 2"),
        (
            "bada", FIRST[:2], "--first-pass needs a weight: give --weight W, or --tune NBEST REFERENCES that finds one"
        ),
        ("bada", ["--batch-tokens", "0"], "--batch-tokens must be at least 1, got 0"),
    ],
)
def test_mistakes_are_told_in_one_line(score, text, options, message):
    assert score(text, *options) == (64, [], f"amos-fairseq score: error: {message}\n")


def test_masked_scores_are_others_and_cover_the_same_tokens(score):
    one_pass, masked = (json.loads(score("bada kolu\n", "--json", *options)[1][0]) for options in ([], ["--masked"]))
    assert masked["pll"] != one_pass["pll"] and masked["tokens"] == one_pass["tokens"]
