"""A thread that hears signals while the main one computes or waits, and ends the process when nothing moves."""

import contextlib
import faulthandler
import math
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Dict, List, NoReturn, Tuple

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
TIMED_OUT, INTERRUPTED = os.EX_SOFTWARE, 130
SECONDS_BETWEEN_LOOKS = 1.0
SAME_REQUEST = 1.0  # seconds: a terminal and a launcher may both pass on one Ctrl-C
GRACE = 60.0  # seconds for this thread to run; beyond, C code that lets no Python run is what hangs


class Watch:
    """`requested` says what asked the run to stop, or is empty.

    limits: {phase: (option, seconds)}, 0 seconds for no limit. Python runs its own signal handlers in the main thread,
    which may be waiting for another process in C; by way of `set_wakeup_fd` this thread hears of a signal at once.
    """

    def __init__(self, limits: Dict[str, Tuple[str, float]], stop_after_seconds: float):
        self.requested = ""
        self._limits = limits
        self._stop_at = time.monotonic() + (stop_after_seconds or math.inf)
        self._interrupted_at = math.inf
        self._closed = self._leaves = False
        self._wakes, wake = socket.socketpair()
        wake.setblocking(False)
        self._wake = wake  # open as long as its number is in use
        handlers = {number: signal.signal(number, lambda number, frame: None) for number in heard_signals()}
        self._handlers = {number: handler or signal.SIG_DFL for number, handler in handlers.items()}  # None: one in C
        self._wakeup_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self.enter("startup", 0)
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def enter(self, phase: str, update: int) -> None:
        """From now on the limit of `phase` counts; entering it again starts it anew."""
        self._position = phase, update, time.monotonic() + (self._limits[phase][1] or math.inf)

    def leave(self) -> None:
        """The run saves and ends: from here to its end, signals, of which more may come, change nothing; limits do."""
        self._leaves = True
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """No limits, and signals as they were; nothing of a run that leaves."""
        if self._leaves:
            return
        self._closed = True
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._wake.close()  # which the thread sees
        self._thread.join()
        self._wakes.close()

    def leave_signals_to_parent(self) -> None:
        """In a forked process, which serves this one: signals that are for the run must not end it.

        The one that the parent itself ends it with does. It is blocked rather than handled, since torch sets a handler
        of its own in the workers of a DataLoader, and waited for, which tells who sent it.
        """
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if number != signal.SIGTERM else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def _look(self) -> None:
        while True:
            heard, _, _ = select.select([self._wakes], [], [], SECONDS_BETWEEN_LOOKS)
            numbers = self._wakes.recv(4096) if heard else b""
            if self._closed:
                faulthandler.cancel_dump_traceback_later()
                return
            for number in numbers:
                self._hear(number)
            if time.monotonic() > self._stop_at:
                self.ask_to_stop("--stop-after-minutes")
            phase, update, deadline = self._position
            if time.monotonic() > deadline:
                self._time_out(phase, update)
            if math.isinf(deadline):
                faulthandler.cancel_dump_traceback_later()
            else:
                faulthandler.dump_traceback_later(deadline + GRACE - time.monotonic(), exit=True, file=2)

    def _hear(self, number: int) -> None:
        if number not in SIGNALS:
            return
        if number == signal.SIGINT:
            if time.monotonic() > self._interrupted_at + SAME_REQUEST and self._position[0] != "save":
                end_at_once(INTERRUPTED)
            self._interrupted_at = min(self._interrupted_at, time.monotonic())
        self.ask_to_stop(signal.Signals(number).name)

    def ask_to_stop(self, reason: str) -> None:
        if not self.requested:
            self.requested = reason
            say(f"{reason}: the run saves and ends after this update")

    def _time_out(self, phase: str, update: int) -> NoReturn:
        name, seconds = self._limits[phase]
        option = "--" + name.replace("_", "-")
        say(f"error: no progress in {phase} at update {update} for {seconds:g} s ({option}); stacks of all threads:")
        faulthandler.dump_traceback(file=2, all_threads=True)
        end_at_once(TIMED_OUT)


def heard_signals() -> List[int]:
    """Those of SIGNALS that are not ignored, as nohup has it."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def end_at_once(status: int) -> NoReturn:
    """End this process, from any thread, and its workers, of which one that is stopped would not see that it is gone.
    """
    for child in list(multiprocessing.process._children):
        with contextlib.suppress(OSError):
            os.kill(child.pid, signal.SIGKILL)
    os._exit(status)


def say(message: str) -> None:
    """One line on standard error, past all buffers and locks, which the main thread may hold; no terminal, no line."""
    with contextlib.suppress(OSError):
        os.write(2, f"amos_fairseq: rank {rank()}: {message}\n".encode())


def rank() -> int:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def _end_with_parent() -> NoReturn:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
