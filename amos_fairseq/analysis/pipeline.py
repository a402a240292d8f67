"""What a model does with one sentence, stage by stage, in numbers: masked, proposed, drawn, corrupted, judged.

Words are tokens as SentencePiece writes them, with U+2581 where a word starts. Probabilities of proposals and draws are
those of the tokens that can be drawn; `None` stands for what a method does not have, and for what depends on an
original token that is not known, where the text itself has <mask>.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from torch import Tensor

from amos_fairseq.data.masking import MaskingOptions, mask_block
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.stages import Proposals, TokenProbability, Words
from amos_fairseq.ops import full_precision
from amos_fairseq.pretrained.filling import finite
from amos_fairseq.pretrained.model import Pretrained


@dataclass
class Token:
    """One token of the sentence through the stages."""

    original: Optional[str]
    masked: str  # what stands there for the generator
    selected: bool  # for prediction
    corrupted: Optional[str] = None
    replaced: Optional[bool] = None  # corrupted != original
    logit: Optional[float] = None  # of the encoder, positive = original; of SCRIPT the critic's score
    probability: Optional[float] = None  # sigmoid(logit), the encoder's P(original)


@dataclass
class Proposal:
    """What one masked language model says at a selected position."""

    generator: str  # `generator`, or `layer D` of AMOS's tower, or `encoder` where that is the masked language model
    top: List[TokenProbability]  # likeliest first
    original: Optional[float]  # probability of the original token
    mixture_weight: Optional[float] = None  # gamma, of AMOS (Eq. 3)


@dataclass
class Position:
    """A selected position."""

    index: int  # of its token in the sentence
    proposals: List[Proposal]
    sampled: Optional[TokenProbability] = None  # its probability: in what it was drawn from, of AMOS the mixture
    details: Dict[str, Any] = field(default_factory=dict)  # what its method alone has, of `PretrainingMethod.details`


@dataclass
class Sentence:
    method: str
    text: str
    tokens: List[Token]  # with <s> and </s>
    positions: List[Position]

    def as_json(self) -> Dict[str, Any]:
        """Without the fields that are None; a position's details are fields of it."""
        document = asdict(self, dict_factory=lambda items: {name: value for name, value in items if value is not None})
        for position in document["positions"]:
            position.update(position.pop("details"))
        return document


def masked_batch(
    model: Pretrained, tokens: np.ndarray, options: MaskingOptions, seed: int, number: int
) -> PretrainingBatch:
    """A sentence (T,) as training reads it; what is masked is a function of (seed, number)."""
    excluded = model.tokenizer.excluded
    regular = np.setdiff1d(np.arange(len(model.tokenizer)), excluded)
    generator = np.random.default_rng([seed, number])
    return batch_of(*mask_block(tokens, options, generator, model.tokenizer.mask, excluded, regular), number)


def batch_of(original: np.ndarray, masked: np.ndarray, selected: np.ndarray, number: int) -> PretrainingBatch:
    """One sentence; `number` keys its draws. What no stage here shows, the crop, is all of it."""
    original, masked, selected = (torch.from_numpy(array)[None] for array in (original, masked, selected))
    index = selected.flatten().nonzero().squeeze(-1)
    return PretrainingBatch(
        original.long(), masked.long(), selected, index, [len(index)], torch.tensor([number]),
        cropped_tokens=original.long(),
    )


@torch.no_grad()
def follow(model: Pretrained, batch: PretrainingBatch, top: int) -> Sentence:
    """All stages of a batch of one sentence, with the `top` likeliest tokens wherever a language model speaks."""
    method, vocabulary = model.method, model.tokenizer.shown
    output = method(batch)
    originals = batch.mlm_targets.tolist()
    words = Words(vocabulary, [None if token == model.tokenizer.mask else token for token in originals], top)
    proposed = method.proposals(output, batch)
    for logits, _ in proposed.values():
        finite(logits, model.source)
    positions = list(map(Position, batch.masked_index.tolist(), told(method, proposed, words)))
    if hasattr(output, "sampled_tokens"):
        for position, draw in zip(positions, draws(method, output.sampled_tokens, proposed, words)):
            position.sampled = draw
    for name, rows in method.details(output, batch, words).items():
        for position, detail in zip(positions, rows):
            if detail is not None:
                position.details[name] = detail
    text = model.tokenizer.decode(batch.original_tokens[0, 1:-1].tolist())
    return Sentence(model.name, text, tokens_of(model, output, batch), positions)


def tokens_of(model: Pretrained, output, batch: PretrainingBatch) -> List[Token]:
    vocabulary = model.tokenizer.shown
    tokens = [
        Token(None if original == model.tokenizer.mask else vocabulary[original], vocabulary[masked], selected)
        for original, masked, selected in zip(*(stage[0].tolist() for stage in batch[:3]))
    ]
    if hasattr(output, "corruption"):
        for token, corrupted in zip(tokens, output.corruption.corrupted_tokens[0].tolist()):
            token.corrupted = vocabulary[corrupted]
            token.replaced = None if token.original is None else token.corrupted != token.original
    judged = model.method.judged_logits(output)
    if judged is not None:
        for token, logit in zip(tokens, finite(full_precision(judged[0]), model.source)):
            token.logit, token.probability = logit.item(), logit.sigmoid().item()
    return tokens


def drawable(method: PretrainingMethod, logits: Tensor) -> Tensor:
    """(M, V) probabilities, of tokens that are never drawn 0."""
    return logits.masked_fill(method.excluded_tokens, float("-inf")).softmax(dim=-1)


def told(method: PretrainingMethod, proposed: Dict[str, Proposals], words: Words) -> List[List[Proposal]]:
    found: List[List[Proposal]] = [[] for _ in words.known]
    for name, (logits, weights) in proposed.items():
        for row, probabilities in enumerate(drawable(method, logits)):
            weight = None if weights is None else weights[row].item()
            top, original = words.likeliest(probabilities), words.of_original(row, probabilities)
            found[row].append(Proposal(name, top, original, weight))
    return found


def draws(
    method: PretrainingMethod, tokens: Tensor, proposed: Dict[str, Proposals], words: Words
) -> List[TokenProbability]:
    """The sampled tokens (M,) with their probabilities in the mixture of the proposals; without one, all are alike."""
    mixed = torch.zeros(len(tokens), len(words.symbols))
    for logits, weights in proposed.values():
        mixed = mixed + (logits if weights is None else weights[:, None] * logits)
    rows = zip(tokens.tolist(), drawable(method, mixed))
    return words.named(tokens.tolist(), [row[token].item() for token, row in rows])
