"""The worker processes of fairseq's data loaders, ended by whoever knows that an epoch is over."""

import contextlib
import queue
from typing import Optional

from fairseq.data.iterators import BufferedIterator, EpochBatchIterator


def end_epoch(iterator: Optional[EpochBatchIterator]) -> None:
    """End the worker processes of an iterator that nothing more will be drawn from."""
    if iterator is not None and iterator._cur_epoch_itr is not None:
        end_workers(iterator._cur_epoch_itr._itr)


def end_workers(batches) -> None:
    """End the processes that load `batches`, what fairseq's iterator over an epoch draws from; again: no effect.

    A thread of fairseq's may wait to pass on a batch that nobody wants; it is let go on until it sees that it is done.
    """
    if isinstance(batches, BufferedIterator):
        consumer = batches._consumer
        if consumer is None:
            return
        consumer._max_len = 0
        while consumer.is_alive():
            with contextlib.suppress(queue.Empty):
                batches._queue.get(timeout=0.01)
        batches = batches._iterable._iterator
    if hasattr(batches, "_shutdown_workers"):  # torch's, if it has any
        batches._shutdown_workers()
