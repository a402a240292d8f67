"""What counts as a fault, and when there are too many. No trainer, no processes."""

import collections
import contextlib
import functools
import math
import statistics
from typing import Any, Callable, Iterable, Iterator, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn

BUDGET_WINDOW = 1000  # updates
LOSS_WINDOW = 100  # updates
REWIND = 100  # updates that a checkpoint to go back to may lie behind; one is written every so many
SKIP = 200  # updates whose data are skipped, counted from that checkpoint


class UpdateSkipped(Exception):
    """Ends an update before the optimizer's step, on all processes alike. `counts`: towards the budget."""

    def __init__(self, reason: str, counts: bool = True):
        super().__init__(reason)
        self.counts = counts


class OutOfMemory(Exception):
    """Ends an update before the optimizer's step, on all processes alike: one of them could not hold its part."""


class Budget:
    """How many of the last BUDGET_WINDOW updates were skipped, at most `allowed`."""

    def __init__(self, allowed: int):
        self.allowed = allowed
        self._skipped = collections.deque()

    def spend(self, update: int) -> int:
        """Note that the update-th one was skipped; returns how many were."""
        self._skipped.append(update)
        while self._skipped[0] <= update - BUDGET_WINDOW:
            self._skipped.popleft()
        return len(self._skipped)


class RecentLosses:
    """The losses of the last LOSS_WINDOW updates, without the spikes."""

    def __init__(self, factor: float, losses: Sequence[float] = ()):
        self.factor = factor
        self.losses = collections.deque(losses, maxlen=LOSS_WINDOW)

    def forget(self) -> None:
        """What follows is another loss."""
        self.losses.clear()

    def spikes(self, loss: float) -> bool:
        """Whether loss > factor * median(losses), which is never before the window is full; else it joins them."""
        if self.factor and len(self.losses) == LOSS_WINDOW and loss > self.factor * statistics.median(self.losses):
            return True
        self.losses.append(loss)
        return False


def is_out_of_memory(error: RuntimeError) -> bool:
    return "out of memory" in str(error)


def empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def finite_or_nan(criterion: Callable) -> Callable:
    """`criterion`, whose gradients are nan if its loss is not finite.

    That is how all processes learn of it without a word more between them: nan in one gradient is nan in their sum.
    Factor 1 + 0 * loss: 1 exactly, or nan.
    """
    def forward(model, sample):
        loss, sample_size, logs = criterion(model, sample)
        return loss * (1 + 0 * loss.detach()), sample_size, logs
    return forward


def nan_that_does_not_count(criterion: Callable) -> Callable:
    """`criterion`, whose gradients are nan and whose logs are 0."""
    def forward(model, sample):
        loss, _, logs = criterion(model, sample)
        return loss * math.nan, 0, {key: 0 * value for key, value in logs.items()}
    return forward


@contextlib.contextmanager
def frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these parameters get no gradient."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def not_finite(logs: Mapping[str, Any]) -> List[str]:
    """Which of the logged sums are nan or infinite."""
    return [key for key, value in logs.items() if not torch.as_tensor(value).isfinite().all()]


@torch.no_grad()
def first_not_finite(model: nn.Module, forward: Callable[[], Any]) -> Optional[str]:
    """Name of the module whose output is the first in forward() to be nan or infinite; None if there is none."""
    found = []

    def look(name, module, inputs, output):
        outputs = filter(torch.is_tensor, output if isinstance(output, tuple) else [output])
        if not found and not all(tensor.isfinite().all() for tensor in outputs):
            found.append(name)

    hooks = [module.register_forward_hook(functools.partial(look, name)) for name, module in model.named_modules()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
