"""What a command that works for long does about signals, processes of its own, and the cores that they may use."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Sequence

from amos_fairseq.terminal import visible

PROGRAM = [sys.executable, "-m", "amos_fairseq.cli.main"]


def interrupt(number: int, *_) -> None:
    raise KeyboardInterrupt(number)


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
def stoppable(out: Path) -> Iterator[None]:
    """Inside, `timeout` and Slurm stop the command as Ctrl-C does, which is told how it goes on."""
    with signals_handled([signal.SIGTERM, signal.SIGHUP], interrupt):
        try:
            yield
        except KeyboardInterrupt:
            print(f"\nStopped. The same command goes on from what {visible(out)} holds.", file=sys.stderr)
            raise


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Inside, a request to stop waits for a call of the function that this yields: no process starts unnoticed."""
    received: List[int] = []

    def interrupt_point() -> None:
        if received:
            raise KeyboardInterrupt(received[0])

    with signals_handled([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], lambda number, _: received.append(number)):
        yield interrupt_point


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_cores(jobs: int = 1) -> Dict[str, str]:
    """The environment of a process that computes on the CPU, one of `jobs` at a time; what is set already stays.

    A thread that waits should spin for a moment only. For long, as is the default, a training is six times slower with
    anything else at work on the machine; not at all, it is a third slower with nothing else.
    """
    return {"GOMP_SPINCOUNT": "20000", "OMP_NUM_THREADS": str(max(1, available_cores() // jobs)), **os.environ}


@contextlib.contextmanager
def started(
    arguments: Iterable[object], log: Path, jobs: int = 1, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen]:
    """`amos-fairseq` with these arguments in a process of its own, its words at the end of a log; has ended at the end.

    Ctrl-C is for this process: an error inside asks that one to end, which saves first. jobs: see `shared_cores`
    """
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments)], stdout=stream, stderr=stream, env=shared_cores(jobs),
            start_new_session=True, pass_fds=pass_fds,
        )
    try:
        yield process
    except BaseException:
        process.terminate()
        raise
    finally:
        process.wait()
