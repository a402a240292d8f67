"""Text to the ids that training reads, and back."""

import hashlib
import inspect
from typing import List, NamedTuple, Sequence, Tuple

import sentencepiece

from amos_fairseq.data.vocabulary import BOS, EOS, MASK, PAD, SPECIALS, UNK, load_processor, load_vocabulary

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

    symbols   V names by id: <s>, <pad>, </s>, <unk>, the pieces, fillers, <mask>
    """

    bos, pad, eos, unk = BOS, PAD, EOS, UNK

    def __init__(self, model: bytes, name: str = "the SentencePiece model"):
        vocabulary = load_vocabulary(model, name)
        self.model = model
        self.symbols = [*SPECIALS, *vocabulary.symbols, MASK]
        self.processor = load_processor(model, name)
        self.id_of_piece = vocabulary.symbol_of_piece.tolist()

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def sha256(self) -> str:
        """Of `model`: what tells vocabularies apart."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def mask(self) -> int:
        return len(self.symbols) - 1

    @property
    def excluded(self) -> List[int]:
        """Ids that stand for no text: special tokens, and the fillers that round the vocabulary up."""
        fillers = [token for token, symbol in enumerate(self.symbols) if symbol.startswith("madeupword")]
        return [*range(len(SPECIALS)), *fillers, self.mask]

    def encode(self, text: str) -> List[int]:
        """Ids of `text` without special tokens; line breaks are spaces."""
        return [self.id_of_piece[piece] for piece in self.processor.encode(text.replace("\n", " "))]

    def encode_with_spans(self, text: str) -> Tuple[List[int], List[Span]]:
        """`encode(text)`, and the characters of `text` that each token stands for, the space before it left out."""
        ids, offsets = self._encode_with_offsets(text.replace("\n", " "))
        spans = []
        for begin, end in offsets:
            surface = text[begin:end]
            spans.append(Span(begin + len(surface) - len(surface.lstrip()), end))
        return [self.id_of_piece[piece] for piece in ids], spans

    def _encode_with_offsets(self, text: str) -> Tuple[List[int], List[Tuple[int, int]]]:
        if OFFSET_MAPPING:
            mapping = self.processor.encode(text, return_type="offset_mapping")
            return mapping["ids"], mapping["offsets"]
        pieces = self.processor.encode(text, out_type="immutable_proto").pieces
        return [piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces]

    def encode_masked(self, text: str) -> List[int]:
        """`encode` of a text in which <mask> stands for whole tokens: a piece right after one starts no word."""
        first, *others = text.split(MASK)
        ids = self.encode(first)
        for part in others:
            pieces = self._pieces(ANCHOR + part)
            place = next(index for index, piece in enumerate(pieces) if ANCHOR in piece)
            # SentencePiece makes one piece of all unknown characters in a row, hence of those after the anchor, too.
            unknown = [self.unk] if not pieces[place].endswith(ANCHOR) else []
            ids += [self.mask, *unknown, *self._ids(pieces[place + 1 :])]
        return ids

    def _pieces(self, text: str) -> List[str]:
        return self.processor.encode(text.replace("\n", " "), out_type=str)

    def _ids(self, pieces: Sequence[str]) -> List[int]:
        return [self.id_of_piece[self.processor.piece_to_id(piece)] for piece in pieces]

    def sequence(self, *parts: Sequence[int]) -> List[int]:
        """<s> A </s>, or of a pair <s> A </s> </s> B </s>, as RoBERTa, MPNet and the released COCO-LM have it."""
        ids = [self.bos]
        for number, part in enumerate(parts):
            ids += [*([self.eos] if number else []), *part, self.eos]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens by their names, spaces inside of them not."""
        text = ""
        for token in ids:
            text += f" {self.symbols[token]} " if token in (*range(len(SPECIALS)), self.mask) else self.symbols[token]
        return " ".join(text.replace(SPACE, " ").split())
