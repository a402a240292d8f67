"""What a checkpoint says about held-out text: geometry of its sequences, loss on replaced tokens, pseudo-likelihoods.

Sequences are held-out blocks of the run's data, cut to SEQUENCE_TOKENS. Similar pairs are a sequence and its 90 % crop,
or of a file of scored pairs (STS-B's, for example) those of the highest score.
"""

import logging
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amos_fairseq.analysis.checkpoint import held_out_blocks
from amos_fairseq.analysis.similarity import Embedder, Sts
from amos_fairseq.data.masking import MaskedBlockDataset, MaskingOptions
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.ops import full_precision
from amos_fairseq.pretrained.loading import from_pretrained
from amos_fairseq.pretrained.model import Pretrained
from amos_fairseq.pretrained.scoring import Sequences, masked_scores, one_pass_scores
from amos_fairseq.run_log import Run

logger = logging.getLogger(__name__)
SEQUENCES = 200
SEQUENCE_TOKENS = 64
KEPT_BY_CROPS = 0.9
BATCH = 32
CROSSED = 500  # pairs whose members are also compared with those of all others
SCORED_SEQUENCES = 24  # masked scores take a pass for each token
SCORED_TOKENS = 32
TOKENS_PER_RANDOM = 6  # of the scored sequences' unlikely versions, one token in so many is random


class Scores(NamedTuple):
    """Pseudo-log-likelihoods per token (N,) of N sequences, then of the same with some random tokens."""

    one_pass: np.ndarray
    masked: np.ndarray


class Probe(NamedTuple):
    """N similar pairs; embeddings are hidden states at <s>, as pre-training left them."""

    name: str
    first: np.ndarray  # (N, C) embeddings
    second: np.ndarray  # (N, C) of what is similar to `first`
    random_cosines: np.ndarray  # (P,) of pairs that do not belong together
    replaced_losses: Dict[str, np.ndarray]  # by generator, the detection loss of each replaced token, in nats
    scores: Optional[Scores]  # of a method that scores in one pass

    @property
    def similar_cosines(self) -> np.ndarray:
        """(N,)"""
        return (normalized(self.first) * normalized(self.second)).sum(axis=1)


def probe(run: Run, pairs: Optional[Sts] = None) -> Probe:
    """Load a run's newest checkpoint and read held-out text with it.

    Raises ValueError or OSError, in one line, if there is no checkpoint or no held-out text of its vocabulary, or if
    the run has diverged.
    """
    model = from_pretrained(run.folder)
    held_out = held_out_sequences(run, model)
    items = [held_out[index] for index in range(len(held_out))]
    originals = [torch.from_numpy(item["block"].original_tokens).long() for item in items]
    if pairs is None:
        crops = [torch.from_numpy(item["cropped_tokens"]).long() for item in items]
        first, second = embeddings(model, originals), embeddings(model, crops)
        similar = np.arange(len(items))
    else:
        reading = Embedder(model)
        first, second = (embeddings(model, reading.sequences(texts)) for texts in pairs[1:3])
        if reading.truncated:
            logger.warning("%s: %d texts lost their ends in %s", pairs.name, reading.truncated, run.name)
        similar = np.flatnonzero(pairs.scores == pairs.scores.max())
    cosines = normalized(first[:CROSSED]) @ normalized(second[:CROSSED]).T
    return Probe(
        run.name, first[similar], second[similar], cosines[~np.eye(len(cosines), dtype=bool)],
        replaced_losses(model.method, [held_out.collater(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]),
        scores(model, held_out, originals) if model.method.scores_in_one_pass else None,
    )


def held_out_sequences(run: Run, model: Pretrained) -> MaskedBlockDataset:
    """SEQUENCES blocks from all over the validation data, with masks as the run draws them and 90 % crops."""
    data = run.folder / "data" if (run.folder / "data").is_dir() else run.options.get("data")
    if not data:
        raise ValueError(f"{run.folder} holds no data, and its log does not name them")
    blocks = held_out_blocks(str(data), model, SEQUENCES)
    if len(blocks) < 2:
        raise ValueError(f"{data} holds {len(blocks)} of the blocks of validation data that pairs need: two or more")
    chosen = [shortened(block, SEQUENCE_TOKENS) for block in blocks]
    sizes = [len(block) for block in chosen]
    masking = MaskingOptions.of(run.options)
    return MaskedBlockDataset(chosen, sizes, model.tokenizer, masking, 1, KEPT_BY_CROPS)


def shortened(tokens: Tensor, length: int) -> Tensor:
    """<s> .. </s> of at most `length` tokens."""
    return tokens if len(tokens) <= length else torch.cat([tokens[: length - 1], tokens[-1:]])


def embeddings(model: Pretrained, sequences: Sequence[Tensor]) -> np.ndarray:
    """(N, C) hidden states at <s>."""
    return model.pooled(sequences, "first").double().numpy()


def normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@torch.no_grad()
def replaced_losses(method: PretrainingMethod, batches: Sequence[dict]) -> Dict[str, np.ndarray]:
    """By generator, -log P(replaced) of the encoder at each replaced token; {} if it does not detect."""
    losses: Dict[str, List[Tensor]] = {}
    for sample in batches:
        batch = PretrainingBatch(**sample["net_input"])
        for generator, corruption in method.corruptions(batch).items():
            logits = method.detection_logits(corruption.corrupted_tokens, batch.padding_mask)
            at_replaced = F.softplus(full_precision(logits))[corruption.replaced_positions]
            losses.setdefault(generator, []).append(at_replaced)
    found = {generator: torch.cat(parts).numpy() for generator, parts in losses.items()}
    return {generator: array for generator, array in found.items() if len(array)}


def scores(model: Pretrained, held_out: MaskedBlockDataset, originals: Sequence[Tensor]) -> Scores:
    """Of some sequences, and of the same with random tokens in them."""
    draw = np.random.default_rng(1)
    likely = [shortened(tokens, SCORED_TOKENS) for tokens in originals[:SCORED_SEQUENCES]]
    tokens = [*likely, *(with_random_tokens(tokens, held_out.regular_tokens, draw) for tokens in likely)]
    uncounted = torch.tensor([model.tokenizer.bos, model.tokenizer.eos])
    sequences = Sequences(tokens, [~torch.isin(ids, uncounted) for ids in tokens])
    one_pass = one_pass_scores(model.method, sequences)
    masked = masked_scores(model.method, sequences, model.tokenizer.mask)
    return Scores(*(np.array([score.pll / score.tokens for score in found]) for found in (one_pass, masked)))


def with_random_tokens(tokens: Tensor, regular_tokens: np.ndarray, draw: np.random.Generator) -> Tensor:
    """One token in TOKENS_PER_RANDOM, but none of the ends, becomes another one."""
    changed = tokens.clone()
    inner = np.arange(1, len(tokens) - 1)
    chosen = draw.choice(inner, size=max(1, len(inner) // TOKENS_PER_RANDOM), replace=False)
    changed[chosen] = torch.from_numpy(draw.choice(regular_tokens, size=len(chosen)))
    return changed
