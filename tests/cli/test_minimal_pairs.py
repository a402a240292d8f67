"""minimal-pairs as a user runs it, on methods with random parameters."""
import json
import re

import pytest
import torch

from amos_fairseq.cli import main
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.loading import from_pretrained


@pytest.fixture
def command(tmp_path, make_method, tokenizer, save_checkpoint, capsys, monkeypatch):
    """command(*arguments): exit status, standard output and error; `run` counted alpha most, `bert` nothing."""
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    for folder, name in (("run", "script_selfcritic"), ("bert", "bert_mlm")):
        method = make_method(name, vocabulary=vocabulary, gain=4.0)
        counts = torch.zeros(2, len(tokenizer), dtype=torch.long)
        counts[0, tokenizer.encode("alpha")] = 1000 if folder == "run" else 0
        save_checkpoint(tmp_path / folder / "checkpoint_1_2", name, method, tokenizer, {"token_counts": counts})
    (tmp_path / "pairs.tsv").write_text(
        "phenomenon\tgood\tbad\ncommon\talpha beta\tgamma beta\n"
        "common\talpha\tdelta\norder\tbeta gamma\tgamma beta\n"
    )

    monkeypatch.setenv("COLUMNS", "400")

    def command(*arguments):
        given = (str(argument).replace("FOLDER", str(tmp_path)) for argument in arguments)
        status = main.main(["minimal-pairs", *given])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.replace(f"{tmp_path}/", "")

    return command


def test_models_and_scores_stand_beside_each_other_and_beside_frequencies(command, tmp_path):
    status, out, _ = command("FOLDER/run", "FOLDER/bert", "--pairs", "FOLDER/pairs.tsv", "--out", tmp_path / "x.jsonl")
    table, _, notes = out.partition("\n\n")
    rows = [re.split("  +", line.strip()) for line in table.splitlines()]
    assert status == 0 and rows[:2] == [
        ["run"] * 3 + ["bert"] * 2 + ["run"],
        ["one-pass", "masked", "within-word", "masked", "within-word", "unigram"],
    ]
    assert [row[0] for row in rows[2:]] == [
        "common", "order", "overall", "mean of phenomena", "overall, per token", "where unigram is right",
        "where it is not", "ties",
    ]
    assert rows[2][-1] == "100.0 (100.0 to 100.0)" and rows[3][-1] == "50.0 (50.0 to 50.0)" and rows[-1][-1] == "1"
    assert "% of 3 pairs" in notes and "bert has no score one-pass." in notes and "did not count" not in notes
    first, *_ = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    good, bad = from_pretrained(tmp_path / "run").score(["alpha beta", "gamma beta"], "within-word")
    assert first["scores"][2] == {
        "model": "run", "score": "within-word", "good": dict(pll=pytest.approx(good.pll, rel=1e-5), tokens=2),
        "bad": dict(pll=pytest.approx(bad.pll, rel=1e-5), tokens=2),
    }


def test_json_has_the_same_and_a_model_without_frequencies_is_told(command):
    document = json.loads(command("FOLDER/run", "--pairs", "FOLDER/pairs.tsv", "--scores", "masked", "--json")[1])
    masked, unigram = document["models"]
    assert document["pairs"] == 3 and (masked["score"], unigram["score"]) == ("masked", "unigram")
    assert masked["phenomena"].keys() == {"common", "order"} and unigram["overall"]["value"] == pytest.approx(2.5 / 3)
    _, out, _ = command("FOLDER/bert", "--pairs", "FOLDER/pairs.tsv", "--scores", "masked")
    assert "bert did not count its tokens: give its prepared data, --data, for their frequencies." in out


def test_frequencies_are_those_of_prepared_data_if_they_are_named(command, tokenizer, tmp_path):
    counts = torch.zeros(len(tokenizer), dtype=torch.long)
    counts[tokenizer.encode("gamma")] = 9
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sentencepiece.model").write_bytes(tokenizer.model)
    (tmp_path / "data/manifest.json").touch()
    (tmp_path / "data/dict.txt").write_bytes(tokenizer.dict_txt(counts.numpy()))
    arguments = ["--pairs", "FOLDER/pairs.tsv", "--scores", "masked", "--data", "FOLDER/data", "--json"]
    _, unigram = json.loads(command("FOLDER/bert", *arguments)[1])["models"]
    assert unigram["phenomena"]["common"]["value"] == 0.25 and unigram["ties"] == 2  # gamma is common now


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["FOLDER/run", "--pairs", "FOLDER/pairs.tsv", "--scores", "best"], "--scores best is none of one-pass,"),
        (["FOLDER/bert", "--pairs", "FOLDER/pairs.tsv", "--scores", "one-pass"], "bert has no score one-pass."),
        (["FOLDER/run", "FOLDER/run", "--pairs", "FOLDER/pairs.tsv"], "run is given twice"),
        (["FOLDER/run", "FOLDER/run/../run", "--pairs", "FOLDER/pairs.tsv"], "run is given twice"),
        (["FOLDER/run", "--pairs", "FOLDER/none.tsv"], "none.tsv does not exist"),
        (["FOLDER/run", "--pairs", "FOLDER/pairs.tsv", "--by", "UID"], "pairs.tsv, line 2: there is no column 'UID'"),
        (["FOLDER/run", "--pairs", "FOLDER/pairs.tsv", "--out", "FOLDER/pairs.tsv"], "--out pairs.tsv exists: name"),
        (["FOLDER/run", "--pairs", "FOLDER/pairs.tsv", "--out", "no/x.jsonl"], "--out no/x.jsonl: no is no folder"),
    ],
)
def test_mistakes_are_told_in_one_line(command, arguments, message):
    status, out, err = command(*arguments)
    assert status != 0 and out == "" and err.count("\n") == 1
    assert err.startswith(f"amos-fairseq minimal-pairs: error: {message}")
