"""Rows that the other processes hold, with gradient: negatives from the whole micro-batch of a training step."""

import torch
import torch.distributed as dist
from torch import Tensor


class _RowsOfOthers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.rank = dist.get_rank()
        counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.full_like(counts[0], len(rows)))
        ctx.counts = torch.cat(counts).tolist()  # memory cannot be had without them, so the host waits here
        padded = rows.new_zeros(max(ctx.counts), rows.size(1))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in ctx.counts]
        dist.all_gather(parts, padded)
        parts = [part[:count] for part, count in zip(parts, ctx.counts)]
        return torch.cat(parts[: ctx.rank] + parts[ctx.rank + 1 :])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Each process holds its own loss's gradient at the others' rows. What belongs to a process's rows is their
        # sum: back-propagated there, and summed over processes with the rest by DDP, it is the joined loss's gradient.
        counts = ctx.counts[: ctx.rank] + ctx.counts[ctx.rank + 1 :]
        parts = list(gradient.split(counts))
        parts.insert(ctx.rank, gradient.new_zeros(ctx.counts[ctx.rank], gradient.size(1)))
        whole = torch.cat(parts)
        dist.all_reduce(whole)
        return whole.split(ctx.counts)[ctx.rank]


def rows_of_others(rows: Tensor) -> Tensor:
    """(n, C) -> (K, C): the rows that all other processes pass at the same time, in the order of their ranks.

    Every process takes part, forward and backward; their numbers of rows may differ and be 0. The gradient at the
    result goes back to the processes that passed the rows, where it is summed. A process alone gets (0, C).
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows[:0]
    return _RowsOfOthers.apply(rows)
