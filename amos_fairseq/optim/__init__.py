"""Optimizers that fairseq lacks."""

from amos_fairseq.optim import fused_adamw  # noqa: F401
