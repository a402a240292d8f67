"""Text to token ids, in parallel: each slice of the corpus becomes a file, complete or absent.

What a slice is encoded to depends on the bytes of its files alone, so any process, on any machine, may do it.
"""

import os
import signal
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from amos_fairseq.data import corpus
from amos_fairseq.data.vocabulary import SubwordVocabulary, load_processor, token_dtype
from amos_fairseq.files import durably_written

REPAIRED = ("invalid_utf8_bytes", "nul_characters", "byte_order_marks", "long_lines_split")
CONTINUES, STARTS_DOCUMENT, STARTS_FILE = range(3)  # what a part does


class EncodedText(NamedTuple):
    """Documents in parts; the first part continues what was open before, unless it starts a file.

    token_ids: of all parts
    kinds, lengths, characters: (parts,) CONTINUES or what the part starts, its tokens, its characters
    repaired: (4,) how often each of REPAIRED
    """

    token_ids: np.ndarray
    kinds: np.ndarray
    lengths: np.ndarray
    characters: np.ndarray
    repaired: np.ndarray


class TextEncoder:
    """Encodes the documents of a slice as dictionary indices."""

    def __init__(self, vocabulary: SubwordVocabulary, documents: str):
        self.processor = load_processor(vocabulary.model)
        self.symbol_of_piece = vocabulary.symbol_of_piece.astype(token_dtype(vocabulary.size))
        self.documents = documents

    def __call__(self, spans: Sequence[corpus.Span]) -> EncodedText:
        encoded = [self._encode_chunk(chunk) for span in spans for chunk in corpus.read_chunks(span)]
        *parts, repaired = zip(*encoded)
        return EncodedText(*[*map(np.concatenate, parts), np.sum(repaired, axis=0)])

    def _encode_chunk(self, chunk: corpus.Chunk) -> EncodedText:
        clean = corpus.clean_text(chunk.data)
        first, *others = (part.strip() for part in corpus.split_documents(clean.text, self.documents))
        parts = [first, *filter(None, others[:-1]), *others[-1:]]  # an empty last one ends the document before it
        # Lines become words of one sequence; only some models' normalisation would do so by itself.
        pieces = self.processor.encode([part.replace("\n", " ") for part in parts], num_threads=1)
        kinds = np.full(len(parts), STARTS_DOCUMENT, dtype=np.uint8)
        kinds[0] = STARTS_FILE if chunk.starts_file else CONTINUES
        splits_line = chunk.cuts_line and not chunk.continues_line
        return EncodedText(
            self.symbol_of_piece[np.array([piece for part in pieces for piece in part], dtype=np.int32)], kinds,
            np.array([len(part) for part in pieces]), np.array([len(part) for part in parts]),
            np.array([clean.invalid_bytes, clean.nul_characters, chunk.byte_order_mark, splits_line]),
        )


def write_encoded(path: str, encoded: EncodedText) -> None:
    with durably_written(path) as stream:
        np.savez(stream, **encoded._asdict())


def read_encoded(path: str) -> EncodedText:
    """What `write_encoded` wrote; its checksums are compared."""
    try:
        with np.load(path) as arrays:
            return EncodedText(**arrays)
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError):
        raise OSError(f"{path} is damaged: delete it and give the same command again") from None


_encoder: TextEncoder  # of this worker process


def _start_worker(*arguments: Any) -> None:
    global _encoder
    _encoder = TextEncoder(*arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()


def _leave_with_parent(parent: int) -> None:
    """End this process once its parent was killed: the pool's pipes alone would keep it waiting for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _encode_in_worker(path: str, spans: Sequence[corpus.Span]) -> None:
    write_encoded(path, _encoder(spans))


def encode_slices(
    slices: Mapping[str, Sequence[corpus.Span]], vocabulary: SubwordVocabulary, documents: str, workers: int
) -> Iterator[int]:
    """Encode each slice to the file that is its key; yields the bytes of text of each that is done."""
    sizes = {path: sum(span.end - span.begin for span in spans) for path, spans in slices.items()}
    if workers == 1:
        encoder = TextEncoder(vocabulary, documents)
        for path, spans in slices.items():
            write_encoded(path, encoder(spans))
            yield sizes[path]
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(vocabulary, documents))
    try:
        waiting = {pool.submit(_encode_in_worker, path, spans): path for path, spans in slices.items()}
        for done in as_completed(waiting):
            done.result()
            yield sizes[waiting[done]]
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process was killed, perhaps for lack of memory: the same command goes on, try fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
