"""Where a training is in its data, counted in samples, so that it means the same for any number of processes.

fairseq deals the batches of an epoch out in turn: process r of N gets batches r, r + N, ... of one shuffled order. It
counts the batches of one process, which mean other samples for another N.
"""

import copy
import logging
from typing import Any, Dict

import numpy as np
from fairseq.data.iterators import GroupedEpochBatchIterator

logger = logging.getLogger(__name__)


def has_one_order(iterator) -> bool:
    """Whether all processes take turns in an order that does not depend on their number."""
    grouped = iterator.grouped_shuffling or isinstance(iterator, GroupedEpochBatchIterator)
    return not grouped and not iterator._supports_prefetch


def samples_up_to(iterator, epoch: int, shuffle: bool) -> np.ndarray:
    """(batches + 1,): samples in the first 0, 1, .. batches of the epoch, of all processes."""
    alone = copy.copy(iterator)
    alone.num_shards, alone.shard_id = 1, 0
    sizes = [len(batch) for batch in alone.ordered_batches(epoch, fix_batches_to_gpus=False, shuffle=shuffle)]
    return np.cumsum([0, *sizes])


def with_samples(iterator, state: Dict[str, Any]) -> Dict[str, Any]:
    """fairseq's `state` of the iterator with `samples_in_epoch`, what all processes together have read."""
    if not has_one_order(iterator):
        return state
    read = 0
    if state["iterations_in_epoch"]:
        up_to = samples_up_to(iterator, state["epoch"], state["shuffle"])
        read = up_to[min(state["iterations_in_epoch"] * iterator.num_shards, len(up_to) - 1)]
    return {**state, "samples_in_epoch": int(read)}


def with_iterations(iterator, state: Dict[str, Any]) -> Dict[str, Any]:
    """`state` with the `iterations_in_epoch` of one of the processes that there are now.

    If the position lies within what they read at a time, after a change of the batch, that is read again and logged.
    """
    samples = state.get("samples_in_epoch")
    if not samples or not has_one_order(iterator):
        return state
    up_to = samples_up_to(iterator, state["epoch"], state.get("shuffle", True))
    if samples >= up_to[-1]:
        return {**state, "epoch": state["epoch"] + 1, "iterations_in_epoch": 0, "samples_in_epoch": 0}
    batches = int(np.searchsorted(up_to, samples, side="right")) - 1
    iterations = batches // iterator.num_shards
    again = samples - up_to[iterations * iterator.num_shards]
    if again:
        logger.warning("%d samples before the checkpoint are read again, since the batch has changed", again)
    return {**state, "iterations_in_epoch": iterations}
