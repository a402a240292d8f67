"""The manifest of a prepared folder: what it holds, what it was made from, and whether the files still are those."""

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from amos_fairseq.data.vocabulary import DICTIONARY_NAME

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
READ_BYTES = 1 << 20


@dataclass
class Shard:
    """files: path below the prepared folder -> its size in bytes and its sha256"""

    blocks: int
    tokens: int
    files: dict[str, dict[str, Any]]


@dataclass
class Split:
    """tokens: all ids in the blocks; text_tokens: those that encode text, unknown_tokens among them"""

    documents: int
    characters: int
    text_tokens: int
    unknown_tokens: int
    tokens: int
    blocks: int
    shards: list[Shard]


@dataclass
class Manifest:
    """What a prepared folder holds and what it was made from."""

    version: int
    tokens_per_sample: int
    vocabulary_size: int  # <mask> included
    dictionary_sha256: str
    sentencepiece_sha256: str
    options: dict[str, Any]
    inputs: list[dict[str, Any]]
    splits: dict[str, Split]
    dropped: dict[str, int]
    repaired: dict[str, int]


def sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_record(path: str) -> dict[str, Any]:
    return {"bytes": os.path.getsize(path), "sha256": sha256_of(path)}


@contextlib.contextmanager
def durably_written(path: str) -> Iterator[BinaryIO]:
    """Write a file that is there in full or not at all, whatever happens meanwhile, on whichever machines."""
    temporary = f"{path}.{socket.gethostname()}.{os.getpid()}.tmp"
    with open(temporary, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)


def read_manifest(folder: str) -> Manifest:
    """The manifest of a prepared folder."""
    path = os.path.join(folder, MANIFEST_NAME)
    if not os.path.exists(path):
        raise ValueError(f"{folder} holds no {MANIFEST_NAME}: run amos-fairseq prepare")
    try:
        with open(path) as stream:
            manifest = Manifest(**json.load(stream))
        for name, split in manifest.splits.items():
            shards = [Shard(**shard) for shard in split.pop("shards")]
            manifest.splits[name] = Split(**split, shards=shards)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is damaged: run amos-fairseq prepare again") from None
    if manifest.version != FORMAT_VERSION:
        raise ValueError(f"{path} has version {manifest.version}, not {FORMAT_VERSION}: run amos-fairseq prepare again")
    return manifest


def load_manifest_for(data: str) -> tuple[Manifest, list[str]]:
    """The manifest and the shard folders that `data` names, checked against it.

    data: a prepared folder (all its shards), one of its dataN folders, or several joined by ':' as fairseq has it.
    Sizes are compared for all files, sha256 for dict.txt and the indices only: hashing all data takes long.
    """
    paths = [os.path.normpath(path) for path in os.fspath(data).split(":")]
    if os.path.exists(os.path.join(paths[0], MANIFEST_NAME)):
        folder, manifest = paths[0], read_manifest(paths[0])
        paths = [os.path.join(folder, f"data{shard}") for shard in range(len(manifest.splits["train"].shards))]
    else:
        for path in paths:
            if not os.path.isdir(path):
                raise ValueError(f"{path} does not exist: run amos-fairseq prepare")
        folder = os.path.dirname(os.path.abspath(paths[0]))
        if not os.path.exists(os.path.join(folder, MANIFEST_NAME)):
            raise ValueError(f"{paths[0]} holds no {MANIFEST_NAME}, nor does its parent: run amos-fairseq prepare")
        manifest = read_manifest(folder)
    for path in paths:
        dictionary = os.path.join(path, DICTIONARY_NAME)
        if not os.path.exists(dictionary):
            raise ValueError(f"{dictionary} does not exist: run amos-fairseq prepare again")
        if sha256_of(dictionary) != manifest.dictionary_sha256:
            raise ValueError(f"{dictionary}: the dictionary does not match the data, run amos-fairseq prepare again")
        for shard in (shard for split in manifest.splits.values() for shard in split.shards):
            for name, recorded in shard.files.items():
                if os.path.dirname(name) == os.path.basename(path):
                    _check_file(os.path.join(path, os.path.basename(name)), recorded)
    return manifest, paths


def _check_file(path: str, recorded: dict[str, Any]) -> None:
    if not os.path.exists(path):
        raise ValueError(f"{path} does not exist: run amos-fairseq prepare again")
    if (size := os.path.getsize(path)) != recorded["bytes"]:
        raise ValueError(f"{path} has {size} bytes, not {recorded['bytes']}: run amos-fairseq prepare again")
    if path.endswith(".idx") and sha256_of(path) != recorded["sha256"]:
        raise ValueError(f"{path} differs from what was written: run amos-fairseq prepare again")
