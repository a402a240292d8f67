"""The options of supervision; they are part of the task's."""

import functools
from dataclasses import dataclass

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from amos_fairseq.options import NOT_NEGATIVE, option

# None of them changes what an undisturbed run computes.
limit = functools.partial(option, range=NOT_NEGATIVE, free=True)


@dataclass
class SupervisionConfig(FairseqDataclass):
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    stop_after_minutes: float = limit(0.0, "after so long save and end with status 75, as upon SIGTERM; 0: never")
    startup_timeout: float = limit(1800.0, "seconds until the first update starts, else the run ends; 0: no limit")
    update_timeout: float = limit(600.0, "seconds without a micro-batch done, else the run ends; 0: no limit")
    validation_timeout: float = limit(600.0, "seconds without a validation batch done, as above; 0: no limit")
    save_timeout: float = limit(1800.0, "seconds that writing a checkpoint may take, as above; 0: no limit")
    max_skipped_updates: int = limit(10, "of the last 1000: more, skipped for nan, inf or lack of memory, end the run")
    loss_spike_factor: float = limit(
        0.0, "a loss of so many times the median of the last 100 takes the run back to a checkpoint of at most 100 "
        "updates before, and the next 200 updates' data are skipped (PaLM); 2 is usual, 0: off"
    )


def check(options, no_save: bool) -> None:
    """Raises ValueError, in one line, for what cannot be combined."""
    factor = options.loss_spike_factor
    if 0 < factor <= 1:
        raise ValueError(f"loss_spike_factor {factor} takes usual losses for spikes: give more than 1, such as 2, or 0")
    if factor and no_save:
        raise ValueError(f"loss_spike_factor {factor} needs checkpoints to go back to: leave out --no-save")
