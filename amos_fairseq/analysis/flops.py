"""What pre-training costs, counted in two ways: as google ELECTRA does for the papers' tables, and as hardware does.

`electra` is what methods say in `reference_flops` (see `amos_fairseq.reference_flops`), and a backward pass that costs
as much as the forward pass. `hardware` is what MFU is measured with (see `amos_fairseq.flops`): matrix products alone,
a backward pass of twice the forward pass, lookups for nothing.
"""

from types import MappingProxyType
from typing import Any, Mapping, NamedTuple, Tuple

import torch

from amos_fairseq.analysis.plan import batch_without_values
from amos_fairseq.methods import build, size_options
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.generator_first import GeneratorAlone


class Geometry(NamedTuple):
    """What a run reads."""

    sequences: int  # per update
    length: int
    updates: int
    mask_prob: float = 0.15


def electra_flops(method: PretrainingMethod, length: int) -> float:
    """Training FLOPs per token, by ELECTRA's convention: the backward pass counts as one forward pass."""
    return 2 * method.reference_flops(length)


def hardware_flops(method: PretrainingMethod, geometry: Geometry) -> float:
    """Training FLOPs per token, as the trainer's MFU counts them: the mean over the run's updates."""
    first, then = update_flops(method, geometry)
    alone = min(method.generator_warmup, geometry.updates)
    total = alone * first + (geometry.updates - alone) * then
    return total / (geometry.updates * geometry.sequences * geometry.length)


def updates_within(method: PretrainingMethod, geometry: Geometry, flops: float, alone: float = 0.0) -> int:
    """How many updates cost so many FLOPs, as the trainer's MFU counts them; `geometry.updates` does not matter.

    alone: share of them in which the generator learns alone, of a method with some warm-up of it
    """
    first, then = update_flops(method, geometry)
    return round(flops / (alone * first + (1 - alone) * then))


def update_flops(method: PretrainingMethod, geometry: Geometry) -> Tuple[int, int]:
    """Of an update in the generator's warm-up, 0 without one, and of one after it."""
    batch = batch_without_values(geometry.sequences, geometry.length, geometry.mask_prob, method.cropping)
    alone = GeneratorAlone(method).training_flops(batch) if method.generator_warmup else 0
    return alone, method.training_flops(batch)


def without_memory(
    name: str, size: str, vocab_size: int, geometry: Geometry, changes: Mapping[str, Any] = MappingProxyType({})
) -> PretrainingMethod:
    """The method of a size, with options that differ from it, its parameters without values."""
    options = {**size_options(name, size), "max_positions": geometry.length, **changes}
    with torch.device("meta"):
        return build(name, options, Vocabulary(vocab_size, 1, [0, 1, 2, 3]), total_updates=geometry.updates)
