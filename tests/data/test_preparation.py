"""Preparation: what is in the blocks, the shards and the manifest; which inputs are refused, and how."""

import argparse
import hashlib
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from fairseq.data import Dictionary
from fairseq.data.data_utils import load_indexed_dataset

from amos_fairseq.cli import prepare as command
from amos_fairseq.data import corpus, encoding, preparation
from amos_fairseq.data.manifest import load_manifest_for, located, read_manifest
from amos_fairseq.data.options import Options
from amos_fairseq.data.packing import BlockPacker, held_out
from amos_fairseq.data.preparation import prepare
from amos_fairseq.data.sources import Text
from amos_fairseq.data.vocabulary import BOS, EOS, UNK
from amos_fairseq.user_errors import Damaged

SPECIAL_TEXT = "<s> <pad> </s> <unk> <mask> x<mask>y madeupword0000"


def make_documents(count=60, seed=0):
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 7))) for _ in range(150)]
    sentences = (" ".join(generator.choices(words, k=generator.randint(3, 60))) for _ in range(count))
    return [f"Number {index}: {sentence} </end>." for index, sentence in enumerate(sentences)]


DOCUMENTS = [*make_documents(), SPECIAL_TEXT]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n\n".join(document.replace(": ", ":\n") for document in DOCUMENTS) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory):
    """A preparation whose vocabulary the other tests reuse."""
    out = str(tmp_path_factory.mktemp("prepared") / "data")
    prepare([text], out, vocab_size=320, tokens_per_sample=32, shards=3, valid_fraction=0.1, workers=1)
    return out


def load_blocks(out, split="train"):
    folders = load_manifest_for(out)[1] if split == "train" else [os.path.join(out, "data0")]
    dictionary = Dictionary.load(os.path.join(out, "dict.txt"))
    shards = [load_indexed_dataset(os.path.join(folder, split), dictionary) for folder in folders]
    blocks = [[shard[i].tolist() for i in range(len(shard))] for shard in shards]
    return [blocks[i % len(blocks)][i // len(blocks)] for i in range(sum(map(len, blocks)))]


def decode(out, ids):
    """Text of dictionary ids, as fairseq's sentencepiece encoder does it."""
    dictionary = Dictionary.load(os.path.join(out, "dict.txt"))
    return "".join(dictionary[i] for i in ids).replace("\u2581", " ").strip()


def decoded_documents(out, split="train"):
    content = [i for block in load_blocks(out, split) for i in (*block[1:-1], -1)]
    # An end of block (-1) is no separator; a </s> before it may be left out, so compare the text without separators.
    return " ".join(decode(out, [i for i in content if i not in (-1, EOS)]).split())


def found(counts):
    return {name: count for name, count in counts.items() if count}


def tree_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_decoded_blocks_are_the_documents(prepared):
    valid = [document for index, document in enumerate(DOCUMENTS) if corpus.is_selected(index, 0.1)]
    train = [document for index, document in enumerate(DOCUMENTS) if not corpus.is_selected(index, 0.1)]
    assert decoded_documents(prepared) == " ".join(train)
    assert decoded_documents(prepared, "valid") == " ".join(valid)


def test_blocks_are_full_and_delimited(prepared):
    blocks = load_blocks(prepared)
    assert {len(block) for block in blocks[:-1]} == {32} and 3 <= len(blocks[-1]) <= 32
    assert all(block[0] == BOS and block[-1] == EOS and BOS not in block[1:] for block in blocks)
    assert all(block[1] != EOS for block in blocks)


def test_shards_are_equal_and_the_manifest_counts_them(prepared):
    manifest = read_manifest(prepared)
    blocks = [shard.blocks for shard in manifest.splits["train"].shards]
    assert max(blocks) - min(blocks) <= 1 and sum(blocks) == manifest.splits["train"].blocks > 30
    assert manifest.splits["train"].documents + manifest.splits["valid"].documents == len(DOCUMENTS)
    characters = sum(split.characters for split in manifest.splits.values())
    assert characters == sum(map(len, DOCUMENTS))
    assert manifest.splits["train"].tokens == sum(map(len, load_blocks(prepared)))
    assert set(manifest.dropped.values()) == set(manifest.repaired.values()) == {0}


def test_validation_s_tokens_are_compared_whichever_shards_are_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    path = tmp_path / "data/data0/valid.bin"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(Damaged, match="data0/valid.bin differs from what was written: run amos-fairseq prepare again"):
        load_manifest_for(str(tmp_path / "data/data1"))


def test_manifest_hashes_are_true_and_files_are_uint16(prepared):
    files = {}
    manifest = read_manifest(prepared)
    for split in manifest.splits.values():
        for shard in split.shards:
            files.update(shard.files)
            assert next(iter(shard.files.values()))["bytes"] == 2 * shard.tokens
    assert len(files) == 8
    for name, recorded in files.items():
        data = Path(prepared, name).read_bytes()
        assert recorded == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    dictionary = Path(prepared, "data2/dict.txt").read_bytes()
    assert hashlib.sha256(dictionary).hexdigest() == manifest.dictionary_sha256


def test_dictionary_plus_mask_has_the_vocabulary_size_and_true_counts(prepared):
    dictionary = Dictionary.load(os.path.join(prepared, "dict.txt"))
    assert len(dictionary) == 319 and dictionary.add_symbol("<mask>") == 319
    assert read_manifest(prepared).vocabulary_size == 320
    ids = np.array([i for split in ("train", "valid") for block in load_blocks(prepared, split) for i in block])
    assert np.bincount(ids, minlength=319)[4:].tolist() == dictionary.count[4:319]


def test_text_never_becomes_a_special_symbol(prepared, tmp_path):
    (tmp_path / "a.txt").write_text(f"{SPECIAL_TEXT}\n\n{SPECIAL_TEXT}")
    prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), vocabulary=prepared, workers=1)
    (block,) = load_blocks(tmp_path / "out")
    assert set(block[1:-1]) & {0, 1, 2, 3, 319} == set()
    assert decode(tmp_path / "out", block[1:-1]) == SPECIAL_TEXT


def test_special_names_among_a_models_pieces_are_unknown_and_fillers_round_up(tmp_path):
    model = io.BytesIO()  # fairseq's symbols are user-defined pieces here, so this model does produce them from text
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(DOCUMENTS), model_writer=model, vocab_size=100, user_defined_symbols=["<mask>", "<pad>"],
        hard_vocab_limit=False, minloglevel=2,
    )
    (tmp_path / "own.model").write_bytes(model.getvalue())
    (tmp_path / "a.txt").write_text("ab <mask> <pad> <s>\n\nab <mask>")
    out = str(tmp_path / "out")
    options = dict(vocabulary=str(tmp_path / "own.model"), valid_fraction=0.5)
    manifest = prepare([str(tmp_path / "a.txt")], out, workers=1, **options)
    dictionary = Dictionary.load(os.path.join(out, "dict.txt"))
    assert manifest.vocabulary_size == len(dictionary) + 1 == 104  # 95 pieces, 5 specials
    assert dictionary.symbols[-4:] == [f"madeupword000{i}" for i in range(4)]
    (block,) = load_blocks(out)
    assert block.count(UNK) == 1 and not set(block) & {1, 103}


def test_a_vocabulary_folder_with_another_dictionary_is_refused(text, prepared, tmp_path):
    (tmp_path / "sentencepiece.model").write_bytes(Path(prepared, "sentencepiece.model").read_bytes())
    (tmp_path / "dict.txt").write_text("a 1\n")
    with pytest.raises(ValueError, match=f"^{tmp_path}: dict.txt and sentencepiece.model do not belong together$"):
        prepare([text], str(tmp_path / "out"), vocabulary=str(tmp_path))


def test_output_does_not_depend_on_workers_or_chunks(text, prepared, tmp_path, monkeypatch):
    options = dict(vocab_size=320, tokens_per_sample=32, shards=3, valid_fraction=0.1)
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 700)
    prepare([text], str(tmp_path / "one"), workers=1, **options)
    prepare([text], str(tmp_path / "two"), workers=2, **options)
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "two") == tree_of(prepared)


def test_uncased_folds_case(text, tmp_path):
    prepare([text], str(tmp_path / "out"), vocab_size=300, uncased=True, tokens_per_sample=64, workers=1)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.vocabulary_size == 304  # the next multiple of 8
    assert "number 1:" in decoded_documents(tmp_path / "out")


def test_validation_is_a_share_of_the_tokens():
    alike = np.full(300, 50)
    assert held_out(alike, 0.01).tolist() == [0, 100, 200]
    large_first = np.array([99_000, *[10] * 100])
    assert held_out(large_first, 0.01).tolist() == list(range(1, 101, 2))  # half of what is small: 0.5 %
    large_among = np.array([*[10] * 200, 50_000, 0, *[10] * 200])
    chosen = held_out(large_among, 0.02)
    assert 0.95 < large_among[chosen].sum() / (0.02 * large_among.sum()) < 1.05 and 200 not in chosen
    assert held_out(np.array([30, 0, 20, 40]), 0.01).tolist() == [2]  # the shortest
    assert held_out(np.array([0, 0]), 0.01).tolist() == []


def test_a_large_document_first_does_not_validate_and_the_reached_share_is_told(prepared, tmp_path, caplog):
    (tmp_path / "a.txt").write_text("word " * 20_000)
    (tmp_path / "b.txt").write_text("\n\n".join(DOCUMENTS[:4]))
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    manifest = prepare(files, str(tmp_path / "out"), vocabulary=prepared, workers=1)
    assert manifest.splits["valid"].documents == 2
    assert "of the tokens, not --valid-fraction 0.01, for documents are few or long" in caplog.text
    splits = [split.text_tokens for split in manifest.splits.values()]
    assert f" blocks, {splits[1] / sum(splits):.2%} of the tokens" in command.summary(manifest, "out")[1]


def test_validation_can_be_the_users_own(prepared, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(DOCUMENTS))
    (tmp_path / "v.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (DOCUMENTS[5], "one more")))
    options = dict(vocabulary=prepared, valid=str(tmp_path / "v.jsonl"), workers=1)
    out = str(tmp_path / "out")
    manifest = prepare([str(tmp_path / "a.txt")], out, **options)
    assert [split.documents for split in manifest.splits.values()] == [len(DOCUMENTS), 2]
    assert decoded_documents(out, "valid") == f"{DOCUMENTS[5]} one more"
    assert [identity.get("split") for identity in manifest.inputs] == [None, "valid"]
    assert prepare([str(tmp_path / "a.txt")], out, **options) == manifest  # at once
    manifest = prepare([str(tmp_path / "a.txt")], out, deduplicate=True, overwrite=True, **options)
    assert [split.documents for split in manifest.splits.values()] == [len(DOCUMENTS) - 1, 2]  # kept out of training
    (tmp_path / "v.jsonl").write_text("")
    with pytest.raises(ValueError, match=f"^--valid {tmp_path}/v.jsonl holds no document$"):
        prepare([str(tmp_path / "a.txt")], str(tmp_path / "other"), **options)


@pytest.mark.parametrize(
    "normalization, seen", [("nmt_nfkc", "می خواهم 1"), ("nfkc", "می\u200cخواهم 1"), ("identity", "می\u200cخواهم ①")]
)
def test_normalization_is_chosen(normalization, seen, tmp_path):
    (tmp_path / "a.txt").write_text("می\u200cخواهم ①\r\n\r\n" * 20)
    manifest = prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), normalization=normalization, vocab_size=20,
                       workers=1)
    assert decoded_documents(tmp_path / "out").startswith(seen)
    assert manifest.options["normalization"] == normalization


def test_a_vocabulary_that_cannot_be_exported_is_told(text, tmp_path, caplog):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(DOCUMENTS), model_writer=model, vocab_size=100, model_type="bpe", minloglevel=2,
        add_dummy_prefix=False,
    )
    (tmp_path / "own.model").write_bytes(model.getvalue())
    prepare([text], str(tmp_path / "out"), vocabulary=str(tmp_path / "own.model"), workers=1)
    assert "the SentencePiece model treats spaces in its own way" in caplog.text
    assert "can be exported with --no-tokenizer only" in caplog.text


def test_documents_whole_splits_only_long_documents(prepared, text, tmp_path):
    out = str(tmp_path / "out")
    options = dict(tokens_per_sample=64, documents_whole=True, valid_fraction=0.0165)
    prepare([text], out, vocabulary=prepared, workers=1, **options)
    processor = sentencepiece.SentencePieceProcessor(model_file=os.path.join(out, "sentencepiece.model"))
    contents = [block[1:-1] for block in load_blocks(out)]
    parts = [bytes(str(part), "ascii") for content in contents for part in split_at(content, EOS)]
    documents = [[i if i < 4 else i - 1 for i in processor.encode(document)] for document in DOCUMENTS[1:]]
    short = [document for document in documents if len(document) <= 62]
    assert 10 < len(short) < len(documents)
    assert all(bytes(str(document), "ascii") in parts for document in short)


def split_at(ids, separator):
    parts = [[]]
    for i in ids:
        parts.append([]) if i == separator else parts[-1].append(i)
    return parts


def pack(documents, tokens_per_sample, whole):
    blocks = []
    packer = BlockPacker(tokens_per_sample, whole, np.dtype(np.uint16), lambda block: blocks.append(block.tolist()))
    for document in documents:
        for number, part in enumerate(document):
            packer.add(np.array(part), starts_document=number == 0)
    packer.finish()
    return blocks


def test_packer_on_literal_documents():
    documents = [[[10, 11]], [[20], [21, 22]], [[30] * 4, [31] * 6], [[40]]]
    assert pack(documents, 8, whole=False) == [
        [0, 10, 11, 2, 20, 21, 22, 2],
        [0, 30, 30, 30, 30, 31, 31, 2],
        [0, 31, 31, 31, 31, 2, 40, 2],
    ]
    assert pack(documents, 7, whole=True) == [
        [0, 10, 11, 2],
        [0, 20, 21, 22, 2],
        [0, 30, 30, 30, 30, 31, 2],
        [0, 31, 31, 31, 31, 31, 2],
        [0, 40, 2],
    ]


def test_hostile_text_is_counted_exactly(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 4096)
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbffirst abc\r\nmore\r\n\r\nsecond" + b" abc" * 50 + b"\xff\xfe\0\r\n")
    (folder / "b.txt").write_bytes(b"")
    (folder / "c.txt").write_bytes(b"\n" * 20_000)
    (folder / "d.txt").write_bytes(b"long line " * 3000 + b"\n\n\xe2\x80\x8b\n\nlast")  # \u200b: no token
    out = str(tmp_path / "out")
    manifest = prepare([str(folder)], out, vocabulary=prepared, valid_fraction=0.5, workers=1)
    assert found(manifest.dropped) == {"empty_files": 2, "empty_documents": 1}
    expected = {"invalid_utf8_bytes": 2, "nul_characters": 1, "byte_order_marks": 1, "long_lines_split": 1}
    assert found(manifest.repaired) == expected
    assert (manifest.splits["train"].documents, manifest.splits["valid"].documents) == (2, 2)
    assert decoded_documents(out, "valid").startswith("first abc more long line long line")
    assert decoded_documents(out, "valid").count("long line") == 3000


def test_a_document_ends_at_a_blank_line_before_a_line_longer_than_a_chunk(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 100)
    documents = ["short one", "long line " * 30, "long line" * 30, "last"]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    manifest = prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), vocabulary=prepared, workers=1)
    assert [split.documents for split in manifest.splits.values()] == [3, 1]


def test_every_line_can_be_a_document(prepared, tmp_path):
    (tmp_path / "a.txt").write_text("one ab\n\ntwo ab\r\nthree ab")
    out = str(tmp_path / "out")
    manifest = prepare([str(tmp_path / "a.txt")], out, vocabulary=prepared, documents="line", workers=1)
    assert manifest.splits["train"].documents == 2 and manifest.splits["valid"].documents == 1
    assert len(split_at(load_blocks(out)[0][1:-1], EOS)) == 2


def run_command(*arguments, **options):
    line = [sys.executable, "-m", "amos_fairseq.cli.main", "prepare", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(line, capture_output=True, env=environment, timeout=900, **options)


def test_standard_input_gives_the_blocks_of_the_file(text, prepared, tmp_path):
    out = tmp_path / "out"
    options = ["--vocabulary", prepared, "--tokens-per-sample", 32, "--shards", 3, "--valid-fraction", 0.1]
    result = run_command("-", "--out", out, *options, "--workers", 1, input=Path(text).read_bytes())
    assert result.returncode == 0, result.stderr
    ours, theirs = tree_of(out), tree_of(prepared)
    assert json.loads(ours.pop("manifest.json"))["inputs"][0]["name"] == "-"
    theirs.pop("manifest.json")
    assert ours == theirs
    lines = result.stdout.decode().splitlines()
    assert f"data: {out}" in lines and lines[-1].startswith(f"train with: amos-fairseq train {out} --task amos_rtd ")
    assert not any("\t" in line for line in lines)


@pytest.mark.parametrize("name, reason", [("no.txt", "{0} does not exist"), ("e.txt", "the corpus holds no document")])
def test_the_command_reports_a_mistake_in_one_line(tmp_path, name, reason):
    (tmp_path / "e.txt").write_text("")
    result = run_command(tmp_path / name, "--out", tmp_path / "out")
    assert result.returncode == os.EX_USAGE
    assert result.stderr.decode() == f"amos-fairseq prepare: error: {reason.format(tmp_path / name)}\n"
    assert os.listdir(tmp_path) == ["e.txt"]


def test_the_same_preparation_is_not_repeated_and_another_is_refused(text, prepared, monkeypatch):
    options = dict(vocab_size=320, tokens_per_sample=32, valid_fraction=0.1)
    before = tree_of(prepared)
    monkeypatch.setattr(preparation, "_encode", lambda *arguments: pytest.fail("worked again"))
    assert prepare([text], prepared, shards=3, workers=2, **options) == read_manifest(prepared)
    with pytest.raises(ValueError) as error:
        prepare([text], prepared, shards=2, **options)
    remedy = "choose another --out or add --overwrite"
    assert str(error.value) == f"{prepared} was prepared from other inputs or options: {remedy}"
    assert tree_of(prepared) == before and not os.path.exists(f"{prepared}.partial")


def test_overwrite_replaces_a_preparation_and_nothing_else(text, prepared, tmp_path):
    out = tmp_path / "out"
    for shards in (2, 1):
        manifest = prepare([text], str(out), vocabulary=prepared, shards=shards, overwrite=True, workers=1)
    assert sorted(os.listdir(out)) == ["data0", "dict.txt", "manifest.json", "sentencepiece.model"]
    assert read_manifest(out) == manifest
    (out / "checkpoint.pt").write_text("")
    with pytest.raises(ValueError, match="holds other files"):
        prepare([text], str(out), vocabulary=prepared, overwrite=True, workers=1)


BAD = {
    "missing": ({}, b"", "{text}.no does not exist"),
    "empty": ({}, b"\n \n", "the corpus holds no document"),
    "one": ({}, b"abc " * 9, "the corpus holds one document, and validation needs one more: try --documents line"),
    "binary": (
        {},
        bytes(range(256)) * 8,
        "{text} is not UTF-8 text (50% of its first 2048 bytes are NUL or invalid): convert it first, or leave it out",
    ),
    "no vocabulary": (
        {"vocabulary": "{text}.model"}, None,
        "{text}.model does not exist: give a local file or folder: nothing is downloaded",
    ),
    "not a model": ({"vocabulary": "{text}"}, None, "{text} is not a SentencePiece model"),
    "no size": ({"vocab_size": 5}, None, "a vocabulary of 5 is too small: 5 symbols are special"),
    "empty model": ({"vocabulary": "/dev/null"}, None, "/dev/null is not a SentencePiece model with pieces of text"),
    "tiny blocks": ({"tokens_per_sample": 7}, None, "--tokens-per-sample 7 is out of range: it must be at least 8"),
    "valid": ({"valid_fraction": 1.0}, None, "--valid-fraction 1.0 is out of range: it must be above 0 and below 1"),
    "shards": ({"shards": 999}, None, "999 shards are more than the 10 blocks: lower --shards"),
    "normalization": ({"normalization": "nfc"}, None, "unknown --normalization 'nfc': choose nmt_nfkc, nfkc, identity"),
    "folded identity": (
        {"normalization": "identity", "uncased": True}, None,
        "--uncased is a normalization itself: give nfkc or nmt_nfkc with it, or leave it out",
    ),
    "encoding": (
        {"encoding": "klingon"}, None,
        "--encoding klingon is none that Python knows, such as latin-1, cp1252 or utf-16",
    ),
    "one line": (
        {"documents": "line"}, b"abc " * 9,
        "the corpus holds one document, and validation needs one more: try --valid with a text of its own",
    ),
    "colon": ({"out": "a:b"}, None, "a:b: fairseq splits data paths at ':', choose another --out"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing(case, prepared, tmp_path):
    options, data, message = BAD[case]
    path = tmp_path / "text.txt"
    path.write_bytes("\n\n".join(DOCUMENTS).encode() if data is None else data)
    name = f"{path}.no" if case == "missing" else str(path)
    options = {key: value.format(text=path) if isinstance(value, str) else value for key, value in options.items()}
    if case in ("one", "one line", "shards"):
        options["vocabulary"] = prepared
    with pytest.raises(ValueError) as error:
        prepare([name], **{"out": str(tmp_path / "out"), "workers": 1, "vocab_size": None, **options})
    assert str(error.value) == message.format(text=path)
    assert os.listdir(tmp_path) == ["text.txt"]


@pytest.mark.parametrize("asked, bound", [(9, "more"), (9000, "less")])
def test_a_vocabulary_size_that_cannot_be_names_the_nearest_that_can(asked, bound, text, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match=f"vocabulary of {asked}.*: use --vocab-size [0-9]+ or {bound}$") as error:
        prepare([text], out, vocab_size=asked, workers=1)
    assert os.listdir(tmp_path) == []
    nearest = int(str(error.value).split()[-3])
    assert prepare([text], out, vocab_size=nearest, workers=1).vocabulary_size - nearest in range(8)
    with pytest.raises(ValueError, match="--vocab-size"):
        beyond = nearest - 1 if bound == "more" else nearest + 1
        prepare([text], str(tmp_path / "beyond"), vocab_size=beyond, workers=1)


def test_a_manifest_is_found_from_the_folder_and_from_its_shards(prepared):
    shards = [os.path.join(prepared, f"data{i}") for i in range(3)]
    assert load_manifest_for(prepared) == (read_manifest(prepared), shards)
    assert load_manifest_for(shards[1])[1] == [shards[1]]
    assert load_manifest_for(":".join(shards[:2]))[1] == shards[:2]


def test_shards_in_any_order_and_the_folder_are_one_preparation(prepared, monkeypatch):
    shards = [os.path.join(prepared, f"data{i}") for i in range(3)]
    monkeypatch.chdir(prepared)
    assert [located(data)[0] for data in (prepared, ":".join(shards[::-1]), shards[2], "data1")] == [prepared] * 4
    assert load_manifest_for(":".join(shards[::-1]))[1] == shards[::-1]
    with pytest.raises(ValueError, match=f"{prepared} holds all shards: name it alone, or some of its folders data0"):
        located(f"{prepared}:{shards[1]}")
    with pytest.raises(ValueError, match=f"^gone .in {prepared}. does not exist: run amos-fairseq prepare$"):
        located("gone")


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("manifest.json", None, "{out} holds no manifest.json, nor does its parent: run amos-fairseq prepare"),
        ("manifest.json", b"{", "{out}/manifest.json is no JSON: Expecting property name enclosed in double quotes: "
         "line 1 column 2 (char 1): run amos-fairseq prepare again"),
        ("data1/dict.txt", b"a 1\n", "{out}/data1/dict.txt: the dictionary does not match the data, run {again}"),
        ("data1/train.bin", None, "{out}/data1/train.bin does not exist: run amos-fairseq prepare again"),
        ("data0/valid.bin", b"x", "{out}/data0/valid.bin has 1 bytes, not {size}: run amos-fairseq prepare again"),
        ("data0/train.idx", "flip", "{out}/data0/train.idx differs from what was written: run {again}"),
    ],
)
def test_damaged_data_is_refused_in_one_line(text, prepared, tmp_path, name, change, message):
    out = tmp_path / "out"
    for path, data in tree_of(prepared).items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
    old = (out / name).read_bytes()
    (out / name).unlink()
    if change is not None:
        (out / name).write_bytes(old[:-1] + bytes([old[-1] ^ 1]) if change == "flip" else change)
    with pytest.raises(ValueError) as error:
        load_manifest_for(str(out))
    assert str(error.value) == message.format(out=out, size=len(old), again="amos-fairseq prepare again")


def test_a_long_line_is_read_in_bounded_memory(prepared, tmp_path):
    path = tmp_path / "long.txt"
    with open(path, "wb") as stream:
        for _ in range(40):
            stream.write(b"abcd efgh " * 50_000)  # one line of 20 MB
    encoder = encoding.TextEncoder(preparation.read_vocabulary(prepared))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = Text(str(path), str(path), Options())
    slices = [[encoder(text.passages(block)) for span in spans for block in text.blocks(span)]
              for spans in corpus.plan_slices([text])]
    encoded = [encoding.joined(blocks) for blocks in slices]
    assert [len(text.kinds) > 0 for text in encoded] == [True] * 20  # a megabyte each
    assert sum(len(text.token_ids) for text in encoded) > 2_000_000
    assert sum(int(text.repaired[3]) for text in encoded) == 1  # long_lines_split
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_the_command_offers_every_option():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = vars(parser.parse_args(["a", "--out", "b"]))
    fields = {field: arguments.pop(field) for field in Options.__dataclass_fields__}
    assert Options(**fields) == Options()
    assert set(arguments) == {"inputs", "out", "overwrite", "workers", "part"}
