"""probe as a user runs it."""
import json
import random
import re
import shutil
from pathlib import Path

import pytest

from amos_fairseq.cli import main
from amos_fairseq.demo import documentation
from amos_fairseq.methods.config import Vocabulary

WORDS = "alpha beta gamma delta epsilon zeta eta theta".split()


@pytest.fixture
def command(tmp_path, make_method, tokenizer, save_checkpoint, capsys, monkeypatch):
    """command(*arguments): exit status, standard output and error, for an AMOS run of random parameters."""
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    method = make_method("amos_rtd", vocabulary=vocabulary, gain=4.0)
    save_checkpoint(tmp_path / "run/checkpoint_1_2", "amos_rtd", method, tokenizer)
    rows = [f"{word}\t{'vowel' if word[0] in 'ae' else 'other'}\n" for word in WORDS]
    for name, copies in (("train", 6), ("test", 2)):
        (tmp_path / name).write_text("\n".join("".join(rows[i:] + rows[:i]) for i in range(copies)))

    monkeypatch.setenv("COLUMNS", "400")

    def command(*arguments):
        files = ["--train", tmp_path / "train", "--test", tmp_path / "test"]
        return probe(tmp_path / "run", *files, *arguments)

    def probe(*arguments):
        status = main.main(["probe", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.replace(f"{tmp_path}/", "")

    command.without_files = probe
    return command


def test_every_layer_of_both_networks_has_a_row(command):
    status, out, _ = command()
    rows = [line.split() for line in out.splitlines()]
    assert status == 0 and rows[0] == "network layer accuracy macro-F1 untrained macro-F1".split()
    assert [row[:2] for row in rows[1:9]] == [
        *(["encoder", layer] for layer in "012"), *(["generator", layer] for layer in ("0", "1*", "2*", "3", "4*"))
    ]
    assert rows[1][2:] == ["100.0"] * 4  # the letter is the token's, whatever the weights
    assert "48 words to learn from, 16 to be tested on. Always saying other is right for 62.5 %." in out


def test_the_same_as_json_and_a_figure(command, tmp_path):
    status, out, _ = command("--network", "generator", "--layers", "4,0", "--json", "--png", tmp_path / "a.png")
    document = json.loads(out)
    assert status == 0 and document["words"] == {"train": 48, "test": 16}
    assert document["majority"] == {"label": "other", "accuracy": 0.625}
    assert [(row["network"], row["layer"]) for row in document["probes"]] == [("generator", 0), ("generator", 4)]
    table = command("--network", "generator", "--layers", "0,4")[1].splitlines()[1:3]
    for line, row in zip(table, document["probes"]):
        assert line.split()[2:] == [f"{100 * score:.1f}" for score in list(row.values())[2:]]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--network", "critic"], "--network critic is none of this amos_rtd run's: encoder, generator"),
        (["--layers", "0,5"], "layer 5 is none of the encoder's: choose from 0, the embeddings, to 2"),
        (["--png", "FOLDER/train"], "--png train exists: name a new file"),
        (["--test", "FOLDER/none"], "none does not exist"),
        (["--test", "FOLDER/other"], "other, line 2: label consonant is not in train"),
        (["--train", "FOLDER/columns"], "columns, line 1: must be a word, a tab and a label, got 'alpha vowel'"),
        (
            ["--test", "FOLDER/long"],
            "long, line 1: the sentence from here has 42 tokens, but the model reads 32: split it with a blank line",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(command, tmp_path, arguments, message):
    (tmp_path / "other").write_text("alpha\tvowel\nbeta\tconsonant\n")
    (tmp_path / "columns").write_text("alpha vowel\n")
    (tmp_path / "long").write_text("alpha\tvowel\n" * 40)
    status, out, err = command(*(argument.replace("FOLDER", str(tmp_path)) for argument in arguments))
    assert status != 0 and (out, err) == ("", f"amos-fairseq probe: error: {message}\n")


@pytest.fixture
def order(command, tmp_path):
    """order(*arguments): exit status, output and error, for two runs of one shape and a text of 2,000 sentences."""
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    many = (f"{a}\t{a[0] in 'ae'}\n{b}\t{b[0] in 'ae'}\n" for a in WORDS for b in WORDS)
    (tmp_path / "many").write_text("\n".join(many))
    draw = random.Random(1)
    (tmp_path / "text.txt").write_text("\n".join(f"{' '.join(draw.choices(WORDS, k=16))}." for _ in range(2000)))
    return lambda *arguments: command.without_files(*(tmp_path / name for name in ("run", "copy")), *arguments)


def test_encoders_and_their_shape_untrained_are_beside_each_other(order, tmp_path):
    text = ["--text", tmp_path / "text.txt", "--items", 400]
    status, out, _ = order(*text)
    table, _, notes = out.replace(f"{tmp_path}/", "").partition("\n\n")
    rows = [re.split("  +", line) for line in table.splitlines()]
    assert status == 0 and rows[0][1:] == ["swap", "acceptability"]
    assert [row[0] for row in rows[1:]] == ["run", "copy", "run, untrained"]
    assert rows[1][1:] == rows[2][1:] and re.fullmatch(r"\d+\.\d \(\d+\.\d to \d+\.\d\)", rows[1][1])
    assert "acceptability: 400 pairs to learn from, 400 to be tested on. Favours order over half of a sentence" in notes

    document = json.loads(order(*text, "--part", "held_out", "--tasks", "swap", "--json")[1])
    assert document["part"] == "held_out" and document["items"] == {"swap": {"train": 400, "test": 400}}
    assert [Path(row["network"]).name for row in document["probes"]] == ["run", "copy", "run, untrained"]
    for row in document["probes"]:
        low, high = row["interval"]
        assert row["task"] == "swap" and row["items"] == 400 and 0 < low < row["accuracy"] < high < 1


def test_a_text_that_makes_fewer_items_than_asked_for_is_told(order, tmp_path):
    _, out, _ = order("--text", tmp_path / "text.txt", "--items", 10**6, "--tasks", "swap")
    assert re.search(r"^swap: .* to be tested on; the text makes no more, 1,000,000 were asked for\. Fav", out, re.M)


@pytest.mark.parametrize("columns", [[], ["--columns", "text", "--label", "class"]], ids=["words", "texts"])
def test_a_labelled_file_is_probed_fold_by_fold(order, tmp_path, columns):
    path = tmp_path / ("labelled.tsv" if columns else "many")
    if columns:
        rows = [f"{a} {b} {c}\t{a[0] in 'ae'}\n" for a in WORDS for b in WORDS for c in WORDS[:2]]
        path.write_text("text\tclass\n" + "".join(rows))
    arguments = ["--labelled", path, *columns, "--folds", 3, "--layers", "0,2"]
    status, out, _ = order(*arguments)
    table, _, notes = out.partition("\n\n")
    rows = [re.split("  +", line.strip()) for line in table.splitlines()]
    assert status == 0 and rows[0] == ["network", "layer", "accuracy", "macro-F1"]
    names = [name for name in ("run", "copy", "run, untrained") for _ in range(2)]
    assert [row[:2] for row in rows[1:]] == [[name, layer] for name, layer in zip(names, ["0", "2"] * 3)]
    assert rows[1][1:] == rows[3][1:] and f"128 {'texts' if columns else 'words'}" in notes
    every = json.loads(order(*arguments[:-1], "all", "--json")[1])["probes"]
    assert [probe["layer"] for probe in every] == 3 * [0, 1, 2]
    probes = json.loads(order(*arguments, "--json")[1])["probes"]
    assert f"{100 * probes[1]['accuracy']['value']:.1f} (" in rows[2][2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--text", "FOLDER/empty"], "the text makes 0 items of swap, blocks of 8 neighbouring words, but 200 are"),
        (["--text", "FOLDER/none"], "FOLDER/none does not exist"),
        (["--tasks", "spelling"], "task spelling is none of swap, acceptability"),
        (["--part", "test"], "part test is none of development, held_out"),
        (["--items", "0"], "0 items are too few to tell anything: take at least 200"),
        (["--layers", "1"], "--layers goes with --train and --test"),
        (["--train", "FOLDER/train"], "--train and --test go together: name both"),
        (["--train", "FOLDER/train", "--test", "FOLDER/test"], "labelled words are probed in one RUN, got 2"),
        (["--train", "FOLDER/train", "--text", "FOLDER/empty"], "--text goes without --train, --test and --labelled"),
        (["--labelled", "FOLDER/train", "--png", "FOLDER/x"], "--png goes with --train and --test"),
        (["--folds", "3"], "--folds goes with --labelled"),
        (["--labelled", "FOLDER/train", "--label", "x"], "--label goes with --columns, which names the"),
        (["--labelled", "FOLDER/many", "--folds", "0"], "0 folds leave nothing to learn from: take at least 2"),
        (["--labelled", "FOLDER/unlabelled"], "FOLDER/unlabelled has no labelled word: all are _, which is read, not"),
        (["--layers", "all"], "--layers goes with --train and --test"),
        (["--labelled", "FOLDER/many", "--layers", "9"], "layer 9 must lie between -3 and 2, the encoder's last layer"),
    ],
)
def test_mistakes_about_the_order_of_words_are_told_in_one_line(order, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(documentation, "held_out_paragraphs", lambda: ["alpha beta"])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "unlabelled").write_text("alpha\t_\nbeta\t_\n")
    status, out, err = order(*(argument.replace("FOLDER", str(tmp_path)) for argument in arguments))
    assert status == 64 and out == "" and err.count("\n") == 1
    assert err.startswith(f"amos-fairseq probe: error: {message.replace('FOLDER/', '')}")
