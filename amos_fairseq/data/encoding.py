"""Text to token ids, in parallel: each slice of the corpus becomes files, complete or absent.

    NUMBER.npz             the last portion of a slice, or all of it
    NUMBER-PORTION.npz     those before, where its sources cannot be divided as finely

What a slice is encoded to depends on the bytes of its files alone, so any process, on any machine, may do it. Portions
that are there already are read, but not encoded, again. So are those of the other strands, where several processes
encode a slice.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from amos_fairseq.data.corpus import Passages, Span
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import token_dtype
from amos_fairseq.data.vocabulary_files import load_tokenizer
from amos_fairseq.files import durably_written

PORTION_BYTES = 64 << 20  # of text; no slice of divisible sources is larger
MOST_STRANDS = 8


class EncodedText(NamedTuple):
    """Documents in parts; the first part continues what was open before, unless it starts a file.

    token_ids: of all parts
    kinds, lengths, characters: (parts,) CONTINUES or what the part starts, its tokens, its characters
    repaired: (5,) how often each of REPAIRED
    ids: (parts,) digests of what identifies the documents, 0 for nothing
    """

    token_ids: np.ndarray
    kinds: np.ndarray
    lengths: np.ndarray
    characters: np.ndarray
    repaired: np.ndarray
    ids: np.ndarray


class TextEncoder:
    """Encodes passages as dictionary indices."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.dtype = tokenizer, token_dtype(len(tokenizer))

    def __call__(self, passages: Passages) -> EncodedText:
        ids, lengths = self.tokenizer.encode_batch(passages.texts)
        return EncodedText(
            ids.astype(self.dtype), np.array(passages.kinds, dtype=np.uint8), np.array(lengths, dtype=np.int64),
            np.array([len(text) for text in passages.texts], dtype=np.int64),
            np.array(passages.repaired, dtype=np.int64), np.array(passages.ids, dtype=np.uint64),
        )


def encode_slice(
    encoder: TextEncoder, path: str, spans: Sequence[Span], strand: int = 0, strands: int = 1,
    done: Callable[[int, int], None] = lambda *sizes: None,
) -> None:
    """Write the portions of a slice that are a strand's and not there yet; the last one as `path` if all are its own.

    done: told of each block how much of the sources' sizes it is, and how many bytes of text were encoded
    """
    portion, filled = 0, 0
    encoded: list[EncodedText] = []
    mine = _is_missing(path, portion, strand, strands)
    for block, source in ((block, span.source) for span in spans for block in span.source.blocks(span)):
        if filled >= PORTION_BYTES:
            if encoded:
                write_encoded(portion_path(path, portion), joined(encoded))
            portion, filled, encoded = portion + 1, 0, []
            mine = _is_missing(path, portion, strand, strands)
        if mine:
            encoded.append(encoder(source.passages(block)))
        filled += block.size
        done(block.done // strands, block.size if mine else 0)
    if encoded:
        write_encoded(path if strands == 1 else portion_path(path, portion), joined(encoded))
    elif strands == 1:  # strands wrote the last one
        os.rename(portion_path(path, portion), path)


def _is_missing(path: str, portion: int, strand: int, strands: int) -> bool:
    return portion % strands == strand and not os.path.exists(portion_path(path, portion))


def portion_path(path: str, portion: int) -> str:
    return f"{path.removesuffix('.npz')}-{portion:06d}.npz"


def portions(path: str) -> list[str]:
    """The files of a complete slice, in order."""
    return [*_before_last(path), path]


def _before_last(path: str) -> list[str]:
    return list(itertools.takewhile(os.path.exists, (portion_path(path, portion) for portion in itertools.count())))


def joined(encoded: Sequence[EncodedText]) -> EncodedText:
    join: dict[str, Any] = dict.fromkeys(EncodedText._fields, np.concatenate)
    join["repaired"] = functools.partial(np.sum, axis=0)
    return EncodedText(**{name: join[name](parts) for name, parts in zip(EncodedText._fields, zip(*encoded))})


def write_encoded(path: str, encoded: EncodedText) -> None:
    with durably_written(path) as stream:
        np.savez(stream, **encoded._asdict())


def read_encoded(path: str, tokens: bool = True) -> EncodedText:
    """What `write_encoded` wrote, with or without its tokens; its checksums are compared."""
    try:
        with np.load(path) as arrays:
            names = [name for name in EncodedText._fields if tokens or name != "token_ids"]
            return EncodedText(**{"token_ids": np.array([]), **{name: arrays[name] for name in names}})
    except (zipfile.BadZipFile, ValueError, TypeError, LookupError, EOFError):
        raise OSError(f"{path} is damaged: delete it and give the same command again") from None


_encoder: TextEncoder  # of this worker process
_done: Any  # its and the others' work: as of `encode_slice`


def _start_worker(model: bytes, done: Any) -> None:
    global _encoder, _done
    _encoder, _done = TextEncoder(load_tokenizer(model)), done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()


def _leave_with_parent(parent: int) -> None:
    """End this process once its parent was killed: the pool's pipes alone would keep it waiting for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _add(done: int, encoded: int) -> None:
    with _done.get_lock():
        _done[0] += done
        _done[1] += encoded


def _encode_in_worker(path: str, spans: Sequence[Span], strand: int, strands: int) -> None:
    encode_slice(_encoder, path, spans, strand, strands, _add)


def encode_slices(
    slices: Mapping[str, Sequence[Span]], tokenizer: Tokenizer, workers: int,
    progress: Callable[[int], Any] = lambda size: None,
) -> int:
    """Encode each slice to the files that its key names; the bytes of text that were encoded.

    progress: told what is done of the sources' sizes, again and again
    """
    if workers == 1:
        encoder, total = TextEncoder(tokenizer), 0

        def done(size: int, encoded: int) -> None:
            nonlocal total
            total += encoded
            progress(size)

        for path, spans in slices.items():
            encode_slice(encoder, path, spans, done=done)
        return total
    counts = multiprocessing.Array("q", 2)
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(tokenizer.model, counts))
    try:
        waiting, finished, open_strands, told = {}, queue.SimpleQueue[Future](), {}, 0
        for path, spans in slices.items():
            divisible = all(span.source.divisible for span in spans)
            strands = 1 if divisible else min(MOST_STRANDS, -(-workers // len(slices)))
            open_strands[path] = strands
            for strand in range(strands):
                future = pool.submit(_encode_in_worker, path, spans, strand, strands)
                waiting[future] = path
                future.add_done_callback(finished.put)
        while waiting:
            with contextlib.suppress(queue.Empty):
                future = finished.get(timeout=1)
                future.result()
                path = waiting.pop(future)
                open_strands[path] -= 1
                if open_strands[path] == 0 and not os.path.exists(path):  # it is by several strands
                    os.rename(_before_last(path)[-1], path)
            told, before = counts[0], told
            progress(told - before)
        return counts[1]
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker process was killed, perhaps for lack of memory: the same command goes on, try fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
