"""The vocabulary: training SentencePiece, and how its pieces become the symbols of fairseq's dictionary."""

import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from typing import List

import numpy as np
import sentencepiece

from amos_fairseq.data.options import NORMALIZATIONS

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's first four symbols, in its order
MASK = "<mask>"  # the training task appends it: always the last symbol
BOS, PAD, EOS, UNK = range(4)
DICTIONARY_NAME = "dict.txt"
# Of a line at most 1000 characters, not blank. SentencePiece skips lines of more than 4192 bytes: longer ones are cut,
# between words where there are any.
SENTENCE = re.compile(r"\S[^\n]{0,998}(?=\s|$)|\S{1,1000}")
logger = logging.getLogger(__name__)


def token_dtype(vocab_size: int) -> np.dtype:
    """Of stored token ids; fairseq's choice, which it makes for files in its format."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.uint32)


def load_processor(model: bytes, name: str = "model") -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise ValueError(f"{name} is not a SentencePiece model") from None


def train_vocabulary(
    texts: Iterable[str], vocab_size: int, uncased: bool, normalization: str = NORMALIZATIONS[0]
) -> bytes:
    """A SentencePiece model: byte-pair encoding of `vocab_size` symbols in all, specials and `<mask>` included."""
    if vocab_size <= len(SPECIALS) + 1:
        raise ValueError(f"a vocabulary of {vocab_size} is too small: {len(SPECIALS) + 1} symbols are special")
    failures: List[Exception] = []  # of reading, which SentencePiece would wrap in one of its own
    sentences = _sentences(texts, failures)
    first = next(sentences, None)
    if first is None:
        raise ValueError("the corpus holds no document")
    logger.info("training a vocabulary of %d", vocab_size)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences), model_writer=model, model_type="bpe",
            vocab_size=vocab_size, normalization_rule_name=f"{normalization}_cf" if uncased else normalization,
            bos_id=BOS, pad_id=PAD, eos_id=EOS, unk_id=UNK,
            bos_piece=SPECIALS[BOS], pad_piece=SPECIALS[PAD], eos_piece=SPECIALS[EOS], unk_piece=SPECIALS[UNK],
            control_symbols=[MASK],  # control symbols are never the encoding of a text
            character_coverage=0.9999,  # the default, 0.9995, leaves three times as many unknown tokens in English text
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise ValueError(_explain(str(error), vocab_size)) from None
    return model.getvalue()


def text_sample(texts: Iterable[str]) -> Iterator[str]:
    """Lines, the longest cut."""
    for text in texts:
        for line in text.replace("\r", " ").split("\n"):
            yield from SENTENCE.findall(line)


def _sentences(texts: Iterable[str], failures: List[Exception]) -> Iterator[str]:
    try:
        yield from text_sample(texts)
    except Exception as error:
        failures.append(error)
        raise


def _explain(error: str, vocab_size: int) -> str:
    """SentencePiece's error about the size, as what to do; any other error as it is."""
    if most := re.search(r"size too high.*<= (\d+)", error):
        return f"the corpus is too small for a vocabulary of {vocab_size}: use --vocab-size {most[1]} or less"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return f"a vocabulary of {vocab_size} is too small for the corpus: use --vocab-size {least[1]} or more"
    return f"SentencePiece: {error}"
