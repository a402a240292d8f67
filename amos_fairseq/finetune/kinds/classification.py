"""Classification: one of the labels, of a text or, with two columns of texts, of a pair."""

from typing import Any, Mapping, Optional

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.finetune import tables
from amos_fairseq.finetune.kinds.base import Kind
from amos_fairseq.finetune.labelled import Batch, Problem
from amos_fairseq.finetune.metrics import OF_CLASSES
from amos_fairseq.finetune.tables import Table
from amos_fairseq.modules.initialization import initialize
from amos_fairseq.ops import full_precision


class SequenceHead(nn.Module):
    """(B, C) -> (B, outputs): dropout, dense C -> C, tanh, dropout, linear C -> outputs: BERT's pooler and classifier.

    fairseq and Hugging Face have the same head on RoBERTa and MPNet, as have the released AMOS and COCO-LM.
    """

    def __init__(self, dim: int, outputs: int, dropout: float = 0.0):
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, outputs)
        self.dropout = nn.Dropout(dropout)
        self.apply(initialize)

    def read_at(self, tokens: Tensor) -> Tensor:
        """<s>"""
        return torch.zeros_like(tokens[:, 0])

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = torch.tanh(self.dense(self.dropout(hidden)))
        return self.out_proj(self.dropout(hidden))


class Classification(Kind):
    name = "classification"
    metrics = OF_CLASSES
    head_class = "sequence"

    def new_head(self, problem, encoder, method, mask_token, dropout):
        return SequenceHead(encoder.config.dim, len(problem.labels), dropout)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """- sum_b log softmax(outputs_b)[target_b], outputs (B, L)"""
        return F.cross_entropy(full_precision(outputs), batch.targets, reduction="sum")

    def check_targets(self, problem, examples, mask_token, refuse):
        targets, classes = examples.targets, len(problem.labels)
        refuse((targets < 0) | (targets >= classes), f"has label {{target}}, which is none of the {classes} labels")

    def told(self, problem, outputs):
        """label: the likeliest; probabilities: of all"""
        shares = softmax(outputs.astype(np.float64), axis=-1)
        return [
            {"label": label, "probabilities": dict(zip(problem.labels, row))}
            for label, row in zip(self.answers(problem, outputs), shares.tolist())
        ]

    # Of a column of labels

    def own_problem(
        self, name: str, train: Table, source: Mapping[str, Any], first_metric: Optional[str] = None
    ) -> Problem:
        """Of a user's own training table: its labels, sorted. source: of `tables.source_of`"""
        labels = sorted(set(train.labels))
        if len(labels) < 2:
            raise ValueError(f"{train.path}: all labels are {labels[0]!r}: there is nothing to learn")
        if len(labels) > 2 and first_metric == "f1":
            raise ValueError(f"--metric f1 is of two classes, but there are {len(labels)}: choose macro_f1")
        names = [metric for metric in self.metrics if len(labels) == 2 or metric != "f1"]
        names.sort(key=lambda metric: metric != first_metric)
        return Problem(name, self.name, names, source["vocabulary"], labels, about={"source": source})

    def targets(self, problem: Problem, table: Table) -> Optional[np.ndarray]:
        return tables.classes(table, problem.labels)
