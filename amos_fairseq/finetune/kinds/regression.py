"""Regression: a number, of a text or a pair. What is learnt is (number - offset) / unit, of the problem's scale."""

import copy
from typing import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amos_fairseq.finetune import tables
from amos_fairseq.finetune.kinds.base import TextKind
from amos_fairseq.finetune.kinds.classification import SequenceHead
from amos_fairseq.finetune.labelled import Batch, Problem
from amos_fairseq.finetune.metrics import OF_NUMBERS
from amos_fairseq.finetune.tables import Scale
from amos_fairseq.ops import full_precision


class RegressionHead(SequenceHead):
    """(B, C) -> (B,) numbers"""

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__(dim, 1, dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).squeeze(-1)


class Regression(TextKind):
    name = "regression"
    metrics = OF_NUMBERS
    head_class = "sequence"

    def new_head(self, problem, encoder, method, mask_token, dropout):
        return RegressionHead(encoder.config.dim, dropout)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """sum_b (output_b - target_b) ** 2, outputs (B,)"""
        outputs = full_precision(outputs)
        return F.mse_loss(outputs, batch.targets.to(outputs.dtype), reduction="sum")

    def check_targets(self, problem, examples, mask_token, refuse):
        refuse(~np.isfinite(examples.targets), "has target {target}, which is no finite number")

    def predicted(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.astype(np.float64)

    def numbers(self, problem: Problem, outputs: np.ndarray) -> np.ndarray:
        """In the unit of the labels, within the limits of these if there are any."""
        scale = Scale(**problem.about["scale"])
        values = self.predicted(outputs) * scale.unit + scale.offset
        return values.clip(*problem.about.get("limits", (None, None)))

    def answers(self, problem: Problem, outputs: np.ndarray) -> Iterator[str]:
        return (f"{value:.5g}" for value in self.numbers(problem, outputs))

    def told(self, problem, table, examples, outputs):
        return [{"value": value} for value in self.numbers(problem, outputs).tolist()]

    def exported_head(self, problem: Problem, head: RegressionHead) -> RegressionHead:
        """Gives the task's own numbers."""
        if "scale" not in problem.about:
            return head
        scale, head = Scale(**problem.about["scale"]), copy.deepcopy(head)
        with torch.no_grad():
            head.out_proj.weight.mul_(scale.unit)
            head.out_proj.bias.mul_(scale.unit).add_(scale.offset)
        return head

    def learnt(self, train):
        """Numbers are scaled to mean 0 and deviation 1."""
        values = tables.numbers(train, Scale(0.0, 1.0)).astype(np.float64)
        if not values.std() > 0:
            raise ValueError(f"{train.path}: all labels are {values[0]:g}: there is nothing to learn")
        return [], {"scale": Scale(float(values.mean()), float(values.std()))._asdict()}

    def targets(self, problem, table):
        return tables.numbers(table, Scale(**problem.about["scale"]))
