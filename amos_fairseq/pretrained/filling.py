"""Networks with the parameters that a file holds: compared with what is described before anything is built."""

from typing import Callable, Mapping, TypeVar

import torch
from torch import Tensor, nn

from amos_fairseq.checkpoints import storage
from amos_fairseq.methods.continuation import first_difference

Network = TypeVar("Network", bound=nn.Module)


def sketch(make: Callable[[], Network], layers: int, parameters: int, source: object) -> Network:
    """`make()` with shapes, but no memory. Raises ValueError if that fails, or for more layers than parameters."""
    if layers > parameters:
        raise ValueError(f"{source} describes {layers} layers, but holds {parameters} parameters")
    try:
        with torch.device("meta"):
            return make()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{source} describes no network: {str(error).splitlines()[0]}") from None


def filled(make: Callable[[], Network], state: Mapping[str, Tensor], layers: int, source: object) -> Network:
    """`make()` in evaluation mode with the parameters `state`.

    layers: what is described of the network's depth; no layer is without a parameter
    Raises ValueError, in one line, unless these are finite and those of the network: known before it takes memory.
    """
    difference = first_difference(sketch(make, layers, len(state), source).state_dict(), state)
    if difference:
        raise ValueError(f"{source} does not hold the network that it describes: {difference}")
    storage.check_finite(state, source)
    network = make()
    network.load_state_dict(state)
    return network.eval()


def finite(outputs: Tensor, source: object) -> Tensor:
    """What a network answers. Raises ValueError if that is nan or infinite somewhere."""
    if not outputs.isfinite().all():
        raise ValueError(f"{source} answers nan or infinite numbers: it has diverged, name an earlier checkpoint")
    return outputs
