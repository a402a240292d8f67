"""A vocabulary's file, of whichever kind: which it is, and the tokenizer of it."""

import os

import numpy as np

from amos_fairseq.data.fast_tokenizer import FAST_NAME, FastTokenizer, is_fast, read_fast
from amos_fairseq.data.released_tokenizer import MARK, ReleasedTokenizer
from amos_fairseq.data.tokenizer import MODEL_NAME, Tokenizer
from amos_fairseq.data.vocabulary import DICTIONARY_NAME
from amos_fairseq.files import check_ends
from amos_fairseq.user_errors import seen_from

VOCABULARY_NAMES = (MODEL_NAME, FAST_NAME)  # in a prepared folder


def load_tokenizer(model: bytes, name: str = "the vocabulary") -> Tokenizer:
    """The tokenizer whose `model` this is, of any kind."""
    if model.startswith(b"{"):
        return FastTokenizer(model, name)
    if not model.startswith(MARK):
        return Tokenizer(model, name)
    start = len(MARK) + 8
    end = start + int.from_bytes(model[len(MARK) : start], "little")
    return ReleasedTokenizer(model[end:], model[start:end], name)


def vocabulary_file(folder) -> str:
    """The file of a prepared folder, or of one that was exported, that holds its vocabulary; by default MODEL_NAME."""
    paths = [os.path.join(folder, name) for name in VOCABULARY_NAMES]
    return next(filter(os.path.exists, paths), paths[0])


def read_vocabulary(path: str) -> Tokenizer:
    """The vocabulary of a SentencePiece .model file, of an earlier preparation's folder, or of a Hugging Face model."""
    if not os.path.exists(path):
        raise ValueError(f"{seen_from(path)} does not exist: give a local file or folder: nothing is downloaded")
    folder = path
    if os.path.isdir(path) and os.path.exists(vocabulary_file(path)):
        path = vocabulary_file(path)
    elif is_fast(path):
        return read_fast(path)
    elif os.path.isdir(path):
        raise ValueError(
            f"{folder} holds no {MODEL_NAME} and no tokenizer.json: name a .model file, an earlier prepare's folder, "
            "or that of a Hugging Face model"
        )
    check_ends(path)
    with open(path, "rb") as stream:
        tokenizer = load_tokenizer(stream.read(), path)
    if path != folder and os.path.exists(os.path.join(folder, DICTIONARY_NAME)):
        with open(os.path.join(folder, DICTIONARY_NAME), "rb") as stream:
            tokenizer.counted = stream.read()
        lines = tokenizer.counted.decode(errors="replace").split("\n")
        if [line.rsplit(" ", 1)[0] for line in lines if line] != [tokenizer.symbols[i] for i in tokenizer.listed]:
            raise ValueError(f"{folder}: {DICTIONARY_NAME} and {os.path.basename(path)} do not belong together")
    return tokenizer


def read_counts(folder: str, tokenizer: Tokenizer) -> np.ndarray:
    """(V,) how often prepared data hold each token. Raises ValueError if they are of another vocabulary."""
    given = read_vocabulary(folder)
    if given.sha256 != tokenizer.sha256 or given.counted is None:
        raise ValueError(f"{folder} has no counts of the model's vocabulary: name the data that it was trained with")
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    lines = given.counted.decode().split("\n")
    counts[tokenizer.listed] = [int(line.rpartition(" ")[2]) for line in lines if line]
    return counts
