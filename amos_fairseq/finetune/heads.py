"""What fine-tuning puts on an encoder, by the kind of problem: which hidden states are read, outputs, loss.

Shapes: B sequences, T tokens of the longest, C channels, L labels. Every loss is the sum over the batch's sequences, in
fp32 whatever the outputs are in.
"""

from typing import List

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.finetune.labelled import Batch
from amos_fairseq.modules.initialization import initialize
from amos_fairseq.ops import full_precision


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """- sum_b log softmax(logits_b)[target_b], logits (B, L)"""
    return F.cross_entropy(full_precision(logits), batch.targets, reduction="sum")


def squared_error(outputs: Tensor, batch: Batch) -> Tensor:
    """sum_b (output_b - target_b) ** 2, outputs (B,)"""
    outputs = full_precision(outputs)
    return F.mse_loss(outputs, batch.targets.to(outputs.dtype), reduction="sum")


def span_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """0.5 (start + end) cross-entropy, each over the positions where an answer may lie, logits (B, T, 2)"""
    logits = full_precision(logits).masked_fill(~batch.candidates.unsqueeze(-1), float("-inf"))
    return 0.5 * F.cross_entropy(logits, batch.targets, reduction="sum")


class SequenceHead(nn.Module):
    """dropout, dense C -> C, tanh, dropout, linear C -> outputs: BERT's pooler and classifier.

    fairseq and Hugging Face have the same head on RoBERTa and MPNet, as have the released AMOS and COCO-LM.
    """

    def __init__(self, dim: int, outputs: int, dropout: float = 0.0):
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, outputs)
        self.dropout = nn.Dropout(dropout)
        self.apply(initialize)

    def read_at(self, tokens: Tensor) -> Tensor:
        """(B, T) ids -> (B,): the position of each sequence that is read, <s>."""
        return torch.zeros_like(tokens[:, 0])

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, C) -> (B, outputs)"""
        hidden = torch.tanh(self.dense(self.dropout(hidden)))
        return self.out_proj(self.dropout(hidden))


class ClassificationHead(SequenceHead):
    """(B, C) -> (B, L) logits"""

    loss = staticmethod(cross_entropy)


class RegressionHead(SequenceHead):
    """(B, C) -> (B,) numbers"""

    loss = staticmethod(squared_error)

    def __init__(self, dim: int, dropout: float = 0.0):
        super().__init__(dim, 1, dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).squeeze(-1)


class SpanHead(nn.Module):
    """(B, T, C) -> (B, T, 2): logits of the answer's first and last token (Devlin et al., 2019, Sec. 4.2)."""

    loss = staticmethod(span_cross_entropy)

    def __init__(self, dim: int):
        super().__init__()
        self.out_proj = nn.Linear(dim, 2)
        self.apply(initialize)

    def read_at(self, tokens: Tensor) -> None:
        """All positions."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out_proj(hidden)


class PromptHead(nn.Module):
    """(B, C) -> (B, L): the pre-trained language model's logits of the labels' words at <mask>."""

    loss = staticmethod(cross_entropy)

    def __init__(self, lm_head: nn.Module, label_tokens: List[int], mask_token: int):
        super().__init__()
        self.lm_head = lm_head
        self.mask_token = mask_token
        self.register_buffer("label_tokens", torch.tensor(label_tokens), persistent=False)

    def read_at(self, tokens: Tensor) -> Tensor:
        return (tokens == self.mask_token).int().argmax(dim=1)

    def forward(self, hidden: Tensor) -> Tensor:
        projected, table, bias = self.lm_head.output_layer(hidden)
        return F.linear(projected, table[self.label_tokens], bias[self.label_tokens])
