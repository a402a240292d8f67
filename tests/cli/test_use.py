"""fill-mask, detect and embed as a user runs them."""
import json

import numpy as np
import pytest

from amos_fairseq.cli import embed, main
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.loading import from_pretrained
from amos_fairseq.pretrained.model import Pretrained


@pytest.fixture
def run(tmp_path, make_method, tokenizer, save_checkpoint):
    name = "electra_rtd"
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    method = make_method(name, vocabulary=vocabulary, gain=4.0)
    save_checkpoint(tmp_path / "run/checkpoint_1_2", name, method, tokenizer)
    return tmp_path / "run"


@pytest.fixture
def command(run, capsys, tmp_path):
    """command(name, *arguments): exit status, lines of standard output, standard error."""

    def command(name, *arguments):
        status = main.main([name, str(run), *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.replace(f"{tmp_path}/", "")

    return command


def test_fill_mask_prints_a_line_for_each_mask_and_the_same_as_json(command):
    status, lines, _ = command("fill-mask", "alpha <mask> <mask>", "--top", 2)
    _, as_json, _ = command("fill-mask", "alpha <mask> <mask>", "--top", 2, "--json")
    assert status == 0 and len(lines) == len(as_json) == 2
    for line, row in zip(lines, map(json.loads, as_json)):
        words = [f"{filling['token'].strip(chr(0x2581)) or '(space)'} {filling['probability']:.3f}" for filling in row]
        assert line == "  ".join(words)


def test_detect_marks_the_tokens_at_or_above_the_threshold(command):
    _, (as_json,), _ = command("detect", "--text", "Alpha beta,  gamma", "--json")
    tokens = json.loads(as_json)
    threshold = sorted(token["replaced"] for token in tokens)[1]
    assert command("detect", "--text", "Alpha beta,  gamma", "--threshold", 1.0)[1] == ["Alpha beta,  gamma"]
    _, (line,), _ = command("detect", "--text", "Alpha beta,  gamma", "--threshold", threshold)
    expected = "Alpha beta,  gamma"
    for token in reversed(tokens):
        if token["replaced"] >= threshold:
            mark = f"[{expected[token['begin']:token['end']]} {token['replaced']:.2f}]"
            expected = expected[: token["begin"]] + mark + expected[token["end"] :]
    assert line == expected and line.count("[") == len(tokens) - 1


def test_a_line_ends_at_a_line_feed_only(command, tmp_path):
    (tmp_path / "text").write_text("alpha\u2028beta\x85gamma\r\n\ndelta\x0c\n")
    assert len(command("detect", "--file", tmp_path / "text", "--json")[1]) == 2


def test_embed_writes_a_row_for_each_line(command, run, tmp_path):
    (tmp_path / "text").write_text("alpha beta\ngamma\n")
    status, lines, _ = command("embed", tmp_path / "text", "--out", tmp_path / "x.npy", "--pooling", "first")
    expected = from_pretrained(run).features(["alpha beta", "gamma"], pooling="first").numpy()
    assert status == 0 and lines[0].endswith("x.npy: 2 texts x 16 features, first of layer 2")
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)


def test_embed_writes_chunks_as_they_are_finished(command, run, tmp_path, monkeypatch):
    """Of as many lines as it holds at a time, in their order; where one fails, nothing is left."""
    lines = ["alpha beta gamma", "beta", "gamma delta", "delta", "alpha, beta"]
    (tmp_path / "text").write_text("\n".join(lines))
    monkeypatch.setattr(embed, "CHUNK", 2)
    right, sizes = Pretrained.features, []

    def features(model, texts, *options):
        sizes.append(len(texts))
        if len(sizes) == 6:
            raise OSError(28, "No space left on device")
        return right(model, texts, *options)

    monkeypatch.setattr(Pretrained, "features", features)
    status, lines_, _ = command("embed", tmp_path / "text", "--out", tmp_path / "x.npy")
    assert status == 0 and sizes == [2, 2, 1] and "x.npy: 5 texts x 16 features, mean" in lines_[0]
    expected = right(from_pretrained(run), lines)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, atol=1e-6, rtol=1e-5)

    before = sorted(tmp_path.iterdir())
    assert command("embed", tmp_path / "text", "--out", tmp_path / "y.npy")[0] == 74 and len(sizes) == 6
    assert sorted(tmp_path.iterdir()) == before


def test_embed_names_the_line_that_is_too_long(command, tmp_path):
    (tmp_path / "text").write_text("alpha\n" + "alpha " * 40)
    status, _, err = command("embed", tmp_path / "text", "--out", tmp_path / "x.npy")
    assert status == 64 and "text, line 2: 42 tokens, but the model reads 32: shorten 'alpha" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "text"]


TOO_LONG = f"--text: 42 tokens, but the model reads 32: shorten {('alpha ' * 40)[:40]!r}.."


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["fill-mask", "alpha"], "there is no <mask> in 'alpha': write one for each token to be filled in"),
        (["detect", "--text", "a\udcff"], "--text holds bytes that are no UTF-8: give the text in UTF-8"),
        (["fill-mask", "<mask>\udcff"], "TEXT holds bytes that are no UTF-8: give the text in UTF-8"),
        (["detect", "--text", "alpha " * 40], TOO_LONG),
        (["detect", "--text", " "], "--text: there is no text to read"),
        (["detect", "--text", "alpha", "--threshold", "2"], "--threshold 2.0 is no probability: give 0 to 1"),
        (["embed", "FOLDER/text", "--out", "FOLDER/text"], "--out text exists: name a new file"),
        (["embed", "FOLDER/text", "--out", "FOLDER/no/x"], "--out no/x: no is no folder"),
        (
            ["embed", "FOLDER/full", "--out", "FOLDER/x", "--layer", "3"],
            "layer 3 must lie between -3 and 2, the encoder's last layer",
        ),
        (
            ["embed", "FOLDER/text", "--out", "FOLDER/x"],
            "text, line 2 is empty: each line gets a row, so leave none empty",
        ),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(command, tmp_path, arguments, message):
    (tmp_path / "text").write_text("alpha\n\nbeta\n")
    (tmp_path / "full").write_text("alpha\n")
    name, *others = (argument.replace("FOLDER", str(tmp_path)) for argument in arguments)
    status, out, err = command(name, *others)
    assert status != 0 and (out, err) == ([], f"amos-fairseq {name}: error: {message}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run", "text"]
