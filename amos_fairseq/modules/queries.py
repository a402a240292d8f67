"""The positions of a batch at which a network's last layer is asked for: the others give keys and values only."""

from typing import List, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Queries(NamedTuple):
    """M selected positions of a batch of B sequences of T tokens, and their place in a padded (B, L) layout.

    L is the largest number of selected positions of a sequence, at least 1. Each sequence's fill the first slots of its
    row; what is computed in the slots left over is never read.
    """

    index: Tensor  # type: ignore[assignment]  # (M,) flat positions in (B, T), row-major
    slots: Tensor  # (M,) flat positions in (B, L)
    positions: Tensor  # (B, L) in 0..T-1; 0 in slots left over

    @classmethod
    def of(cls, index: Tensor, counts: List[int], length: int) -> "Queries":
        """index: (M,) ascending   counts: B numbers that sum to M, known to the host   length: T. Nothing waits."""
        if sum(counts) != len(index):
            raise ValueError(f"counts of {sum(counts)} positions for an index of {len(index)}: they must agree")
        width = max(1, *counts)
        sequence = index // length
        first = torch.searchsorted(index, length * torch.arange(len(counts), device=index.device))
        slots = sequence * width + torch.arange(len(index), device=index.device) - first[sequence]
        positions = index.new_zeros(len(counts) * width).index_copy(0, slots, index % length)
        return cls(index, slots, positions.view(len(counts), width))

    def rows(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (M, C)"""
        return hidden.flatten(0, 1).index_select(0, self.index)

    def pad(self, rows: Tensor) -> Tensor:
        """(M, C) -> (B, L, C), zero in slots left over"""
        padded = rows.new_zeros(self.positions.numel(), rows.size(1)).index_copy(0, self.slots, rows)
        return padded.unflatten(0, self.positions.shape)

    def unpad(self, padded: Tensor) -> Tensor:
        """(B, L, C) -> (M, C)"""
        return padded.flatten(0, 1).index_select(0, self.slots)

    def bias(self, attention_bias: Tensor) -> Tensor:
        """(1 or B, 1 or H, T, T) -> (B, 1 or H, L, T): the rows of the queries.

        A lookup in a table: many queries read one row, whose gradient is then summed in a fixed order.
        """
        blocks, heads, length, _ = attention_bias.shape
        block = torch.arange(blocks * heads, device=attention_bias.device).view(blocks, heads, 1)
        return F.embedding(block * length + self.positions.unsqueeze(1), attention_bias.reshape(-1, length))
