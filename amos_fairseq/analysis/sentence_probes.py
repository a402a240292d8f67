"""Do an encoder's frozen states tell words as they were written from words that were moved? A probe without a seed.

    texts -> passages -> pairs, as written and changed -> mean of the last hidden states of each -> difference of both
    -> logistic regression: which of the two stands as it was written?

    swap            8 neighbouring words of a sentence: two neighbours changed places
    acceptability   sentences of 6 to 24 words: half of one was shuffled, as in the task of `corpus --tasks`

The words of a passage, in any order, decide by their hash which part it is in, and it decides what is changed: the same
text makes the same pairs for every encoder, and what is made of one passage is on one side. Both of a pair have the
same words, so that without their order half of the pairs are right.
"""

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import scipy.stats
import torch

from amos_fairseq.analysis.linear_probes import probe
from amos_fairseq.data.corpus import BLANK_LINE, sample_text
from amos_fairseq.data.inputs import list_inputs
from amos_fairseq.data.options import Options
from amos_fairseq.data.sources import open_source
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.demo.documentation_tasks import WORDS_OF_SENTENCE, split_sentences, with_half_shuffled
from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.pretrained.model import Pretrained

DEVELOPMENT, HELD_OUT = PARTS = ("development", "held_out")  # of the items to be tested on
TRAIN = "train"
SIDES = (TRAIN, TRAIN, *PARTS)  # a quarter each
ITEMS, FEWEST_ITEMS = 2000, 200  # pairs
BLOCK_WORDS = 8  # 16 tokens of a small vocabulary: what the quick start trains on
TWIN_SEED = 1
TEXT_BYTES = 8 << 20  # read of a text at most, from all over it


class Task(NamedTuple):
    passages: Callable[[str], List[str]]  # of a sentence
    change: Callable[[str, random.Random], str]
    question: str
    unit: str  # what a passage is
    favours: str


class Items(NamedTuple):
    """Passages, each as it was written and changed."""

    train: List[Tuple[str, str]]
    test: List[Tuple[str, str]]


class Result(NamedTuple):
    accuracy: float  # share of the test items
    interval: Tuple[float, float]  # Wilson's, 95 %
    items: int


def blocks(sentence: str) -> List[str]:
    words = sentence.split()
    return [" ".join(words[i : i + BLOCK_WORDS]) for i in range(0, len(words) - BLOCK_WORDS + 1, BLOCK_WORDS)]


def whole(sentence: str) -> List[str]:
    return [sentence] if len(sentence.split()) in WORDS_OF_SENTENCE else []


def with_neighbours_swapped(block: str, draw: random.Random) -> str:
    """Two neighbours that differ change places, if there are any; the first word stays, as its capital would tell."""
    words = block.split()
    places = [i for i in range(1, len(words) - 1) if words[i].casefold() != words[i + 1].casefold()]
    if places:
        i = draw.choice(places)
        words[i : i + 2] = words[i + 1], words[i]
    return " ".join(words)


TASKS = {
    "swap": Task(
        blocks, with_neighbours_swapped, "in which of two texts did two neighbouring words change places?",
        f"blocks of {BLOCK_WORDS} neighbouring words",
        "local order",
    ),
    "acceptability": Task(
        whole, with_half_shuffled, "of which of two sentences was half shuffled?",
        f"sentences of {WORDS_OF_SENTENCE.start} to {WORDS_OF_SENTENCE.stop - 1} words",
        "order over half of a sentence, local order included",
    ),
}


def sentences(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        for paragraph in BLANK_LINE.split(text):
            yield from split_sentences(" ".join(paragraph.split()))


def make_items(task: str, texts: Sequence[str], part: str = DEVELOPMENT, most: int = ITEMS) -> Items:
    """At most `most` items to learn from, and of `part` to be tested on; a blank line ends a text's paragraph.

    Raises ValueError for an unknown task or part, or a text that makes fewer than FEWEST_ITEMS.
    """
    for what, name, known in (("task", task, TASKS), ("part", part, PARTS)):
        if name not in known:
            raise ValueError(f"{what} {name} is none of {', '.join(known)}")
    if most < FEWEST_ITEMS:
        raise ValueError(f"{most} items are too few to tell anything: take at least {FEWEST_ITEMS}")
    passages, change, _, unit, _ = TASKS[task]
    found: Dict[bytes, str] = {}
    for sentence in sentences(texts):
        for passage in passages(sentence):
            words = " ".join(sorted(passage.casefold().split()))
            found.setdefault(hashlib.sha256(words.encode()).digest(), passage)
    sides: Dict[str, List[Tuple[str, str]]] = {side: [] for side in SIDES}
    for digest in sorted(found):
        side = sides[SIDES[digest[-1] % len(SIDES)]]
        if len(side) < most:
            passage = found[digest]
            changed = change(passage, random.Random(f"{task} {passage}"))
            side += [(passage, changed)] if changed.casefold() != passage.casefold() else []
    train, test = sides[TRAIN], sides[part]
    if len(test) < FEWEST_ITEMS:
        raise ValueError(
            f"the text makes {len(test)} items of {task}, {unit}, but {FEWEST_ITEMS} are needed: give more text"
        )
    return Items(train, test)


def probe_items(
    encoder: Encoder, tokenizer: Tokenizer, items: Items, progress: Callable[[int], object] = lambda texts: None
) -> Result:
    """Of an encoder in evaluation mode. Of a text longer than it reads, the end is left out."""
    if encoder.training:
        raise ValueError("the encoder is in training mode, in which dropout is at work: call eval() first")
    most = encoder.config.max_positions - 2
    model = Pretrained("", "", encoder, tokenizer)

    def differences(pairs: List[Tuple[str, str]]) -> np.ndarray:
        texts = [text for pair in pairs for text in pair]
        sequences = [torch.tensor(tokenizer.sequence(tokenizer.encode(text)[:most])) for text in texts]
        states = model.pooled(sequences, progress=progress).float().cpu().numpy()
        written_first = states[::2] - states[1::2]
        return np.concatenate([written_first, -written_first])  # in both orders: neither is favoured

    labels = [np.repeat([1, 0], len(pairs)) for pairs in items]
    accuracy, _ = probe(differences(items.train), labels[0], differences(items.test), labels[1])
    count = len(items.test)
    return Result(accuracy, wilson(round(accuracy * count), count), count)


def probe_texts(encoder: Encoder, tokenizer: Tokenizer, task: str, texts: Sequence[str], part=DEVELOPMENT) -> Result:
    """What an encoder knows by one of TASKS. Search with DEVELOPMENT and confirm with HELD_OUT: they share no item."""
    return probe_items(encoder, tokenizer, make_items(task, texts, part))


def wilson(right: int, items: int) -> Tuple[float, float]:
    """95 % interval of a share of independent items (Wilson, 1927)."""
    interval = scipy.stats.binomtest(right, items).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def shape(encoder: Encoder) -> EncoderConfig:
    """What an untrained network depends on."""
    return replace(encoder.config, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)


def untrained(encoder: Encoder) -> Encoder:
    """A network of the same shape with new weights, which are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(TWIN_SEED)
        twin = Encoder(shape(encoder))
    return twin.to(encoder.token_embeddings.weight.device).eval()


def untrained_twin(model: Pretrained) -> Pretrained:
    """The same vocabulary with an encoder as untrained() makes it."""
    return Pretrained(model.source, model.name, untrained(model.encoder), model.tokenizer)


def read_texts(path: Path) -> List[str]:
    """Of a file, or of all below a folder that `amos-fairseq prepare` reads: at most TEXT_BYTES, from all over it."""
    sources = [open_source(name, name, format, Options()) for name, format in list_inputs([str(path)]).files]
    for source in sources:
        source.check()
    return list(sample_text(sources, TEXT_BYTES))
