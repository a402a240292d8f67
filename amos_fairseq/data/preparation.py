"""From text to training data: encode documents in parallel, pack them into blocks, write shards and a manifest.

    sources -> slices -> (processes, on any machine) files of token ids of documents -> blocks -> shards

What a slice is encoded to depends on its bytes alone, and everything after that happens in the order of the corpus in
one process: the output does not depend on how many processes and machines took part, nor on how often they were killed.
Packing begins anew after a kill; it takes a fraction of the time that encoding does.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from amos_fairseq.data import corpus, packing
from amos_fairseq.data.corpus import REPAIRED, Source, Span
from amos_fairseq.data.encoding import EncodedText, encode_slices, portions, read_encoded
from amos_fairseq.data.fast_tokenizer import train_fast
from amos_fairseq.data.inputs import STANDARD_INPUT, is_stream, list_inputs
from amos_fairseq.data.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, load_manifest_for, read_manifest
from amos_fairseq.data.options import NORMALIZATIONS, Options
from amos_fairseq.data.released_tokenizer import ReleasedTokenizer
from amos_fairseq.data.sources import Text, open_source
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import DICTIONARY_NAME, train_vocabulary
from amos_fairseq.data.vocabulary_files import VOCABULARY_NAMES, load_tokenizer, read_vocabulary, vocabulary_file
from amos_fairseq.files import replace_durably, sha256_of
from amos_fairseq.user_errors import Damaged

# In the folder of an unfinished preparation, beside the vocabulary:
LOCK_NAME, SETUP_LOCK_NAME = "lock", "setup.lock"
PLAN_NAME = "plan.json"  # what the encoded slices depend on
ENCODED_NAME = "encoded"
COMPLETE_NAME, REPLACED_NAME = "complete", "replaced"  # the prepared folder to be, and the one that it replaces
OWN_FILES = re.compile(rf"{MANIFEST_NAME}|{DICTIONARY_NAME}|{'|'.join(VOCABULARY_NAMES)}|data\d+")
DEFAULT_VOCAB_SIZE = 32768
DROPPED = ("empty_files", "empty_documents", "duplicate_documents", "repeated_ids")
READING = ("documents", "text_field", "id_field", "format", "encoding")  # options by which sources are read
logger = logging.getLogger(__name__)


class Slices(NamedTuple):
    """Spans by the files that they are encoded to, those of validation apart where the user has given it."""

    train: dict[str, list[Span]]
    valid: dict[str, list[Span]]

    @property
    def all(self) -> dict[str, list[Span]]:
        return {**self.valid, **self.train}


def parse_part(text: str) -> tuple[int, int]:
    """I/N: share I of N of the work of encoding, for one of several machines."""
    if not (found := re.fullmatch(r"(\d+)/(\d+)", text)) or int(found[1]) >= int(found[2]):
        raise ValueError(f"--part {text} is none of 0/N, 1/N, .., N-1/N")
    return int(found[1]), int(found[2])


def prepare(
    inputs: Sequence[str], out: str, *, workers: Optional[int] = None, overwrite: bool = False,
    part: Optional[tuple[int, int]] = None, progress: bool = False, **options: Any,
) -> Optional[Manifest]:
    """Prepare the text of `inputs` (files, folders, `-`) into the new folder `out`; `options`: fields of `Options`.

    Built in `out`.partial, where the same call goes on after a kill, and renamed when complete. Returns at once if
    `out` holds the same preparation already. With `part`, as of `parse_part`, None is returned unless it was the last.
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
    inputs_found = list_inputs(inputs, chosen.format)
    valid_found = list_inputs([chosen.valid], chosen.format) if chosen.valid is not None else None
    files = [*inputs_found.files, *(valid_found.files if valid_found else [])]
    for path in (path for path, _ in files if is_stream(path) and part is not None):
        raise ValueError(f"--part needs input that can be read again, which {path} cannot")
    for path, format in files:
        if not is_stream(path):
            open_source(path, path, format, chosen).check()
    given = read_vocabulary(chosen.vocabulary) if chosen.vocabulary is not None else None
    if isinstance(given, ReleasedTokenizer):
        raise ValueError(
            f"--vocabulary {chosen.vocabulary} is that of Microsoft's releases, which are fine-tuned, not gone on "
            "from: leave it out, or name another"
        )
    if given is not None and (obstacle := given.obstacle):
        logger.warning(
            "%s: %s, which Hugging Face's tokenizers have no equal for: what is trained with it can be exported with "
            "--no-tokenizer only", chosen.vocabulary, obstacle
        )
    if given is None:
        chosen.vocab_size = chosen.vocab_size or DEFAULT_VOCAB_SIZE
        if chosen.train_tokenizer is None:
            chosen.normalization = chosen.normalization or NORMALIZATIONS[0]

    with _partial_folder(out, shared=part is not None) as (partial, lock):
        (train, of_train), (valid, of_valid) = (
            _open_sources(found.files if found else [], chosen, partial, name)
            for found, name in ((inputs_found, "stream"), (valid_found, "valid"))
        )
        recorded = {**asdict(chosen), "vocabulary": given and given.sha256, "valid": valid_found is not None}
        if chosen.train_tokenizer is None:  # SentencePiece's folders are those of before there was a choice
            del recorded["train_tokenizer"]
        identities = [*of_train, *({**identity, "split": "valid"} for identity in of_valid)]
        plan = _plan(recorded, identities)
        if os.path.exists(os.path.join(out, MANIFEST_NAME)) and not overwrite:
            manifest = _existing(out, recorded, identities)
            if _kept_plan(partial) not in (None, plan):  # what an --overwrite has begun
                return manifest
        else:
            tokenizer = _set_up(partial, plan, recorded, train, given, overwrite)
            slices = _slices(partial, train, valid)
            share = part or (0, 1)
            _encode(slices.all, share, tokenizer, workers, progress)
            if not (all(map(os.path.exists, slices.all)) and lock.taken_alone()):
                logger.info("part %d/%d is encoded; the last part to be done puts all together", *share)
                return None
            manifest = _pack(slices, _emptied(partial, COMPLETE_NAME), tokenizer, chosen, progress)
            manifest.options, manifest.inputs = recorded, identities
            for found in filter(None, (inputs_found, valid_found)):
                for reason, paths in found.not_read.items():
                    manifest.not_read.setdefault(reason, []).extend(map(os.path.abspath, paths))
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
    """The folder `out`.partial and the lock on it; it stays, after a failure too, unless the input was wrong. What an
    --overwrite has begun stays then, too, for its option may just have been forgotten.
    """
    partial = f"{out}.partial"
    os.makedirs(partial, exist_ok=True)
    begun = os.path.exists(os.path.join(out, MANIFEST_NAME)) and _kept_plan(partial) is not None
    lock = _Lock(os.path.join(partial, LOCK_NAME), shared)
    with lock.stream:
        if not lock.take():
            raise ValueError(f"{partial} is in use by another prepare")
        try:
            yield partial, lock
        except ValueError:
            if not begun and lock.taken_alone():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        except KeyboardInterrupt:
            logger.info("stopped: the same command goes on from what %s holds", partial)
            raise


def _plan(options: dict[str, Any], inputs: list[dict[str, Any]]) -> bytes:
    """What the encoded slices depend on."""
    names = (*READING, "vocabulary", "vocab_size", "uncased", "normalization", "vocabulary_sample", "train_tokenizer")
    of_vocabulary = {name: options[name] for name in names if name in options}
    return json.dumps({**of_vocabulary, "inputs": inputs}, indent=1).encode()


def _kept_plan(partial: str) -> Optional[bytes]:
    path = Path(partial, PLAN_NAME)
    return path.read_bytes() if path.exists() else None


def _set_up(
    partial: str, plan: bytes, options: dict[str, Any], sources: Sequence[Source], given: Optional[Tokenizer],
    overwrite: bool,
) -> Tokenizer:
    """See to it that what `partial` holds is of the same text and vocabulary, which is trained unless it is there."""
    lock = _Lock(os.path.join(partial, SETUP_LOCK_NAME), shared=False)
    with lock.stream:
        lock.take(wait=True)
        model_path, kept = vocabulary_file(partial), _kept_plan(partial)
        if kept != plan:
            encoded = glob.glob(os.path.join(glob.escape(partial), ENCODED_NAME, "*.npz"))
            if kept is not None and not overwrite and (os.path.exists(model_path) or encoded):
                raise FileExistsError(
                    f"{partial} is an unfinished preparation of other inputs or options: give its command again, "
                    "choose another --out, or add --overwrite"
                )
            with contextlib.suppress(FileNotFoundError):
                os.remove(model_path)
            _emptied(partial, ENCODED_NAME)
            replace_durably(os.path.join(partial, PLAN_NAME), plan)
        if given is not None:
            return given
        if os.path.exists(model_path):
            return load_tokenizer(Path(model_path).read_bytes(), model_path)
        sample = corpus.sample_text(sources, options["vocabulary_sample"])
        size, uncased = options["vocab_size"], options["uncased"]
        if "train_tokenizer" in options:
            tokenizer: Tokenizer = train_fast(sample, options["train_tokenizer"], size, uncased)
        else:
            tokenizer = load_tokenizer(train_vocabulary(sample, size, uncased, options["normalization"]))
        replace_durably(os.path.join(partial, tokenizer.file_name), tokenizer.model)
        return tokenizer


def _slices(partial: str, train: Sequence[Source], valid: Sequence[Source]) -> Slices:
    folder = os.path.join(partial, ENCODED_NAME)
    paths = (os.path.join(folder, f"{number:06d}.npz") for number in itertools.count())
    of_valid = {next(paths): spans for spans in corpus.plan_slices(valid)} if valid else {}
    return Slices({next(paths): spans for spans in corpus.plan_slices(train)}, of_valid)


def _emptied(*path: str) -> str:
    folder = os.path.join(*path)
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    return folder


def _publish(manifest: Manifest, partial: str, out: str) -> None:
    """Name the complete folder `out`. A kill in the midst leaves the earlier `out`, the new one, or `partial`."""
    complete = os.path.join(partial, COMPLETE_NAME)
    replace_durably(os.path.join(complete, MANIFEST_NAME), json.dumps(asdict(manifest), indent=1).encode())
    if os.path.isdir(out):
        os.rename(out, os.path.join(_emptied(partial, REPLACED_NAME), "out"))
    os.rename(complete, out)


def _open_sources(
    files: Sequence[tuple[str, str]], reading: Options, folder: str, name: str
) -> tuple[list[Source], list[dict[str, Any]]]:
    """Sources, and of each what the manifest records.

    Streams, which cannot be read twice, are copied into `folder` as `name` and a number.
    """
    sources: list[Source] = []
    identities: list[dict[str, Any]] = []
    for path, format in files:
        if is_stream(path):
            copy = os.path.join(folder, f"{name}{len(sources)}")
            stream = os.fdopen(os.dup(sys.stdin.fileno()), "rb") if path == STANDARD_INPUT else open(path, "rb")
            with stream, open(copy, "wb") as target:
                shutil.copyfileobj(stream, target, corpus.CHUNK_BYTES)
            source = open_source(copy, "standard input" if path == STANDARD_INPUT else path, format, reading)
            source.check()
            identity = {"name": path, "bytes": os.path.getsize(copy), "sha256": sha256_of(copy)}
        else:
            source, status = open_source(path, path, format, reading), os.stat(path)
            identity = {"name": os.path.abspath(path), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        sources.append(source)
        identities.append(identity)
    return sources, identities


def _encode(
    slices: dict[str, list[Span]], part: tuple[int, int], tokenizer: Tokenizer, workers: int, progress: bool
) -> None:
    """Encode the slices of `part` that are not there yet."""
    mine = dict(list(slices.items())[part[0] :: part[1]])
    missing = {path: spans for path, spans in mine.items() if not os.path.exists(path)}
    if not missing:
        return
    total, rest = (sum(span.size for spans in some.values() for span in spans) for some in (mine, missing))
    started = time.monotonic()
    with _progress_bar("encode", total, progress, initial=total - rest) as bar:
        size = encode_slices(missing, tokenizer, workers, bar.update)
    seconds = time.monotonic() - started
    logger.info("encoded %.1f MB in %.1f s: %.2f MB/s, workers: %d", size / 1e6, seconds, size / 1e6 / seconds, workers)


def _progress_bar(description: str, total: int, progress: bool, initial: int = 0) -> tqdm:
    disable = None if progress else True
    return tqdm(total=total, initial=initial, unit="B", unit_scale=True, desc=description, disable=disable)


def _check_fates(fates: np.ndarray, lengths: np.ndarray, options: Options, divisible: bool) -> None:
    """Refuse a corpus with nothing to train or to validate on; tell if validation is far from what was asked for.

    divisible: whether --documents line would make more documents
    """
    train, valid = (int(lengths[fates == fate].sum()) for fate in (packing.TRAIN, packing.VALID))
    if not train and not valid:
        raise ValueError("the corpus holds no document")
    if options.valid is not None:
        if not (train and valid):
            of = "the corpus" if valid else f"--valid {options.valid}"
            raise ValueError(f"{of} holds no document" + ", duplicates aside" * options.deduplicate)
        return
    if not train:
        remedy = "--documents line" if divisible else "--valid with a text of its own"
        raise ValueError(f"the corpus holds one document, and validation needs one more: try {remedy}")
    share, remedy = valid / (train + valid), "--documents line makes more of them, " if divisible else ""
    if not options.valid_fraction / 2 <= share <= 2 * options.valid_fraction:
        logger.warning(
            "validation holds %.2g of the tokens, not --valid-fraction %g, for documents are few or long: %s--valid "
            "names a text to validate on", share, options.valid_fraction, remedy
        )


def _read(slices: Iterable[str], tokens: bool, bar: Optional[tqdm] = None) -> Iterator[EncodedText]:
    """What slices are encoded to, in order."""
    for path in (portion for path in slices for portion in portions(path)):
        yield read_encoded(path, tokens)
        if bar is not None:
            bar.update(os.path.getsize(path))


def _pack(slices: Slices, folder: str, tokenizer: Tokenizer, options: Options, progress: bool) -> Manifest:
    """Write all of a prepared folder but its manifest.json, which is returned without options and inputs."""
    train_prefixes = [os.path.join(f"data{shard}", "train") for shard in range(options.shards)]
    for prefix in train_prefixes:
        os.makedirs(os.path.join(folder, os.path.dirname(prefix)))
    layout = (folder, tokenizer, options.tokens_per_sample, options.documents_whole)
    train = packing.SplitWriter(train_prefixes, *layout)
    valid = packing.SplitWriter([os.path.join("data0", "valid")], *layout)

    survey = packing.Survey(packing.SeenDocuments() if options.deduplicate else None)
    for encoded in _read(slices.valid, options.deduplicate):
        survey.add(encoded)
    given = len(survey.lengths)  # documents that are there to validate on
    for encoded in _read(slices.train, options.deduplicate):
        survey.add(encoded)
    survey.end_document()
    lengths = np.array(survey.lengths, dtype=np.int64)
    fates = np.where(lengths > 0, packing.TRAIN, packing.LEFT_OUT)
    if slices.valid:
        fates[:given][lengths[:given] > 0] = packing.VALID
    else:
        fates[packing.held_out(lengths, options.valid_fraction)] = packing.VALID
    is_text = any(isinstance(span.source, Text) for spans in slices.train.values() for span in spans)
    _check_fates(fates, lengths, options, divisible=is_text and options.documents != "line")

    documents = packing.DocumentWriter(train, valid, fates)
    repaired = np.zeros(len(REPAIRED), dtype=np.int64)
    paths = [portion for path in slices.all for portion in portions(path)]
    with _progress_bar("pack", sum(map(os.path.getsize, paths)), progress) as bar:
        for encoded in _read(slices.all, True, bar):
            documents.add(encoded)
            repaired += encoded.repaired
    symbol_counts = train.finish() + valid.finish()
    if options.shards > train.blocks:
        raise ValueError(f"{options.shards} shards are more than the {train.blocks} blocks: lower --shards")

    dictionary = tokenizer.counted or tokenizer.dict_txt(symbol_counts)
    for name in ("", *map(os.path.dirname, train_prefixes)):
        replace_durably(os.path.join(folder, name, DICTIONARY_NAME), dictionary)
    replace_durably(os.path.join(folder, tokenizer.file_name), tokenizer.model)
    return Manifest(
        version=FORMAT_VERSION, tokens_per_sample=options.tokens_per_sample, vocabulary_size=len(tokenizer),
        dictionary_sha256=hashlib.sha256(dictionary).hexdigest(), sentencepiece_sha256=tokenizer.sha256,
        options={}, inputs=[],
        splits={"train": train.close(), "valid": valid.close()},
        dropped={name: getattr(survey, name) for name in DROPPED},
        repaired=dict(zip(REPAIRED, repaired.tolist())),
    )
