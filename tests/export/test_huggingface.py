"""Every class that a checkpoint is exported as: outputs are those of the network, within 1e-5, and back again."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from amos_fairseq.checkpoints import storage
from amos_fairseq.cli import main
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import train_vocabulary
from amos_fairseq.export import choices, huggingface
from amos_fairseq.export import tokenizer as tokenizer_export
from amos_fairseq.finetune.labelled import Problem
from amos_fairseq.finetune.model import Origin, described, new_network
from amos_fairseq.pretrained import exported
from amos_fairseq.pretrained.loading import from_pretrained

MPNET, ABSOLUTE = dict(rel_pos_buckets=32, rel_pos_max_distance=128), dict(rel_pos_buckets=0)
NARROW = dict(token_embed_dim=8)
TWO_LAYERS = dict(rtd_head_hidden_layer=True)
RTD_BRANCH = dict(exported_branch="rtd")
WIDE = dict(rel_pos_buckets=64, rel_pos_max_distance=128)
RELEASED = dict(MPNET, rel_pos_bucketing="released")
ONE_LAYER = "rtd_head (one linear layer, where ElectraForPreTraining has two)"

# method, its options, options of the command, class, class of the generator
EXPORTS = [
    ("amos_rtd", MPNET, [], "MPNetModel", "MPNetForMaskedLM"),
    ("bert_mlm", MPNET, [], "MPNetForMaskedLM", None),
    ("bert_mlm", MPNET, ["--classes", "MPNetModel"], "MPNetModel", None),
    ("bert_mlm", ABSOLUTE, [], "BertForMaskedLM", None),
    ("bert_mlm", ABSOLUTE, ["--classes", "ElectraModel"], "ElectraModel", None),
    ("script_selfcritic", ABSOLUTE, ["--classes", "BertModel"], "BertModel", None),
    ("script_selfcritic", ABSOLUTE | NARROW, [], "ElectraForMaskedLM", None),
    ("electra_rtd", ABSOLUTE | TWO_LAYERS, [], "ElectraForPreTraining", "ElectraForMaskedLM"),
    ("electra_rtd", ABSOLUTE | TWO_LAYERS | NARROW, [], "ElectraForPreTraining", "ElectraForMaskedLM"),
    ("electra_rtd", ABSOLUTE, [], "ElectraModel", "ElectraForMaskedLM"),
    ("teams_mws", ABSOLUTE | TWO_LAYERS, [], "ElectraModel", "ElectraForMaskedLM"),
    ("teams_mws", ABSOLUTE | TWO_LAYERS | RTD_BRANCH, [], "ElectraForPreTraining", "ElectraForMaskedLM"),
    ("peer_tqr", ABSOLUTE, ["--classes", "BertModel"], "BertModel", None),
    ("coco_lm", WIDE, [], "AmosModel", "AmosForMaskedLM"),
    ("bert_mlm", RELEASED, [], "AmosForMaskedLM", None),
    ("bert_mlm", MPNET | NARROW, [], "AmosForMaskedLM", None),
]
ids = [f"{row[0]}-{'-'.join(map(str, row[1].values()))}-{row[3]}" for row in EXPORTS]


def load(transformers, folder, class_name):
    """Without the Auto classes where transformers has the class."""
    if not class_name.startswith("Amos"):
        return getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    auto = "AutoModelForMaskedLM" if class_name.endswith("MaskedLM") else "AutoModel"
    return getattr(transformers, auto).from_pretrained(folder, output_loading_info=True, trust_remote_code=True)


@torch.no_grad()
def assert_equal_outputs(transformers, folder, class_name, encoder, logits, tokens):
    """logits: None or a function of the encoder's hidden states."""
    tokens, padding_mask = tokens
    model, info = load(transformers, folder, class_name)
    assert type(model).__name__ == class_name and not any(info.values())
    output = model.eval()(tokens, attention_mask=(~padding_mask).long(), output_hidden_states=True)
    hidden = encoder(tokens, padding_mask)
    pairs = {"hidden states": (output.hidden_states[-1], hidden)}
    if logits is not None:
        pairs["logits"] = (output.logits, logits(hidden))
    for name, (theirs, ours) in pairs.items():
        theirs, ours = theirs[~padding_mask], ours[~padding_mask]
        print(f"{class_name}: {name} differ by {(theirs - ours).abs().max():.1e} of {ours.abs().max():.1f}")
        assert ours.abs().max() > 0.5
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name, options, command, class_name, generator_class", EXPORTS, ids=ids)
def test_outputs_are_those_of_the_network(
    transformers, checkpoint, export, tokens, name, options, command, class_name, generator_class
):
    run, method = checkpoint(name, **options)
    status, out, err, folder = export(run, *command)
    assert status == 0, err
    assert f"{class_name}; loaded again, it differs by " in out
    logits = method.mlm_head if class_name.endswith("MaskedLM") else None
    if class_name == "ElectraForPreTraining":  # its positive logits are replaced tokens, ours are original ones
        logits = lambda hidden: -method.detection_logits(*tokens)  # noqa: E731
    assert_equal_outputs(transformers, folder, class_name, method.encoder, logits, tokens)
    assert (folder / "generator").exists() == (generator_class is not None)
    if generator_class is not None:
        network = method.masked_lm_encoder
        assert_equal_outputs(transformers, folder / "generator", generator_class, network, method.mlm_head, tokens)

    loaded = exported.load(folder)
    assert loaded.name == name and loaded.tokenizer.model == (folder / "sentencepiece.model").read_bytes()
    unused = {} if options["rel_pos_buckets"] else {"rel_pos_max_distance": 128}
    assert loaded.encoder.config == replace(method.encoder.config, **unused)
    for key, tensor in method.encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[key], tensor), key


@pytest.mark.parametrize("name, options", [("bert_mlm", MPNET), ("script_selfcritic", ABSOLUTE | NARROW)])
@torch.no_grad()
def test_embedded_layers_are_the_hidden_states_of_the_stock_model(
    transformers, checkpoint, export, tokenizer, tmp_path, name, options
):
    run, _ = checkpoint(name, **options)
    model = transformers.AutoModel.from_pretrained(export(run)[-1]).eval()
    texts = ["alpha beta gamma", "delta"]
    (tmp_path / "texts").write_text("\n".join(texts))
    ids = [torch.tensor([tokenizer.sequence(tokenizer.encode(text))]) for text in texts]
    states = [model(row, output_hidden_states=True).hidden_states for row in ids]
    assert len(states[0]) == 3
    for layer in (0, 1, 2, -1, -2, -3):
        for pooling in ("mean", "first"):
            out = tmp_path / f"{layer}{pooling}.npy"
            words = [run, tmp_path / "texts", "--out", out, "--layer", layer, "--pooling", pooling]
            assert main.main(["embed", *map(str, words)]) == 0
            rows = [hidden[layer][0].mean(dim=0) if pooling == "mean" else hidden[layer][0, 0] for hidden in states]
            torch.testing.assert_close(torch.from_numpy(np.load(out)), torch.stack(rows), atol=1e-5, rtol=0)


def test_what_no_class_has_is_named(checkpoint, export):
    run, _ = checkpoint("electra_rtd", **ABSOLUTE)
    assert export(run)[1].splitlines()[-1] == f"not in it: {ONE_LAYER}"


def test_auto_model_finds_a_pooler_that_is_not_random(transformers, checkpoint, export, tokens):
    run, _ = checkpoint("bert_mlm", **MPNET)
    folder = export(run, "--classes", "MPNetModel")[-1]
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "MPNetModel" and not info["missing_keys"]
    output = model(tokens[0])
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0].tanh())


SCALE = dict(offset=1.5, unit=5.0)  # of what a regression learns: (number - offset) / unit


def problem_of(kind, tokenizer):
    three = ["no", "maybe", "yes"]
    labels = {"classification": three, "multi_label": three, "token": three, "prompt": ["no", "yes"]}.get(kind, [])
    words = [tokenizer.encode(word)[0] for word in ("alpha", "beta")] if kind == "prompt" else []
    about = {"source": "a test", **({"scale": SCALE} if kind == "regression" else {})}
    return Problem("toy", kind, ["accuracy"], "0" * 64, labels, words, about)


def save_finetuned(run, name, method, tokenizer, kind):
    """As fine-tuning leaves it: its network."""
    origin, problem = Origin(name, method.encoder.config), problem_of(kind, tokenizer)
    network = new_network(origin, problem, tokenizer.mask).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.normal_(1.0 if key.endswith("layer_norm.weight") else 0.0, 0.15)
    vocabulary = torch.frombuffer(bytearray(tokenizer.model), dtype=torch.uint8)
    task_state = {"sentencepiece_model": vocabulary, "finetuned": described(origin, problem)}
    state = {f"network.{key}": tensor for key, tensor in network.state_dict().items()}
    run.mkdir()
    cfg = {"task": {"_name": "finetuning"}, "model": {"dropout": 0.1}}
    about = dict(number=1, score=None, purposes=[])
    storage.write(run / "checkpoint_1_5", {"cfg": cfg, "task_state": task_state, "model": state}, about)
    return network


@pytest.mark.parametrize(
    "kind, options, class_name",
    [
        ("classification", MPNET, "MPNetForSequenceClassification"),
        ("classification", ABSOLUTE, "BertForSequenceClassification"),
        ("classification", WIDE, "AmosForSequenceClassification"),
        ("classification", ABSOLUTE | NARROW, "AmosForSequenceClassification"),
        ("regression", MPNET, "MPNetForSequenceClassification"),
        ("span", MPNET, "MPNetForQuestionAnswering"),
        ("span", ABSOLUTE, "BertForQuestionAnswering"),
        ("span", ABSOLUTE | NARROW, "ElectraForQuestionAnswering"),
        ("span", WIDE, "AmosForQuestionAnswering"),
        ("multi_label", MPNET, "MPNetForSequenceClassification"),
        ("multi_label", WIDE, "AmosForSequenceClassification"),
        ("token", MPNET, "MPNetForTokenClassification"),
        ("token", ABSOLUTE, "BertForTokenClassification"),
        ("token", ABSOLUTE | NARROW, "ElectraForTokenClassification"),
        ("token", WIDE, "AmosForTokenClassification"),
        ("choice", MPNET, "MPNetForMultipleChoice"),
        ("choice", ABSOLUTE, "BertForMultipleChoice"),
        ("choice", ABSOLUTE | NARROW, "ElectraForMultipleChoice"),
        ("choice", WIDE, "AmosForMultipleChoice"),
        ("prompt", MPNET, "MPNetForMaskedLM"),
    ],
)
def test_outputs_are_those_of_the_fine_tuned_network(
    transformers, checkpoint, export, tokenizer, tokens, tmp_path, kind, options, class_name
):
    _, method = checkpoint("bert_mlm", **options)
    network = save_finetuned(tmp_path / "tuned", "bert_mlm", method, tokenizer, kind)
    status, _, err, folder = export(tmp_path / "tuned")
    assert status == 0, err
    (tokens, padding_mask), auto = tokens, {
        "span": "QuestionAnswering", "prompt": "MaskedLM", "token": "TokenClassification", "choice": "MultipleChoice"
    }
    if kind == "choice":
        tokens, padding_mask = tokens[None], padding_mask[None]
    auto_class = getattr(transformers, f"AutoModelFor{auto.get(kind, 'SequenceClassification')}")
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__name__ == class_name
    if kind == "prompt":
        tokens = tokens.clone()
        tokens[tokens == tokenizer.mask], tokens[:, 1] = 5, tokenizer.mask
    with torch.no_grad():
        ours, theirs = network(tokens, padding_mask), model(tokens, attention_mask=(~padding_mask).long())
    if kind == "span":
        theirs = torch.stack([theirs.start_logits, theirs.end_logits], -1)[~padding_mask]
        ours = ours[~padding_mask]
    elif kind == "prompt":
        theirs = theirs.logits[:, 1, problem_of(kind, tokenizer).label_tokens]
    elif kind == "token":
        theirs, ours = theirs.logits[~padding_mask], ours[~padding_mask]
    else:
        theirs = theirs.logits.squeeze(-1) if kind == "regression" else theirs.logits
    if kind == "regression":  # theirs are the task's own numbers
        ours = SCALE["unit"] * ours + SCALE["offset"]
    print(f"{class_name}, {kind}: outputs differ by {(theirs - ours).abs().max():.1e} of {ours.abs().max():.1f}")
    assert ours.abs().max() > 0.3
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    if kind in ("classification", "multi_label", "token"):
        assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    if kind == "token":
        assert "A word's tag is that of its first token." in (folder / "README.md").read_text()
    if kind == "choice":
        namespace = {}
        (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        exec(code.replace("FOLDER", str(folder)), namespace)
        assert namespace["output"].logits.shape == (1, 2)
    if kind == "multi_label":
        assert model.config.problem_type == "multi_label_classification"
        labels = (ours > 0.1).float()
        loss = model(tokens, attention_mask=(~padding_mask).long(), labels=labels).loss
        assert loss.item() == pytest.approx(binary_cross_entropy_with_logits(ours, labels).item(), rel=1e-4)
    if kind == "prompt":
        words = "`\u2581alpha` for no, `\u2581beta` for yes"
        assert f"likeliest of these tokens at the only `<mask>`: {words}." in (folder / "README.md").read_text()
    if kind == "regression":
        assert model.config.num_labels == 1 and model.config.problem_type == "regression"


def test_losses_of_the_modelling_file(transformers, checkpoint, export, tokenizer, tokens, tmp_path):
    """Cross-entropies and squared error."""
    _, method = checkpoint("bert_mlm", **WIDE)
    tokens, padding_mask = tokens
    inputs = dict(input_ids=tokens, attention_mask=(~padding_mask).long())
    expected = {
        "classification": ("SequenceClassification", dict(labels=torch.tensor([0, 2, 1]))),
        "regression": ("SequenceClassification", dict(labels=torch.tensor([0.5, -1.0, 2.0]))),
        "choice": ("MultipleChoice", dict(labels=torch.tensor([2]))),
        "span": (
            "QuestionAnswering", dict(start_positions=torch.tensor([5, 0, 1]), end_positions=torch.tensor([9, 3, 2]))
        ),
    }
    for kind, (auto, targets) in expected.items():
        save_finetuned(tmp_path / kind, "bert_mlm", method, tokenizer, kind)
        folder = export(tmp_path / kind, out=f"{kind}_exported")[-1]
        model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(folder, trust_remote_code=True).eval()
        wide = kind == "choice"
        output = model(**{name: rows[None] if wide else rows for name, rows in inputs.items()}, **targets)
        if kind == "span":
            rows = range(3)
            start, end = output.start_logits.log_softmax(-1), output.end_logits.log_softmax(-1)
            loss = -(start[rows, targets["start_positions"]] + end[rows, targets["end_positions"]]).mean() / 2
        elif kind == "regression":
            loss = ((output.logits[:, 0] - targets["labels"]) ** 2).mean()
        else:
            loss = -output.logits.log_softmax(-1)[range(len(output.logits)), targets["labels"]].mean()
        torch.testing.assert_close(output.loss, loss)


def test_hidden_states_of_the_modelling_file_are_given_where_the_call_or_the_config_asks(
    transformers, checkpoint, export, tokens
):
    folder, code = export(checkpoint("bert_mlm", **WIDE)[0])[-1], dict(trust_remote_code=True)
    plain = transformers.AutoModel.from_pretrained(folder, **code)
    asking = transformers.AutoModel.from_pretrained(folder, output_hidden_states=True, **code)
    assert plain(tokens[0]).hidden_states is None
    for output in (plain(tokens[0], output_hidden_states=True), asking(tokens[0])):
        assert len(output.hidden_states) == 3
    assert asking(tokens[0], output_hidden_states=False).hidden_states is None


def test_the_modelling_file_has_a_token_classifier_to_fine_tune(transformers, checkpoint, export, tokens):
    run, method = checkpoint("bert_mlm", **WIDE)
    (tokens, padding_mask), auto_class = tokens, transformers.AutoModelForTokenClassification
    model = auto_class.from_pretrained(export(run)[-1], num_labels=5, trust_remote_code=True).eval()
    labels = torch.randint(5, tokens.shape).masked_fill(padding_mask, -100)
    output = model(tokens, attention_mask=(~padding_mask).long(), labels=labels)
    expected = model.classifier(method.encoder(tokens, padding_mask))[~padding_mask]
    torch.testing.assert_close(output.logits[~padding_mask], expected, atol=1e-5, rtol=0)
    rows = range(len(expected))
    torch.testing.assert_close(output.loss, -expected.log_softmax(-1)[rows, labels[~padding_mask]].mean())


def test_a_run_that_was_fine_tuned_exports_its_best_checkpoint(checkpoint, export, tokenizer, tmp_path):
    _, method = checkpoint("bert_mlm", **MPNET)
    run = tmp_path / "tuned"
    network = save_finetuned(run, "bert_mlm", method, tokenizer, "span")
    (run / "checkpoint_best").symlink_to("checkpoint_1_5")
    state = storage.read(run / "checkpoint_1_5")
    later = {key: torch.zeros_like(tensor) for key, tensor in state["model"].items()}
    storage.write(run / "checkpoint_2_9", {**state, "model": later}, dict(number=2, score=None, purposes=[]))
    folder = export(run)[-1]
    table = from_pretrained(folder).encoder.token_embeddings.weight
    assert torch.equal(table, network.encoder.token_embeddings.weight)
    with pytest.raises(ValueError, match="was fine-tuned: name what it started from, or the folder that it"):
        from_pretrained(run)


def test_a_different_model_is_refused_and_leaves_nothing(checkpoint, export, monkeypatch, tmp_path):
    run, _ = checkpoint("bert_mlm", **ABSOLUTE)
    right = huggingface.tensors_of

    def wrong(part, layout):
        tensors = right(part, layout)
        return tensors | {name: tensor + 1e-3 for name, tensor in tensors.items() if name.endswith("query.bias")}

    monkeypatch.setattr(huggingface, "tensors_of", wrong)
    before = sorted(tmp_path.iterdir())
    status, _, err, _ = export(run)
    assert status == 64 and "BertForMaskedLM as loaded again differs from the checkpoint" in err
    assert sorted(tmp_path.iterdir()) == before

    other = {"cls.predictions.other": torch.ones(1)}
    monkeypatch.setattr(huggingface, "tensors_of", lambda *args: right(*args) | other)
    status, _, err, _ = export(run)
    assert status == 64 and "BertForMaskedLM, parameters ['cls.predictions.other']" in err


@pytest.mark.parametrize("wrong_epsilon", [None, 1e-6])
def test_float64_tells_rounding_from_another_model(checkpoint, export, monkeypatch, tmp_path, wrong_epsilon):
    """Here float32 never passes."""
    run, method = checkpoint("electra_rtd", **ABSOLUTE, **TWO_LAYERS)
    monkeypatch.setattr(huggingface, "TOLERANCE", -1.0)
    right = huggingface.config_of
    if wrong_epsilon:
        monkeypatch.setattr(huggingface, "config_of", lambda *args: right(*args) | {"layer_norm_eps": wrong_epsilon})
    status, _, err, folder = export(run)
    assert folder.exists() == (status == 0) == (not wrong_epsilon)
    if wrong_epsilon:
        assert "ElectraForPreTraining as loaded again differs from the checkpoint by " in err


def test_not_a_number_is_not_equal():
    nan = float("nan")
    assert huggingface.within({"hidden states": 1e-6}, 1e-5)
    assert not huggingface.within({"hidden states": 1e-6, "logits": nan}, 1e-5)
    assert not huggingface.within({"hidden states": nan}, 1e-5)
    fits, differs = [torch.zeros(2), torch.tensor([1.0, nan])], [torch.zeros(2), torch.zeros(2)]
    assert math.isnan(huggingface.largest_gap(fits, differs, [None, None]))


def test_another_tokenizer_is_refused(checkpoint, export, monkeypatch):
    run, _ = checkpoint("bert_mlm", **ABSOLUTE)
    monkeypatch.setattr(tokenizer_export, "merges", lambda scores: [])
    status, _, err, folder = export(run)
    assert status == 64 and "the exported tokenizer gives other ids than ours" in err and not folder.exists()


def test_a_tokenizer_of_another_kind_is_refused(checkpoint, export, tokenizer, monkeypatch):
    class Released(Tokenizer):
        obstacle = "the tokenizer moves spaces"

    run, _ = checkpoint("bert_mlm", **ABSOLUTE)
    source = replace(from_pretrained(run), tokenizer=Released(tokenizer.model))
    monkeypatch.setattr(huggingface, "load", lambda *_: source)
    status, _, err, folder = export(run)
    assert status == 64 and "moves spaces, which Hugging Face's tokenizers have no equal" in err and not folder.exists()


def test_an_exported_encoder_is_exported_again(checkpoint, export, tokens):
    run, method = checkpoint("bert_mlm", **WIDE)
    source = exported.load(export(run)[-1])
    (first, *_) = choices.candidates(source)
    assert first.class_name == "AmosModel"
    assert torch.equal(source.encoder(*tokens), method.encoder(*tokens))


def test_what_export_did_not_write_is_not_loaded(checkpoint, export, tmp_path):
    with pytest.raises(ValueError, match="was not written by `amos-fairseq export`"):
        exported.load(tmp_path)
    folder = export(checkpoint("bert_mlm", **MPNET)[0])[-1]
    weights, vocabulary = (folder / "model.safetensors").read_bytes(), (folder / "sentencepiece.model").read_bytes()
    (folder / "sentencepiece.model").write_bytes(train_vocabulary(["a b c d e"] * 9, 16, uncased=True))
    with pytest.raises(ValueError, match="makes 1. symbols, but the model has 56: copy it from the folder"):
        exported.load(folder)
    (folder / "sentencepiece.model").write_bytes(vocabulary)
    for broken in (b"no", weights[:-8], None):
        (folder / "model.safetensors").unlink()
        if broken is not None:
            (folder / "model.safetensors").write_bytes(broken)
        with pytest.raises(ValueError, match="is damaged|cannot be read|header too"):
            exported.load(folder)
    (folder / "sentencepiece.model").unlink()
    with pytest.raises(ValueError, match="holds no sentencepiece.model"):
        exported.load(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    assert not exported.is_exported(folder)


def test_the_encoder_that_a_method_exports_is_loaded_probed_and_exported(transformers, checkpoint, export, tokens):
    """Its tables are sums of the generator's, which it does not train, and of its own differences."""
    tables = dict(token_table="gdes", gdes_positions=True)
    run, method = checkpoint("electra_rtd", generator_embed_dim=8, **tables, **MPNET)
    status, out, err, folder = export(run)
    assert status == 0, err
    loaded, encoder = from_pretrained(run), method.exported_encoder()
    for found in (loaded.encoder, loaded.method.networks()["encoder"], exported.load(folder).encoder):
        for key, tensor in encoder.state_dict().items():
            assert torch.equal(found.state_dict()[key], tensor), key
    assert not torch.equal(encoder.token_embeddings.weight, method.generator.token_embeddings.weight)
    assert_equal_outputs(transformers, folder, "MPNetModel", encoder, None, tokens)
    assert out.splitlines()[-1] == f"not in it: {ONE_LAYER}"
