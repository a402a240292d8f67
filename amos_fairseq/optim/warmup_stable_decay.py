"""`--lr-scheduler warmup_stable_decay`: a rise, a plateau that may go on for as long as one likes, and a short descent.

Any checkpoint of the plateau can be continued by a longer plateau, or ended by a descent: it knows no total length.
"""

import math
from dataclasses import dataclass
from typing import List

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from amos_fairseq.options import NOT_NEGATIVE, POSITIVE, Range, option

SHAPES = {"linear": lambda part: 1 - part, "sqrt": lambda part: 1 - math.sqrt(part)}


@dataclass
class WarmupStableDecayConfig(FairseqDataclass):
    """Names are those of fairseq's polynomial_decay where it has them."""

    warmup_updates: int = option(0, "first updates, in which the learning rate rises in a line", NOT_NEGATIVE)
    decay_share: float = option(
        0.2, "share of total-num-update, at its end, in which the learning rate falls", Range(0, 1, with_high=True)
    )
    decay_shape: str = option(
        "linear", "linear, or sqrt: as 1 - sqrt(share of the fall done) (Hägele et al., 2024, arXiv:2405.18392)",
        choices=SHAPES,
    )
    end_learning_rate: float = option(0.0, "learning rate from total-num-update on", NOT_NEGATIVE)
    total_num_update: float = option(
        II("optimization.max_update"), "updates by which the learning rate has fallen", POSITIVE
    )
    lr: List[float] = II("optimization.lr")


def learning_rate(cfg: WarmupStableDecayConfig, updates: int) -> float:
    """After so many updates, w of warm-up, d of decay, N in all, s the shape:

    lr * max(u, 1) / w  up to w,   lr  up to N - d,   end + (lr - end) * s((u - (N - d)) / d)  up to N,   end
    """
    peak, end, total = cfg.lr[0], cfg.end_learning_rate, cfg.total_num_update
    decay = cfg.decay_share * total
    if updates >= total:
        return end
    if updates < cfg.warmup_updates:
        return peak * max(updates, 1) / cfg.warmup_updates
    if updates <= total - decay:
        return peak
    return end + (peak - end) * SHAPES[cfg.decay_shape]((updates - (total - decay)) / decay)


@register_lr_scheduler("warmup_stable_decay", dataclass=WarmupStableDecayConfig)
class WarmupStableDecay(FairseqLRScheduler):
    """A function of the number of updates alone, hence the same after a resume."""

    def __init__(self, cfg: WarmupStableDecayConfig, optimizer):
        super().__init__(cfg, optimizer)
        self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        self.optimizer.set_lr(learning_rate(self.cfg, num_updates))
        return self.optimizer.get_lr()
