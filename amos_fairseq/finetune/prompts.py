"""Few examples, asked of the language model itself, demonstrations beside: LM-BFF (Gao et al., 2021).

    <s> prompt </s> </s> demonstration of class 1 </s> .. </s> </s> demonstration of class L </s>

    prompt          the template with an example's texts and <mask>, where the labels' words are compared
    demonstration   the template with the texts and the label's word of a random training example of the class

A split is 16 examples per class to train on and 16 others to select by, drawn by a seed; the test sets stay whole.
Demonstrations are new at each pass over the training examples, never the example itself. Where it is evaluated, an
example is asked with several sets of demonstrations, and its logits are averaged. COCO-LM's Table 4 is the mean and
standard deviation of five splits, each with the best of its grid. LM-BFF can also choose demonstrations by similarity,
which takes another pre-trained model: its runs with manual prompts, as these, do not.
"""

import re
import string
from pathlib import Path
from typing import Dict, List, Mapping, Sequence, Tuple

import numpy as np

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.finetune import labelled, tables
from amos_fairseq.finetune.tables import Table

MNLI_TEMPLATE = "{text} ? {mask} , {text_b}"
MNLI_LABEL_WORDS = {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}
FIELDS = ("text", "text_b")


class Template:
    """A prompt with the fields {text}, {text_b} if there is one, and {mask}, filled in up to `room` tokens.

    Fields and what stands between them are encoded one by one, so there is always a space between them. As in LM-BFF's
    manual prompts, a text loses its last punctuation mark where the template goes on with one, and begins with a small
    letter after a comma. The longer text is cut if both have no room.

    cut   how many prompts were
    """

    def __init__(self, template: str, tokenizer: Tokenizer, room: int):
        pieces = re.split(r"\{(\w*)\}", template)
        self.literals, self.fields = pieces[::2], pieces[1::2]
        if sorted(self.fields) not in (["mask", "text"], ["mask", "text", "text_b"]) or "{" in "".join(self.literals):
            raise ValueError(f"template {template!r}: it has {{text}}, {{mask}} and for pairs {{text_b}}, each once")
        self.name, self.tokenizer = template, tokenizer
        self.encoded_literals = [tokenizer.encode(literal) for literal in self.literals]
        self.room = room - 1 - sum(map(len, self.encoded_literals))  # of the texts
        if self.room < 2:
            raise ValueError(f"{room} tokens do not fit the template {template!r} and texts: take longer sequences")
        self.cut = 0

    def encode(self, texts: Sequence[str], token: int) -> List[int]:
        """The ids of the whole, with `token` at {mask}."""
        if len(texts) != len(self.fields) - 1:
            raise ValueError(f"template {self.name!r} does not fit examples of {len(texts)} texts")
        parts = [self.tokenizer.encode(self.adapt(text, field)) for text, field in zip(texts, FIELDS)]
        self.cut += sum(map(len, parts)) > self.room
        ids_of = {"mask": [token], **dict(zip(FIELDS, tables.truncate(parts, self.room)))}
        ids = list(self.encoded_literals[0])
        for field, literal in zip(self.fields, self.encoded_literals[1:]):
            ids += [*ids_of[field], *literal]
        return ids

    def adapt(self, text: str, field: str) -> str:
        """The text as it stands in `field`, of the class's rules on marks and capitals."""
        place, text = self.fields.index(field), text.strip()
        if self.literals[place + 1].lstrip()[:1] in tuple(string.punctuation) and text[-1:] in string.punctuation:
            text = text[:-1]
        return text[:1].lower() + text[1:] if self.literals[place].rstrip().endswith(",") else text


def parse_label_words(text: str) -> Dict[str, str]:
    """{"entailment": "Yes", ..} of "entailment=Yes,neutral=Maybe,contradiction=No"."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    words = {label.strip(): word.strip() for label, _, word in pairs}
    if len(words) < max(2, len(pairs)) or not all(label and word for label, word in words.items()):
        raise ValueError(f"label words {text!r}: write label=word,label=word,.. with two labels or more")
    return words


def find_label_tokens(label_words: Mapping[str, str], tokenizer: Tokenizer) -> List[int]:
    """The ids of the words as they follow a space; ValueError if one is not a whole piece of the vocabulary."""
    tokens: Dict[int, str] = {}
    for word in label_words.values():
        ids = tokenizer.encode(word)
        if len(ids) != 1 or ids[0] in tokenizer.excluded:
            pieces = " ".join(tokenizer.symbols[token] for token in ids)
            raise ValueError(f"label word {word!r} is no single token but {pieces}: choose a word that is one")
        if ids[0] in tokens:
            raise ValueError(f"label words {tokens[ids[0]]!r} and {word!r} are the same token: choose another")
        tokens[ids[0]] = word
    return list(tokens)


def draw_split(targets: np.ndarray, labels: Sequence[str], per_class: int, seed: int) -> Tuple[np.ndarray, np.ndarray]:
    """Rows of `per_class` examples of each class to train on, and of as many others to select by, class by class."""
    generator = np.random.default_rng(seed)
    train, valid = [], []
    for place, label in enumerate(labels):
        (members,) = np.nonzero(targets == place)
        if len(members) < 2 * per_class:
            raise ValueError(f"{2 * per_class} examples of each label are drawn: {label!r} has {len(members)}")
        drawn = generator.choice(members, 2 * per_class, replace=False)
        train.append(drawn[:per_class])
        valid.append(drawn[per_class:])
    return np.concatenate(train), np.concatenate(valid)


def draw_demonstrations(
    targets: np.ndarray, classes: int, per_class: int, times: int, training: bool, generator: np.random.Generator
) -> np.ndarray:
    """(N, times, classes): which of a class's `per_class` training examples; in training never an example itself.

    There the examples are classes * per_class, class by class.
    """
    own = np.arange(classes) == targets[:, None]
    draws = generator.integers(0, per_class - (own[:, None] & training), (len(targets), times, classes))
    if training:
        itself = np.arange(len(targets))[:, None, None] % per_class
        draws += own[:, None] & (draws >= itself)
    return draws


def prepare(
    out: Path, name: str, train: Table, tests: Mapping[str, Table], tokenizer: Tokenizer, seed: int,
    template: str = MNLI_TEMPLATE, label_words: Mapping[str, str] = MNLI_LABEL_WORDS, max_length: int = 512,
    per_class: int = 16, samples: int = 16, train_sequences: int = 2000,
) -> labelled.Problem:
    """Encode one split, unless the folder `out` holds it already; its train and valid are drawn from `train`.

    tests             whole sets to report, {"test": .., "test1": ..}
    label_words       word by label, in the order of the problem's labels
    max_length        tokens of a sequence, of which the prompt and each demonstration have equal shares
    samples           sets of demonstrations for each example of valid and tests (LM-BFF: 16, of MNLI 4); 0: the prompt
                      alone, in training, too
    train_sequences   passes over the training examples go on until there are so many; 2000 are 1000 updates of 2.
                      Training shuffles them all
    Raises ValueError, before anything is written, if a label word is no single token, a label has no word, or there
    are too few examples of a class.
    """
    if samples < 0:
        raise ValueError(f"{samples} sets of demonstrations: give 0 for none, or more")
    if per_class < 2:
        raise ValueError(f"{per_class} examples per class: there must be 2, one to demonstrate the other")
    files = {split: table.path for split, table in {"train": train, **tests}.items()}
    source = tables.source_of(
        files, tokenizer, max_length, name=name, template=template, label_words=dict(label_words), seed=seed,
        per_class=per_class, samples=samples, train_sequences=train_sequences,
    )
    if tables.is_written(out, source):
        return labelled.read_problem(out)
    labels, label_tokens = list(label_words), find_label_tokens(label_words, tokenizer)
    demonstrated = len(labels) if samples else 0
    # Two of the sequence's separators come with each part.
    prompt = Template(template, tokenizer, max_length // (1 + demonstrated) - 2)
    drawn = draw_split(tables.classes(train, labels), labels, per_class, seed)
    sets = {"train": train.part(drawn[0]), "valid": train.part(drawn[1]), **tests}
    targets = {split: tables.classes(table, labels) for split, table in sets.items()}
    demonstrations = [
        prompt.encode(texts, label_tokens[target]) for texts, target in zip(sets["train"].texts, targets["train"])
    ]
    passes = -(-train_sequences // len(demonstrations))
    repeats = {split: passes if split == "train" else max(1, samples) for split in sets}
    examples = {}
    for number, (split, table) in enumerate(sets.items()):
        generator = np.random.default_rng([seed, number])
        options = len(labels), per_class, repeats[split], split == "train"
        draws = draw_demonstrations(targets[split], *options, generator) + per_class * np.arange(len(labels))
        sequences = []
        for texts, of_example in zip(table.texts, draws.tolist()):
            asked = prompt.encode(texts, tokenizer.mask)
            for places in of_example:
                sequence = tokenizer.sequence(asked, *(demonstrations[place] for place in places[:demonstrated]))
                sequences.append(np.array(sequence, dtype=np.int32))
        lengths = np.array([len(sequence) for sequence in sequences])
        asked_for = np.repeat(targets[split], repeats[split])
        examples[split] = labelled.Examples(np.concatenate(sequences), lengths, asked_for)
    # An example's sequences, repeats[split] of them, follow each other.
    about = {"source": source, "repeats": repeats, "cut_prompts": prompt.cut}
    problem = labelled.Problem(name, "prompt", ["accuracy"], source["vocabulary"], labels, label_tokens, about)
    labelled.write(out, problem, examples)
    return problem


def average(outputs: np.ndarray, repeats: int) -> np.ndarray:
    """(N, L): the mean of each example's logits over its `repeats` sets of demonstrations, of (N repeats, L)."""
    return outputs.astype(np.float64).reshape(-1, repeats, outputs.shape[-1]).mean(axis=1)
