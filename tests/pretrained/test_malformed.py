"""Files that no one of ours wrote: each wrong value and each special file ends in one line that names it, or loads."""

import copy
import json
import os
import signal
import socket
from pathlib import Path

import pytest
import safetensors.torch
import torch

import amos_fairseq
from amos_fairseq import json_files
from amos_fairseq.checkpoints import storage
from amos_fairseq.data.manifest import read_manifest
from amos_fairseq.data.vocabulary_files import vocabulary_file
from amos_fairseq.files import file_record, open_own
from amos_fairseq.finetune import results
from amos_fairseq.finetune.labelled import read_problem
from amos_fairseq.finetune.presets import Setting
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained import layouts
from amos_fairseq.run_log import parse_line

INFINITE, NAN = float("inf"), float("nan")
WRONG = (None, True, -1, 10**7, 10**400, 0.5, INFINITE, NAN, "x", [], [[1]], {}, {"a": None}, {"$tensor": 1})


@pytest.fixture(autouse=True)
def no_waiting():
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture
def some(request):
    """some(number): of WRONG, without --soak every seventh, others at the next place."""
    return lambda number: WRONG if request.config.getoption("--soak") else WRONG[number % 7 :: 7]


@pytest.fixture
def method(make_method, tokenizer):
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    return make_method("amos_rtd", vocabulary=vocabulary, rel_pos_buckets=32, rel_pos_max_distance=128).eval()


@pytest.fixture
def run(method, save_checkpoint, tokenizer, tmp_path):
    save_checkpoint(tmp_path / "checkpoint_1_2", "amos_rtd", method, tokenizer)
    return tmp_path / "checkpoint_1_2"


@pytest.fixture
def exported(method, tokenizer, tmp_path):
    part = layouts.Part("encoder", method.encoder)
    layout = layouts.MPNET
    config = {**layouts.config_of(part, layout), "amos_fairseq": {"method": "amos_rtd", "version": "0"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(layouts.tensors_of(part, layout), tmp_path / "model.safetensors")
    Path(vocabulary_file(tmp_path)).write_bytes(tokenizer.model)
    return tmp_path


def sign(folder, document):
    """Let the manifest vouch for `document` as the state, and say so of itself."""
    signed = json.loads((folder / storage.MANIFEST).read_text())["checkpoint"]
    (folder / storage.STATE).write_text(json.dumps(document))
    signed["files"][storage.STATE] = file_record(folder / storage.STATE)
    text = json.dumps({"checkpoint": signed, "sha256": storage.digest_of(signed)})
    (folder / storage.MANIFEST).write_text(text)


def places(value, path=()):
    """Of every value in nested objects, the outer ones included; of a list the first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, part in items:
        if not str(key).startswith("$"):
            yield from places(part, (*path, key))


def changed(document, path, value):
    if not path:
        return value
    document = copy.deepcopy(document)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return document


def refused_or_read(read, source, what):
    """Whether it was refused: in one line that names the file, or the folder where files do not fit together."""
    try:
        read()
    except ValueError as error:
        assert "\n" not in str(error) and str(source) in str(error) and len(str(error)) < 1000, (what, error)
        return True
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} {error}") from error
    return False


@pytest.mark.parametrize("part", ["cfg.model", "cfg", "task_state"])
def test_each_wrong_value_in_a_checkpoint_is_told_or_read(run, some, part):
    document = json.loads((run / storage.STATE).read_text())
    found = [place for place in places(document) if ".".join(map(str, place)).startswith(part) or not place]
    if part == "cfg":
        found = [place for place in found if place[1:2] != ("model",) or len(place) < 3]
    count = 0
    for number, place in enumerate(found):
        for value in some(number):
            sign(run, changed(document, place, value))
            count += refused_or_read(lambda: amos_fairseq.from_pretrained(run), run.parent, (place, value))
    assert count > len(found) / 4


def test_each_wrong_value_in_an_exported_folder_is_told_or_read(exported, some):
    path = exported / "config.json"
    config = json.loads(path.read_text())
    assert amos_fairseq.from_pretrained(exported).name == "amos_rtd"
    count = 0
    for number, place in enumerate(places(config)):
        for value in some(number):
            path.write_text(json.dumps(changed(config, place, value)))
            count += refused_or_read(lambda: amos_fairseq.from_pretrained(exported), exported, (place, value))
    assert count > 20
    for text, told in (("[" * 10**5, "is no JSON: it is nested too deeply"), ("{", "config.json is no JSON"),
                       ('{"hidden_size": "x"}', "config.json: hidden_size is \"x\", not a whole number")):
        path.write_text(text)
        with pytest.raises(ValueError, match=told):
            amos_fairseq.from_pretrained(exported)


def test_each_wrong_value_in_the_files_of_fine_tuning_is_told_or_read(tmp_path, some):
    result = results.Result("sst2", "classification", ["accuracy"], Setting(1e-4, 3, 32, 0.1), 1,
                            {"valid": {"accuracy": 0.9}}, 10, 1.5)
    results.write(tmp_path, result)
    assert results.read(tmp_path) == result
    problem = dict(name="a", kind="b", metrics=["c"], sentencepiece_sha256="d", labels=["e"], label_tokens=[1])
    (tmp_path / "problem.json").write_text(json.dumps(problem))
    for name, read in ((results.RESULT, results.read), ("problem.json", read_problem)):
        path = tmp_path / name
        document = json.loads(path.read_text())
        for number, place in enumerate(places(document)):
            for value in some(number):
                path.write_text(json.dumps(changed(document, place, value)))
                refused_or_read(lambda: read(tmp_path), path, (place, value))
        path.write_text(json.dumps(changed(document, ("kind",), 3)))
        with pytest.raises(ValueError, match=f"{name}: kind is 3, not a text"):
            read(tmp_path)


def test_a_history_skips_lines_that_are_none():
    for value in (*WRONG, 2**2000):
        parse_line(json.dumps({"kind": "train", "num_updates": value, "loss": value}))
    assert parse_line('{"num_updates": Infinity}') is None
    assert parse_line("{" * 10**5) is None


# Special files

def be_fifo(path):
    os.mkfifo(path)


def be_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def be_device(path):
    os.symlink("/dev/zero", path)


SPECIAL = {"fifo": be_fifo, "socket": be_socket, "device": be_device, "folder": os.mkdir}


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_file_that_is_none_is_refused_before_it_is_opened(run, exported, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    cases = [(run / name, lambda: storage.read(run)) for name in (*storage.FILES, storage.MANIFEST)]
    cases += [(exported / "model.safetensors", lambda: amos_fairseq.from_pretrained(exported))]
    cases += [(tmp_path / "result.json", lambda: results.read(tmp_path))]
    cases += [(tmp_path / "manifest.json", lambda: read_manifest(str(tmp_path)))]
    for path, read in cases:
        kept = path.with_name("kept")
        if path.exists():
            os.rename(path, kept)
        SPECIAL[kind](path)
        with pytest.raises(ValueError) as error:
            read()
        assert str(path.parent) in str(error.value) and "\n" not in str(error.value)
        path.rmdir() if kind == "folder" else path.unlink()
        if kept.exists():
            os.rename(kept, path)


def test_a_file_larger_than_its_record_is_refused_before_it_is_read(run, monkeypatch):
    os.truncate(run / storage.MODEL, 1 << 40)  # sparse
    with pytest.raises(ValueError, match="model.safetensors cannot be read: it has 1,099,511,627,776 bytes"):
        storage.verify(run)
    (run / storage.MANIFEST).unlink()
    (run / storage.MANIFEST).touch()
    os.truncate(run / storage.MANIFEST, 1 << 40)
    with pytest.raises(ValueError, match="manifest.json cannot be read: it has 1,099,511,627,776 bytes, more than"):
        storage.verify(run)


@pytest.mark.parametrize("kind", [*SPECIAL, "link"])
def test_a_lock_is_a_file_of_its_own(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").write_text("mine")
    if kind == "link":
        os.symlink("thesis", tmp_path / "run.lock")
    else:
        SPECIAL[kind](tmp_path / "run.lock")
    with pytest.raises(OSError):
        open_own(tmp_path / "run.lock")
    assert (tmp_path / "thesis").read_text() == "mine"


# Forms

def test_forms_say_what_is_wrong_and_where():
    for value, told in (
        ({"format": 1}, "s: files is absent"), ({"format": 1.0, "files": {}}, "s: format is 1.0, not a whole number"),
        ({"format": 1, "files": {"a": {"bytes": True, "sha256": ""}}}, "s: files.a.bytes is true, not a whole number"),
        ({"format": 1, "files": {}, "purposes": ["a", None]}, r"s: purposes\[1\] is null, not a text"),
        ([], "s: all of it is a list, not an object"),
    ):
        with pytest.raises(ValueError, match=f"^{told}$"):
            json_files.formed(value, storage.Manifest, "s")
    assert json_files.formed({"format": 1, "files": {}, "more": 2}, storage.Manifest, "s")["more"] == 2


def test_networks_are_compared_before_they_take_memory(run):
    document = json.loads((run / storage.STATE).read_text())
    for option, value, told in (("encoder_layers", 10**7, "describes 10000000 layers, but holds"),
                                ("encoder_ffn_embed_dim", 10**9, "does not hold the network that it describes: ")):
        sign(run, changed(document, ("cfg", "model", option), value))
        with pytest.raises(ValueError, match=told):
            amos_fairseq.from_pretrained(run)


# Numbers

def test_parameters_that_are_no_numbers_are_named(method, save_checkpoint, tokenizer, tmp_path):
    with torch.no_grad():
        method.encoder.layers[0].fc1.bias[3] = float("nan")
    save_checkpoint(tmp_path / "checkpoint_1_3", "amos_rtd", method, tokenizer)
    with pytest.raises(ValueError, match="method.*|encoder.layers.0.fc1.bias holds nan or infinite numbers"):
        amos_fairseq.from_pretrained(tmp_path)


def test_answers_that_are_no_numbers_are_named(run):
    model = amos_fairseq.from_pretrained(run)
    with torch.no_grad():
        model.method.encoder.embeddings.layer_norm.weight.fill_(3e38)
        model.method.mlm_head.bias.fill_(float("nan"))
    for answer in (lambda: model.features(["a"]), lambda: model.detect("a b"), lambda: model.fill_mask("a <mask>"),
                   lambda: model.score(["a b"])):
        with pytest.raises(ValueError, match=f"^{Path(run)} answers nan or infinite numbers"):
            answer()
