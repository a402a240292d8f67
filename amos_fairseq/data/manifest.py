"""The manifest of a prepared folder: what it holds, what it was made from, and whether the files still are those."""

import dataclasses
import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from amos_fairseq import json_files
from amos_fairseq.data.vocabulary import DICTIONARY_NAME, token_dtype
from amos_fairseq.files import FileRecord, sha256_of
from amos_fairseq.json_files import Natural
from amos_fairseq.user_errors import Damaged, seen_from, unreadable_is_damaged

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
VALID_SHARD = "data0"  # the one that holds the validation data, whichever shards are named
HASHED_BYTES = 1 << 28  # of token files: so much is read in well under a second
INDEX_HEADER = struct.Struct("<9sQBQ")  # of fairseq's index; all sizes follow in 4 bytes each, then all offsets in 8
INDEX_ENTRY = 12
INDEX_DTYPES = {np.uint16: 8, np.uint32: 9}  # as an index names them
CHECKED_BLOCKS = 1 << 20  # at a time


@dataclass
class Shard:
    """files: path below the prepared folder -> its size in bytes and its sha256"""

    blocks: Natural
    tokens: Natural
    files: dict[str, FileRecord]


@dataclass
class Split:
    """tokens: all ids in the blocks; text_tokens: those that encode text, unknown_tokens among them"""

    documents: Natural
    characters: Natural
    text_tokens: Natural
    unknown_tokens: Natural
    tokens: Natural
    blocks: Natural
    shards: list[Shard]


@dataclass
class Manifest:
    """What a prepared folder holds and what it was made from. not_read: by reason, files of the folders given"""

    version: Natural
    tokens_per_sample: Natural
    vocabulary_size: Natural  # <mask> included
    dictionary_sha256: str
    sentencepiece_sha256: str
    options: dict[str, Any]
    inputs: list[dict[str, Any]]
    splits: dict[str, Split]
    dropped: dict[str, Natural]
    repaired: dict[str, Natural]
    not_read: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def index_header(dtype: np.dtype, blocks: int) -> bytes:
    return INDEX_HEADER.pack(b"MMIDIDX", 1, INDEX_DTYPES[dtype.type], blocks)


def read_manifest(folder: str) -> Manifest:
    """The manifest of a prepared folder. Raises ValueError if there is none, Damaged unless it is one."""
    path = os.path.join(folder, MANIFEST_NAME)
    if not os.path.isfile(path):
        raise ValueError(f"{folder} holds no {MANIFEST_NAME}: run amos-fairseq prepare")
    remedy = "run amos-fairseq prepare again"
    try:
        document = json_files.read(path)
        if document.get("version") != FORMAT_VERSION:
            raise Damaged(f"{path} has version {document.get('version')}, not {FORMAT_VERSION}")
        manifest = json_files.formed(document, Manifest, path)
        _check_shards(manifest, path)
    except Damaged as error:
        raise Damaged(f"{error}: {remedy}") from None
    return manifest


def _check_shards(manifest: Manifest, path: str) -> None:
    """Raises Damaged unless the files are where shards have theirs, and of the sizes that their blocks have."""
    itemsize = token_dtype(manifest.vocabulary_size).itemsize
    if "train" not in manifest.splits or not manifest.splits["train"].shards:
        raise Damaged(f"{path}: splits.train has no shard")
    for name, split in manifest.splits.items():
        for number, shard in enumerate(split.shards):
            prefix = f"data{number}/{name}"
            index = INDEX_HEADER.size + shard.blocks * INDEX_ENTRY
            sizes = {f"{prefix}.bin": shard.tokens * itemsize, f"{prefix}.idx": index}
            if {file: record["bytes"] for file, record in shard.files.items()} != sizes:
                raise Damaged(f"{path}: splits.{name}.shards[{number}].files is not {sizes}")


def located(data: Any) -> tuple[str, list[str]]:
    """The prepared folder that `data` names, and its shards that it names; none: all of them.

    data: the folder, one of its dataN, or several of these in any order joined by ':' as fairseq has it
    Raises ValueError if it is no prepared data.
    """
    paths = [os.path.normpath(path) for path in os.fspath(data).split(":")]
    if os.path.exists(os.path.join(paths[0], MANIFEST_NAME)):
        if len(paths) > 1:
            raise ValueError(f"{data}: {paths[0]} holds all shards: name it alone, or some of its folders data0, ..")
        return paths[0], []
    for path in paths:
        if not os.path.isdir(path):
            raise ValueError(f"{seen_from(path)} does not exist: run amos-fairseq prepare")
    folder = os.path.dirname(os.path.abspath(paths[0]))
    if not os.path.exists(os.path.join(folder, MANIFEST_NAME)):
        name = seen_from(paths[0])
        raise ValueError(f"{name} holds no {MANIFEST_NAME}, nor does its parent: run amos-fairseq prepare")
    return folder, paths


def load_manifest_for(data: str) -> tuple[Manifest, list[str]]:
    """The manifest and the shard folders that `data` names, their files compared with it.

    data: as of `located`; the shard of validation is compared, too.

    Read whole, hence found whatever has changed in them: dict.txt and the indices, 1 % of the data, whose headers,
    sizes and offsets must besides be those of blocks that lie one after the other. Of the token files (.bin) the
    sizes are compared, and the content if they have at most HASHED_BYTES together; in more, `verify_tokens` finds any
    change, and training one that makes an impossible block.

    Raises ValueError if this is no prepared data, Damaged if files are not those that were written.
    """
    folder, paths = located(data)
    manifest = read_manifest(folder)
    paths = paths or [os.path.join(folder, f"data{shard}") for shard in range(len(manifest.splits["train"].shards))]
    with unreadable_is_damaged():
        for path in paths:
            if not recorded_files(manifest, [path]):
                raise ValueError(f"{path} is no part of what {folder} holds: name {folder} or its folders data0, ..")
            dictionary = os.path.join(path, DICTIONARY_NAME)
            _check_exists(dictionary)
            if sha256_of(dictionary) != manifest.dictionary_sha256:
                raise Damaged(f"{dictionary}: the dictionary does not match the data, run amos-fairseq prepare again")
        read = with_validation(folder, paths)
        for path, record in recorded_files(manifest, read):
            _check_exists(path)
            if (size := os.path.getsize(path)) != record["bytes"]:
                raise Damaged(f"{path} has {size} bytes, not {record['bytes']}: run amos-fairseq prepare again")
        for path, record in recorded_files(manifest, read, ".idx"):
            _check_sha256(path, record)
            _check_index(path, manifest)
    if sum(record["bytes"] for _, record in recorded_files(manifest, read, ".bin")) <= HASHED_BYTES:
        verify_tokens(manifest, read)
    return manifest, paths


def with_validation(folder: str, paths: list[str]) -> list[str]:
    """These shard folders and the one of validation."""
    return [*paths, *({os.path.join(folder, VALID_SHARD)} - set(paths))]


def recorded_files(manifest: Manifest, paths: list[str], ending: str = "") -> list[tuple[str, FileRecord]]:
    """The files of these shard folders with what is recorded of them."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    return [
        (os.path.join(path, os.path.basename(name)), record)
        for path in paths for shard in shards for name, record in shard.files.items()
        if os.path.dirname(name) == os.path.basename(path) and name.endswith(ending)
    ]


def verify_tokens(manifest: Manifest, paths: list[str], process: int = 0, processes: int = 1) -> None:
    """Compare this process's share of the token files with their SHA-256, at some GB a second. Raises Damaged."""
    with unreadable_is_damaged():
        for path, record in recorded_files(manifest, paths, ".bin")[process::processes]:
            _check_sha256(path, record)


def _check_exists(path: str) -> None:
    if not os.path.isfile(path):
        raise Damaged(f"{path} does not exist: run amos-fairseq prepare again")


def _check_sha256(path: str, record: FileRecord) -> None:
    if sha256_of(path) != record["sha256"]:
        raise Damaged(f"{path} differs from what was written: run amos-fairseq prepare again")


def _check_index(path: str, manifest: Manifest) -> None:
    """Raises Damaged unless this is fairseq's index of all of its .bin in blocks, one after the other."""
    dtype = token_dtype(manifest.vocabulary_size)
    count, rest = divmod(os.path.getsize(path) - INDEX_HEADER.size, INDEX_ENTRY)
    with open(path, "rb") as stream:
        sound = rest == 0 and stream.read(INDEX_HEADER.size) == index_header(dtype, count)
    end = 0  # of the blocks so far, in bytes
    for begin in range(0, count if sound else 0, CHECKED_BLOCKS):
        some = min(CHECKED_BLOCKS, count - begin)
        sizes = np.fromfile(path, "<i4", some, offset=INDEX_HEADER.size + 4 * begin).astype(np.int64)
        starts = np.fromfile(path, "<i8", some, offset=INDEX_HEADER.size + 4 * count + 8 * begin)
        ends = end + np.cumsum(sizes) * dtype.itemsize
        sound &= bool(0 < sizes.min() and sizes.max() <= manifest.tokens_per_sample)
        sound &= np.array_equal(starts, ends - sizes * dtype.itemsize)
        end = int(ends[-1])
    if not sound or end != os.path.getsize(path.removesuffix(".idx") + ".bin"):
        raise Damaged(f"{path} is no index of blocks of its .bin: run amos-fairseq prepare again")
