"""What can be set for a preparation, on its command line and in a call of `prepare`: options with their rules."""

from dataclasses import dataclass
from typing import Optional

from amos_fairseq.options import COUNT, Range, declared, option

FORMATS = ("text", "jsonl", "json", "parquet", "arrow")
NORMALIZATIONS = ("nmt_nfkc", "nfkc", "identity")  # SentencePiece's, of which the first two have one that folds case
KINDS = ("wordpiece", "bpe", "unigram")  # of Hugging Face's tokenizers


@dataclass
class Options:
    """All that determines the output besides the text. Sizes are in tokens and bytes."""

    documents: str = option("blank-line", "what separates documents in text", choices=("blank-line", "line"))
    format: Optional[str] = option(
        None, "of files whose names do not say it, and of standard input (default: text)", choices=FORMATS
    )
    encoding: Optional[str] = option(None, "of text and JSON, as Python calls it (default: UTF-8)")
    text_field: str = option("text", "field or column that holds the text of a document; a.b is b in a (default: text)")
    id_field: Optional[str] = option(None, "field or column whose value tells records that are there twice: left out")
    vocab_size: Optional[int] = option(None, "size of the dictionary, specials and <mask> included (32768)")
    uncased: bool = option(False, "fold case")
    normalization: Optional[str] = option(
        None, "of characters: NFKC and what translation removes, zero-width joiners among it (the default), NFKC, none",
        choices=NORMALIZATIONS,
    )
    vocabulary: Optional[str] = option(
        None, "instead of training one: a SentencePiece .model, an earlier DIR, or the tokenizer.json, or the local "
        "folder, of a Hugging Face model, whose ids are kept",
    )
    train_tokenizer: Optional[str] = option(
        None, "train BERT's WordPieces, byte-level BPE or a unigram model with Hugging Face's tokenizers (default: "
        "byte-pair encoding with SentencePiece)", choices=KINDS,
    )
    tokens_per_sample: int = option(512, "length of a block", Range(8))
    shards: int = option(1, "number of equal parts; fairseq reads one per epoch", COUNT)
    valid_fraction: float = option(0.01, "share of the tokens kept for validation", Range(0, 1, without_low=True))
    valid: Optional[str] = option(None, "validate on this file or folder instead of a part of INPUT")
    documents_whole: bool = option(False, "do not split documents that fit into a block; blocks vary")
    deduplicate: bool = option(False, "leave out documents that repeat an earlier one (9 bytes of memory per document)")
    vocabulary_sample: int = option(100_000_000, "bytes of text to train it on", COUNT)

    def check(self) -> None:
        """Raises ValueError, in one line, for what makes no preparation."""
        for known in declared(type(self)):
            value = getattr(self, known.name)
            if value is not None:
                known._replace(name=known.flag).check(value)
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            raise ValueError(f"--encoding {self.encoding} is none that Python knows, such as latin-1, cp1252 or utf-16")
        if self.train_tokenizer is not None and self.normalization is not None:
            raise ValueError("--normalization is SentencePiece's: leave it out with --train-tokenizer")
        given = (self.vocab_size is not None, self.uncased, self.normalization, self.train_tokenizer)
        if self.vocabulary is not None and any(given):
            names = "--vocab-size, --uncased, --normalization and --train-tokenizer"
            raise ValueError(f"{names} are properties of the given --vocabulary: leave them out")
        if self.normalization == "identity" and self.uncased:
            raise ValueError("--uncased is a normalization itself: give nfkc or nmt_nfkc with it, or leave it out")


def _is_text_encoding(name: str) -> bool:
    try:
        return "".encode(name) is not None
    except LookupError:
        return False
