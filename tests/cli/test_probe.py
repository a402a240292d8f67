"""probe as a user runs it."""
import json

import pytest

from amos_fairseq.cli import main
from amos_fairseq.methods.base import Vocabulary

WORDS = "alpha beta gamma delta epsilon zeta eta theta".split()


@pytest.fixture
def command(tmp_path, make_method, tokenizer, save_checkpoint, capsys):
    """command(*arguments): exit status, standard output and error, for an AMOS run of random parameters."""
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    method = make_method("amos_rtd", vocabulary=vocabulary, gain=4.0)
    save_checkpoint(tmp_path / "run/checkpoint_1_2", "amos_rtd", method, tokenizer)
    rows = [f"{word}\t{'vowel' if word[0] in 'ae' else 'other'}\n" for word in WORDS]
    for name, copies in (("train", 6), ("test", 2)):
        (tmp_path / name).write_text("\n".join("".join(rows[i:] + rows[:i]) for i in range(copies)))

    def command(*arguments):
        files = ["--train", tmp_path / "train", "--test", tmp_path / "test"]
        status = main.main(["probe", *map(str, [tmp_path / "run", *files, *arguments])])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.replace(f"{tmp_path}/", "")

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
        (["--test", "FOLDER/none"], "none: No such file or directory"),
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
