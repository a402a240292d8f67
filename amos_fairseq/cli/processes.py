"""What a command that works for long does about signals, and the cores that it may use."""

import contextlib
import os
import signal
from typing import Callable, Iterable, Iterator


def interrupt(*_) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def signals_handled(numbers: Iterable[int], handler: Callable) -> Iterator[None]:
    """Inside, `handler` gets these signals, unless they are ignored as by nohup."""
    previous = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if previous[number] is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number in numbers:
            signal.signal(number, previous[number])


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Inside, a request to stop waits for a call of the function that this yields: no process starts unnoticed."""
    received = []

    def interrupt_point() -> None:
        if received:
            raise KeyboardInterrupt

    with signals_handled([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], lambda *_: received.append(True)):
        yield interrupt_point


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
