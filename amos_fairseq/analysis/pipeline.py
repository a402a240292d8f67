"""What a model does with one sentence, stage by stage, in numbers: masked, proposed, drawn, corrupted, judged.

Words are tokens as SentencePiece writes them, with U+2581 where a word starts. Probabilities of proposals and draws are
those of the tokens that can be drawn; `None` stands for what a method does not have, and for what depends on an
original token that is not known, where the text itself has <mask>.
"""

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amos_fairseq.data.masking import MaskingOptions, mask_block
from amos_fairseq.methods.amos import Amos
from amos_fairseq.methods.base import PretrainingBatch, PretrainingMethod
from amos_fairseq.methods.coco_lm import CocoLM, CocoLMOutput
from amos_fairseq.methods.peer import Peer, PeerOutput
from amos_fairseq.methods.teams import Teams, TeamsOutput
from amos_fairseq.objectives import candidate_logits
from amos_fairseq.ops import full_precision
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
class Choice:
    token: str
    probability: float


@dataclass
class Proposal:
    """What one masked language model says at a selected position."""

    generator: str  # `generator`, or `layer D` of AMOS's tower, or `encoder` where that is the masked language model
    top: List[Choice]  # likeliest first
    original: Optional[float]  # probability of the original token
    mixture_weight: Optional[float] = None  # gamma, of AMOS (Eq. 3)


@dataclass
class Ranking:
    """PEER's quality levels 1..K, K being the original."""

    level: Optional[float]  # by the generator: k, or k + 1/2 for the buffer above it; None: unknown
    predicted: int  # by the encoder: 1 + how many thresholds its score reaches
    probabilities: List[float]  # the encoder's P(R = k) of each level
    score: float


@dataclass
class Correction:
    """COCO-LM's corrective language model."""

    copy: Optional[float]  # p_copy; None: without copy mechanism
    language_model: List[Choice]  # likeliest first
    corrected: Choice  # the likeliest by p_LM, of copying and language model together
    original: Optional[float]  # p_LM of the original token


@dataclass
class Position:
    """A selected position."""

    index: int  # of its token in the sentence
    proposals: List[Proposal]
    sampled: Optional[Choice] = None  # its probability: in what it was drawn from, of AMOS the mixture
    candidates: Optional[List[Choice]] = None  # of TEAMS, the original first, with probabilities of being selected
    ranking: Optional[Ranking] = None
    correction: Optional[Correction] = None


@dataclass
class Sentence:
    method: str
    text: str
    tokens: List[Token]  # with <s> and </s>
    positions: List[Position]

    def as_json(self) -> Dict[str, Any]:
        """Without the fields that are None."""
        return asdict(self, dict_factory=lambda fields: {name: value for name, value in fields if value is not None})


def masked_batch(
    model: Pretrained, tokens: np.ndarray, options: MaskingOptions, seed: int, number: int
) -> PretrainingBatch:
    """A sentence (T,) as training reads it; what is masked is a function of (seed, number)."""
    excluded = model.tokenizer.excluded
    regular = np.setdiff1d(np.arange(len(model.tokenizer)), excluded)
    generator = np.random.default_rng([seed, number])
    return batch_of(*mask_block(tokens, options, generator, model.tokenizer.mask, excluded, regular), number)


def written_batch(model: Pretrained, tokens: np.ndarray, number: int) -> PretrainingBatch:
    """A sentence (T,) that has <mask> where a prediction is asked."""
    return batch_of(tokens, tokens, tokens == model.tokenizer.mask, number)


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
    method, vocabulary = model.method, model.tokenizer.symbols
    output = method(batch)
    originals = batch.at_masked(batch.original_tokens).tolist()
    known = [None if token == model.tokenizer.mask else token for token in originals]
    logits = generator_logits(method, batch)
    stages = {"proposals": proposals(method, output, logits, known, vocabulary, top)}
    if hasattr(output, "sampled_tokens"):
        stages["sampled"] = draws(method, output, logits, vocabulary)
    if isinstance(method, Teams) and method.mws_head is not None:
        stages["candidates"] = candidates(output, known, vocabulary)
    if isinstance(method, Peer):
        stages["ranking"] = rankings(output, batch, known)
    if isinstance(method, CocoLM) and method.clm_head is not None:
        stages["correction"] = corrections(method, output, batch, known, vocabulary, top)
    positions = [
        Position(index, **dict(zip(stages, row)))
        for index, row in zip(batch.masked_index.tolist(), zip(*stages.values()))
    ]
    text = model.tokenizer.decode(batch.original_tokens[0, 1:-1].tolist())
    return Sentence(model.name, text, tokens_of(model, output, batch), positions)


def tokens_of(model: Pretrained, output, batch: PretrainingBatch) -> List[Token]:
    vocabulary = model.tokenizer.symbols
    tokens = [
        Token(None if original == model.tokenizer.mask else vocabulary[original], vocabulary[masked], selected)
        for original, masked, selected in zip(*(stage[0].tolist() for stage in batch[:3]))
    ]
    if hasattr(output, "corruption"):
        for token, corrupted in zip(tokens, output.corruption.corrupted_tokens[0].tolist()):
            token.corrupted = vocabulary[corrupted]
            token.replaced = None if token.original is None else token.corrupted != token.original
    detection = getattr(output, "critic_logits", getattr(output, "rtd_logits", None))
    if detection is not None:
        for token, logit in zip(tokens, full_precision(detection[0])):
            token.logit, token.probability = logit.item(), logit.sigmoid().item()
    return tokens


def generator_logits(method: PretrainingMethod, batch: PretrainingBatch) -> Dict[str, Tensor]:
    """(M, V) of each masked language model by name; {} without one."""
    if isinstance(method, Amos):
        names = (f"layer {name}" for name in method.config.depth_names())
        return dict(zip(names, full_precision(method.mlm_head(method.generate(batch)))))
    if isinstance(method, CocoLM) and method.config.random_replacements:
        return {}
    network = method.masked_lm_encoder
    hidden = network(batch.masked_tokens, batch.padding_mask, batch.queries)
    return {"encoder" if network is method.encoder else "generator": full_precision(method.mlm_head(hidden))}


def drawable(method: PretrainingMethod, logits: Tensor) -> Tensor:
    """(M, V) probabilities, of tokens that are never drawn 0."""
    return logits.masked_fill(method.excluded_tokens, float("-inf")).softmax(dim=-1)


def proposals(
    method: PretrainingMethod, output, logits: Dict[str, Tensor], known: Sequence[Optional[int]],
    vocabulary: Sequence[str], top: int,
) -> List[List[Proposal]]:
    weights = getattr(output, "mixture_weights", None)
    found: List[List[Proposal]] = [[] for _ in known]
    for number, (name, of_generator) in enumerate(logits.items()):
        for row, probabilities in enumerate(drawable(method, of_generator)):
            weight = None if weights is None else weights[row, number].item()
            original = probability_of(known[row], probabilities)
            found[row].append(Proposal(name, likeliest(probabilities, vocabulary, top), original, weight))
    return found


def draws(
    method: PretrainingMethod, output, logits: Dict[str, Tensor], vocabulary: Sequence[str]
) -> List[Choice]:
    """The sampled tokens with their probabilities in the mixture of the generators; without one, all are alike."""
    tokens = output.sampled_tokens.tolist()
    weights = getattr(output, "mixture_weights", torch.ones(len(tokens), len(logits)))
    mixed = torch.zeros(len(tokens), len(vocabulary))
    for share, of_generator in zip(weights.T, logits.values()):
        mixed = mixed + share[:, None] * of_generator
    return [Choice(vocabulary[token], row[token].item()) for token, row in zip(tokens, drawable(method, mixed))]


def candidates(
    output: TeamsOutput, known: Sequence[Optional[int]], vocabulary: Sequence[str]
) -> List[Optional[List[Choice]]]:
    """softmax(mws_hidden . candidate_embeddings)  (TEAMS Eq. 7)"""
    probabilities = candidate_logits(output.mws_hidden, output.candidate_embeddings).softmax(dim=-1).tolist()
    return [
        None if original is None else [Choice(vocabulary[token], p) for token, p in zip(*row)]
        for original, *row in zip(known, output.candidate_tokens.tolist(), probabilities)
    ]


def rankings(output: PeerOutput, batch: PretrainingBatch, known: Sequence[Optional[int]]) -> List[Ranking]:
    """P(R = r) = sigmoid(xi_r - score) - sigmoid(xi_{r-1} - score)  (PEER Eq. 3); codes: see `quality_levels`."""
    thresholds = output.level_thresholds
    scores = full_precision(batch.at_masked(output.quality_scores))
    below = (thresholds - scores[:, None]).sigmoid()
    levels = torch.diff(below, dim=1, prepend=torch.zeros_like(below[:, :1]), append=torch.ones_like(below[:, :1]))
    predicted = 1 + (scores[:, None] >= thresholds).sum(dim=1)
    codes = batch.at_masked(output.level_codes).tolist()
    return [
        Ranking(None if original is None or code < 0 else code / 2, *row)
        for original, code, *row in zip(known, codes, predicted.tolist(), levels.tolist(), scores.tolist())
    ]


def corrections(
    method: CocoLM, output: CocoLMOutput, batch: PretrainingBatch, known: Sequence[Optional[int]],
    vocabulary: Sequence[str], top: int,
) -> List[Correction]:
    """p_LM(x) = 1[x = corrupted] p_copy + (1 - p_copy) softmax(lm)[x], all x  (COCO-LM, Sec. 3.3)."""
    hidden = method.encoder(output.corruption.corrupted_tokens, batch.padding_mask)
    language_model = full_precision(F.linear(*method.clm_head.output_layer(batch.at_masked(hidden)))).softmax(dim=-1)
    copy = full_precision(batch.at_masked(output.rtd_logits)).sigmoid()
    if method.config.clm_without_copy:
        copy = torch.zeros_like(copy)
    corrected = (1 - copy[:, None]) * language_model
    corrected.scatter_add_(1, output.sampled_tokens[:, None], copy[:, None])
    return [
        Correction(
            None if method.config.clm_without_copy else copy[row].item(),
            likeliest(language_model[row], vocabulary, top),
            *likeliest(corrected[row], vocabulary, 1),
            probability_of(original, corrected[row]),
        )
        for row, original in enumerate(known)
    ]


def likeliest(probabilities: Tensor, vocabulary: Sequence[str], top: int) -> List[Choice]:
    best = probabilities.topk(top)
    return [Choice(vocabulary[token], p) for token, p in zip(best.indices.tolist(), best.values.tolist())]


def probability_of(token: Optional[int], probabilities: Tensor) -> Optional[float]:
    return None if token is None else probabilities[token].item()
