"""Prediction heads on an encoder's hidden states."""

from typing import Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.modules.initialization import LAYER_NORM_EPS, initialize
from amos_fairseq.modules.token_table import TokenTable
from amos_fairseq.ops import MaskedLMReading, masked_lm


class ProjectionHead(nn.Module):
    """Dense + GELU + LayerNorm."""

    def __init__(self, dim: int, width: int, eps: float = LAYER_NORM_EPS):
        super().__init__()
        self.dense = nn.Linear(dim, width)
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        self.apply(initialize)

    def project(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., E)"""
        return self.layer_norm(F.gelu(self.dense(hidden)))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.project(hidden)


class MaskedLMHead(ProjectionHead):
    """A projection to the width of the token table, whose rows (tied) and a bias give the logits."""

    def __init__(self, dim: int, token_embeddings: TokenTable, eps: float = LAYER_NORM_EPS):
        vocab_size, width = token_embeddings.weight.shape
        super().__init__(dim, width, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.token_embeddings: TokenTable = token_embeddings

    def output_layer(self, hidden: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> (..., E), (V, E), (V,), as `CorrectionHead.output_layer`."""
        return self.project(hidden), self.token_embeddings.weight, self.bias

    def logits(self, projected: Tensor) -> Tensor:
        """(..., E) -> (..., V)"""
        return F.linear(projected, self.token_embeddings.weight, self.bias)

    def read(self, projected: Tensor, targets: Tensor, **draw) -> MaskedLMReading:
        """What `masked_lm` tells of the logits, without keeping them."""
        return masked_lm(projected, self.token_embeddings.weight, self.bias, targets, **draw)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.logits(self.project(hidden))


class CorrectionHead(nn.Module):
    """The token table's rows (tied) and a bias on the hidden state itself, which is more stable (COCO-LM, App. D).

    A factorised table, narrower than the hidden state, needs a linear map to its width.
    """

    def __init__(self, dim: int, token_embeddings: TokenTable):
        super().__init__()
        vocab_size, width = token_embeddings.weight.shape
        self.narrow = nn.Linear(dim, width, bias=False) if width != dim else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(initialize)
        self.token_embeddings: TokenTable = token_embeddings  # after `apply`: a shared table is not drawn again

    def output_layer(self, hidden: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> (..., E), (V, E), (V,), whose `linear_...` the logits are: no (..., V) is made."""
        return self.narrow(hidden), self.token_embeddings.weight, self.bias


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
