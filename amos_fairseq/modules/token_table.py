"""Gradient-disentangled embedding sharing: a table that follows another's values without giving it a gradient."""

import copy
from typing import TypeVar, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


class DisentangledTable(nn.Module):
    """weight = stop_gradient(table.weight) + delta  (He et al., DeBERTaV3, arXiv:2111.09543, Sec. 3.3)

    Used as the `nn.Embedding` whose weight that is: what reads it trains `delta` alone, which starts at 0. `table` is
    no part of this module, but of the network that trains it: `state_dict` and `parameters` have `delta` only. Both are
    gathered and then added, so looking tokens up makes nothing of the table's size; `weight` does.
    """

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self._table = (table,)  # a tuple hides it from nn.Module
        self.delta = nn.Parameter(torch.zeros_like(table.weight))

    @property
    def table(self) -> nn.Embedding:
        return self._table[0]

    @property
    def num_embeddings(self) -> int:
        return self.table.num_embeddings

    @property
    def weight(self) -> Tensor:
        """(V, E), made anew."""
        return self.table.weight.detach() + self.delta

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., E); as in `nn.Embedding`, padding gets no gradient."""
        followed = F.embedding(tokens, self.table.weight.detach())
        return followed + F.embedding(tokens, self.delta, self.table.padding_idx)

    @torch.no_grad()
    def folded(self) -> nn.Embedding:
        """An ordinary table with this weight."""
        return nn.Embedding.from_pretrained(self.weight, freeze=False, padding_idx=self.table.padding_idx)


TokenTable = Union[nn.Embedding, DisentangledTable]


def folded(network: Network) -> Network:
    """A copy of `network` with ordinary tables instead of disentangled ones."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DisentangledTable):
                setattr(module, name, child.folded())
    return network
