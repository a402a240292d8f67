"""Prepared data that are not what was written end a run before its first update: one line, status 65, little memory.

Here `load_manifest_for` refuses them, in this process; the programs are run on some of them, on all with --soak.
"""

import json
import os
import random
import shutil
import struct

import numpy as np
import pytest

from amos_fairseq.data import manifest as manifests
from amos_fairseq.data.manifest import load_manifest_for, read_manifest, verify_tokens
from amos_fairseq.data.preparation import prepare
from amos_fairseq.files import file_record
from amos_fairseq.user_errors import Damaged

NAME = "bert_mlm"
TRAIN = "fairseq_cli.train:cli_main"


def edited(change):
    """A file's bytes, changed."""
    return lambda folder, name: (folder / name).write_bytes(change((folder / name).read_bytes()))


def truncated(share):
    return edited(lambda data: data[: int(share * len(data))])


def flipped(seed):
    def flip(data):
        place = random.Random(seed).randrange(8 * len(data))
        return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1:]
    return edited(flip)


def written(at, format, *values):
    """Numbers over an index's bytes: its header has the magic, 9 bytes, version Q, type B, count Q; then sizes."""
    return edited(lambda data: data[:at] + struct.pack(format, *values) + data[at + struct.calcsize(format):])


def signed(change):
    """The change, with a manifest that agrees with it, as only intent would have it."""
    def sign(folder, name):
        change(folder, name)
        document = json.loads((folder / "manifest.json").read_text())
        for split in document["splits"].values():
            for shard in split["shards"]:
                if name in shard["files"]:
                    shard["files"][name] = file_record(folder / name)
        if name.endswith("dict.txt"):
            document["dictionary_sha256"] = file_record(folder / name)["sha256"]
            shutil.copy(folder / name, folder / "data1" / "dict.txt")
        (folder / "manifest.json").write_text(json.dumps(document))
    return sign


def swapped(folder, name):
    other = name.replace("data0", "data1")
    os.rename(folder / name, folder / "x")
    os.rename(folder / other, folder / name)
    os.rename(folder / "x", folder / other)


def lines(change):
    return edited(lambda data: b"".join(change(data.splitlines(keepends=True))))


def manifest(change):
    def apply(folder, name):
        document = json.loads((folder / name).read_text())
        change(document, document["splits"]["train"]["shards"][0])
        (folder / name).write_text(json.dumps(document))
    return apply


def absent(folder, name):
    (folder / name).unlink()


def a_folder(folder, name):
    absent(folder, name)
    (folder / name).mkdir()


def a_pipe(folder, name):
    absent(folder, name)
    os.mkfifo(folder / name)


BIN, IDX, DICT, MANIFEST = "data0/train.bin", "data0/train.idx", "data0/dict.txt", "manifest.json"
VOCABULARY = "sentencepiece.model"
COUNT, SIZES = 18, 26  # where an index has them
DAMAGE = {  # what: (file, change)
    **{f"{name[-3:]} truncated to {share}": (name, truncated(share)) for name in (BIN, IDX) for share in (0, .5, .99)},
    **{f"{name[-3:]} flipped {seed}": (name, flipped(seed)) for name in (BIN, IDX) for seed in range(5)},
    "bin longer": (BIN, edited(lambda data: data + b"\0")),
    "bin absent": (BIN, absent),
    "bin a folder": (BIN, a_folder),
    "idx a pipe": (IDX, a_pipe),
    "bins swapped": (BIN, swapped),
    "idxs swapped": (IDX, swapped),
    "signed: other magic": (IDX, signed(written(0, "<9s", b"TNTIDX"))),
    "signed: version 2": (IDX, signed(written(9, "<Q", 2))),
    "signed: another type": (IDX, signed(written(17, "<B", 4))),
    "signed: unknown type": (IDX, signed(written(17, "<B", 99))),
    "signed: 10^12 blocks": (IDX, signed(written(COUNT, "<Q", 10**12))),
    "signed: one block too many": (IDX, signed(written(COUNT, "<Q", 1000))),
    "signed: a block of 10^9": (IDX, signed(written(SIZES, "<i", 10**9))),
    "signed: a negative size": (IDX, signed(written(SIZES, "<i", -3))),
    "signed: an empty block": (IDX, signed(written(SIZES, "<i", 0))),
    "signed: a negative offset": (IDX, signed(edited(lambda data: data[:-8] + struct.pack("<q", -8)))),
    "signed: an offset beyond the end": (IDX, signed(edited(lambda data: data[:-8] + struct.pack("<q", 10**15)))),
    "signed: bin truncated": (BIN, signed(truncated(.5))),
    "dict truncated": (DICT, truncated(.5)),
    "dict permuted": (DICT, lines(lambda data: data[::-1])),
    "dict with a duplicate": (DICT, lines(lambda data: [*data[:-1], data[0]])),
    "dict with CRLF": (DICT, edited(lambda data: data.replace(b"\n", b"\r\n"))),
    "dict with NBSP": (DICT, edited(lambda data: data.replace(b" ", "\u00a0".encode()))),
    "dict not UTF-8": (DICT, edited(lambda data: b"\xff\xfe" + data)),
    "dict empty": (DICT, truncated(0)),
    "dict absent": (DICT, absent),
    "signed: dict not UTF-8": (DICT, signed(edited(lambda data: b"\xff\xfe" + data))),
    "signed: dict with a duplicate": (DICT, signed(lines(lambda data: [*data[:-1], data[0]]))),
    "signed: dict without counts": (DICT, signed(edited(lambda data: data.replace(b" ", b"")))),
    "signed: dict with <mask>": (DICT, signed(lines(lambda data: [b"<mask> 1\n", *data[1:]]))),
    "signed: dict of fewer words": (DICT, signed(lines(lambda data: data[8:]))),
    "signed: dict empty": (DICT, signed(truncated(0))),
    "vocabulary flipped": (VOCABULARY, flipped(0)),
    "vocabulary empty": (VOCABULARY, truncated(0)),
    "vocabulary absent": (VOCABULARY, absent),
    "vocabulary a pipe": (VOCABULARY, a_pipe),
    "manifest truncated": (MANIFEST, truncated(.9)),
    "manifest empty": (MANIFEST, truncated(0)),
    "manifest of nested lists": (MANIFEST, edited(lambda data: b"[" * 10**5)),
    "manifest not UTF-8": (MANIFEST, edited(lambda data: b"\xff" + data)),
    "manifest a list": (MANIFEST, edited(lambda data: b"[]")),
    "manifest of a later version": (MANIFEST, manifest(lambda document, shard: document.update(version=2))),
    "manifest without splits": (MANIFEST, manifest(lambda document, shard: document.pop("splits"))),
    "manifest with more": (MANIFEST, manifest(lambda document, shard: document.update(x=1))),
    "manifest with a word for a number": (MANIFEST, manifest(lambda document, shard: shard.update(tokens="x"))),
    "manifest with fewer blocks": (MANIFEST, manifest(lambda document, shard: shard.update(blocks=1))),
    "manifest with negative numbers": (MANIFEST, manifest(lambda document, shard: shard.update(tokens=-1))),
    "manifest with shorter blocks": (MANIFEST, manifest(lambda document, shard: document.update(tokens_per_sample=9))),
    "manifest without training": (MANIFEST, manifest(lambda d, shard: d["splits"]["train"].update(shards=[]))),
    "manifest with a larger vocabulary": (MANIFEST, manifest(lambda d, shard: d.update(vocabulary_size=10**6))),
}
CONTRADICTED = {"manifest with shorter blocks": IDX, "signed: bin truncated": MANIFEST}  # by the changed file
BY_TASK = {  # what fairseq's dictionary has to be built for, and what only checkpoints need
    "signed: dict not UTF-8", "signed: dict with a duplicate", "signed: dict without counts",
    "signed: dict with <mask>", "signed: dict of fewer words", "signed: dict empty",
    "vocabulary flipped", "vocabulary empty", "vocabulary absent", "vocabulary a pipe",
}
RUN = {
    "bin flipped 0", "idx truncated to 0.5", "signed: 10^12 blocks", "signed: dict with <mask>", "manifest a list",
    "vocabulary flipped", "vocabulary absent",
}


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "data"
    options = dict(vocab_size=300, tokens_per_sample=32, documents_whole=True, valid_fraction=0.2, shards=2)
    prepare([str(text)], str(out), workers=1, **options)
    return out


@pytest.fixture
def data(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "data")


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if damage not in BY_TASK])
def test_damaged_data_are_refused_and_the_file_is_named(data, damage):
    name, change = DAMAGE[damage]
    change(data, name)
    with pytest.raises(Damaged) as refusal:
        load_manifest_for(str(data))
    message = str(refusal.value)
    assert "\n" not in message and message.endswith("run amos-fairseq prepare again")
    assert str(data / CONTRADICTED.get(damage, name)) in message


def test_any_flipped_bit_of_small_data_or_of_an_index_is_found(data):
    """120 bits, one after the other."""
    draw = random.Random(1)
    for seed in range(120):
        path = data / draw.choice(["data0/train.bin", "data1/train.idx", "data0/valid.bin", "data1/dict.txt"])
        good = path.read_bytes()
        flipped(seed)(path.parent, path.name)
        with pytest.raises(Damaged, match=path.name):
            load_manifest_for(str(data))
        path.write_bytes(good)
    load_manifest_for(str(data))


def test_data_that_are_not_hashed_at_the_start_are_hashed_when_asked(data, monkeypatch):
    """Of two processes, each finds what is in its half of the files."""
    flipped(0)(data, "data0/valid.bin")
    monkeypatch.setattr(manifests, "HASHED_BYTES", os.path.getsize(data / BIN))
    manifest, paths = load_manifest_for(str(data))
    found = []
    for process in range(2):
        try:
            verify_tokens(manifest, paths, process, 2)
        except Damaged as damaged:
            found.append((process, str(damaged)))
    files = [path for path, _ in manifests.recorded_files(manifest, paths, ".bin")]
    place = files.index(str(data / "data0/valid.bin"))
    message = f"{data}/data0/valid.bin differs from what was written: run amos-fairseq prepare again"
    assert len(files) == 3 and found == [(place % 2, message)]


def test_a_folder_beside_the_data_is_no_part_of_them(data):
    shutil.copytree(data / "data1", data / "data7")
    with pytest.raises(ValueError, match="data7 is no part of what .* holds: name .* or its folders data0, .."):
        load_manifest_for(f"{data}/data0:{data}/data7")


def test_an_index_of_many_blocks_is_read_in_parts(data, monkeypatch):
    """The same with 1 and 1000 blocks at a time; a wrong offset is found in either."""
    name, change = DAMAGE["signed: an offset beyond the end"]
    for blocks in 1, 3, 1000:
        monkeypatch.setattr(manifests, "CHECKED_BLOCKS", blocks)
        load_manifest_for(str(data))
    change(data, name)
    for blocks in 1, 3, 1000:
        monkeypatch.setattr(manifests, "CHECKED_BLOCKS", blocks)
        with pytest.raises(Damaged, match="train.idx is no index of blocks of its .bin"):
            load_manifest_for(str(data))


# Through the program

@pytest.fixture(scope="module")
def outcomes(request, launch, arguments, prepared, tmp_path_factory):
    """What became of a training on each kind of damaged data."""
    chosen = DAMAGE if request.config.getoption("--soak") else RUN
    commands, folder = [], tmp_path_factory.mktemp("runs")
    for number, damage in enumerate(chosen):
        data = shutil.copytree(prepared, folder / f"data{number}")
        name, change = DAMAGE[damage]
        change(data, name)
        commands.append([TRAIN, arguments(NAME, data=data, save_dir="run")])
    launch("tests.reliability.many:main", [json.dumps(commands), folder])
    return dict(zip(chosen, json.loads((folder / "outcomes.json").read_text())))


@pytest.mark.parametrize(
    "damage", [pytest.param(damage, marks=() if damage in RUN else pytest.mark.soak) for damage in DAMAGE]
)
def test_a_run_on_damaged_data_ends_with_one_line_and_status_65(outcomes, damage):
    status, out, err, megabytes, _ = outcomes[damage]
    line = err.splitlines()[-1]
    assert line.startswith("amos_fairseq: error: ") and line.endswith("run amos-fairseq prepare again")
    assert not damage.startswith("vocabulary ") or f"/{VOCABULARY} " in line
    assert err.count("error: ") == 1 and "Traceback" not in out + err
    assert status == os.EX_DATAERR and megabytes < 1000
    assert "num_updates" not in out


def test_the_vocabulary_is_saved_after_the_data_have_gone(data):
    pytest.importorskip("fairseq")
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    import amos_fairseq.tasks  # noqa: F401

    content = (data / VOCABULARY).read_bytes()
    limits = dict(max_tokens=None, max_tokens_valid=None)
    config = TASK_DATACLASS_REGISTRY[NAME](data=str(data), tokens_per_sample=32, **limits)
    task = TASK_REGISTRY[NAME](config)
    shutil.rmtree(data)
    assert task.state_dict()["sentencepiece_model"].numpy().tobytes() == content


@pytest.fixture
def impossible(data):
    """An id beyond the vocabulary in the tenth block of training."""
    tokens = np.fromfile(data / BIN, np.uint16)
    start = struct.unpack_from("<q", (data / IDX).read_bytes(), SIZES + 4 * blocks_of(data) + 8 * 10)[0]
    tokens[start // 2 + 1] = read_manifest(str(data)).vocabulary_size
    tokens.tofile(data / BIN)
    return data


def blocks_of(data):
    return read_manifest(str(data)).splits["train"].shards[0].blocks


def test_impossible_ids_in_data_that_are_not_hashed_end_the_run_at_their_batch(impossible, launch, arguments, tmp_path):
    command = arguments(NAME, data=impossible, save_dir=tmp_path / "run", num_workers=1)
    outcome = launch("tests.reliability.many:unhashed", command, fails=True)
    assert outcome.codes == [os.EX_DATAERR]
    assert outcome.err[0].splitlines()[-1] == (
        f"amos_fairseq: error: {impossible}: ids beyond the vocabulary in blocks [10], so files are damaged: "
        "--verify-data says which; run amos-fairseq prepare again"
    )
    outcome = launch("tests.reliability.many:unhashed", [*command, "--verify-data"], fails=True)
    assert outcome.codes == [os.EX_DATAERR] and not outcome.log.train
    assert outcome.err[0].splitlines()[-1].startswith(f"amos_fairseq: error: {impossible}/data0/train.bin differs from")
