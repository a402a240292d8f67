"""Classification: one of the labels, of a text or, with two columns of texts, of a pair."""

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.finetune.kinds.base import TextKind
from amos_fairseq.finetune.labelled import Batch
from amos_fairseq.finetune.metrics import OF_CLASSES
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


class Classification(TextKind):
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

    def told(self, problem, table, examples, outputs):
        """label: the likeliest; probabilities: of all"""
        shares = softmax(outputs.astype(np.float64), axis=-1)
        return [
            {"label": label, "probabilities": dict(zip(problem.labels, row))}
            for label, row in zip(self.answers(problem, outputs), shares.tolist())
        ]

    def learnt(self, train):
        labels = sorted(set(train.labels))
        if len(labels) < 2:
            raise ValueError(f"{train.path}: all labels are {labels[0]!r}: there is nothing to learn")
        return labels, {}

    def metrics_of(self, labels):
        return [name for name in self.metrics if name != "f1" or len(labels) == 2]
