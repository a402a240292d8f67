"""From token ids of documents to the blocks of training and validation, dealt out to shards."""

import hashlib
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Optional

import numpy as np

from amos_fairseq.data.corpus import CONTINUES, STARTS_FILE
from amos_fairseq.data.encoding import EncodedText
from amos_fairseq.data.manifest import Shard, Split, index_header
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import BOS, EOS, token_dtype
from amos_fairseq.files import FileRecord, durably_written, file_record

LONGEST_COMPARED = 1 << 24  # tokens; a longer document is never taken for a duplicate, since it is not held in memory
BUFFERED_BYTES = 1 << 17
LEFT_OUT, TRAIN, VALID = range(3)  # what becomes of a document


class SeenDocuments:
    """Digests of documents, 64 bits each and in 9 bytes of memory.

    Among n different documents, n^2 / 2^65 is the chance that any is taken for another: 0.0002 for 80 million.
    """

    def __init__(self):
        self.buckets = [array("Q") for _ in range(1 << 16)]  # by the first 16 bits, each in order

    def add(self, token_ids: Sequence[np.ndarray]) -> bool:
        """Whether the document, in parts, is new."""
        digest = hashlib.blake2b(digest_size=8)
        for part in token_ids:
            digest.update(part)
        return self.add_digest(int.from_bytes(digest.digest(), "big"))

    def add_digest(self, number: int) -> bool:
        bucket = self.buckets[number >> 48]
        place = bisect_left(bucket, number)
        if place < len(bucket) and bucket[place] == number:
            return False
        bucket.insert(place, number)
        return True


class Survey:
    """Of all documents before any is written: lengths, which are left out, how many hold nothing.

    With `seen`, a document whose tokens are those of an earlier one is left out. So is one with the id of an earlier.
    """

    def __init__(self, seen: Optional[SeenDocuments] = None):
        self.seen, self.seen_ids = seen, SeenDocuments()
        self.lengths = array("Q")  # in tokens, by document; 0 of one that is left out
        self.files = self.files_with_text = self.empty_documents = self.duplicate_documents = self.repeated_ids = 0
        self.held: list[np.ndarray] = []  # parts of the open document
        self.length = self.characters = self.id = 0  # of it
        self.file_has_text = False

    @property
    def empty_files(self) -> int:
        return self.files - self.files_with_text

    def add(self, encoded: EncodedText) -> None:
        columns = (encoded.kinds, encoded.lengths, encoded.characters, encoded.ids, np.cumsum(encoded.lengths))
        for kind, length, characters, identity, end in zip(*(column.tolist() for column in columns)):
            if kind != CONTINUES:
                self.end_document()
                self.lengths.append(0)
                self.id = identity
            if kind == STARTS_FILE:
                self.files += 1
                self.file_has_text = False
            if characters and not self.file_has_text:
                self.file_has_text = True
                self.files_with_text += 1
            self.characters += characters
            self.length += length
            if self.seen is not None and self.length <= LONGEST_COMPARED:
                self.held.append(encoded.token_ids[end - length : end])

    def end_document(self) -> None:
        if self.length:
            comparable = self.seen is not None and self.length <= LONGEST_COMPARED
            if self.id and not self.seen_ids.add_digest(self.id):
                self.repeated_ids += 1
            elif comparable and not self.seen.add(self.held):  # type: ignore[union-attr]
                self.duplicate_documents += 1
            else:
                self.lengths[-1] = self.length
        elif self.characters:
            self.empty_documents += 1
        self.held, self.length, self.characters = [], 0, 0


def held_out(lengths: np.ndarray, share: float) -> np.ndarray:
    """Which documents validate; lengths: in tokens, 0 of documents that are left out.

    Evenly spaced documents, where they hold `share` of the tokens within a factor of two. Else evenly spaced tokens:
    of documents that are no longer than all of validation shall be, half of these at most; the shortest if all are.
    """
    places = np.flatnonzero(lengths)
    index, lengths = np.arange(len(places)), lengths[places]
    wanted = share * lengths.sum()
    chosen = (index == 0) | ((index * share).astype(np.int64) > ((index - 1) * share).astype(np.int64))
    if len(places) and not wanted / 2 <= lengths[chosen].sum() <= 2 * wanted:
        chosen[:] = False
        small = np.flatnonzero(lengths <= wanted)
        rate = min(0.5, wanted / max(1, lengths[small].sum()))
        passed = taken = 0
        for place, length in zip(small.tolist(), lengths[small].tolist()):
            passed += length
            if taken + length / 2 <= rate * passed:
                chosen[place] = True
                taken += length
        if not taken:
            chosen[lengths.argmin()] = True
    return places[chosen]


class DocumentWriter:
    """Sends each document, which may come in several parts, to its split, or nowhere.

    fates: (documents,) LEFT_OUT, TRAIN or VALID
    """

    def __init__(self, train: "SplitWriter", valid: "SplitWriter", fates: np.ndarray):
        self.splits = {TRAIN: train, VALID: valid, LEFT_OUT: None}
        self.fates = iter(fates.tolist())
        self.split: Optional[SplitWriter] = None  # of the open document
        self.is_new = True  # no part of it is written

    def add(self, encoded: EncodedText) -> None:
        begin = 0
        ends = np.cumsum(encoded.lengths).tolist()
        for kind, end, characters in zip(encoded.kinds.tolist(), ends, encoded.characters.tolist()):
            token_ids, begin = encoded.token_ids[begin:end], end
            if kind != CONTINUES:
                self.split, self.is_new = self.splits[next(self.fates)], True
            if self.split is None:
                continue
            self.split.documents += kind != CONTINUES
            self.split.characters += characters
            if len(token_ids):
                self.split.packer.add(token_ids, self.is_new)
                self.is_new = False


class SplitWriter:
    """Packs the documents of a split and deals its blocks out to the shards in turn, so that all get equally many."""

    def __init__(self, prefixes: Sequence[str], folder: str, tokenizer: Tokenizer, tokens_per_sample: int, whole: bool):
        self.shards = [ShardWriter(folder, prefix, len(tokenizer)) for prefix in prefixes]
        dtype = token_dtype(len(tokenizer))
        self.packer = BlockPacker(tokens_per_sample, whole, dtype, self._write, tokenizer.bos, tokenizer.eos)
        self.tokenizer = tokenizer
        self.documents = self.characters = self.blocks = 0

    def _write(self, block: np.ndarray) -> None:
        self.shards[self.blocks % len(self.shards)].add(block)
        self.blocks += 1

    def finish(self) -> np.ndarray:
        """Write what is left; returns (vocabulary,) how often the blocks hold each symbol."""
        self.packer.finish()
        return np.sum([shard.counts for shard in self.shards], axis=0)

    def close(self) -> Split:
        """Write the indices; returns the split's part of the manifest."""
        counts = np.sum([shard.counts for shard in self.shards], axis=0)
        shards = [shard.close() for shard in self.shards]
        return Split(
            documents=self.documents, characters=self.characters,
            text_tokens=int(counts.sum() - counts[[self.tokenizer.bos, self.tokenizer.eos]].sum()),
            unknown_tokens=0 if self.tokenizer.unk is None else int(counts[self.tokenizer.unk]),
            tokens=sum(shard.tokens for shard in shards), blocks=self.blocks, shards=shards,
        )


class ShardWriter:
    """Writes `prefix`.bin and `prefix`.idx, the format that fairseq calls mmap.

    fairseq's own writer keeps lists of the sizes and places of all blocks, 80 bytes for each.
    """

    def __init__(self, folder: str, prefix: str, vocab_size: int):
        self.folder, self.prefix = folder, prefix
        self.dtype = token_dtype(vocab_size)
        self.stream = open(os.path.join(folder, f"{prefix}.bin"), "wb", BUFFERED_BYTES)
        self.sha256 = hashlib.sha256()
        self.sizes = array("i")
        self.counts = np.zeros(vocab_size, dtype=np.int64)

    def add(self, block: np.ndarray) -> None:
        self.sizes.append(len(block))
        np.add.at(self.counts, block, 1)
        self.sha256.update(block)
        self.stream.write(block)

    def close(self) -> Shard:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        sizes = np.array(self.sizes, dtype=np.int32)
        ends = np.cumsum(sizes, dtype=np.int64) * self.dtype.itemsize
        index = os.path.join(self.folder, f"{self.prefix}.idx")
        with durably_written(index) as stream:
            stream.write(index_header(self.dtype, len(sizes)))
            stream.write(sizes)
            stream.write(ends - sizes * self.dtype.itemsize)
        tokens = int(sizes.sum(dtype=np.int64))
        files: dict[str, FileRecord] = {
            f"{self.prefix}.bin": {"bytes": tokens * self.dtype.itemsize, "sha256": self.sha256.hexdigest()},
            f"{self.prefix}.idx": file_record(index),
        }
        return Shard(len(sizes), tokens, files)


class BlockPacker:
    """Packs documents into blocks `<s> document </s> document ... </s>` of at most `tokens_per_sample` ids.

    By default every block but the last is full and documents are split where a block ends. With `documents_whole` a
    document that does not fit begins a new block, and only one longer than a block is split.
    """

    def __init__(
        self, tokens_per_sample: int, documents_whole: bool, dtype: np.dtype, write: Callable[[np.ndarray], None],
        bos: int = BOS, eos: int = EOS,
    ):
        self.capacity = tokens_per_sample - 2
        self.documents_whole = documents_whole
        self.write = write
        self.block = np.full(tokens_per_sample, bos, dtype=dtype)
        self.separator = np.array([eos], dtype=dtype)
        self.filled = 0  # ids after <s>
        self.held: Optional[np.ndarray] = None  # with documents_whole: the open document while it may still fit a block

    def add(self, token_ids: np.ndarray, starts_document: bool) -> None:
        """Add a document, or with `starts_document` false more of the document added last."""
        if not self.documents_whole:
            self._fill(token_ids, starts_document)
            return
        if starts_document:
            self._place_held()
            self.held = token_ids
        elif self.held is not None:
            self.held = np.concatenate([self.held, token_ids])
        else:
            self._fill(token_ids, starts_document=False)
        if self.held is not None and len(self.held) > self.capacity:
            self._place_held()

    def _place_held(self) -> None:
        if self.held is not None:
            if self.filled and self.filled + 1 + len(self.held) > self.capacity:
                self._flush()
            self._fill(self.held, starts_document=True)
            self.held = None

    def _fill(self, token_ids: np.ndarray, starts_document: bool) -> None:
        if starts_document and self.filled:  # at the start of a block, the </s> of the block before separates
            self._fill(self.separator, starts_document=False)
        while len(token_ids):
            taken = token_ids[: self.capacity - self.filled]
            self.block[1 + self.filled : 1 + self.filled + len(taken)] = taken
            self.filled += len(taken)
            token_ids = token_ids[len(taken) :]
            if self.filled == self.capacity:
                self._flush()

    def _flush(self) -> None:
        self.block[1 + self.filled] = self.separator[0]
        self.write(self.block[: self.filled + 2])
        self.filled = 0

    def finish(self) -> None:
        self._place_held()
        if self.filled:
            self._flush()


