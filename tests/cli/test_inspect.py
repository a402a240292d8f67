"""inspect as a user runs it."""
import json
import re

import pytest

from amos_fairseq.cli import main
from amos_fairseq.data.preparation import prepare
from amos_fairseq.methods.config import Vocabulary

TEXT = "alpha beta gamma delta epsilon zeta eta theta alpha gamma"


@pytest.fixture
def command(tmp_path, make_method, tokenizer, save_checkpoint, capsys):
    """command(*arguments, name="electra_rtd"): exit status, standard output and error; of random parameters."""

    def command(*arguments, name="electra_rtd"):
        vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
        checkpoint = tmp_path / f"{name}/checkpoint_1_2"
        if not checkpoint.exists():
            save_checkpoint(checkpoint, name, make_method(name, vocabulary=vocabulary, gain=4.0), tokenizer)
        status = main.main(["inspect", str(checkpoint.parent), *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.replace(f"{tmp_path}/", "")

    return command


def test_given_text_is_shown_stage_by_stage_and_twice_the_same(command):
    status, out, _ = command("--text", TEXT, "--mask-prob", "0.3")
    assert status == 0 and "\033" not in out
    parts = ["electra_rtd: original", TEXT, "-- masked", "[3 <mask>]", "drawn", "-- corrupted", " -> ", "were replaced"]
    places = [out.index(part) for part in parts]
    assert places == sorted(places)
    assert command("--text", TEXT, "--mask-prob", "0.3")[1] == out
    assert command("--text", TEXT, "--mask-prob", "0.3", "--seed", "2")[1] != out


def test_the_same_as_json_has_an_object_for_each_line(command, tmp_path):
    (tmp_path / "text").write_text(f"{TEXT}\n\nalpha <mask>\n")
    _, out, _ = command("--file", tmp_path / "text", "--json", "--top", 2, name="amos_rtd")
    first, second = map(json.loads, out.splitlines())
    assert first["text"] == TEXT and second["text"] == "alpha <mask>"
    (position,) = second["positions"]
    assert [len(proposal["top"]) for proposal in position["proposals"]] == [2, 2, 2]
    assert "original" not in second["tokens"][position["index"]]


def test_a_page_holds_what_the_terminal_shows(command, tmp_path):
    status, out, _ = command("--text", "alpha <mask> gamma", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert status == 0 and out == f"{tmp_path}/page.html\n"
    assert page.startswith("<!DOCTYPE html>") and "[1 &lt;mask&gt;]" in page and "filled in" in page
    assert "http" not in page and "\033" not in page


def test_colour_is_added_where_it_is_asked_for(command):
    assert "\033[1m" in command("--text", "alpha <mask> gamma", "--color", "always")[1]
    assert "\033" not in command("--text", "alpha <mask> gamma", "--color", "never")[1]


def test_a_matched_threshold_calls_as_many_replaced_as_were(command):
    _, out, _ = command("--text", " ".join([TEXT] * 3), "--threshold", "matched", "--no-stages")
    counts = re.search(r"(\d+) of 30 tokens were replaced; the encoder found (\d+) of them and took (\d+) of", out)
    replaced, found, mistaken = map(int, counts.groups())
    assert replaced == found + mistaken > 0 and "original" not in out.split("\n")[0]


def test_bert_has_proposals_and_no_verdicts(command):
    status, out, _ = command("--text", TEXT, name="bert_mlm")
    assert status == 0 and "proposed" in out and "corrupted" not in out and "replaced" not in out


def test_held_out_text_is_the_default(command, tokenizer, tmp_path):
    (tmp_path / "corpus").write_text("".join(f"{TEXT}\n\n" for _ in range(60)))
    (tmp_path / "sentencepiece.model").write_bytes(tokenizer.model)
    data = tmp_path / "electra_rtd/data"
    vocabulary = str(tmp_path / "sentencepiece.model")
    options = dict(vocabulary=vocabulary, tokens_per_sample=24, workers=1, valid_fraction=0.3)
    prepare([str(tmp_path / "corpus")], str(data), **options)
    _, out, _ = command("--json", "--count", 2)
    sentences = [json.loads(line) for line in out.splitlines()]
    assert [len(sentence["tokens"]) for sentence in sentences] == [24, 24]
    _, out, _ = command("--count", 2)
    assert "-- masked" not in out and " -> " in out  # no stages, unless they are asked for
    assert command("--count", 2, "--stages")[1].count("-- masked") == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--text", "\udcff"], "--text holds bytes that are no UTF-8: give the text in UTF-8"),
        (["--text", " "], "--text: there is no text to read"),
        (["--count", "0"], "--count must be at least 1, got 0"),
        (["--text", "alpha", "--seed", "-1"], "--seed must be 0 or more, got -1"),
        (["--text", "alpha", "--top", "57"], "--top 57 must lie between 1 and the vocabulary's 56"),
        (["--text", "alpha", "--mask-prob", "1"], "mask_prob 1.0 is out of range: it must be above 0 and below 1"),
        (["--text", "alpha " * 40], "line 1 has 42 tokens, but the model reads 32: shorten it"),
        (["--text", "alpha", "--html", "FOLDER/electra_rtd"], "--html electra_rtd exists: name a new file"),
        (["--data", "FOLDER/none"], "none does not exist: run amos-fairseq prepare"),
    ],
)
def test_mistakes_are_told_in_one_line(command, tmp_path, arguments, message):
    arguments = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    status, out, err = command(*arguments)
    assert status != 0 and (out, err) == ("", f"amos-fairseq inspect: error: {message}\n")
