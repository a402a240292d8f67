"""From text to training data: encode documents in parallel, pack them into blocks, write shards and a manifest.

    files -> chunks of bytes -> (worker processes) token ids of documents -> blocks -> shards

What a chunk is encoded to depends on its bytes alone, and everything else happens in the order of the corpus in one
process: the output does not depend on the number of workers.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from amos_fairseq.data import corpus
from amos_fairseq.data.encoding import encode_chunks
from amos_fairseq.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    load_manifest_for,
    read_manifest,
    sha256_of,
)
from amos_fairseq.data.packing import DocumentWriter, SplitWriter
from amos_fairseq.data.vocabulary import (
    DICTIONARY_NAME,
    MODEL_NAME,
    Vocabulary,
    format_dictionary,
    read_vocabulary,
    train_vocabulary,
)

LOCK_NAME = "lock"
OWN_FILES = re.compile(rf"{MANIFEST_NAME}|{DICTIONARY_NAME}|{MODEL_NAME}|data\d+")
DEFAULT_VOCAB_SIZE = 32768
logger = logging.getLogger(__name__)


@dataclass
class Options:
    """All that determines the output besides the text. Sizes are in tokens and bytes."""

    documents: str = "blank-line"  # or "line": what separates documents
    vocab_size: Optional[int] = None  # specials and <mask> included; DEFAULT_VOCAB_SIZE unless a vocabulary is given
    uncased: bool = False
    vocabulary: Optional[str] = None  # a .model file or the folder of an earlier preparation
    tokens_per_sample: int = 512
    shards: int = 1
    valid_fraction: float = 0.01
    documents_whole: bool = False
    vocabulary_sample: int = 100_000_000

    def check(self) -> None:
        if self.documents not in ("blank-line", "line"):
            raise ValueError(f"documents are separated by blank-line or line, not {self.documents}")
        if self.vocabulary is not None and (self.vocab_size is not None or self.uncased):
            raise ValueError("--vocab-size and --uncased are properties of the given --vocabulary: leave them out")
        if self.tokens_per_sample < 8:
            raise ValueError(f"--tokens-per-sample {self.tokens_per_sample} is too small: use 8 or more")
        if self.shards < 1:
            raise ValueError(f"--shards {self.shards} is too small: use 1 or more")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"--valid-fraction {self.valid_fraction} is not between 0 and 1")
        if self.vocabulary_sample < 1:
            raise ValueError(f"--vocabulary-sample {self.vocabulary_sample} is too small: use 1 or more")


class Source(NamedTuple):
    """An input file; `path` is where its bytes lie, `identity` what the manifest records."""

    path: str
    identity: dict[str, Any]


def prepare(
    inputs: Sequence[str],
    out: str,
    *,
    workers: Optional[int] = None,
    overwrite: bool = False,
    progress: bool = False,
    **options: Any,
) -> Manifest:
    """Prepare the text of `inputs` (files, folders, `-`) into the new folder `out`; `options`: fields of `Options`.

    Built in `out`.partial and renamed when complete. Returns at once if `out` holds the same preparation already.
    """
    chosen = Options(**options)
    chosen.check()
    workers = workers if workers is not None else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"--workers {workers} is too small: use 1 or more")
    out = os.path.normpath(out)
    if ":" in out:
        raise ValueError(f"{out}: fairseq splits data paths at ':', choose another --out")
    _check_target(out)
    paths = corpus.list_inputs(inputs)
    for path in paths:
        if not corpus.is_stream(path):
            corpus.check_text(path, path)
    given = read_vocabulary(chosen.vocabulary) if chosen.vocabulary is not None else None
    if given is None and chosen.vocab_size is None:
        chosen.vocab_size = DEFAULT_VOCAB_SIZE

    with _partial_folder(out) as partial:
        sources = _open_sources(paths, partial)
        recorded = {**asdict(chosen), "vocabulary": given and given.sha256}
        identities = [source.identity for source in sources]
        if os.path.exists(os.path.join(out, MANIFEST_NAME)) and not overwrite:
            return _existing(out, recorded, identities)
        if given is None:
            logger.info("training a vocabulary of %d", chosen.vocab_size)
            sample = corpus.sample_text([source.path for source in sources], chosen.vocabulary_sample)
            given = train_vocabulary(sample, chosen.vocab_size, chosen.uncased)
        manifest = _write(sources, partial, given, chosen, workers, progress)
        manifest.options, manifest.inputs = recorded, identities
        with open(os.path.join(partial, MANIFEST_NAME), "w") as stream:
            json.dump(asdict(manifest), stream, indent=1)
        _publish(partial, out, [source.path for source in sources])
    return manifest


def _check_target(out: str) -> None:
    """Refuse an `out` that holds anything a preparation does not write, since it is replaced as a whole."""
    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"{out} is a file: choose another --out")
    entries = sorted(os.listdir(out)) if os.path.isdir(out) else []
    others = [name for name in entries if not OWN_FILES.fullmatch(name)]
    if others or (entries and MANIFEST_NAME not in entries):
        raise ValueError(f"{out} holds other files ({(others or entries)[0]}): choose another --out")


def _existing(out: str, options: dict[str, Any], inputs: list[dict[str, Any]]) -> Manifest:
    manifest = read_manifest(out)
    if (manifest.options, manifest.inputs) != (options, inputs):
        raise ValueError(f"{out} was prepared from other inputs or options: choose another --out or add --overwrite")
    try:
        load_manifest_for(out)
    except ValueError as error:
        raise ValueError(f"{error} (--overwrite replaces it)") from None
    logger.info("%s is already prepared from these inputs and options", out)
    return manifest


@contextlib.contextmanager
def _partial_folder(out: str) -> Iterator[str]:
    """The empty folder `out`.partial, locked against other processes; gone at the end, whatever happened."""
    partial = f"{out}.partial"
    os.makedirs(partial, exist_ok=True)
    with open(os.path.join(partial, LOCK_NAME), "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by worker processes, unlike flock
        except OSError:
            raise ValueError(f"{partial} is in use by another prepare") from None
        try:
            for entry in os.scandir(partial):  # left by a killed process
                if entry.is_dir():
                    shutil.rmtree(entry.path)
                elif entry.name != LOCK_NAME:
                    os.remove(entry.path)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: str, out: str, sources: list[str]) -> None:
    for path in (os.path.join(partial, LOCK_NAME), *sources):
        if os.path.dirname(path) == partial:
            os.remove(path)
    replaced = "replaced"
    if os.path.isdir(out):
        os.rename(out, os.path.join(partial, replaced))
    os.rename(partial, out)
    shutil.rmtree(os.path.join(out, replaced), ignore_errors=True)


def _open_sources(paths: Iterable[str], folder: str) -> list[Source]:
    """The sources with what identifies them; streams, which cannot be read twice, are copied into `folder`."""
    sources = []
    for path in paths:
        if corpus.is_stream(path):
            copy = os.path.join(folder, f"stream{len(sources)}")
            with corpus.open_input(path) as stream, open(copy, "wb") as target:
                shutil.copyfileobj(stream, target, corpus.CHUNK_BYTES)
            corpus.check_text(copy, "standard input" if path == corpus.STANDARD_INPUT else path)
            sources.append(Source(copy, {"name": path, "bytes": os.path.getsize(copy), "sha256": sha256_of(copy)}))
        else:
            status = os.stat(path)
            identity = {"name": os.path.abspath(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
            sources.append(Source(path, identity))
    return sources


def _write(
    sources: Sequence[Source], folder: str, vocabulary: Vocabulary, options: Options, workers: int, progress: bool
) -> Manifest:
    """Write all of a prepared folder but its manifest.json, which is returned without options and inputs."""
    train_prefixes = [os.path.join(f"data{shard}", "train") for shard in range(options.shards)]
    for prefix in train_prefixes:
        os.makedirs(os.path.join(folder, os.path.dirname(prefix)))
    layout = (folder, vocabulary.size, options.tokens_per_sample, options.documents_whole)
    train = SplitWriter(train_prefixes, *layout)
    valid = SplitWriter([os.path.join("data0", "valid")], *layout)
    documents = DocumentWriter(train, valid, options.valid_fraction)
    repaired = Counter(invalid_utf8_bytes=0, nul_characters=0, byte_order_marks=0, long_lines_split=0)
    symbol_counts = np.zeros(vocabulary.size, dtype=np.int64)

    total = sum(source.identity["bytes"] for source in sources)
    started, in_long_line = time.monotonic(), False
    chunks = (chunk for source in sources for chunk in corpus.read_chunks(source.path))
    with tqdm(total=total, unit="B", unit_scale=True, desc="encode", disable=None if progress else True) as bar:
        for chunk, encoded in encode_chunks(chunks, vocabulary, options.documents, workers):
            if chunk.starts_file:
                documents.begin_file()
            parts = np.split(encoded.token_ids, np.cumsum(encoded.lengths)[:-1])
            for number, (token_ids, characters) in enumerate(zip(parts, encoded.characters)):
                if number > 0:
                    documents.begin_document()
                documents.add(token_ids, characters)
            symbol_counts += np.bincount(encoded.token_ids, minlength=vocabulary.size)
            repaired["invalid_utf8_bytes"] += encoded.invalid_bytes
            repaired["nul_characters"] += encoded.nul_characters
            repaired["byte_order_marks"] += chunk.byte_order_mark
            repaired["long_lines_split"] += chunk.cuts_line and not in_long_line
            in_long_line = chunk.cuts_line
            bar.update(len(chunk.data))
    documents.begin_document()  # which ends the last one
    train.packer.finish()
    valid.packer.finish()
    seconds = time.monotonic() - started
    rate = total / 1e6 / seconds
    logger.info("encoded %.1f MB in %.1f s: %.2f MB/s, workers: %d", total / 1e6, seconds, rate, workers)
    if valid.documents == 0:
        raise ValueError("the corpus holds no document")
    if train.documents == 0:
        raise ValueError("the corpus holds one document, and validation needs one more: try --documents line")
    if options.shards > train.blocks:
        raise ValueError(f"{options.shards} shards are more than the {train.blocks} blocks: lower --shards")

    dictionary = vocabulary.dictionary or format_dictionary(vocabulary, symbol_counts)
    for name in ("", *map(os.path.dirname, train_prefixes)):
        with open(os.path.join(folder, name, DICTIONARY_NAME), "wb") as stream:
            stream.write(dictionary)
    with open(os.path.join(folder, MODEL_NAME), "wb") as stream:
        stream.write(vocabulary.model)
    return Manifest(
        version=FORMAT_VERSION,
        tokens_per_sample=options.tokens_per_sample,
        vocabulary_size=vocabulary.size,
        dictionary_sha256=hashlib.sha256(dictionary).hexdigest(),
        sentencepiece_sha256=vocabulary.sha256,
        options={},
        inputs=[],
        splits={"train": train.close(), "valid": valid.close()},
        dropped={"empty_files": documents.empty_files, "empty_documents": documents.empty_documents},
        repaired=dict(repaired),
    )
