"""The model card says what was trained, how it is used, and what is not known."""

import hashlib
import json
import re
import shutil

import pytest
import torch

from amos_fairseq.checkpoints import storage
from amos_fairseq.export import card
from amos_fairseq.methods import METHODS

TRAINED = {
    "cfg": {
        "task": {"_name": "bert_mlm", "tokens_per_sample": 128, "mask_prob": 0.15, "save_dir": "/somewhere/else"},
        "model": {"_name": "bert_mlm_tiny", "encoder_layers": 2, "init_checkpoint": "/home/run", "dropout": 0.1},
        "dataset": {"batch_size": 16, "max_tokens": None},
        "optimization": {"update_freq": [8], "max_update": 1000, "lr": [0.0005]},
        "optimizer": {"_name": "fused_adamw", "weight_decay": 0.01},
        "lr_scheduler": {"_name": "polynomial_decay", "warmup_updates": 100},
        "checkpoint": {"best_checkpoint_metric": "loss"},
    },
    "optimizer_history": [{"num_updates": 500}, {"num_updates": 700}],
    "extra_state": {
        "val_loss": 4.25,
        "metrics": {
            "valid": [
                (10, "mlm", "AverageMeter", {"val": 9.0, "sum": torch.tensor(30.0), "count": 8, "round": 5}),
                (10, "_weighted mlm", "AverageMeter", {"val": 9.0, "sum": 30.0, "count": 8, "round": None}),
                (10, "mlm_accuracy", "AverageMeter", {"val": 1.0, "sum": 0.0, "count": 0, "round": 5}),
                (10, "wps", "TimeMeter", {"init": 1.0, "n": 5, "round": 1}),
            ]
        },
    },
}


def table_of(text):
    return dict(re.findall(r"^\| (\S[^|]*?) \| (.+?) \|$", text, re.MULTILINE))


def test_training_is_told_without_paths(tmp_path):
    storage.write(tmp_path / "checkpoint", TRAINED, {})
    state = card.read_state(tmp_path / "checkpoint")
    rows = dict(card.training(state, "amos_rtd"))
    assert rows["updates"] == 700 and rows["model"] == "bert_mlm_tiny" and rows["optimizer"] == "fused_adamw"
    assert rows["lr_scheduler"] == "polynomial_decay" and rows["lr"] == [0.0005] and rows["update_freq"] == [8]
    assert rows["encoder_layers"] == 2 and rows["mask_prob"] == 0.15 and "max_tokens" not in rows
    assert not any("/" in str(value) for value in rows.values())


@pytest.mark.parametrize("block, told", [(32, True), (150, False), (None, False)])
def test_positions_that_no_sequence_of_training_had_are_told(checkpoint, export, block, told):
    run, _ = checkpoint("bert_mlm", rel_pos_buckets=0)
    (path,) = run.iterdir()
    state, about = storage.read(path), dict(number=1, score=None, purposes=[])
    state["cfg"]["task"]["tokens_per_sample"] = block
    shutil.rmtree(path)
    storage.write(path, state, about)
    text = (export(run)[-1] / "README.md").read_text()
    assert ("trained on sequences of at most 32: later positions are as they were drawn." in text) == told


def test_validation_is_the_last_one_until_the_checkpoint(tmp_path):
    storage.write(tmp_path / "checkpoint", TRAINED, {})
    state = card.read_state(tmp_path / "checkpoint")
    assert card.validation(state, tmp_path) == [("loss", "4.2500")]  # its meters are of all validations together
    rows = ({"kind": "validation", "num_updates": at, "mlm": at / 100, "wps": 5} for at in (600, 700, 800))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert card.validation(state, tmp_path) == [("loss", "4.2500"), ("mlm", "7.0000")]


def test_a_checkpoint_without_these_says_that_it_is_not_known(checkpoint, export):
    run, _ = checkpoint("bert_mlm", rel_pos_buckets=0)
    text = (export(run)[-1] / "README.md").read_text()
    assert "## Validation\n\nNot known." in text
    assert "What the text was is not known: `--data` names the prepared folder." in text
    assert "Vocabulary: 56 symbols, SentencePiece, `sentencepiece.model`." in text


def test_a_card_has_its_sections_and_leaves_the_licence_open(checkpoint, export):
    run, method = checkpoint("electra_rtd", rel_pos_buckets=0, rtd_head_hidden_layer=True)
    folder = export(run, "--pooling", "cls")[-1]
    text = (folder / "README.md").read_text()
    tags = "tags: [amos_fairseq, electra_rtd, sentence-transformers]"
    assert text.startswith(f"---\nlibrary_name: transformers\n{tags}\n---\n\n# exported\n")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sections == ["Use", "Training", "Data", "Validation", "Contents", "Citation", "Licence"]
    parameters = sum(parameter.numel() for parameter in method.encoder.parameters())
    assert f"2 layers, width 16, 2 heads, absolute positions, {parameters:,} parameters" in text
    assert "from transformers import AutoModelForPreTraining, AutoTokenizer" in text
    assert "A positive logit means that the token was replaced." in text
    assert '`"FOLDER/generator"` holds the generator' in text and "gives the state of `<s>`" in text
    rows = dict(re.findall(r"^\| `(\S+)` \| `(\S+)` \|", text, re.MULTILINE))
    assert rows == {".": "ElectraForPreTraining", "generator": "ElectraForMaskedLM"}
    assert "arXiv:2003.10555" in text and "Not stated." in text and "trust_remote_code" not in text
    assert table_of(text)["rtd_head_hidden_layer"] == "True"


def test_the_modelling_file_is_told_of(checkpoint, export):
    run, _ = checkpoint("bert_mlm", rel_pos_buckets=64, rel_pos_max_distance=128)
    text = (export(run)[-1] / "README.md").read_text()
    assert 'AutoModelForMaskedLM.from_pretrained("FOLDER", trust_remote_code=True)' in text
    assert "64 buckets of distances up to 128" in text and "pipeline_tag: fill-mask" in text
    assert "sentence-transformers" not in text


@pytest.fixture
def prepared(tmp_path, tokenizer):
    """A folder that was prepared with the checkpoint's vocabulary, of text or of other text."""
    from amos_fairseq.data.preparation import prepare

    (tmp_path / "sp.model").write_bytes(tokenizer.model)
    (tmp_path / "text").write_text("\n\n".join(["alpha beta gamma", "beta gamma delta", "gamma"] * 20))
    prepare(
        [str(tmp_path / "text")], str(tmp_path / "data"), vocabulary=str(tmp_path / "sp.model"), tokens_per_sample=32,
        valid_fraction=0.1, workers=1,
    )
    return tmp_path / "data"


def test_data_are_counted_where_they_are_of_the_vocabulary(checkpoint, export, prepared, tokenizer, monkeypatch):
    run, _ = checkpoint("bert_mlm", rel_pos_buckets=0)
    text = (export(run, "--data", str(prepared))[-1] / "README.md").read_text()
    manifest = card.read_manifest(str(prepared))
    assert manifest.sentencepiece_sha256 == hashlib.sha256(tokenizer.model).hexdigest()
    train = manifest.splits["train"]
    assert f"| train | {train.documents} | {train.characters:,} | {train.text_tokens:,} |" in text
    assert train.documents + manifest.splits["valid"].documents == 60

    manifest.sentencepiece_sha256 = "0" * 64
    monkeypatch.setattr(card, "read_manifest", lambda folder: manifest)
    assert card.manifest_of({"cfg": {"task": {"data": str(prepared)}}}, tokenizer, None) is None


def test_every_method_is_cited():
    papers = [method.citation for method in METHODS.values()]
    assert all("arXiv:" in paper or "aclanthology.org/" in paper for paper in papers)
