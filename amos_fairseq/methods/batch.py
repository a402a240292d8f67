"""The batch that flows into every method.

Shapes: B batch, T time, M selected positions of the batch.
"""

from typing import List, NamedTuple, Optional

import torch
from torch import Tensor

from amos_fairseq.modules.queries import Queries


class PretrainingBatch(NamedTuple):
    """One batch. `masked_index` and `num_masked` say what `masked_positions` says without asking the device."""

    original_tokens: Tensor  # (B, T)
    masked_tokens: Tensor  # (B, T) with `<mask>`, kept or random tokens at the selected positions
    masked_positions: Tensor  # (B, T) bool, the selected positions
    masked_index: Tensor  # (M,) their flat indices, row-major
    num_masked: List[int]  # B counts that sum to M
    sample_ids: Tensor  # (B,) the key of each sequence's sampling noise
    padding_mask: Optional[Tensor] = None  # (B, T) bool, True = padding; None: no padding at all
    cropped_tokens: Optional[Tensor] = None  # (B, T') part of each original, of methods with a `cropping` share
    cropped_padding_mask: Optional[Tensor] = None  # (B, T') as `padding_mask`
    stand_in: bool = False  # repeated by a process whose data have run out: nothing in it counts

    @property
    def valid_positions(self) -> Tensor:
        """(B, T) bool, the positions that detection losses are taken over."""
        if self.padding_mask is None:
            return torch.ones_like(self.masked_positions)
        return ~self.padding_mask

    @property
    def queries(self) -> Queries:
        """The selected positions, for the last layer of a network that is read nowhere else."""
        return Queries.of(self.masked_index, self.num_masked, self.original_tokens.size(1))

    @property
    def mlm_targets(self) -> Tensor:
        """(M,) original tokens at the selected positions."""
        return self.at_masked(self.original_tokens)

    def at_masked(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (M, ...): the rows at the selected positions."""
        return x.flatten(0, 1).index_select(0, self.masked_index)  # whose gradient, unlike that of [..], needs no sort
