"""The tokenizer of Microsoft's AMOS and COCO-LM releases.

    text -> plain quotes and dashes -> words and the punctuation around them -> pieces -> numbers in dict.txt
"""

import functools
import re
from typing import Dict, List, Sequence, Tuple

from amos_fairseq.data.corpus import without_surrogates
from amos_fairseq.data.tokenizer import SPACE, Span, Tokenizer, is_punctuation
from amos_fairseq.data.vocabulary import MASK, SPECIALS, UNK, load_processor

PLAIN = {"``": '"', "''": '"', "\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u00b4": "'"}
PLAIN |= {"\u2013": "-", "\u2014": "-"}
SPELLING = re.compile("|".join(PLAIN))
CHARACTER = re.compile(f"{SPELLING.pattern}|.", re.DOTALL)
# A quote alone before what English shortens, wherever the line has both: company ' s, 's-Hertogenbosch.
CLITIC = re.compile(r"' (?=(?:[smdtSMDT]|ll|re|ve)\b)")
CAPITAL_CLITIC = re.compile(r"' (LL|RE|VE)\b ?")
ALIASES = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[MASK]": MASK}  # in dict.txt
MARK = b"amos_fairseq: dict.txt and sp.model\n"


class ReleasedTokenizer(Tokenizer):
    """sp.model and dict.txt of the releases. Which quotes and dashes a text had, and where its spaces, is lost.

    model   both files in one, to be kept with what was trained: see `load_tokenizer`
    """

    obstacle = "the releases' tokenizer moves quotes and spaces"

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
