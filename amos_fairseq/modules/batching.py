"""Sequences of any lengths as padded batches of a bounded size."""

from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from amos_fairseq.modules.encoder import Encoder

BATCH_TOKENS = 16384


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[List[int]]:
    """Indices of each batch, longest sequences first: if one pass needs too much memory, it is the first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        stop = start + max(1, batch_tokens // lengths[order[start]])
        yield order[start:stop]
        start = stop


def padded(sequences: Sequence[Tensor], encoder: Encoder) -> Tuple[Tensor, Optional[Tensor]]:
    """The sequences as rows (B, T) on the encoder's device, and where they are padding, or None."""
    table = encoder.token_embeddings
    rows = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=encoder.config.padding_idx)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padding_mask = torch.arange(rows.size(1)) >= lengths[:, None]
    device = table.weight.device
    return rows.to(device), padding_mask.to(device) if padding_mask.any() else None
