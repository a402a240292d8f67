"""Optimizers and schedules that fairseq lacks."""

from amos_fairseq.optim import fused_adamw, warmup_stable_decay  # noqa: F401
