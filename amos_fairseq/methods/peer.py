"""PEER: ELECTRA extended by ranking (He et al., Findings of ACL 2023, aclanthology.org/2023.findings-acl.405).

    masked -> generator, its bottom half the encoder's -> sample -> corrupt -> encoder -> score, K - 1 thresholds
    loss = mlm + tqr_weight * tqr  (Eq. 5); the generator's logits, detached, say how good a replacement is
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amos_fairseq.corruption import Corruption, corrupt
from amos_fairseq.methods.base import Look
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.stages import Words
from amos_fairseq.methods.two_networks import SharedGeneratorConfig, SharedGeneratorMethod
from amos_fairseq.modules.initialization import initialize
from amos_fairseq.objectives import LossTerm, Mean, check_partition, level_targets, quality_levels, tqr_loss
from amos_fairseq.ops import MaskedLMReading, full_precision, linear_logits
from amos_fairseq.options import COUNT, NOT_NEGATIVE, POSITIVE, option
from amos_fairseq.quantities import DETECTION, GENERATOR, HIGHER, LOWER, ByRun, Overlay, Quantity

UNIT_GAP = math.log(math.expm1(1.0))  # softplus of it is 1


@dataclass
class PeerConfig(SharedGeneratorConfig):
    """The quality levels and their weights. Defaults are the paper's."""

    tqr_weight: float = option(50.0, "lambda, weight of token quality ranking in the loss (Sec. 3.2.2)", NOT_NEGATIVE)
    level_weight: float = option(
        0.5, "gamma, weight of each level below the highest two within the ranking (Eq. 5)", NOT_NEGATIVE
    )
    tqr_partition: List[float] = option(
        [1.0],
        "tau, ratios of the original's probability to its replacement's that part K = 2 + their number of levels",
        POSITIVE,
    )
    tqr_top: int = option(
        3, "T, levels are known where the original is among the generator's top T tokens (Table 1)", COUNT
    )
    tqr_buffer: float = option(3.0, "delta, width of the buffers between levels; 0: none (Table 2)", NOT_NEGATIVE)
    tqr_warmup_updates: int = option(
        0, "updates that only tell replaced from original; the paper's: 0.8 of an epoch", NOT_NEGATIVE
    )

    def __post_init__(self):
        super().__post_init__()
        check_partition(self.tqr_partition, self.tqr_top, self.tqr_buffer)


class PeerOutput(NamedTuple):
    """K quality levels."""

    masked_lm: MaskedLMReading  # the generator's
    sampled_tokens: Tensor  # (M,)
    corruption: Corruption
    level_codes: Tensor  # (B, T) see `quality_levels`
    quality_scores: Tensor  # (B, T) high = original
    level_thresholds: Tensor  # (K-1,) increasing
    rtd_logits: Tensor  # (B, T) of the highest level, the original: positive = original


class QualityHead(nn.Module):
    """A score for each position, w . h without bias, and K - 1 ordered thresholds to hold it against  (Eq. 3).

    level_thresholds_{K-1} = b,   level_thresholds_r = level_thresholds_{r+1} - softplus(d_r)

    b = 0 and gaps of 1, the start, are zeros of `top_threshold` and `gap_offsets`: the weight decay of fairseq's Adam,
    which spares no parameter, then draws the thresholds to their start and not to other gaps.
    """

    def __init__(self, dim: int, levels: int):
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)
        self.top_threshold = nn.Parameter(torch.zeros(1))
        self.gap_offsets = nn.Parameter(torch.zeros(levels - 2)) if levels > 2 else None
        self.apply(initialize)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (...)"""
        return self.score(hidden).squeeze(-1)

    def level_thresholds(self) -> Tensor:
        """(K-1,) in fp32."""
        top = full_precision(self.top_threshold)
        if self.gap_offsets is None:
            return top
        gaps = F.softplus(full_precision(self.gap_offsets) + UNIT_GAP)
        return torch.cat([top - gaps.flip(0).cumsum(0).flip(0), top])


@dataclass
class Ranking:
    """What `amos-fairseq inspect` shows of a selected position: quality levels 1..K, K being the original."""

    level: Optional[float]  # by the generator: k, or k + 1/2 for the buffer above it; None: unknown
    predicted: int  # by the encoder: 1 + how many thresholds its score reaches
    probabilities: List[float]  # the encoder's P(R = k) of each level
    score: float
    title: ClassVar[str] = "level"

    def lines(self) -> List[str]:
        """The generator's level of the draw, in a buffer those on its sides, and the encoder's."""
        if self.level is None:
            given = "unknown"
        else:
            given = f"{self.level:g}" if self.level % 1 == 0 else f"{self.level - 0.5:g}|{self.level + 0.5:g}"
        return [
            f"{given} of {len(self.probabilities)}",
            f"encoder {self.predicted}, p {self.probabilities[self.predicted - 1]:.3f}",
            f"score {self.score:.2f}",
        ]


class Peer(SharedGeneratorMethod[PeerConfig, PeerOutput]):
    """A generator on the encoder's bottom layers; an encoder that ranks every token by its quality."""

    citation = (
        "He et al., PEER: Pre-training ELECTRA Extended by Ranking, Findings of ACL 2023, "
        "aclanthology.org/2023.findings-acl.405"
    )
    short_name = "peer"
    config_class = PeerConfig
    sizes = {  # absolute positions only, as BERT; buffers and warm-ups of Sec. 4.1 and App. A.3
        "tiny": dict(rel_pos_buckets=0, generator_layers=2),
        "small": dict(rel_pos_buckets=0, tqr_buffer=3.0, tqr_warmup_updates=40000),
        "base": dict(rel_pos_buckets=0, tqr_buffer=9.0, tqr_warmup_updates=33344),
        "large": dict(rel_pos_buckets=0, tqr_buffer=9.0, tqr_warmup_updates=33344),  # base's; none was published
    }

    def __init__(self, config: PeerConfig, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        self.levels = len(config.tqr_partition) + 2
        self.tqr_head = QualityHead(config.encoder_embed_dim, self.levels)

    def check_schedule(self) -> None:
        warmup, left = self.config.tqr_warmup_updates, self.total_updates - self.generator_warmup
        if 0 < left <= warmup:
            raise ValueError(f"tqr_warmup_updates {warmup} leaves the ranking nothing of {left} updates: lower it")

    def forward(self, batch: PretrainingBatch) -> PeerOutput:
        masked_lm = self.generate(batch)
        drawn = self.without_dropout(masked_lm, batch)
        sampled_tokens = drawn.sampled
        corruption = corrupt(batch.original_tokens, batch.masked_positions, sampled_tokens)
        level_codes = self.label(drawn, batch)
        key = self.pass_key(batch, stream=1)
        quality_scores = self.tqr_head(self.encoder(corruption.corrupted_tokens, batch.padding_mask, key=key))
        level_thresholds = self.tqr_head.level_thresholds()
        rtd_logits = full_precision(quality_scores) - level_thresholds[-1]
        return PeerOutput(
            masked_lm, sampled_tokens, corruption, level_codes, quality_scores, level_thresholds, rtd_logits
        )

    def read(self, projected: Tensor, batch: PretrainingBatch, look: Optional[Look] = None) -> MaskedLMReading:
        """With margins of logits in full precision: by logits that bf16 rounds, some draws get another level."""
        reading = super().read(projected, batch, look)
        with torch.no_grad():
            drawn, original = (
                linear_logits(projected, self.mlm_head.token_embeddings.weight, self.mlm_head.bias, tokens)
                for tokens in (reading.sampled, batch.mlm_targets)
            )
        return reading._replace(margins=drawn - original)

    @torch.no_grad()
    def start_detection_bias(self, logit: float) -> None:
        """The highest threshold, of which all others keep their distance, is what a score of 0 is held against."""
        self.tqr_head.top_threshold.fill_(-logit)

    def label(self, drawn: MaskedLMReading, batch: PretrainingBatch) -> Tensor:
        """(B, T) codes of quality levels: the generator's word at the selected positions, elsewhere the original's."""
        config = self.config
        codes = quality_levels(
            drawn.margins, drawn.ranks[:, 0], drawn.sampled != batch.mlm_targets, config.tqr_partition,
            config.tqr_top, config.tqr_buffer,
        )
        return torch.full_like(batch.original_tokens, 2 * self.levels).masked_scatter(batch.masked_positions, codes)

    def losses(self, output: PeerOutput, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        config = self.config
        # Until the generator's word counts, the lower levels weigh nothing but stay in the graph, for DDP.
        warming_up = self.training and self.joint_updates < config.tqr_warmup_updates
        positions, weight, over = self.judged(batch, config.tqr_weight)
        return {
            **self.generator_terms(output.masked_lm),
            "tqr": tqr_loss(
                output.quality_scores, output.level_thresholds, output.level_codes, positions,
                0.0 if warming_up else config.level_weight, weight, over,
            ),
        }

    def statistics(self, output: PeerOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        masked, valid = len(batch.masked_index), batch.valid_positions
        statistics = {
            **self.generator_statistics(output.masked_lm.predicted[:, 0], output.sampled_tokens, batch),
            "unknown_share": Mean((output.level_codes == -1).sum(), masked),  # Figs. 4 and 5
        }
        for level, threshold in enumerate(output.level_thresholds.detach(), start=1):
            below, counts = level_targets(output.level_codes, level, self.levels)
            right = (full_precision(output.quality_scores) < threshold) == below
            statistics[f"level_accuracy_{level}"] = Mean((right & counts & valid).sum(), (counts & valid).sum())
            statistics[f"level_threshold_{level}"] = Mean(threshold, 1)
        return {**statistics, **self.detection_statistics(output.rtd_logits, output.corruption, batch)}

    quantities = {
        **GENERATOR,
        "tqr": Quantity("quality ranking loss", "nats per token", LOWER),
        **DETECTION,
        "unknown_share": Quantity("share of unknown quality", "% of masked tokens"),
        "level_accuracy": Quantity("quality accuracy", "% of known tokens", HIGHER, counted="level"),
        "level_threshold": Quantity("quality threshold", "score", counted="level"),
    }
    figures = {
        "unknown_share": Overlay(
            "PEER: replaced tokens of unknown quality",
            "PEER Figs. 4 and 5: the share of selected tokens whose rank label is unknown. It falls as the generator "
            "improves, in the paper from 45 % to 40 % (small) and from 36 % to 27 % (base).",
            ("unknown_share",),
        ),
        "quality_levels": ByRun(
            "PEER: accuracy by quality level",
            "Level k asks whether a token is at most of quality k; the highest one is detection. All should rise above "
            "the share of the more frequent answer.",
            ("level_accuracy",),
        ),
        "level_thresholds": ByRun(
            "PEER: thresholds of the quality levels",
            "The scores that part the levels (Eq. 3); they stay in order by construction.", ("level_threshold",),
        ),
    }

    def detection_logits(self, tokens: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:
        scores = self.tqr_head(self.encoder(tokens, padding_mask))
        return full_precision(scores) - self.tqr_head.level_thresholds()[-1]

    def details(self, output: PeerOutput, batch: PretrainingBatch, words: Words) -> Dict[str, List[Ranking]]:
        """P(R = r) = sigmoid(xi_r - score) - sigmoid(xi_{r-1} - score)  (Eq. 3); codes: see `quality_levels`."""
        thresholds = output.level_thresholds
        scores = full_precision(batch.at_masked(output.quality_scores))
        below = (thresholds - scores[:, None]).sigmoid()
        levels = torch.diff(below, dim=1, prepend=torch.zeros_like(below[:, :1]), append=torch.ones_like(below[:, :1]))
        predicted = 1 + (scores[:, None] >= thresholds).sum(dim=1)
        codes = batch.at_masked(output.level_codes).tolist()
        return {"ranking": [
            Ranking(None if original is None or code < 0 else code / 2, *row)
            for original, code, *row in zip(words.known, codes, predicted.tolist(), levels.tolist(), scores.tolist())
        ]}
