"""From text to training data: encode documents in parallel, pack them into blocks, write shards and a manifest.

    files -> slices of the corpus -> (processes, on any machine) files of token ids of documents -> blocks -> shards

What a slice is encoded to depends on its bytes alone, and everything after that happens in the order of the corpus in
one process: the output does not depend on how many processes and machines took part, nor on how often they were killed.
Packing begins anew after a kill; it takes a fraction of the time that encoding does.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from amos_fairseq.data import corpus
from amos_fairseq.data.encoding import CONTINUES, REPAIRED, STARTS_FILE, encode_slices, read_encoded
from amos_fairseq.data.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, load_manifest_for, read_manifest
from amos_fairseq.data.packing import DocumentWriter, SeenDocuments, SplitWriter
from amos_fairseq.data.vocabulary import (
    DICTIONARY_NAME,
    MODEL_NAME,
    SubwordVocabulary,
    format_dictionary,
    load_vocabulary,
    read_vocabulary,
    train_vocabulary,
)
from amos_fairseq.files import durably_written, sha256_of
from amos_fairseq.user_errors import Damaged

# In the folder of an unfinished preparation, beside MODEL_NAME:
LOCK_NAME, SETUP_LOCK_NAME = "lock", "setup.lock"
PLAN_NAME = "plan.json"  # what the encoded slices depend on
ENCODED_NAME = "encoded"
COMPLETE_NAME, REPLACED_NAME = "complete", "replaced"  # the prepared folder to be, and the one that it replaces
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
    deduplicate: bool = False
    vocabulary_sample: int = 100_000_000

    def check(self) -> None:
        if self.documents not in ("blank-line", "line"):
            raise ValueError(f"documents are separated by blank-line or line, not {self.documents}")
        if self.vocabulary is not None and (self.vocab_size is not None or self.uncased):
            raise ValueError("--vocab-size and --uncased are properties of the given --vocabulary: leave them out")
        if not 0 < self.valid_fraction < 1:
            raise ValueError(f"--valid-fraction {self.valid_fraction} is not between 0 and 1")
        for name, least in ("tokens-per-sample", 8), ("shards", 1), ("vocabulary-sample", 1):
            if (value := getattr(self, name.replace("-", "_"))) < least:
                raise ValueError(f"--{name} {value} is too small: use {least} or more")


class Source(NamedTuple):
    """An input file; `path` is where its bytes lie, `identity` what the manifest records."""

    path: str
    identity: dict[str, Any]


class Part(NamedTuple):
    """Share `index` of `count` of the work of encoding, for one of several machines."""

    index: int  # type: ignore[assignment]  # hides a method of tuples
    count: int  # type: ignore[assignment]

    @classmethod
    def parse(cls, text: str) -> "Part":
        if not (found := re.fullmatch(r"(\d+)/(\d+)", text)) or int(found[1]) >= int(found[2]):
            raise ValueError(f"--part {text} is none of 0/N, 1/N, .., N-1/N")
        return cls(int(found[1]), int(found[2]))


def prepare(
    inputs: Sequence[str], out: str, *, workers: Optional[int] = None, overwrite: bool = False,
    part: Optional[Part] = None, progress: bool = False, **options: Any,
) -> Optional[Manifest]:
    """Prepare the text of `inputs` (files, folders, `-`) into the new folder `out`; `options`: fields of `Options`.

    Built in `out`.partial, where the same call goes on after a kill, and renamed when complete. Returns at once if
    `out` holds the same preparation already. With `part`, None is returned unless it was the last part to be done.
    """
    chosen = Options(**options)
    chosen.check()
    workers = workers if workers is not None else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"--workers {workers} is too small: use 1 or more")
    out = os.path.normpath(out)
    if ":" in out:
        raise ValueError(f"{out}: fairseq splits data paths at ':', choose another --out")
    if part is not None and overwrite:
        raise ValueError(f"--overwrite is not for one --part of the work: delete {out} first")
    _check_target(out)
    paths = corpus.list_inputs(inputs)
    for path in paths:
        if not corpus.is_stream(path):
            corpus.check_text(path, path)
        elif part is not None:
            raise ValueError(f"--part needs input that can be read again, which {path} cannot")
    given = read_vocabulary(chosen.vocabulary) if chosen.vocabulary is not None else None
    if given is None and chosen.vocab_size is None:
        chosen.vocab_size = DEFAULT_VOCAB_SIZE

    with _partial_folder(out, shared=part is not None) as (partial, lock):
        sources = _open_sources(paths, partial)
        recorded = {**asdict(chosen), "vocabulary": given and given.sha256}
        identities = [source.identity for source in sources]
        if os.path.exists(os.path.join(out, MANIFEST_NAME)) and not overwrite:
            manifest = _existing(out, recorded, identities)
        else:
            sizes = [(source.path, source.identity["bytes"]) for source in sources]
            vocabulary = _set_up(partial, recorded, identities, sizes, given, overwrite)
            slices = _slices(partial, sizes)
            share = part or Part(0, 1)
            _encode(slices, share, vocabulary, chosen, workers, progress)
            if not (all(map(os.path.exists, slices)) and lock.taken_alone()):
                logger.info("part %d/%d is encoded; the last part to be done puts all together", *share)
                return None
            manifest = _pack(slices, _emptied(partial, COMPLETE_NAME), vocabulary, chosen, progress)
            manifest.options, manifest.inputs = recorded, identities
            _publish(manifest, partial, out)
        if lock.taken_alone():
            shutil.rmtree(partial, ignore_errors=True)
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
    except Damaged as error:
        raise Damaged(f"{error} (--overwrite replaces it)") from None
    logger.info("%s is already prepared from these inputs and options", out)
    return manifest


class _Lock:
    """A lock on a folder against other processes, held by many (`shared`) or one, and gone with its process."""

    def __init__(self, path: str, shared: bool):
        self.stream, self.shared = open(path, "a+"), shared

    def take(self, wait: bool = False) -> bool:
        kind = fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self.stream, kind if wait else kind | fcntl.LOCK_NB)  # not inherited, unlike flock
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise OSError(f"{self.stream.name}: the file system offers no locks: {error.strerror}") from None
            return False
        return True

    def taken_alone(self) -> bool:
        """Turn a shared lock, if it is one, into one of this process alone; False if others have it."""
        if self.shared:
            fcntl.lockf(self.stream, fcntl.LOCK_UN)  # first, or the last two to hold it would refuse each other
            self.shared = False
            self.shared = not self.take()
        return not self.shared


@contextlib.contextmanager
def _partial_folder(out: str, shared: bool) -> Iterator[tuple[str, _Lock]]:
    """The folder `out`.partial and the lock on it; it stays, after a failure too, unless the input was wrong."""
    partial = f"{out}.partial"
    os.makedirs(partial, exist_ok=True)
    lock = _Lock(os.path.join(partial, LOCK_NAME), shared)
    with lock.stream:
        if not lock.take():
            raise ValueError(f"{partial} is in use by another prepare")
        try:
            yield partial, lock
        except ValueError:
            if lock.taken_alone():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        except KeyboardInterrupt:
            logger.info("stopped: the same command goes on from what %s holds", partial)
            raise


def _set_up(
    partial: str, options: dict[str, Any], inputs: list[dict[str, Any]], sizes: Sequence[tuple[str, int]],
    given: Optional[SubwordVocabulary], overwrite: bool,
) -> SubwordVocabulary:
    """See to it that what `partial` holds is of the same text and vocabulary, which is trained unless it is there."""
    lock = _Lock(os.path.join(partial, SETUP_LOCK_NAME), shared=False)
    with lock.stream:
        lock.take(wait=True)
        names = ("documents", "vocabulary", "vocab_size", "uncased", "vocabulary_sample")
        plan = json.dumps({**{name: options[name] for name in names}, "inputs": inputs}, indent=1).encode()
        plan_path, model_path = os.path.join(partial, PLAN_NAME), os.path.join(partial, MODEL_NAME)
        kept = _read_if_there(plan_path)
        if kept != plan:
            if kept is not None and not overwrite and (os.path.exists(model_path) or _encoded_files(partial)):
                raise FileExistsError(
                    f"{partial} is an unfinished preparation of other inputs or options: give its command again, "
                    "choose another --out, or add --overwrite"
                )
            with contextlib.suppress(FileNotFoundError):
                os.remove(model_path)
            _emptied(partial, ENCODED_NAME)
            _write_durably(plan_path, plan)
        if given is not None:
            return given
        model = _read_if_there(model_path)
        if model is not None:
            return load_vocabulary(model, model_path)
        vocabulary = train_vocabulary(
            corpus.sample_text(sizes, options["vocabulary_sample"]), options["vocab_size"], options["uncased"]
        )
        _write_durably(model_path, vocabulary.model)
        return vocabulary


def _slices(partial: str, sizes: Sequence[tuple[str, int]]) -> dict[str, list[corpus.Span]]:
    """The slices of the corpus by the files that they are encoded to."""
    folder = os.path.join(partial, ENCODED_NAME)
    return {os.path.join(folder, f"{i:06d}.npz"): spans for i, spans in enumerate(corpus.plan_slices(sizes))}


def _encoded_files(partial: str) -> list[str]:
    folder = os.path.join(partial, ENCODED_NAME)
    return [name for name in os.listdir(folder) if name.endswith(".npz")] if os.path.isdir(folder) else []


def _emptied(*path: str) -> str:
    folder = os.path.join(*path)
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    return folder


def _read_if_there(path: str) -> Optional[bytes]:
    if not os.path.exists(path):
        return None
    with open(path, "rb") as stream:
        return stream.read()


def _write_durably(path: str, data: bytes) -> None:
    with durably_written(path) as stream:
        stream.write(data)


def _publish(manifest: Manifest, partial: str, out: str) -> None:
    """Name the complete folder `out`. A kill in the midst leaves the earlier `out`, the new one, or `partial`."""
    complete = os.path.join(partial, COMPLETE_NAME)
    _write_durably(os.path.join(complete, MANIFEST_NAME), json.dumps(asdict(manifest), indent=1).encode())
    if os.path.isdir(out):
        os.rename(out, os.path.join(_emptied(partial, REPLACED_NAME), "out"))
    os.rename(complete, out)


def _open_sources(paths: Iterable[str], folder: str) -> list[Source]:
    """The sources with what identifies them; streams, which cannot be read twice, are copied into `folder`."""
    sources: list[Source] = []
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


def _encode(
    slices: dict[str, list[corpus.Span]], part: Part, vocabulary: SubwordVocabulary, options: Options, workers: int,
    progress: bool,
) -> None:
    """Encode the slices of `part` that are not there yet."""
    mine = dict(list(slices.items())[part.index :: part.count])
    missing = {path: spans for path, spans in mine.items() if not os.path.exists(path)}
    if not missing:
        return
    total, rest = (sum(span.end - span.begin for spans in some.values() for span in spans) for some in (mine, missing))
    started = time.monotonic()
    with _progress_bar("encode", total, progress, initial=total - rest) as bar:
        for size in encode_slices(missing, vocabulary, options.documents, workers):
            bar.update(size)
    seconds = time.monotonic() - started
    logger.info("encoded %.1f MB in %.1f s: %.2f MB/s, workers: %d", rest / 1e6, seconds, rest / 1e6 / seconds, workers)


def _progress_bar(description: str, total: int, progress: bool, initial: int = 0) -> tqdm:
    disable = None if progress else True
    return tqdm(total=total, initial=initial, unit="B", unit_scale=True, desc=description, disable=disable)


def _pack(
    slices: dict[str, list[corpus.Span]], folder: str, vocabulary: SubwordVocabulary, options: Options, progress: bool
) -> Manifest:
    """Write all of a prepared folder but its manifest.json, which is returned without options and inputs."""
    train_prefixes = [os.path.join(f"data{shard}", "train") for shard in range(options.shards)]
    for prefix in train_prefixes:
        os.makedirs(os.path.join(folder, os.path.dirname(prefix)))
    layout = (folder, vocabulary.size, options.tokens_per_sample, options.documents_whole)
    train = SplitWriter(train_prefixes, *layout)
    valid = SplitWriter([os.path.join("data0", "valid")], *layout)
    documents = DocumentWriter(train, valid, options.valid_fraction, SeenDocuments() if options.deduplicate else None)
    repaired = np.zeros(len(REPAIRED), dtype=np.int64)
    with _progress_bar("pack", sum(map(os.path.getsize, slices)), progress) as bar:
        for path in slices:
            encoded = read_encoded(path)
            ends = np.cumsum(encoded.lengths).tolist()
            begin = 0
            for kind, end, characters in zip(encoded.kinds.tolist(), ends, encoded.characters.tolist()):
                if kind == STARTS_FILE:
                    documents.begin_file()
                elif kind != CONTINUES:
                    documents.begin_document()
                documents.add(encoded.token_ids[begin:end], characters)
                begin = end
            repaired += encoded.repaired
            bar.update(os.path.getsize(path))
    documents.begin_document()  # which ends the last one
    symbol_counts = train.finish() + valid.finish()
    if valid.documents == 0:
        raise ValueError("the corpus holds no document")
    if train.documents == 0:
        raise ValueError("the corpus holds one document, and validation needs one more: try --documents line")
    if options.shards > train.blocks:
        raise ValueError(f"{options.shards} shards are more than the {train.blocks} blocks: lower --shards")

    dictionary = vocabulary.dictionary or format_dictionary(vocabulary, symbol_counts)
    for name in ("", *map(os.path.dirname, train_prefixes)):
        _write_durably(os.path.join(folder, name, DICTIONARY_NAME), dictionary)
    _write_durably(os.path.join(folder, MODEL_NAME), vocabulary.model)
    return Manifest(
        version=FORMAT_VERSION, tokens_per_sample=options.tokens_per_sample, vocabulary_size=vocabulary.size,
        dictionary_sha256=hashlib.sha256(dictionary).hexdigest(), sentencepiece_sha256=vocabulary.sha256,
        options={}, inputs=[],
        splits={"train": train.close(), "valid": valid.close()},
        dropped={name: getattr(documents, name) for name in ("empty_files", "empty_documents", "duplicate_documents")},
        repaired=dict(zip(REPAIRED, repaired.tolist())),
    )
