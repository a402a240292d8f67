"""What runs log, in words: what the methods say of theirs, and what the trainer logs beside it."""

from typing import Dict, List, Sequence

from amos_fairseq import run_log
from amos_fairseq.quantities import HIDDEN_STATES, HIGHER, Quantity
from amos_fairseq.run_log import BOOKKEEPING, RunLog

OF_THE_TRAINER = {
    "wps": Quantity("tokens per second", "tokens / s", HIGHER),
    "tflops": Quantity("model TFLOP/s per device", "TFLOP / s"),
    "mfu": Quantity("model FLOPs utilisation", "% of peak", HIGHER),
    "gnorm": Quantity("gradient norm", "before clipping", of_course=True),
    "lr": Quantity("learning rate", of_course=True),
    "loss_scale": Quantity("fp16 loss scale", of_course=True),
}


def known() -> Dict[str, Quantity]:
    """By name, what the methods log, each in its own order, all of them, and the trainer."""
    from amos_fairseq.methods import METHODS  # and with it torch

    found = {name: quantity for method in METHODS.values() for name, quantity in method.quantities.items()}
    names: List[str] = []
    for method in METHODS.values():
        own = list(method.quantities)
        for index, name in enumerate(own):
            if name not in names:
                later = (names.index(other) for other in own[index:] if other in names)
                names.insert(min(later, default=len(names)), name)
    return {**{name: found[name] for name in names}, **HIDDEN_STATES, **OF_THE_TRAINER}


def of(name: str) -> Quantity:
    """Of a logged name; one that no method speaks of is its own words."""
    base, _ = run_log.split_depth(name)
    return known().get(base) or Quantity(base.replace("_", " "))


def logged(logs: Sequence[RunLog]) -> List[str]:
    """What one of the runs logged but BOOKKEEPING, without depths: in the order of `known`, then what is not known."""
    found = {run_log.split_depth(name)[0] for log in logs for rows in log for row in rows for name in row}
    return [*(name for name in known() if name in found), *sorted(found - known().keys() - set(BOOKKEEPING))]


def summarized(logs: Sequence[RunLog]) -> List[str]:
    """What one of the runs logged, but not of its course; of depths and levels, each."""
    bases = [base for base in logged(logs) if not of(base).of_course]
    return list(dict.fromkeys(name for base in bases for log in logs for name in run_log.names(log, base)))


def label(name: str) -> str:
    """mlm_4 -> masked LM loss, layer 4; level_accuracy_2 -> quality accuracy, level 2"""
    return of(name).words + part(name)


def title(name: str) -> str:
    """As `label`, for a table: mlm_4 -> masked LM loss (nats), layer 4"""
    return of(name).title + part(name)


def part(name: str) -> str:
    _, depth = run_log.split_depth(name)
    return f", {of(name).counted} {depth}" if depth else ""
