"""Rows in chunks, where all of them at once would take too much memory."""

import functools
from typing import Iterator

import torch

WORKSPACE = 2**27  # bytes of logits held at a time: 682 positions of three bf16 heads over 32,768 words
SHARE = 256  # of a GPU's memory, one part in so many, if that is more: 320 MiB of 80 GiB, 564 of an H200's


def row_chunks(rows: int, bytes_of_a_row: int, device: torch.device) -> Iterator[slice]:
    """Slices of 0..rows-1 that take at most `workspace` bytes each, or hold one row; of no rows, one empty slice."""
    step = max(1, workspace(device) // bytes_of_a_row)
    return (slice(start, min(start + step, rows)) for start in range(0, max(1, rows), step))


def workspace(device: torch.device) -> int:
    """Bytes of logits held at a time. A GPU is the busier, and its table read the less often, the more there are."""
    return max(WORKSPACE, _memory(device) // SHARE) if device.type == "cuda" else WORKSPACE


@functools.lru_cache(maxsize=None)
def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory
