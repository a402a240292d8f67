"""New texts through fine-tuned networks with random parameters, against the networks' own outputs."""
import io
import json
import sys

import pytest
import torch

from amos_fairseq.cli import main
from amos_fairseq.finetune import model as finetuned_models
from amos_fairseq.finetune.labelled import Problem
from amos_fairseq.finetune.model import Finetuned, Origin, new_network
from amos_fairseq.modules.encoder import EncoderConfig

LABELS = ["cold", "mild", "warm"]
SCALE = {"offset": 20.0, "unit": 10.0}


@pytest.fixture
def predict(tokenizer, tmp_path, capsys, monkeypatch):
    """predict(kind, text, *options, texts=1, **about): status, lines, error and network; the text is in a file."""

    def predict(kind, text, *options, texts=1, **about):
        torch.manual_seed(1)
        config = EncoderConfig(tokenizer.pad, len(tokenizer), layers=2, dim=16, heads=2, ffn_dim=32, max_positions=16)
        problem = Problem("toy", kind, [], tokenizer.sha256, LABELS, about={"scale": SCALE, "texts": texts, **about})
        origin = Origin("bert_mlm", config)
        network = new_network(origin, problem, tokenizer.mask).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        made = Finetuned(problem, network, tokenizer, origin)
        monkeypatch.setattr(finetuned_models, "load_finetuned", lambda run: made)
        (tmp_path / "text").write_text(text)
        status = main.main(["predict", "RUN", str(tmp_path / "text"), *options])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.replace(f"{tmp_path}/", ""), network

    return predict


def outputs(network, tokenizer, *texts):
    sequence = tokenizer.sequence(*map(tokenizer.encode, texts))
    with torch.no_grad():
        return network(torch.tensor([sequence]))[0]


def test_labels_have_the_probabilities_of_the_network(predict, tokenizer):
    _, lines, _, network = predict("classification", "alpha beta\ngamma\n", "--json")
    for line, text in zip(lines, ("alpha beta", "gamma"), strict=True):
        answer, expected = json.loads(line), outputs(network, tokenizer, text).double().softmax(-1)
        assert list(answer["probabilities"]) == LABELS
        assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert answer["label"] == LABELS[expected.argmax()]


def test_texts_that_are_cut_are_counted(predict):
    _, lines, told, _ = predict("classification", "alpha\n" + "alpha beta " * 20 + "\n")
    assert len(lines) == 2 and told == "text: 1 texts lost their ends: training read no more\n"


def test_labels_are_printed_likeliest_first(predict):
    _, (as_json,), _, _ = predict("classification", "alpha beta", "--json")
    _, (line,), _, _ = predict("classification", "alpha beta")
    ranked = sorted(json.loads(as_json)["probabilities"].items(), key=lambda pair: -pair[1])
    assert line == "  ".join(f"{label} {probability:.3f}" for label, probability in ranked)


def test_controls_of_labels_are_written_out(predict, monkeypatch):
    monkeypatch.setitem(globals(), "LABELS", ["\x1b[2J", "mild", "warm"])
    assert "\\x1b[2J 0." in predict("classification", "alpha beta")[1][0]
    assert '"\\u001b[2J": 0.' in predict("classification", "alpha beta", "--json")[1][0]


def test_columns_of_a_pair_are_read_as_in_training(predict, tokenizer):
    _, (line,), _, network = predict("classification", "alpha beta\tgamma\r\n", "--json", texts=2)
    expected = outputs(network, tokenizer, "alpha beta", "gamma").double().softmax(-1)
    assert list(json.loads(line)["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_of_choices_each_has_the_score_of_the_text_with_it(predict, tokenizer):
    _, (line,), _, network = predict("choice", "alpha\tbeta\tgamma delta\tzeta", "--json", texts=4)
    scores = torch.stack([outputs(network, tokenizer, "alpha", choice) for choice in ("beta", "gamma delta", "zeta")])
    expected = scores.double().softmax(-1)
    assert list(json.loads(line)["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_each_word_of_a_sentence_has_the_tag_of_its_first_token(predict, tokenizer):
    text = "alpha  beta gamma\n" + "delta " * 30 + "\n"  # of which the second takes several windows
    _, rows, _, network = predict("token", text, "--json")
    first, second = map(json.loads, rows)
    expected = outputs(network, tokenizer, "alpha beta gamma").argmax(-1)[1:-1]
    assert first == {"words": ["alpha", "beta", "gamma"], "tags": [LABELS[place] for place in expected]}
    assert second["words"] == ["delta"] * 30 and len(second["tags"]) == 30
    _, lines, _, _ = predict("token", text)
    assert lines[:4] == [*(f"{word} {tag}" for word, tag in zip(first["words"], first["tags"])), ""]
    assert len(lines) == 3 + 1 + 30 + 1


def test_numbers_are_in_the_unit_of_the_labels_and_within_their_limits(predict, tokenizer):
    _, (line,), _, network = predict("regression", "alpha beta")
    value = 10.0 * outputs(network, tokenizer, "alpha beta").item() + 20.0
    assert line == f"{value:.5g}"
    assert predict("regression", "alpha beta", "--json", limits=[0, 1])[1] == ['{"value": 1.0}']


def test_a_text_is_cut_to_the_length_of_training(predict):
    cut = predict("classification", "alpha beta gamma delta", source={"max_length": 4})[1]
    assert cut == predict("classification", "alpha beta")[1] != predict("classification", "alpha beta gamma delta")[1]


def test_standard_input_is_read_without_a_file(predict, monkeypatch, capsys):
    expected = predict("classification", "alpha")[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"alpha\n")))
    assert main.main(["predict", "RUN"]) == 0
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("kind, text, texts, message", [
    ("classification", "alpha\tbeta", 1, "text, line 1: toy reads one text, without a tab, but here 2 are"),
    ("regression", "a\tb\nalpha", 2, "text, line 2: toy reads 2 texts with tabs between, but here 1 are"),
    ("classification", "alpha\n\nbeta", 1, "text, line 2: toy reads one text, without a tab, but here an empty one is"),
    ("span", "alpha", 1, "toy is a problem of span, which reads more than texts: predict cannot"),
])
def test_mistakes_are_told_in_one_line(predict, kind, text, texts, message):
    status, lines, err, _ = predict(kind, text, texts=texts)
    assert (status, lines, err) == (64, [], f"amos-fairseq predict: error: {message}\n")
