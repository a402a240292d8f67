"""Prediction heads on an encoder's hidden states."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.modules.initialization import LAYER_NORM_EPS, initialize


class MaskedLMHead(nn.Module):
    """Dense + GELU + LayerNorm to the width of the token table, whose rows (tied) and a bias give the logits."""

    def __init__(self, dim: int, token_embeddings: nn.Embedding):
        super().__init__()
        vocab_size, width = token_embeddings.weight.shape
        self.dense = nn.Linear(dim, width)
        self.layer_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(initialize)
        self.token_embeddings = token_embeddings  # after `apply`: a shared table is not drawn again

    def project(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., E)"""
        return self.layer_norm(F.gelu(self.dense(hidden)))

    def logits(self, projected: Tensor) -> Tensor:
        """(..., E) -> (..., V)"""
        return F.linear(projected, self.token_embeddings.weight, self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.logits(self.project(hidden))


class DetectionHead(nn.Module):
    """One score per position, positive = original: Linear (AMOS, COCO-LM), or dense + GELU + Linear (ELECTRA)."""

    def __init__(self, dim: int, hidden_layer: bool = False):
        super().__init__()
        self.dense = nn.Linear(dim, dim) if hidden_layer else None
        self.score = nn.Linear(dim, 1)
        self.apply(initialize)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (...)"""
        if self.dense is not None:
            hidden = F.gelu(self.dense(hidden))
        return self.score(hidden).squeeze(-1)
