"""Text to token ids, in parallel: what a chunk of bytes is encoded to depends on its bytes alone."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Optional

import numpy as np

from amos_fairseq.data import corpus
from amos_fairseq.data.vocabulary import Vocabulary, load_processor


class EncodedChunk(NamedTuple):
    """token_ids: of all parts; lengths, characters: tokens and characters of each part.

    A part is a document, or what this chunk holds of one; the first continues the document before.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    characters: list[int]
    invalid_bytes: int
    nul_characters: int


class TextEncoder:
    """Encodes the documents of a chunk of bytes as dictionary indices."""

    def __init__(self, model: bytes, symbol_of_piece: np.ndarray, documents: str):
        self.processor = load_processor(model)
        self.symbol_of_piece = symbol_of_piece.astype(np.int32)
        self.documents = documents

    def __call__(self, data: bytes) -> EncodedChunk:
        clean = corpus.clean_text(data)
        first, *others = (part.strip() for part in corpus.split_documents(clean.text, self.documents))
        parts = [first, *filter(None, others)]
        # Lines become words of one sequence; only some models' normalisation would do so by itself.
        pieces = self.processor.encode([part.replace("\n", " ") for part in parts], num_threads=1)
        lengths = np.array([len(part) for part in pieces])
        token_ids = self.symbol_of_piece[np.array([piece for part in pieces for piece in part], dtype=np.int32)]
        characters = [len(part) for part in parts]
        return EncodedChunk(token_ids, lengths, characters, clean.invalid_bytes, clean.nul_characters)


_encoder: Optional[TextEncoder] = None  # of this worker process


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


def _encode_in_worker(data: bytes) -> EncodedChunk:
    return _encoder(data)


def encode_chunks(
    chunks: Iterable[corpus.Chunk], vocabulary: Vocabulary, documents: str, workers: int
) -> Iterator[tuple[corpus.Chunk, EncodedChunk]]:
    """Each chunk with its encoding, in order; at most two chunks per worker are in memory."""
    arguments = (vocabulary.model, vocabulary.symbol_of_piece, documents)
    if workers == 1:
        encoder = TextEncoder(*arguments)
        yield from ((chunk, encoder(chunk.data)) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=arguments)
    waiting = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_encode_in_worker, chunk.data)))
            if len(waiting) == 2 * workers:
                oldest, result = waiting.popleft()
                yield oldest, result.result()
        for oldest, result in waiting:
            yield oldest, result.result()
    except BrokenProcessPool:
        raise ValueError("a worker process was killed, perhaps for lack of memory: try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)
