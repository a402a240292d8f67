"""Rows in chunks, where all of them at once would take too much memory."""

from typing import Iterator

WORKSPACE = 2**27  # bytes of logits held at a time: 682 positions of three bf16 heads over 32,768 words


def row_chunks(rows: int, bytes_of_a_row: int) -> Iterator[slice]:
    """Slices of 0..rows-1 that take at most WORKSPACE bytes each, or hold one row; of no rows, one empty slice."""
    step = max(1, WORKSPACE // bytes_of_a_row)
    return (slice(start, min(start + step, rows)) for start in range(0, max(1, rows), step))
