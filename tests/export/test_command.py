"""`amos-fairseq export`: what it prints, and mistakes in one line that leave nothing behind."""

import io
import json
import resource
import shutil
import sys
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from amos_fairseq import files
from amos_fairseq.data.preparation import prepare
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import train_vocabulary
from amos_fairseq.export import huggingface
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.averaging import average
from amos_fairseq.pretrained.loading import from_pretrained

MPNET = dict(rel_pos_buckets=32, rel_pos_max_distance=128)


def test_classes_and_differences_are_printed(checkpoint, export):
    status, out, err, folder = export(checkpoint("amos_rtd", **MPNET)[0])
    lines = out.splitlines()
    assert status == 0 and len(lines) == 3
    assert lines[0].startswith(f"{folder}  MPNetModel; loaded again, it differs by ")
    assert lines[1].startswith(f"{folder / 'generator'}  MPNetForMaskedLM; ") and lines[1].endswith(" in logits")
    assert lines[2].startswith("not in it: rtd_head (one linear layer, ") and lines[2].endswith("); mixture_head")
    files = {path.name for path in folder.iterdir()}
    standard = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentencepiece.model"}
    assert files == standard | {"README.md", "generator"}


def test_own_code_is_announced(checkpoint, export):
    run, _ = checkpoint("bert_mlm", rel_pos_buckets=64, rel_pos_max_distance=128)
    _, out, _, folder = export(run)
    assert "  no class of transformers has this shape: trust_remote_code=True lets modeling_amos.py run\n" in out
    assert (folder / "modeling_amos.py").exists()


def test_only_the_classes_that_are_named_are_written(checkpoint, export):
    run, _ = checkpoint("coco_lm", **MPNET)
    folder = export(run, "--classes", "MPNetModel")[-1]
    assert not (folder / "generator").exists()
    folder = export(run, "--classes", "AmosForMaskedLM", "MPNetModel", out="both")[-1]
    assert json.loads((folder / "generator" / "config.json").read_text())["architectures"] == ["AmosForMaskedLM"]


@pytest.mark.parametrize("pooling, mode", [("mean", "pooling_mode_mean_tokens"), ("cls", "pooling_mode_cls_token")])
def test_pooling_is_described_for_sentence_transformers(checkpoint, export, pooling, mode):
    folder = export(checkpoint("bert_mlm", **MPNET)[0], "--pooling", pooling)[-1]
    modules = json.loads((folder / "modules.json").read_text())
    types = [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling")]
    assert [(module["path"], module["type"]) for module in modules] == list(zip(["", "1_Pooling"], types))
    config = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert config.pop("word_embedding_dimension") == 16
    assert [name for name, on in config.items() if on] == [mode]
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 150


def refused(tmp_path, export, run, *options, out="exported"):
    """The message, after which nothing new is there."""
    before = sorted(tmp_path.rglob("*"))
    status, printed, err, _ = export(run, *options, out=out)
    assert sorted(tmp_path.rglob("*")) == before
    assert printed == "" and err.startswith("amos-fairseq export: error: ") and err.count("\n") == 1
    return status, err.removeprefix("amos-fairseq export: error: ").rstrip()


def test_mistakes_are_told_in_one_line(checkpoint, export, tmp_path):
    run, _ = checkpoint("coco_lm", **MPNET)

    def told(*options, run=run, out="exported"):
        status, message = refused(tmp_path, export, run, *options, out=out)
        assert status == 64
        return message

    (tmp_path / "there").mkdir()
    assert told(out="there") == "/there exists: name another folder"
    (tmp_path / "link").symlink_to("nowhere")
    assert told(out="link") == "/link exists: name another folder"
    assert told(out="no/exported") == "/no is no folder to write exported into"
    fitting = "MPNetModel, AmosModel, MPNetForMaskedLM, AmosForMaskedLM"
    assert told("--classes", "BertModel") == f"class BertModel does not fit this checkpoint: choose {fitting}"
    wanted = "name one class for the encoder"
    assert told("--classes", "MPNetForMaskedLM") == f"{wanted}, not 0: of AmosModel, MPNetModel"
    assert told("--classes", "MPNetModel", "AmosModel") == f"{wanted}, not 2: of AmosModel, MPNetModel"
    assert told(run=tmp_path / "there") == "/there holds no checkpoint"


def test_without_transformers_the_command_that_installs_it_is_told(checkpoint, export, tmp_path, monkeypatch):
    run, _ = checkpoint("bert_mlm", **MPNET)
    monkeypatch.setattr(huggingface, "find_spec", lambda name: None)
    expected = "Hugging Face's transformers is not installed: pip install 'transformers>=4.48'"
    assert refused(tmp_path, export, run) == (64, expected)


@pytest.mark.parametrize("stage", ["write_model", "compare", "sync"])
def test_a_write_that_breaks_leaves_nothing(checkpoint, export, tmp_path, monkeypatch, stage):
    run, _ = checkpoint("amos_rtd", **MPNET)
    module = files if stage == "sync" else huggingface
    right, calls = getattr(module, stage), []

    def breaks(*arguments):
        calls.append(arguments)
        if stage == "sync" or len(calls) == 2:
            raise OSError(28, "No space left on device", "exported/file")
        return right(*arguments)

    monkeypatch.setattr(module, stage, breaks)
    told = "/exported: the disk of  is full: make room there, then give the same command again"
    assert refused(tmp_path, export, run) == (74, told)


def test_answers_that_are_no_numbers_are_refused(checkpoint, save_checkpoint, tokenizer, export, tmp_path):
    run, method = checkpoint("bert_mlm", **MPNET)
    for parameter in method.encoder.layers.parameters():
        parameter.data.fill_(1e38)  # a product of them is infinite in float32, and none in float64
    save_checkpoint(run / "checkpoint_1_8", "bert_mlm", method, tokenizer)
    told = "MPNetForMaskedLM answers nan or infinite numbers: it has diverged, name an earlier checkpoint"
    assert refused(tmp_path, export, run) == (64, told)


def test_a_disk_that_takes_no_more_is_told_in_one_line_whichever_file_it_hits(checkpoint, export, tmp_path):
    """A limit of the size of files stands for the disk. Files are written in this order, each larger than the last."""
    run, _ = checkpoint("bert_mlm", **MPNET)
    folder = export(run, out="whole")[-1]
    sizes = [(folder / name).stat().st_size for name in ("config.json", "model.safetensors", "tokenizer.json")]
    assert sizes == sorted(sizes)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
        try:
            _, message = refused(tmp_path, export, run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert message == "/exported: File too large"


def test_a_place_that_cannot_be_written_is_told_by_the_name_that_was_given(checkpoint, export, tmp_path, monkeypatch):
    def mkdir(path, *options, **more):
        if "exported" in path.name:
            raise PermissionError(13, "Permission denied", str(path))
        make(path, *options, **more)

    make = Path.mkdir
    run, _ = checkpoint("bert_mlm", **MPNET)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert refused(tmp_path, export, run) == (64, "/exported: Permission denied")


def test_data_of_another_vocabulary_are_refused(checkpoint, export, tmp_path):
    run, _ = checkpoint("bert_mlm", **MPNET)
    words = "one two three four five six seven eight".split()
    texts = (" ".join(words[(3 * row + column) % 8] for column in range(6)) + "," for row in range(80))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    (tmp_path / "data" / "sentencepiece.model").write_bytes(train_vocabulary(texts, 56, uncased=True))
    status, message = refused(tmp_path, export, run, "--data", str(tmp_path / "data"))
    assert status == 64 and message.startswith("/data has another vocabulary than /run/checkpoint_1_7: name the one of")


def test_a_shard_names_its_prepared_folder(checkpoint, export, tokenizer, tmp_path):
    run, _ = checkpoint("bert_mlm", **MPNET)
    (tmp_path / "a.txt").write_text("alpha beta gamma delta\n\n" * 60)
    (tmp_path / "own.model").write_bytes(tokenizer.model)
    options = dict(vocabulary=str(tmp_path / "own.model"), tokens_per_sample=8, shards=2, workers=1)
    manifest = prepare([str(tmp_path / "a.txt")], str(tmp_path / "data"), **options)
    for number, data in enumerate(("data", "data/data1", f"data/data1:{tmp_path}/data/data0")):
        status, _, err, folder = export(run, "--data", f"{tmp_path}/{data}", out=f"out{number}")
        assert status == 0, err
        assert f"| train | {manifest.splits['train'].documents} |" in (folder / "README.md").read_text()


def test_a_vocabulary_without_an_equal_is_exported_without_a_tokenizer(make_method, save_checkpoint, export, tmp_path):
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["alpha beta gamma delta"] * 9), model_writer=model, vocab_size=24, model_type="bpe",
        user_defined_symbols=["<name>"], hard_vocab_limit=False, minloglevel=2,
    )
    tokenizer = Tokenizer(model.getvalue())
    method = make_method("bert_mlm", vocabulary=Vocabulary.of(tokenizer), max_positions=150, **MPNET).eval()
    save_checkpoint(tmp_path / "run" / "checkpoint_1_7", "bert_mlm", method, tokenizer)
    _, message = refused(tmp_path, export, tmp_path / "run")
    assert message == (
        "the SentencePiece model has user-defined or unused pieces, which Hugging Face's tokenizers have no equal for: "
        "add --no-tokenizer"
    )
    status, _, err, folder = export(tmp_path / "run", "--no-tokenizer")
    assert status == 0, err
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "sentencepiece.model", "README.md",
    }
    assert "AutoTokenizer" not in (folder / "README.md").read_text()
    assert from_pretrained(folder).tokenizer.encode("alpha <name>") == tokenizer.encode("alpha <name>")


def test_no_copy_of_the_modelling_file_is_left_in_the_users_cache(checkpoint, export, transformers):
    from transformers import dynamic_module_utils

    cache, path = Path(dynamic_module_utils.HF_MODULES_CACHE), list(sys.path)
    before = sorted(cache.rglob("*"))
    run, _ = checkpoint("bert_mlm", rel_pos_buckets=64, rel_pos_max_distance=128)
    assert export(run)[0] == 0
    assert sorted(cache.rglob("*")) == before and sys.path == path


def test_folders_of_others_are_left_alone(checkpoint, export, tmp_path):
    run, _ = checkpoint("bert_mlm", **MPNET)
    (tmp_path / "exported.tmp").mkdir()
    (tmp_path / "exported.tmp" / "mine").write_text("kept")
    status, *_, folder = export(run)
    assert status == 0 and (tmp_path / "exported.tmp" / "mine").read_text() == "kept"
    assert folder.stat().st_mode & 0o777 == 0o755 and not list(tmp_path.glob(".exported*"))


def test_a_mean_of_checkpoints_is_exported(checkpoint, export, tmp_path):
    path = checkpoint("bert_mlm", **MPNET)[0] / "checkpoint_1_7"
    shutil.copytree(path, tmp_path / "other")
    average([path, tmp_path / "other"], tmp_path / "mean")
    status, out, _, folder = export(tmp_path / "mean")
    assert status == 0 and "MPNet" in out and (folder / "model.safetensors").exists()
