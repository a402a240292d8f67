"""Text to the ids that training reads, and back: by our own vocabularies, and by those of others.

    Tokenizer           text -> pieces -> ids, as `prepare` numbers them
    FastTokenizer       one of Hugging Face's, with the ids of its model: in fast_tokenizer.py
    ReleasedTokenizer   of Microsoft's AMOS and COCO-LM, with the numbers of their dict.txt: in released_tokenizer.py
"""

import functools
import hashlib
import inspect
import itertools
import unicodedata
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import sentencepiece

from amos_fairseq.data.corpus import one_line, without_surrogates
from amos_fairseq.data.sentencepiece_model import parse
from amos_fairseq.data.vocabulary import BOS, EOS, MASK, PAD, SPECIALS, UNK, load_processor

MODEL_NAME = "sentencepiece.model"  # in a prepared folder
PADDING_FACTOR = 8  # sizes of this multiple keep matrix products on tensor cores
SPACE = "\u2581"  # how SentencePiece writes one in a piece
ANCHOR = "\ue000"  # a character in no vocabulary, hence a piece of its own
# Its releases up to 0.2.1 and those after them give the places of pieces in different ways.
OFFSET_MAPPING = "return_type" in inspect.signature(sentencepiece.SentencePieceProcessor.Encode).parameters


class Span(NamedTuple):
    """Characters `begin` to `end` of a text."""

    begin: int
    end: int


class Tokenizer:
    """A SentencePiece model as training sees it: `prepare` encodes alike, and fairseq's dictionary has the same ids.

    What the rest of the package asks of a tokenizer of any kind is what this class has.

    symbols     V names by id: <s>, <pad>, </s>, <unk>, the pieces, fillers, <mask>
    model       all of it as bytes, in prepared data a file called `file_name`, and in every checkpoint
    obstacle    what Hugging Face's tokenizers cannot do of what it does; None: nothing
    roles       names of the special tokens
    fast        a `tokenizers.Tokenizer` that is the same, if it was made of one
    counted     dict.txt as an earlier preparation wrote it, if the vocabulary comes from one
    separators  how many </s> stand between the texts of a pair
    """

    bos, pad, eos = BOS, PAD, EOS
    unk: Optional[int] = UNK
    separators = 2
    fast: Any = None
    counted: Optional[bytes] = None
    name, file_name = "SentencePiece", MODEL_NAME
    roles = {**dict(zip(("bos", "pad", "eos", "unk"), SPECIALS)), "mask": MASK}

    def __init__(self, model: bytes, name: str = "the SentencePiece model"):
        self.model, self.processor = model, load_processor(model, name)
        self.symbols = [*SPECIALS]
        # (pieces,) ids; special names that a text can spell are unknown.
        self.id_of_piece = np.full(len(self.processor), UNK, dtype=np.int64)
        for index in range(len(self.processor)):
            piece = self.processor.id_to_piece(index)
            if self.processor.is_unknown(index) or self.processor.is_control(index) or piece in (*SPECIALS, MASK):
                continue
            if "\n" in piece or "\r" in piece:
                raise ValueError(f"{name}: piece {index} holds a line break, which fairseq's dict.txt cannot")
            self.id_of_piece[index] = len(self.symbols)
            self.symbols.append(piece)
        if len(self.symbols) == len(SPECIALS):
            raise ValueError(f"{name} is not a SentencePiece model with pieces of text")
        fillers = -(len(self.symbols) + 1) % PADDING_FACTOR
        self.symbols += [*(f"madeupword{number:04d}" for number in range(fillers)), MASK]
        self.mask = len(self.symbols) - 1

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def sha256(self) -> str:
        """Of `model`: what tells vocabularies apart."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def listed(self) -> range:
        """Ids of the symbols that dict.txt has, a line each."""
        return range(len(SPECIALS), self.mask)

    @property
    def special(self) -> List[int]:
        """Ids that are never selected: `<s> <pad> </s> <unk>` are structure or nothing to predict, and `<mask>`."""
        return [*range(len(SPECIALS)), self.mask]

    @property
    def excluded(self) -> List[int]:
        """Ids that stand for no text, and are never drawn: special tokens, and those that no text makes."""
        return self.special + [token for token, symbol in enumerate(self.symbols) if symbol.startswith("madeupword")]

    @property
    def shown(self) -> List[str]:
        """`symbols` for people: U+2581 where a word starts, and <mask>."""
        return self.symbols

    @property
    def obstacle(self) -> Optional[str]:
        return parse(self.model).obstacle

    def encode(self, text: str) -> List[int]:
        """Ids of `text` without special tokens; line breaks are spaces."""
        return self.id_of_piece[self.processor.encode(as_prepared(text))].tolist()

    def encode_batch(self, texts: Sequence[str]) -> Tuple[np.ndarray, List[int]]:
        """Ids of all texts, without halves of surrogate pairs, one after the other, and how many each has."""
        pieces = self.processor.encode(list(map(one_line, texts)), num_threads=1)
        flat = np.array([piece for part in pieces for piece in part], dtype=np.int32)
        return self.id_of_piece[flat], [len(part) for part in pieces]

    def encode_with_spans(self, text: str) -> Tuple[List[int], List[Span]]:
        """`encode(text)`, and the characters of `text` that each token stands for, the space before it left out."""
        ids, offsets = self._encode_with_offsets(as_prepared(text))
        spans = []
        for begin, end in offsets:
            surface = text[begin:end]
            spans.append(Span(begin + len(surface) - len(surface.lstrip()), end))
        return self.id_of_piece[ids].tolist(), spans

    def _encode_with_offsets(self, text: str) -> Tuple[List[int], List[Tuple[int, int]]]:
        if OFFSET_MAPPING:
            mapping = self.processor.encode(text, return_type="offset_mapping")
            return mapping["ids"], mapping["offsets"]
        pieces = self.processor.encode(text, out_type="immutable_proto").pieces  # type: ignore[arg-type]
        return [piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces]

    def encode_masked(self, text: str) -> List[int]:
        """`encode` of a text in which <mask> stands for whole tokens: a piece right after one starts no word."""
        first, *others = text.split(MASK)
        ids = self.encode(first)
        for part in others:
            pieces = self._pieces(ANCHOR + part)
            place = next(index for index, piece in enumerate(pieces) if ANCHOR in piece)
            # SentencePiece makes one piece of all unknown characters in a row, hence of those after the anchor, too.
            unknown = [UNK] if not pieces[place].endswith(ANCHOR) else []
            ids += [self.mask, *unknown, *self._ids(pieces[place + 1 :])]
        return ids

    def _pieces(self, text: str) -> List[str]:
        return self.processor.encode(as_prepared(text), out_type=str)

    def _ids(self, pieces: Sequence[str]) -> List[int]:
        return [int(self.id_of_piece[self.processor.piece_to_id(piece)]) for piece in pieces]

    def dict_txt(self, counts: np.ndarray) -> bytes:
        """counts: (V,) how often the corpus holds each symbol."""
        return "".join(f"{self.symbols[token]} {counts[token]}\n" for token in self.listed).encode()

    def sequence(self, *parts: Sequence[int]) -> List[int]:
        """<s> A </s>, or of a pair <s> A </s> </s> B </s>, as RoBERTa, MPNet and the released COCO-LM have it.

        With one separator: <s> A </s> B </s>, as BERT and ELECTRA do.
        """
        ids = [self.bos]
        for number, part in enumerate(parts):
            ids += [*([self.eos] * (self.separators - 1) if number else []), *part, self.eos]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens by their names, spaces inside of them not."""
        text = ""
        for token in ids:
            text += f" {self.symbols[token]} " if token in (*range(len(SPECIALS)), self.mask) else self.symbols[token]
        return " ".join(text.replace(SPACE, " ").split())


def word_numbers(text: str, spans: Sequence[Span]) -> List[int]:
    """Of each token of a text the number, from 1, of the word that it begins in, 0 at the end of the text.

    As BERT has it: spaces part words, and each punctuation is one.
    """
    alone = [character.isspace() or is_punctuation(character) for character in text]
    begins = [index == 0 or alone[index] or alone[index - 1] for index in range(len(text))]
    numbers = [*itertools.accumulate(begins), 0]
    return [numbers[span.begin] for span in spans]


def as_prepared(text: str) -> str:
    """`text`, character by character, as `amos-fairseq prepare` encodes it."""
    return one_line(without_surrogates(text)[0])


@functools.lru_cache(maxsize=1 << 16)
def is_punctuation(character: str) -> bool:
    """As BERT has it: what Unicode calls so, and all that ASCII has beside letters, digits and controls."""
    return "!" <= character <= "~" and not character.isalnum() or unicodedata.category(character).startswith("P")
