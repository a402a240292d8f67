"""A checkpoint gives back exactly what was saved, says so when it cannot, and holds nothing that could run."""

import json
import os
import random
import shutil
from argparse import Namespace
from collections import OrderedDict

import numpy
import pytest
import safetensors.torch
import torch

from amos_fairseq import checkpoints
from amos_fairseq.checkpoints import storage
from tests.reliability.states import assert_equal, names, save, state, update_of

VALUES = {
    "words": "a \u2603", "number": 0.1, "large": 2**70, "nothing": None, "truth": True, "infinite": [float("-inf")],
    "pair": (1, ("two", [3.0])), "by number": {0: {"step": 7}, (1, 2): "tuple"}, "$odd": {"$tensor": "no tensor"},
    "options": Namespace(depths=[4, 6, 8]), "empty": [{}, [], ()],
}
TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3), "columns": torch.arange(6.0).reshape(2, 3).T, "scalar": torch.tensor(2),
    "half": torch.tensor([1.5], dtype=torch.float16), "bits": torch.tensor([True, False]), "none": torch.ones(0, 3),
    "double": torch.tensor([1 / 3], dtype=torch.float64), "bytes": torch.arange(3, dtype=torch.uint8),
}


def test_plain_values_and_tensors_come_back_as_they_were(tmp_path):
    storage.write(tmp_path / "one", {"model": TENSORS, "plain": VALUES}, {"number": 3})
    found = checkpoints.read(tmp_path / "one")
    assert_equal(found, {"model": TENSORS, "plain": VALUES})
    assert list(found["plain"]) == list(VALUES)
    assert storage.read_manifest(tmp_path / "one")["number"] == 3


def test_what_is_nearly_plain_becomes_plain(tmp_path):
    values = {"a": numpy.float64(1.5), "b": numpy.int64(3), "c": OrderedDict(x=1), "d": float("nan")}
    storage.write(tmp_path / "one", values, {})
    found = checkpoints.read(tmp_path / "one")
    assert found["a"] == 1.5 and found["b"] == 3 and found["c"] == {"x": 1} and found["d"] != found["d"]


def test_the_same_tensor_in_two_places_is_stored_once_and_equal_ones_twice(tmp_path):
    tied, equal = torch.ones(1000), torch.ones(1000)
    storage.write(tmp_path / "one", {"model": {"a": tied, "b": tied, "c": equal, "part": tied[:500]}}, {})
    assert safetensors.torch.load_file(tmp_path / "one" / storage.MODEL).keys() == {"a", "c", "part"}
    found = checkpoints.read(tmp_path / "one")["model"]
    assert found["a"] is found["b"] and found["part"].shape == (500,)


def test_the_safetensors_library_reads_the_same_tensors():
    content = b"".join(storage.safetensors_bytes(TENSORS))
    assert_equal(dict(sorted(safetensors.torch.load(content).items())), dict(sorted(TENSORS.items())))


def test_one_tensor_is_written_as_the_format_says():
    header = b'{"__metadata__": {"format": "pt"}, "x": {"dtype": "I16", "shape": [2], "data_offsets": [0, 4]}}'
    header += b" " * (-len(header) % 8)
    content = b"".join(storage.safetensors_bytes({"x": torch.tensor([1, -2], dtype=torch.int16)}))
    assert content == len(header).to_bytes(8, "little") + header + b"\x01\x00\xfe\xff"


def test_parameters_are_in_a_file_of_their_own_under_their_own_names(tmp_path):
    storage.write(tmp_path / "one", state(3), {})
    assert safetensors.torch.load_file(tmp_path / "one" / storage.MODEL).keys() == {"table", "bias"}


@pytest.mark.parametrize(
    "value, told", [({1, 2}, "set, found at cfg.0.x"), (torch.ones(1, dtype=torch.complex64), "torch.complex64, found")]
)
def test_what_is_no_data_is_refused_by_its_place_and_leaves_nothing(tmp_path, value, told):
    with pytest.raises(TypeError, match=f"a checkpoint cannot hold {told}"):
        storage.write(tmp_path / "one", {"cfg": [{"x": value}]}, {})
    assert names(tmp_path) == []


def test_all_is_on_the_disk_before_the_folder_has_its_name_and_the_manifest_is_the_last_file(tmp_path, monkeypatch):
    events, rename = [], os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append(f"rename {new}"), rename(old, new)))
    path, partial = tmp_path / "one", tmp_path / "one.tmp"
    storage.write(path, state(1), {})
    files = [str(partial / name) for name in (*storage.FILES, storage.MANIFEST)]
    assert events == [*files, str(partial), f"rename {path}", str(tmp_path)]


# Damage

def damages():
    """{what: function that does it to a checkpoint's folder}: 62 kinds."""
    draw = random.Random(5)

    def cut(share):
        def damage(folder):
            path = folder / storage.FILES[int(share * 10) % 3]
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return damage

    def flip(place, bit):
        def damage(folder):
            files = [folder / name for name in (*storage.FILES, storage.MANIFEST)]
            at = int(place * sum(path.stat().st_size for path in files))
            while at >= files[0].stat().st_size:
                at -= files.pop(0).stat().st_size
            content = bytearray(files[0].read_bytes())
            content[at] ^= 1 << bit
            files[0].write_bytes(content)
        return damage

    def swap(folder):
        other = folder.with_name("other")
        storage.write(other, state(77), {})
        shutil.move(other / storage.TRAINER, folder / storage.TRAINER)
        shutil.rmtree(other)

    return {
        **{f"cut at {share:.2f}": cut(share) for share in (0.0, 0.1, 0.2, 0.35, 0.5, 0.6, 0.75, 0.85, 0.95, 0.999)},
        **{f"bit {number}": flip(draw.random(), draw.randrange(8)) for number in range(50)},
        "no manifest": lambda folder: (folder / storage.MANIFEST).unlink(),
        "file of another run": swap,
    }


DAMAGES = damages()


def test_there_are_62_damages():
    assert len(DAMAGES) == 62


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save(folder, 1), save(folder, 2)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_named_and_the_checkpoint_before_is_taken(run, tmp_path, caplog, damage):
    shutil.copytree(run, tmp_path, symlinks=True, dirs_exist_ok=True)
    earlier, newest = tmp_path / "checkpoint_1_1", tmp_path / "checkpoint_1_2"
    DAMAGES[damage](newest)
    with pytest.raises(checkpoints.Damaged):
        checkpoints.read(newest)
    assert checkpoints.newest_valid(tmp_path) == earlier and update_of(earlier) == 1
    assert "not used: " in caplog.text and str(newest) in caplog.text


def test_nothing_valid_is_told_in_one_line(tmp_path):
    (save(tmp_path, 1) / storage.MODEL).unlink()
    (save(tmp_path, 2) / storage.STATE).write_bytes(b"")
    with pytest.raises(checkpoints.Damaged) as error:
        checkpoints.newest_valid(tmp_path)
    assert str(error.value).startswith(f"none of the 2 checkpoints in {tmp_path} is valid; the last tried: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "document",
    ['{"model": {"$tensor": "gone"}}', '{"$items": 3}', '{"$namespace": [1]}', '{"$float": "x"}', "{", "[" * 99999],
)
def test_a_state_with_good_hashes_that_training_did_not_write_is_refused(tmp_path, document):
    folder = tmp_path / "made"
    storage.write(folder, {}, {})
    (folder / storage.STATE).unlink()
    record = storage.write_durably(folder / storage.STATE, [document.encode()])
    manifest = storage.read_manifest(folder)
    manifest["files"][storage.STATE] = record
    signed = {"checkpoint": manifest, "sha256": storage.digest_of(manifest)}
    (folder / storage.MANIFEST).write_text(json.dumps(signed))
    with pytest.raises(checkpoints.Damaged, match=str(folder)):
        checkpoints.read(folder)
