"""Text to the ids that training reads, and back: by our own vocabularies, and by those of Microsoft's releases.

    Tokenizer           text -> pieces -> ids, as `prepare` numbers them
    ReleasedTokenizer   text -> plain quotes and dashes -> words and the punctuation around them -> pieces -> numbers in
                        dict.txt: of Microsoft's AMOS and COCO-LM
"""

import functools
import hashlib
import inspect
import re
import unicodedata
from typing import Dict, List, NamedTuple, Sequence, Tuple

import sentencepiece

from amos_fairseq.data.corpus import one_line, without_surrogates
from amos_fairseq.data.vocabulary import BOS, EOS, MASK, PAD, SPECIALS, UNK, load_processor, load_vocabulary

SPACE = "\u2581"  # how SentencePiece writes one in a piece
ANCHOR = "\ue000"  # a character in no vocabulary, hence a piece of its own
# Its releases up to 0.2.1 and those after them give the places of pieces in different ways.
OFFSET_MAPPING = "return_type" in inspect.signature(sentencepiece.SentencePieceProcessor.Encode).parameters

# Of the releases.
PLAIN = {"``": '"', "''": '"', "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u00b4": "'"}
PLAIN |= {"\u2013": "-", "\u2014": "-"}
SPELLING = re.compile("|".join(PLAIN))
CHARACTER = re.compile(f"{SPELLING.pattern}|.", re.DOTALL)
# A quote alone before what English shortens, wherever the line has both: company ' s, 's-Hertogenbosch.
CLITIC = re.compile(r"' (?=(?:[smdtSMDT]|ll|re|ve)\b)")
CAPITAL_CLITIC = re.compile(r"' (LL|RE|VE)\b ?")
ALIASES = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[MASK]": MASK}  # in dict.txt
MARK = b"amos_fairseq: dict.txt and sp.model\n"


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
        self.mask = len(self.symbols) - 1
        self.processor = load_processor(model, name)
        self.id_of_piece = vocabulary.symbol_of_piece.tolist()

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def sha256(self) -> str:
        """Of `model`: what tells vocabularies apart."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def excluded(self) -> List[int]:
        """Ids that stand for no text: special tokens, and the fillers that round the vocabulary up."""
        fillers = [token for token, symbol in enumerate(self.symbols) if symbol.startswith("madeupword")]
        return [*range(len(SPECIALS)), *fillers, self.mask]

    def encode(self, text: str) -> List[int]:
        """Ids of `text` without special tokens; line breaks are spaces."""
        return [self.id_of_piece[piece] for piece in self.processor.encode(as_prepared(text))]

    def encode_with_spans(self, text: str) -> Tuple[List[int], List[Span]]:
        """`encode(text)`, and the characters of `text` that each token stands for, the space before it left out."""
        ids, offsets = self._encode_with_offsets(as_prepared(text))
        spans = []
        for begin, end in offsets:
            surface = text[begin:end]
            spans.append(Span(begin + len(surface) - len(surface.lstrip()), end))
        return [self.id_of_piece[piece] for piece in ids], spans

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
            unknown = [self.unk] if not pieces[place].endswith(ANCHOR) else []
            ids += [self.mask, *unknown, *self._ids(pieces[place + 1 :])]
        return ids

    def _pieces(self, text: str) -> List[str]:
        return self.processor.encode(as_prepared(text), out_type=str)

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


class ReleasedTokenizer(Tokenizer):
    """sp.model and dict.txt of the releases. Which quotes and dashes a text had, and where its spaces, is lost.

    model   both files in one, to be kept with what was trained: see `load_tokenizer`
    """

    def __init__(self, sentencepiece: bytes, dictionary: bytes, name: str = "dict.txt"):
        self.sentencepiece, self.dictionary = sentencepiece, dictionary
        self.model = MARK + len(dictionary).to_bytes(8, "little") + dictionary + sentencepiece
        self.processor = load_processor(sentencepiece, f"what belongs to {name}")
        ids = read_dictionary(dictionary, name)
        self.symbols, self.mask = [*ids], ids[MASK]
        self.id_of_symbol = {**{symbol: ids[symbol] for symbol in self.symbols[len(SPECIALS) :]}, "[MASK]": self.mask}

    def encode(self, text: str) -> List[int]:
        """Ids of `text` without special tokens, whose names are text; only their [MASK] inside of a word is none."""
        return self._ids(self._pieces(text))

    def _pieces(self, text: str) -> List[str]:
        return self.processor.encode(prepare(text), out_type=str)

    def _ids(self, pieces: Sequence[str]) -> List[int]:
        """Ids of pieces, unknown ones as they are spelled."""
        return [self.id_of_symbol.get(pieces[index], UNK) for index in kept(pieces)]

    def encode_with_spans(self, text: str) -> Tuple[List[int], List[Span]]:
        prepared = prepare(text)
        # Preparation moves white space only: the other characters stay in order.
        places = (match.span() for match in CHARACTER.finditer(text) if not match[0].isspace())
        begins, ends = [], [0]  # in `text`, of the prepared character i: begins[i] to ends[i + 1]
        for character in prepared:
            begin, end = (ends[-1], ends[-1]) if character == " " else next(places)
            begins.append(begin)
            ends.append(end)
        pieces = self.processor.encode(prepared, out_type=str)
        _, offsets = self._encode_with_offsets(prepared)
        spans = []
        for begin, end in (offsets[index] for index in kept(pieces)):
            surface = prepared[begin:end]
            begin += len(surface) - len(surface.lstrip(f" {SPACE}"))
            spans.append(Span(begins[begin] if begin < end else ends[end], ends[end]))
        return self.encode(text), spans


def load_tokenizer(model: bytes, name: str = "the vocabulary") -> Tokenizer:
    """The tokenizer whose `model` this is, of either kind."""
    if not model.startswith(MARK):
        return Tokenizer(model, name)
    start = len(MARK) + 8
    end = start + int.from_bytes(model[len(MARK) : start], "little")
    return ReleasedTokenizer(model[end:], model[start:end], name)


def read_dictionary(dictionary: bytes, name: str) -> Dict[str, int]:
    """Ids of the special symbols and of those in fairseq's dict.txt, a line each with its count.

    <mask> has the line that names it, in the releases' 64,000 the first; without one it follows the last.
    """
    ids = {symbol: index for index, symbol in enumerate(SPECIALS)}
    for number, line in enumerate(dictionary.decode("utf-8", "replace").split("\n"), start=1):
        if not line:
            continue
        symbol, _, count = line.rstrip("\r").rpartition(" ")
        if not symbol or not count.isdecimal():
            raise ValueError(f"{name}, line {number}: {line[:40]!r} is no symbol and its count")
        if ALIASES.get(symbol, symbol) in ids:
            raise ValueError(f"{name}, line {number}: {symbol!r} is there already")
        ids[ALIASES.get(symbol, symbol)] = len(ids)
    ids.setdefault(MASK, len(ids))
    return ids


def as_prepared(text: str) -> str:
    """`text`, character by character, as `amos-fairseq prepare` encodes it."""
    return one_line(without_surrogates(text)[0])


def prepare(text: str) -> str:
    """What SentencePiece is given: words and runs of punctuation, a space between any two."""
    text = SPELLING.sub(lambda match: PLAIN[match[0]], without_surrogates(text)[0])
    line = " ".join(token for word in text.split() for token in split_punctuation(word))
    return CAPITAL_CLITIC.sub(r"'\1 ", CLITIC.sub("'", line)).rstrip()


@functools.lru_cache(maxsize=1 << 16)
def split_punctuation(word: str) -> List[str]:
    """The punctuation before and after a word; what is inside of it stays."""
    begin, end = 0, len(word)
    while begin < end and is_punctuation(word[begin]):
        begin += 1
    while end > begin and is_punctuation(word[end - 1]):
        end -= 1
    return [part for part in (word[:begin], word[begin:end], word[end:]) if part]


def kept(pieces: Sequence[str]) -> List[int]:
    """Indices of the pieces but those of a mere space before punctuation or at the end."""
    following = [*pieces[1:], ""]
    return [
        index for index, piece in enumerate(pieces)
        if piece != SPACE or (following[index] and not is_punctuation(following[index][0]))
    ]


@functools.lru_cache(maxsize=1 << 16)
def is_punctuation(character: str) -> bool:
    """As BERT has it: what Unicode calls so, and all that ASCII has beside letters, digits and controls."""
    return "!" <= character <= "~" and not character.isalnum() or unicodedata.category(character).startswith("P")
