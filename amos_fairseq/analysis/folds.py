"""A linear probe on any labelled file, of texts or of words, without a test file and without a seed: k-fold.

    texts or words -> frozen states of a layer -> logistic regression on all folds but one -> what it says of that one

A hash of the text decides its fold, so that equal texts are in one, and that every encoder has the same folds. Each
example is tested once, hence the interval is that of the whole file: of examples drawn anew, of words by sentences.
"""

import logging
from pathlib import Path
from typing import Callable, List, NamedTuple, Sequence, Union

import numpy as np
import torch

from amos_fairseq.analysis import linear_probes
from amos_fairseq.finetune import tables, tagged
from amos_fairseq.finetune.intervals import Estimate, of_statistic
from amos_fairseq.finetune.metrics import macro_f1
from amos_fairseq.pretrained.model import Pretrained

logger = logging.getLogger(__name__)
FOLDS = 5


class Labelled(NamedTuple):
    """N labelled texts, or pairs of them, of a table; or N labelled words of sentences.

    blocks: (N,) what is drawn together: each text, or all words of a sentence   folds: (N,)
    """

    path: Path
    source: Union[tables.Table, List[List[linear_probes.Word]]]
    labels: np.ndarray
    blocks: np.ndarray
    folds: np.ndarray


class Result(NamedTuple):
    accuracy: Estimate
    macro_f1: float
    commonest: float  # share of the commonest label


def read_texts(path: Path, columns: Sequence[str], label: str, folds: int = FOLDS) -> Labelled:
    """Raises ValueError, in one line, for what tells nothing."""
    check_folds(folds)
    if len(columns) > 2:
        raise ValueError(f"a probe reads one text or a pair, got the columns {', '.join(columns)}")
    table = tables.read(path, columns, label)
    for row, value in enumerate(table.labels):
        if not value:
            raise ValueError(f"{table.where(row)}: there is no label")
    numbers = np.array([tables.hash_of(*texts) % folds for texts in table.texts])
    return checked(Labelled(path, table, np.array(table.labels), np.arange(len(numbers)), numbers), folds)


def read_words(path: Path, folds: int = FOLDS) -> Labelled:
    """Tagged sentences, as `finetune tokens` reads them, or a word, a tab and its label a line."""
    check_folds(folds)
    table = tagged.read(path, *tagged.columns_of(path, None, None))
    sentences = [
        [linear_probes.Word(word.strip(), tag.strip(), line) for word, tag in zip(words, tags)]
        for line, words, tags in zip(table.lines, table.texts, table.labels)
    ]
    rows = [
        (word.label, number, tables.hash_of(" ".join(word.text for word in sentence)) % folds)
        for number, sentence in enumerate(sentences) for word in sentence if word.label != linear_probes.UNLABELLED
    ]
    if not rows:
        raise ValueError(f"{path} has no labelled word: all are {linear_probes.UNLABELLED}, which is read, not probed")
    return checked(Labelled(path, sentences, *map(np.array, zip(*rows))), folds)


def check_folds(folds: int) -> None:
    if folds < 2:
        raise ValueError(f"{folds} folds leave nothing to learn from: take at least 2")


def checked(found: Labelled, folds: int) -> Labelled:
    path = found.path
    if len(set(found.folds.tolist())) < folds:
        raise ValueError(f"{path} holds too few different texts for {folds} folds: give more of them, or take fewer")
    for number in range(folds):
        if len(set(found.labels[found.folds != number])) < 2:
            raise ValueError(f"{path}: a probe needs two labels to tell apart, but without fold {number} there is one")
    return found


def probe(
    model: Pretrained, found: Labelled, layers: Sequence[int], pooling: str = "mean",
    progress: Callable[[int], object] = lambda layers: None,
) -> List[Result]:
    """One for each layer, which `Pretrained.layer_number` reads. Of texts longer than the model reads, which are told,
    the end is cut.

    pooling: of texts; of a word it is the state of its first piece that is probed
    """
    numbers = list(map(model.layer_number, layers))
    of_texts = isinstance(found.source, tables.Table)
    if of_texts:
        examples, cut = tables.encode(found.source, model.tokenizer, model.max_tokens, None)
        if cut:
            logger.warning("%s reads %d tokens: %d texts lost their ends", model.source, model.max_tokens, cut)
        sequences = list(torch.from_numpy(examples.tokens).long().split(examples.lengths.tolist()))
    else:
        encoded = linear_probes.encode(found.source, model.tokenizer, model.max_tokens, found.path)
        states = linear_probes.layer_states(model.encoder, encoded)
    results = []
    for number in numbers:
        if of_texts:
            features = model.pooled(sequences, pooling, layer=number).float().cpu().numpy()
        else:
            features = states[number]
        results.append(cross_validate(features, found))
        progress(1)
    return results


def cross_validate(features: np.ndarray, found: Labelled) -> Result:
    """features: (N, C)"""
    predicted = np.empty_like(found.labels)
    for number in np.unique(found.folds):
        test = found.folds == number
        predicted[test] = linear_probes.predict(features[~test], found.labels[~test], features[test])
    right, of_block = (np.bincount(found.blocks, weights) for weights in (predicted == found.labels, None))
    accuracy = of_statistic(lambda rows: float(right[rows].sum() / of_block[rows].sum()), len(right))
    _, commonest = linear_probes.majority(found.labels, found.labels)
    return Result(accuracy, macro_f1(predicted, found.labels), commonest)
