"""A linear probe on any labelled file, of texts or of words, without a test file and without a seed: k-fold.

    texts or words -> frozen states of a layer -> logistic regression on all folds but one -> what it says of that one

A hash of the text decides its fold, so that equal texts are in one, and that every encoder has the same folds. Each
example is tested once, hence the interval is that of the whole file: of examples drawn anew, of words by sentences.
"""

from pathlib import Path
from typing import Callable, List, NamedTuple, Sequence, Union

import numpy as np
import torch

from amos_fairseq.analysis import linear_probes
from amos_fairseq.finetune import tables, tagged
from amos_fairseq.finetune.intervals import Estimate, of_statistic
from amos_fairseq.finetune.metrics import macro_f1
from amos_fairseq.pretrained.model import Pretrained

FOLDS = 5


class Texts(NamedTuple):
    """N labelled texts, or pairs of them. blocks: (N,) what is drawn together   folds: (N,)"""

    table: tables.Table
    labels: np.ndarray
    blocks: np.ndarray
    folds: np.ndarray


class Words(NamedTuple):
    """N labelled words. blocks: (N,) their sentences"""

    path: Path
    sentences: List[List[linear_probes.Word]]
    labels: np.ndarray
    blocks: np.ndarray
    folds: np.ndarray


class Result(NamedTuple):
    accuracy: Estimate
    macro_f1: float
    commonest: float  # share of the commonest label


def read_texts(path: Path, columns: Sequence[str], label: str, folds: int = FOLDS) -> Texts:
    """Raises ValueError, in one line, for what tells nothing."""
    if len(columns) > 2:
        raise ValueError(f"a probe reads one text or a pair, got the columns {', '.join(columns)}")
    table = tables.read(path, columns, label)
    for row, value in enumerate(table.labels):
        if not value:
            raise ValueError(f"{table.where(row)}: there is no label")
    numbers = np.array([tables.hash_of(*texts) % folds for texts in table.texts])
    return checked(Texts(table, np.array(table.labels), np.arange(len(numbers)), numbers), path, folds)


def read_words(path: Path, folds: int = FOLDS) -> Words:
    """Tagged sentences, as `finetune tokens` reads them, or a word, a tab and its label a line."""
    table = tagged.read(path, *tagged.columns_of(path, None, None))
    sentences = [
        [linear_probes.Word(word.strip(), tag.strip(), line) for word, tag in zip(words, tags)]
        for line, words, tags in zip(table.lines, table.texts, table.labels)
    ]
    rows = [
        (word.label, number, tables.hash_of(" ".join(word.text for word in sentence)) % folds)
        for number, sentence in enumerate(sentences) for word in sentence if word.label != linear_probes.UNLABELLED
    ]
    return checked(Words(path, sentences, *map(np.array, zip(*rows))), path, folds)


def checked(found: Union[Texts, Words], path: Path, folds: int):
    if folds < 2:
        raise ValueError(f"{folds} folds leave nothing to learn from: take at least 2")
    if len(set(found.folds.tolist())) < folds:
        raise ValueError(f"{path} holds too few different texts for {folds} folds: give more of them, or take fewer")
    for number in range(folds):
        if len(set(found.labels[found.folds != number])) < 2:
            raise ValueError(f"{path}: a probe needs two labels to tell apart, but without fold {number} there is one")
    return found


def probe(
    model: Pretrained, found: Union[Texts, Words], layers: Sequence[int], pooling: str = "mean",
    progress: Callable[[int], object] = lambda layers: None,
) -> List[Result]:
    """One for each layer, which `Pretrained.layer_number` reads. Of a text longer than the model reads, the end is cut.

    pooling: of texts; of a word it is the state of its first piece that is probed
    """
    numbers = list(map(model.layer_number, layers))
    if isinstance(found, Words):
        encoded = linear_probes.encode(found.sentences, model.tokenizer, model.max_tokens, found.path)
        states = linear_probes.layer_states(model.encoder, encoded)
    else:
        examples, _ = tables.encode(found.table, model.tokenizer, model.max_tokens, None)
        sequences = list(torch.from_numpy(examples.tokens).long().split(examples.lengths.tolist()))
    results = []
    for number in numbers:
        if isinstance(found, Texts):
            features = model.pooled(sequences, pooling, layer=number).float().cpu().numpy()
        else:
            features = states[number]
        results.append(cross_validate(features, found))
        progress(1)
    return results


def cross_validate(features: np.ndarray, found: Union[Texts, Words]) -> Result:
    """features: (N, C)"""
    if not np.isfinite(features).all():
        raise ValueError("hidden states are no finite numbers: the model has diverged")
    predicted = np.empty_like(found.labels)
    for number in np.unique(found.folds):
        test = found.folds == number
        predicted[test] = linear_probes.predict(features[~test], found.labels[~test], features[test])
    right, of_block = (np.bincount(found.blocks, weights) for weights in (predicted == found.labels, None))
    accuracy = of_statistic(lambda rows: float(right[rows].sum() / of_block[rows].sum()), len(right))
    _, commonest = linear_probes.majority(found.labels, found.labels)
    return Result(accuracy, macro_f1(predicted, found.labels), commonest)
