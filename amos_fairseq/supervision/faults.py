"""What counts as a fault, and when there are too many. No trainer, no processes."""

import collections
import math
import statistics
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

BUDGET_WINDOW = 1000  # updates
LOSS_WINDOW = 100  # updates
REWIND = 100  # updates that a checkpoint to go back to may lie behind; one is written every so many
SKIP = 200  # updates whose data are skipped, counted from that checkpoint


class UpdateSkipped(Exception):
    """Ends an update before the optimizer's step, on all processes alike. `counts`: towards the budget."""

    def __init__(self, reason: str, counts: bool = True):
        super().__init__(reason)
        self.counts = counts


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

    def spikes(self, loss: float) -> bool:
        """Whether loss > factor * median(losses), which is never before the window is full; else it joins them."""
        if self.factor and len(self.losses) == LOSS_WINDOW and loss > self.factor * statistics.median(self.losses):
            return True
        self.losses.append(loss)
        return False


def is_out_of_memory(error: RuntimeError) -> bool:
    return "out of memory" in str(error)


def reversible(criterion: Callable, repeatable: bool, on_out_of_memory: Callable[[], None]) -> Callable:
    """`criterion`, whose gradients are nan if its loss is not finite, or if memory runs out before there is a loss.

    That is how all processes learn of it without a word more between them: nan in one gradient is nan in their sum.
    Factor 1 + 0 * loss: 1 exactly, or nan. For want of memory the first sequence stands in, so that this process takes
    part in what the others wait for; not if the forward pass itself waits for them, which cannot be `repeatable`.
    """
    def forward(model, sample):
        try:
            loss, sample_size, logs = criterion(model, sample)
            return loss * (1 + 0 * loss.detach()), sample_size, logs
        except RuntimeError as error:
            if not (is_out_of_memory(error) and repeatable):
                raise
        on_out_of_memory()  # here, where the failed pass's frames, and with them its memory, are gone
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        loss, _, logs = criterion(model, first_sequence(sample))
        return loss * math.nan, 0, {key: 0 * value for key, value in logs.items()}
    return forward


def first_sequence(sample: Dict[str, Any]) -> Dict[str, Any]:
    """A batch with one of its sequences, which does not count."""
    inputs = sample["net_input"]
    one = {key: value[:1] if isinstance(value, (Tensor, list)) else value for key, value in inputs.items()}
    one.update(masked_index=inputs["masked_index"][: inputs["num_masked"][0]], stand_in=True)
    return {**sample, "net_input": one}


def not_finite(micro_batches: Sequence[Tuple[Tensor, Dict[str, Any]]]) -> List[str]:
    """Of (sample ids, logs): which logged sums are nan or infinite, and in which samples."""
    found = []
    for sample_ids, logs in micro_batches:
        names = [key for key, value in logs.items() if not math.isfinite(value)]
        if names:
            found.append(f"{', '.join(names)} of samples {' '.join(map(str, sample_ids.tolist()))}")
    return found
