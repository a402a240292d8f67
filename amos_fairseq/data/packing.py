"""From token ids of documents to the blocks of training and validation, dealt out to shards."""

import os
from array import array
from collections.abc import Callable, Sequence
from typing import Optional

import numpy as np

from amos_fairseq.data import corpus
from amos_fairseq.data.manifest import Shard, Split, file_record
from amos_fairseq.data.vocabulary import BOS, EOS, UNK


class DocumentWriter:
    """Sends each document, which may come in several parts, to its split; counts those without tokens."""

    def __init__(self, train: "SplitWriter", valid: "SplitWriter", valid_fraction: float):
        self.train, self.valid, self.valid_fraction = train, valid, valid_fraction
        self.split: Optional[SplitWriter] = None  # of the open document, once it has a token
        self.characters = 0
        self.files = self.files_with_text = self.empty_documents = 0
        self.file_has_text = False

    @property
    def empty_files(self) -> int:
        return self.files - self.files_with_text

    def begin_file(self) -> None:
        self.begin_document()
        self.files += 1
        self.file_has_text = False

    def begin_document(self) -> None:
        if self.split is not None:
            self.split.documents += 1
            self.split.characters += self.characters
        elif self.characters:
            self.empty_documents += 1
        self.split, self.characters = None, 0

    def add(self, token_ids: np.ndarray, characters: int) -> None:
        if characters and not self.file_has_text:
            self.file_has_text = True
            self.files_with_text += 1
        self.characters += characters
        if len(token_ids):
            starts_document = self.split is None
            if starts_document:
                index = self.train.documents + self.valid.documents
                self.split = self.valid if corpus.is_selected(index, self.valid_fraction) else self.train
            self.split.add(token_ids, starts_document)


class SplitWriter:
    """Packs the documents of a split and deals its blocks out to the shards in turn, so that all get equally many."""

    def __init__(self, prefixes: Sequence[str], folder: str, vocab_size: int, tokens_per_sample: int, whole: bool):
        from fairseq.data.indexed_dataset import make_builder

        self.prefixes, self.folder = prefixes, folder
        self.packer = BlockPacker(tokens_per_sample, whole, self._write)
        self.builders = [make_builder(os.path.join(folder, f"{prefix}.bin"), "mmap", vocab_size) for prefix in prefixes]
        for builder in self.builders:
            builder._sizes = array("i")  # a list takes nine times the memory, which tells at 10^8 blocks
        self.documents = self.characters = self.text_tokens = self.unknown_tokens = self.blocks = 0

    def add(self, token_ids: np.ndarray, starts_document: bool) -> None:
        self.text_tokens += len(token_ids)
        self.unknown_tokens += int(np.count_nonzero(token_ids == UNK))
        self.packer.add(token_ids, starts_document)

    def _write(self, block: np.ndarray) -> None:
        import torch

        self.builders[self.blocks % len(self.builders)].add_item(torch.from_numpy(block))
        self.blocks += 1

    def close(self) -> Split:
        """Write the indices; returns the split's part of the manifest."""
        shards = []
        for prefix, builder in zip(self.prefixes, self.builders):
            names = [f"{prefix}.bin", f"{prefix}.idx"]
            blocks, tokens = len(builder._sizes), sum(builder._sizes)
            builder.finalize(os.path.join(self.folder, names[1]))
            shards.append(Shard(blocks, tokens, {name: file_record(os.path.join(self.folder, name)) for name in names}))
        return Split(
            documents=self.documents,
            characters=self.characters,
            text_tokens=self.text_tokens,
            unknown_tokens=self.unknown_tokens,
            tokens=sum(shard.tokens for shard in shards),
            blocks=self.blocks,
            shards=shards,
        )


class BlockPacker:
    """Packs documents into blocks `<s> document </s> document ... </s>` of at most `tokens_per_sample` ids.

    By default every block but the last is full and documents are split where a block ends. With `documents_whole` a
    document that does not fit begins a new block, and only one longer than a block is split.
    """

    def __init__(self, tokens_per_sample: int, documents_whole: bool, write: Callable[[np.ndarray], None]):
        self.capacity = tokens_per_sample - 2
        self.documents_whole = documents_whole
        self.write = write
        self.block = np.full(tokens_per_sample, BOS, dtype=np.int64)
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
            self._fill(np.array([EOS]), starts_document=False)
        while len(token_ids):
            taken = token_ids[: self.capacity - self.filled]
            self.block[1 + self.filled : 1 + self.filled + len(taken)] = taken
            self.filled += len(taken)
            token_ids = token_ids[len(taken) :]
            if self.filled == self.capacity:
                self._flush()

    def _flush(self) -> None:
        self.block[1 + self.filled] = EOS
        self.write(self.block[: self.filled + 2])
        self.filled = 0

    def finish(self) -> None:
        self._place_held()
        if self.filled:
            self._flush()


