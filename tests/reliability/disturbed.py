"""fairseq-train with something happening at given points.

Arguments: a JSON list of [rank, place, number, what], then fairseq-train's. Rank None is all of them. Places, each
visited number times before: startup, update (the forward pass; backward, its end), optimizer (its step), validation (a
batch), validation pass (forward), save, leaving (once it is asked to stop, before it saves), loader (a sample, in a
worker process if there are any). After each update
every process prints "parameters", its update number and the parameters' SHA-256.

The clock of limits and interrupts stands still until the event "clock", so that no speed of the machine reaches them.
"""

import atexit
import ctypes
import functools
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time

import fairseq_cli.train
import torch
from fairseq import checkpoint_utils
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

RANK = int(os.environ.get("RANK", 0))


class Clock:
    """`time` as the watch uses it."""

    def __init__(self):
        self.monotonic = lambda: 0.0

    def start(self, at=0.0):
        start = time.monotonic() - at
        self.monotonic = lambda: time.monotonic() - start


CLOCK = Clock()


def main():
    events, *arguments = sys.argv[1:]
    sys.argv = ["fairseq-train", *arguments]
    importlib.import_module("amos_fairseq.tasks")
    importlib.import_module("amos_fairseq.models.pretraining")
    importlib.import_module("amos_fairseq.models.finetuned")
    from amos_fairseq.criterions.pretraining import PretrainingCriterion
    from amos_fairseq.data.masking import MaskedBlockDataset
    from amos_fairseq.supervision import watch

    watch.time = CLOCK
    visits = {}

    def happens(place):
        visits[place] = visits.get(place, -1) + 1
        for rank, where, number, what in json.loads(events):
            if rank in (None, RANK) and (where, number) == (place, visits[place]):
                if what == "clock":
                    CLOCK.start()
                else:
                    return ACTIONS[what]() if what in ACTIONS else what
        return None

    def before(owner, name, place):
        original = getattr(owner, name)

        @functools.wraps(original)
        def visited(*arguments, **options):
            happens(place)
            return original(*arguments, **options)

        setattr(owner, name, visited)

    before(checkpoint_utils, "load_checkpoint", "startup")
    before(Trainer, "valid_step", "validation")
    before(FairseqTask, "optimizer_step", "optimizer")
    before(importlib.import_module("amos_fairseq.checkpoints.store"), "save", "save")
    before(importlib.import_module("amos_fairseq.supervision.supervisor").Supervisor, "_save", "leaving")
    before(MaskedBlockDataset, "__getitem__", "loader")
    forward, train_step = PretrainingCriterion.forward, Trainer.train_step

    def disturbed_forward(self, model, sample, reduce=True):
        if model.training and not torch.is_grad_enabled():  # a repetition that looks for the origin of a fault
            return forward(self, model, sample, reduce)
        what = happens("update" if model.training else "validation pass")
        if what == "memory":
            end_of_memory()
        layer = model.method.encoder.layers[0]
        if what == "memory amid backward":
            hook = layer.fc1.weight.register_hook(lambda gradient: (hook.remove(), end_of_memory()))
        elif what == "nan layer":  # once, and once more when it is looked for
            times = iter([math.nan, math.nan])
            layer.fc1.register_forward_hook(lambda module, inputs, output: output * next(times, 1.0))
        loss, sample_size, logs = forward(self, model, sample, reduce)
        if not model.training:
            return loss, sample_size, logs
        loss.register_hook(lambda gradient: end_of_memory() if what == "memory in backward" else gradient)
        if what == "nan loss":
            loss = loss * math.nan
            logs = {**logs, "term mlm total": loss.detach()}
        elif what == "infinite loss":
            loss = loss + math.inf  # whose gradient is finite
        elif what == "infinite gradient":
            loss.register_hook(lambda gradient: gradient * math.inf)
        elif what == "spike":
            logs = {key: 5 * value if key.endswith(("total", "weighted")) else value for key, value in logs.items()}
        return loss, sample_size, logs

    def told_train_step(self, samples, *arguments):
        output = train_step(self, samples, *arguments)
        digest = hashlib.sha256()
        for parameter in self.get_model().parameters():
            digest.update(parameter.detach().float().numpy().tobytes())
        print("parameters", self.get_num_updates(), digest.hexdigest(), flush=True)
        return output

    PretrainingCriterion.forward, Trainer.train_step = disturbed_forward, told_train_step
    fairseq_cli.train.cli_main()


def spawner():
    """A launcher of two processes, one of which signals it when both wait; both exit with the status given."""
    from amos_fairseq import supervision

    context = multiprocessing.get_context("fork")
    waiting = context.Barrier(2)

    def wait(number):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[1])))
        if waiting.wait() == 0:
            os.kill(os.getppid(), signal.SIGTERM)
        stuck()

    supervision.run_in_processes(lambda: torch.multiprocessing.start_processes(wait, nprocs=2, start_method="fork"))


def end_of_memory():
    raise RuntimeError("CUDA out of memory.")


def stuck():
    """For as long as what started this process lives."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def heard(number):
    """A signal that has reached the watch's thread."""
    from amos_fairseq import supervision

    os.kill(os.getpid(), number)
    while not supervision.current().watch.requested:
        time.sleep(0.01)


def interrupt_twice():
    heard(signal.SIGINT)
    CLOCK.start(at=1.5)
    os.kill(os.getpid(), signal.SIGINT)
    stuck()


def stuck_in_c():
    """So that no Python runs in any thread of the process, once the watch has heard that it may wait a second only."""
    from amos_fairseq.supervision import watch

    armed, arm = threading.Event(), watch.faulthandler.dump_traceback_later

    def armed_later(*arguments, **options):
        arm(*arguments, **options)
        armed.set()

    watch.GRACE, watch.faulthandler.dump_traceback_later = 1.0, armed_later
    armed.wait()
    ctypes.PyDLL(None).pause()


def every_signal():
    """Now and once Python is about to end."""
    from amos_fairseq.supervision import watch

    for number in watch.SIGNALS:
        os.kill(os.getpid(), number)
    atexit.register(every_signal)


def stop_worker():
    print("stopped", os.getpid(), flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def forget_votes():
    """As under a task that does not sum them with what it sums."""
    from amos_fairseq import supervision

    supervision.current().stop_votes = None


ACTIONS = {
    **{number.name: lambda number=number: os.kill(os.getpid(), number) for number in signal.Signals},
    "SIGTERM, heard": lambda: heard(signal.SIGTERM),
    "SIGTERM to all": lambda: os.killpg(0, signal.SIGTERM),  # its loader's workers, too
    "interrupts": interrupt_twice,
    "stuck in C": stuck_in_c,
    "out of memory": end_of_memory,
    "votes forgotten": forget_votes,
    "stuck": stuck,
    "every signal": every_signal,
    "stopped worker": stop_worker,
}
