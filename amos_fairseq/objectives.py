"""Pre-training objectives: pure functions from logits to a `LossTerm`.

Shapes: B batch, T time, M selected positions of the batch, V vocabulary. Losses are natural-log units in fp32.
"""

import math
from typing import NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from amos_fairseq.ops import LinearReading, MaskedLMReading, full_precision, without_autocast

# What a term's mean is taken over: selected positions, non-padding positions, of these all but special tokens, or
# sequences.
COUNTED = SELECTED, VALID, WORDS, SEQUENCES = "selected", "valid", "words", "sequences"


class Mean(NamedTuple):
    """A sum and its denominator, kept apart so that sums over processes and micro-batches stay exact."""

    total: Tensor
    count: Union[int, Tensor]  # type: ignore[assignment]  # hides a method of tuples

    @property
    def mean(self) -> Tensor:
        return self.total / self.count


class LossTerm(NamedTuple):
    """One term of a training loss: `weight * total / count`, where `count` counts the elements named by `over`."""

    total: Tensor
    count: Union[int, Tensor]  # type: ignore[assignment]
    weight: float = 1.0
    over: str = SELECTED

    @property
    def mean(self) -> Tensor:
        return self.total / self.count


def mlm_loss(masked_lm: MaskedLMReading, weight: float = 1.0) -> LossTerm:
    """Masked language modelling over the selected positions  (AMOS Eq. 2, COCO-LM Eq. 1).

    L = - sum_d sum_i log softmax(mlm_logits_di)[original_tokens_i]

    over the heads d of a reading of (M, G, V) logits against (M,) original tokens: `ops.masked_lm`
    """
    return LossTerm(masked_lm.loss, len(masked_lm.losses), weight, SELECTED)


def rtd_loss(
    rtd_logits: Tensor,
    replaced_positions: Tensor,
    valid_positions: Tensor,
    weight: float = 1.0,
    over: str = VALID,
) -> LossTerm:
    """Replaced token detection over the valid positions  (AMOS Eq. 1, COCO-LM Eq. 2, TEAMS Eq. 4).

    L = - sum_t [(1 - r_t) log p_t + r_t log(1 - p_t)],   p_t = sigmoid(rtd_logits_t) = P(original)

    rtd_logits: (B, T)   r = replaced_positions: (B, T) bool   valid_positions: (B, T) bool, True = not padding, or of
    these the words if `over` says so
    """
    rtd_logits = full_precision(rtd_logits)
    is_original = (~replaced_positions).to(rtd_logits.dtype)
    per_position = F.binary_cross_entropy_with_logits(rtd_logits, is_original, reduction="none")
    total = torch.where(valid_positions, per_position, 0.0).sum()
    return LossTerm(total, valid_positions.sum(), weight, over)


def critic_logits(token_logits: Tensor) -> Tensor:
    """A masked language model as its own critic: the logit of "original" is logsumexp_v token_logits_v  (SCRIPT Eq. 5).

    P(original) = sum_v exp s_v / (1 + sum_v exp s_v) = sigmoid(logsumexp_v s_v),   s = token_logits

    token_logits: (..., V)   ->   (...); see `ops.linear_logsumexp` for the same from hidden states, without (..., V)
    """
    return full_precision(token_logits).logsumexp(dim=-1)


def critic_loss(
    critic_logits: Tensor,
    replaced_positions: Tensor,
    valid_positions: Tensor,
    weight: float = 1.0,
    over: str = VALID,
) -> LossTerm:
    """The self-critic's replaced token detection over the valid positions: `rtd_loss` of its logits  (SCRIPT Eq. 6).

    critic_logits: (B, T)   replaced_positions: (B, T) bool   valid_positions: (B, T) bool, True = not padding
    """
    return rtd_loss(critic_logits, replaced_positions, valid_positions, weight, over)


def pseudo_log_likelihood(critic_logits: Tensor, valid_positions: Tensor) -> Tensor:
    """How likely the critic finds each sequence, read without masks: sum_t log P(original_t)  (SCRIPT Eq. 7).

    critic_logits: (B, T)   valid_positions: (B, T) bool, the positions that count   ->   (B,)
    """
    return torch.where(valid_positions, F.logsigmoid(full_precision(critic_logits)), 0.0).sum(dim=-1)


def candidate_logits(mws_hidden: Tensor, candidate_embeddings: Tensor) -> Tensor:
    """(M, 1+K): logits_ik = mws_hidden_i . candidate_embeddings_ik  (TEAMS Eq. 7).

    mws_hidden: (M, E)   candidate_embeddings: (M, 1+K, E)
    """
    with without_autocast(mws_hidden):
        return torch.einsum("me,mke->mk", full_precision(mws_hidden), full_precision(candidate_embeddings))


def mws_loss(mws_hidden: Tensor, candidate_embeddings: Tensor, weight: float = 1.0) -> LossTerm:
    """Multi-word selection: find the original, candidate 0, among K negatives  (TEAMS Eqs. 7 and 8).

    L = - sum_i log softmax(mws_hidden_i . candidate_embeddings_i)[0]

    mws_hidden: (M, E)   candidate_embeddings: (M, 1+K, E) rows of the token table, the original's first
    """
    logits = candidate_logits(mws_hidden, candidate_embeddings)
    total = -logits.log_softmax(dim=-1)[:, 0].sum()
    return LossTerm(total, logits.size(0), weight, SELECTED)


def check_partition(partition: Sequence[float], top: int, buffer: float) -> None:
    """Raise ValueError unless every quality level between the `partition`'s ratios can hold a token."""
    if top < 1:
        raise ValueError(f"top is {top}: levels are known where the original is among the top 1 or more predictions")
    if buffer < 0:
        raise ValueError(f"buffer is {buffer}: it must be 0 (none) or more")
    if partition and partition[0] <= 0:
        raise ValueError(f"partition {list(partition)} must be ratios above 0 that increase")
    for k, (ratio, above) in enumerate(zip(partition, partition[1:]), start=1):
        if ratio * (1 + buffer) >= above:
            raise ValueError(
                f"partition {list(partition)} with buffer {buffer} leaves level {len(partition) + 1 - k} empty: "
                f"{ratio} * (1 + {buffer}) must be below {above}"
            )


def quality_levels(
    margins: Tensor, original_ranks: Tensor, replaced: Tensor, partition: Sequence[float] = (1.0,), top: int = 3,
    buffer: float = 3.0,
) -> Tensor:
    """Codes (M,) of the K = len(partition) + 2 quality levels that the generator gives to its draws  (PEER Table 2).

    Level k has code 2k, the buffer between levels k and k + 1 has 2k + 1, an unknown level -1. With
    d = margins = logit_sampled - logit_original and tau = partition, tau_1 first:

        level K     the draw is the original
        unknown     original_ranks = 1 + #{v: logit_v > logit_original} > top: the generator is not to be trusted here
        level K-1   d >= -log tau_1
        buffer      -log(tau_k (1 + buffer)) <= d < -log tau_k, between levels K-1-k and K-k
        level K-1-k -log tau_{k+1} <= d < -log(tau_k (1 + buffer)), the lowest level without the lower end

    margins: (M,)   original_ranks: (M,)   replaced: (M,) bool, the draw is not the original
    Raises ValueError if a level would be empty: tau_k (1 + buffer) >= tau_{k+1}.
    """
    check_partition(partition, top, buffer)
    levels = len(partition) + 2
    codes = torch.full_like(original_ranks, 2 * (levels - 1))
    for ratio in partition:
        codes -= (margins < -math.log(ratio)).long()  # into the buffer
        codes -= (margins < -math.log(ratio * (1 + buffer))).long()  # and through it
    codes = torch.where(original_ranks <= top, codes, -1)
    return torch.where(replaced, codes, 2 * levels)


def level_targets(level_codes: Tensor, level: int, levels: int) -> Tuple[Tensor, Tensor]:
    """Of the verdict R <= `level`, 1..K-1 with K = `levels`: its truth, and where it counts; both of codes' shape.

    It counts outside its buffer and where the level is known; at level K-1, replaced or not, everywhere.
    """
    counts = level_codes != 2 * level + 1
    if level < levels - 1:
        counts &= level_codes >= 0
    return level_codes <= 2 * level, counts


def tqr_loss(
    quality_scores: Tensor, level_thresholds: Tensor, level_codes: Tensor, valid_positions: Tensor,
    level_weight: float = 0.5, weight: float = 1.0, over: str = VALID,
) -> LossTerm:
    """Token quality ranking into K levels by K - 1 binary verdicts  (PEER Eq. 5).

    P(R_t <= r) = sigmoid(level_thresholds_r - quality_scores_t)
    L = BCE over all t of [R_t <= K-1]  +  level_weight * sum_{r < K-1} BCE over known t outside buffer r of [R_t <= r]

    Every sum is divided by the number of valid positions. An unknown level (code -1) counts as replaced. With K = 2
    this is `rtd_loss` of quality_scores - level_thresholds.

    quality_scores: (B, T)   level_thresholds: (K-1,) increasing   level_codes: (B, T) see `quality_levels`
    valid_positions: (B, T) bool
    """
    levels = level_thresholds.numel() + 1
    total = level_thresholds.new_zeros(())
    for level, threshold in enumerate(full_precision(level_thresholds), start=1):
        below, counts = level_targets(level_codes, level, levels)
        verdict = threshold - full_precision(quality_scores)
        per_position = F.binary_cross_entropy_with_logits(verdict, below.to(verdict.dtype), reduction="none")
        of_level = torch.where(valid_positions & counts, per_position, 0.0).sum()
        total = total + (of_level if level == levels - 1 else level_weight * of_level)
    return LossTerm(total, valid_positions.sum(), weight, over)


def corrective_log_probabilities(log_lm: Tensor, copy_logits: Tensor, copied: Tensor) -> Tensor:
    """log p_LM(x), (M,): copy the input token, or else correct it by the language model  (COCO-LM, Sec. 3.3).

    p_LM(x) = 1[x = corrupted] p_copy + (1 - p_copy) softmax(lm_logits)[x],   p_copy = sigmoid(copy_logits)

    log_lm: (M,) log softmax(lm_logits)[x]   copy_logits: (M,) positive = the input token is the original
    copied: (M,) bool, x = corrupted
    """
    copy_logits = full_precision(copy_logits)
    corrected = F.logsigmoid(-copy_logits) + log_lm
    return torch.where(copied, torch.logaddexp(F.logsigmoid(copy_logits), corrected), corrected)


def corrected_tokens(
    lm: LinearReading, lm_logits_of_corrupted: Tensor, copy_logits: Tensor, corrupted_tokens: Tensor
) -> Tensor:
    """argmax_x p_LM(x), (M,): either the input token or the language model's likeliest.

    lm: reading of the language model's (M, V) logits   lm_logits_of_corrupted: (M,) the input tokens' of these
    """
    # Both sides times sum_v exp(lm_logits_v) / (1 - p_copy); p_copy / (1 - p_copy) is exp(copy_logits).
    copied = torch.logaddexp(full_precision(copy_logits) + lm.logsumexp, lm_logits_of_corrupted)
    return torch.where(copied >= lm.largest, corrupted_tokens, lm.likeliest)


def clm_loss(
    log_lm: Tensor, copy_logits: Tensor, copied: Tensor, stop_gradient: bool = True, weight: float = 1.0,
    valid_positions: Optional[Tensor] = None,
) -> LossTerm:
    """The language modelling term of corrective language modelling; the copy term is `rtd_loss`  (COCO-LM, Sec. 3.3).

    L = - sum_i log p_LM(original_tokens_i),   p_LM as in `corrective_log_probabilities`, which stays in log space

    Without gradient to `copy_logits` if `stop_gradient`. The rows are the selected positions; or, for All-Token MLM,
    all positions, `valid_positions` (M,) bool being those that count.

    log_lm: (M,) log softmax(lm_logits)[original]   copy_logits: (M,) positive = original
    copied: (M,) bool, the input token is the original
    """
    if stop_gradient:
        copy_logits = copy_logits.detach()
    per_position = -corrective_log_probabilities(log_lm, copy_logits, copied)
    if valid_positions is None:
        return LossTerm(per_position.sum(), log_lm.numel(), weight, SELECTED)
    return LossTerm(torch.where(valid_positions, per_position, 0.0).sum(), valid_positions.sum(), weight, VALID)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(n, C), (m, C) -> (n, m) cosine similarities, normalised and multiplied in full precision."""
    with without_autocast(a):
        a, b = (F.normalize(full_precision(x), dim=-1, eps=1e-6) for x in (a, b))
        return a @ b.T


def scl_loss(
    corrupted_embeddings: Tensor, cropped_embeddings: Tensor, temperature: float, weight: float = 1.0,
    negatives: Optional[Tensor] = None,
) -> LossTerm:
    """Sequence contrastive learning: find a sequence's other view among all views  (COCO-LM Eq. 3).

    L = - 1/2 sum_a log [exp(cos(a, a+) / temperature) / sum_{x != a} exp(cos(a, x) / temperature)]

    Each of the 2N views is an anchor a; a+ is the other view of its sequence; x runs over the other views and over
    `negatives`. The mean is over anchors, L / N. It depends on which sequences share the batch: a single one without
    negatives costs 0.

    corrupted_embeddings, cropped_embeddings: (N, C), rows of the same sequences   negatives: (K, C) of others
    """
    views = torch.cat([corrupted_embeddings, cropped_embeddings])
    others = views if negatives is None else torch.cat([views, negatives])
    scores = cosines(views, others) / temperature
    itself = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    other_view = torch.arange(len(views), device=scores.device).roll(len(corrupted_embeddings))
    total = F.cross_entropy(scores.masked_fill(itself, float("-inf")), other_view, reduction="sum") / 2
    return LossTerm(total, len(corrupted_embeddings), weight, SEQUENCES)
