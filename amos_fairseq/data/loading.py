"""The worker processes of fairseq's data loaders, ended by whoever knows that an epoch is over."""

import contextlib
import queue
from multiprocessing import connection
from typing import Optional

from fairseq.data.iterators import BufferedIterator, CountingIterator, EpochBatchIterator


def end_epoch(iterator: Optional[EpochBatchIterator]) -> None:
    """End the worker processes of an iterator that nothing more will be drawn from."""
    if iterator is not None and iterator._cur_epoch_itr is not None:
        end_workers(iterator._cur_epoch_itr._itr)


def lost_worker(batches: CountingIterator) -> bool:
    """Whether a process that loads `batches` is gone, or is so within a second: its pipes end before it does."""
    workers = getattr(torch_loader(batches._itr), "_workers", [])
    return bool(connection.wait([worker.sentinel for worker in workers], timeout=1.0))


def go_on_without_workers(batches: CountingIterator) -> None:
    """Let this process load what is left of an epoch, of which `batches.drawn`, if any, have been drawn."""
    loader = torch_loader(batches._itr)
    end_workers(batches._itr)
    left = list(loader._index_sampler)[getattr(batches, "drawn", 0) :]
    batches._itr = (loader._collate_fn([loader._dataset[index] for index in indices]) for indices in left)


def torch_loader(batches):
    """torch's iterator over an epoch that `batches`, as of `end_workers`, are taken from."""
    return batches._iterable._iterator if isinstance(batches, BufferedIterator) else batches


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
    loader = torch_loader(batches)
    if hasattr(loader, "_shutdown_workers"):  # if it has any
        loader._shutdown_workers()
