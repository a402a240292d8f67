"""What frozen layers know: a linear probe on each layer's hidden states, for labelled words (AMOS, Sec. 5.2).

    words -> pieces -> network -> hidden state of each word's first piece, by layer -> multinomial logistic regression

Layers are probed one by one, none combined. Layer 0 is the embedding network: what the token itself and its position
say. Beside each probe stand the share of the commonest label, and the same probe on the network's untrained twin:
what its architecture says, which is not little.
"""

from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from amos_fairseq.analysis.figures import decorate, new_figure, style
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.files import check_ends
from amos_fairseq.finetune import tables
from amos_fairseq.finetune.metrics import accuracy, macro_f1
from amos_fairseq.modules.batching import BATCH_TOKENS, batches, padded
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.pretrained.filling import finite

UNLABELLED = "_"  # a word that is read, but not probed
MAX_ITERATIONS = 1000


class Word(NamedTuple):
    text: str
    label: str
    line: int  # in its file


class Encoded(NamedTuple):
    """N labelled words of a file."""

    sequences: List[torch.Tensor]  # ids (T,) of each sentence
    places: List[List[int]]  # of each sentence's labelled words, where the first piece is
    labels: np.ndarray  # (N,) of strings


class Result(NamedTuple):
    """One probe. Scores are shares of the test words."""

    network: str
    layer: int  # 0: the embedding network
    accuracy: float
    macro_f1: float
    untrained_accuracy: float
    untrained_macro_f1: float


def read_labelled(path: Path) -> List[List[Word]]:
    """Sentences of a file of lines `word TAB label`, a blank line ending each.

    Raises ValueError, in one line, for anything else.
    """
    check_ends(path)
    sentences: List[List[Word]] = []
    before = 0
    for number, line in tables.lines_of(path):
        if number > before + 1 or not sentences:  # after a blank line
            sentences.append([])
        before = number
        columns = line.split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            raise ValueError(f"{path}, line {number}: must be a word, a tab and a label, got {line[:40]!r}")
        sentences[-1].append(Word(columns[0].strip(), columns[1].strip(), number))
    if not any(word.label != UNLABELLED for sentence in sentences for word in sentence):
        raise ValueError(f"{path} holds no labelled word: lines are a word, a tab and a label")
    return sentences


def check_labels(train: Sequence[Sequence[Word]], test: Sequence[Sequence[Word]], train_path, test_path) -> None:
    """Raises ValueError unless there are two labels to learn, and no others to be tested on."""
    known = {word.label for sentence in train for word in sentence} - {UNLABELLED}
    if len(known) < 2:
        raise ValueError(f"{train_path} has one label, {min(known)}: a probe needs two to tell apart")
    for word in (word for sentence in test for word in sentence):
        if word.label not in (UNLABELLED, *known):
            raise ValueError(f"{test_path}, line {word.line}: label {word.label} is not in {train_path}")


def encode(sentences: Sequence[Sequence[Word]], tokenizer: Tokenizer, longest: int, path) -> Encoded:
    """Raises ValueError, naming the line of `path`, for a sentence of more than `longest` tokens."""
    sequences, places = [], []
    for sentence in sentences:
        ids, first = first_pieces(tokenizer, sentence, path)
        sequence = tokenizer.sequence(ids)
        if len(sequence) > longest:
            raise ValueError(
                f"{path}, line {sentence[0].line}: the sentence from here has {len(sequence)} tokens, "
                f"but the model reads {longest}: split it with a blank line"
            )
        sequences.append(torch.tensor(sequence))
        places.append([1 + place for place, word in zip(first, sentence) if word.label != UNLABELLED])
    labels = [word.label for sentence in sentences for word in sentence if word.label != UNLABELLED]
    return Encoded(sequences, places, np.array(labels))


def first_pieces(tokenizer: Tokenizer, sentence: Sequence[Word], path) -> Tuple[List[int], List[int]]:
    """Ids of the words, joined by spaces, and the place of each word's first piece, a bare space being none."""
    ids, spans = tokenizer.encode_with_spans(" ".join(word.text for word in sentence))
    ends = np.array([span.end for span in spans])
    begin, places = 0, []
    for word in sentence:
        place = int(np.searchsorted(ends, begin, side="right"))  # the first that ends after the word begins
        if place == len(ends) or ends[place] > begin + len(word.text):
            raise ValueError(f"{path}, line {word.line}: the vocabulary has nothing for {word.text!r}: leave it out")
        places.append(place)
        begin += len(word.text) + 1
    return ids, places


@torch.no_grad()
def layer_states(network: Encoder, encoded: Encoded, batch_tokens: int = BATCH_TOKENS) -> List[np.ndarray]:
    """(N, C) hidden states of the labelled words, of layers 0 (the embeddings) to L."""
    found: List[Dict[int, torch.Tensor]] = [{} for _ in range(1 + len(network.layers))]  # by layer, by sentence
    for rows in batches([len(sequence) for sequence in encoded.sequences], batch_tokens):
        tokens, padding_mask = padded([encoded.sequences[row] for row in rows], network)
        hidden, passed = network.begin(network.token_embeddings(tokens), padding_mask)
        for layer, states in enumerate(found):
            if layer:
                hidden = passed.run(hidden, layer - 1, layer)
            finite(hidden, f"layer {layer} of the encoder")
            states.update((row, hidden[number, encoded.places[row]].cpu()) for number, row in enumerate(rows))
    return [torch.cat([states[row] for row in sorted(states)]).numpy() for states in found]


def probe(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> Tuple[float, float]:
    """Accuracy and macro-F1 on the test words."""
    predicted = predict(train, train_labels, test)
    return accuracy(predicted, test_labels), macro_f1(predicted, test_labels)


def predict(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """What a logistic regression on standardised features (N, C) says of others, whatever the number of cores.

    Its steps are many and small: threads of BLAS that wait for each other make them several times as long.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    with threadpool_limits(1, user_api="blas"):
        return classifier.fit(train, train_labels).predict(test)


def probe_network(
    name: str, network: Encoder, twin: Encoder, train: Encoded, test: Encoded, layers: Optional[Sequence[int]] = None
) -> List[Result]:
    """A probe for each of the layers, all by default. Raises ValueError for one that the network has not."""
    depth = len(network.layers)
    for layer in layers or ():
        if not 0 <= layer <= depth:
            raise ValueError(f"layer {layer} is none of the {name}'s: choose from 0, the embeddings, to {depth}")
    chosen = range(depth + 1) if layers is None else layers
    states = [[layer_states(part, encoded) for encoded in (train, test)] for part in (network, twin)]
    scores = [[probe(a[layer], train.labels, b[layer], test.labels) for a, b in states] for layer in chosen]
    return [Result(name, layer, *trained, *untrained) for layer, (trained, untrained) in zip(chosen, scores)]


def majority(train_labels: np.ndarray, test_labels: np.ndarray) -> Tuple[str, float]:
    """The commonest label of training, the first by name among equals, and its share of the test words."""
    counts = Counter(train_labels.tolist())
    label = min(counts, key=lambda label: (-counts[label], label))
    return label, accuracy(np.full_like(test_labels, label), test_labels)


def curves(results: Sequence[Result], majority: float, depths: Dict[str, Sequence[int]]) -> Figure:
    """Accuracy over layers, a line for each network and a thin one for its untrained twin.

    depths: of a network, the layers to be marked
    """
    figure, (axes,) = new_figure(1)
    for index, name in enumerate(dict.fromkeys(result.network for result in results)):
        color, _, marker = style(index)
        of_network = [result for result in results if result.network == name]
        layers = [result.layer for result in of_network]
        line = dict(color=color, marker=marker, markersize=5)
        axes.plot(layers, [100 * result.accuracy for result in of_network], **line, label=name)
        untrained = [100 * result.untrained_accuracy for result in of_network]
        thin = dict(markerfacecolor="white", linestyle="--", linewidth=0.8)
        axes.plot(layers, untrained, **line, **thin, label=f"{name}, untrained")
        heads = [result for result in of_network if result.layer in depths.get(name, ())]
        if heads:
            at = [result.layer for result in heads], [100 * result.accuracy for result in heads]
            ring = dict(marker="o", markersize=12, markerfacecolor="none", markeredgecolor=color, linestyle="none")
            axes.plot(*at, **ring, label=f"{name}, with MLM head")
    axes.axhline(100 * majority, color="0.4", linestyle=":", label="commonest label")
    decorate(axes, "", "% of test words right", False, "layer (0: embeddings)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure
