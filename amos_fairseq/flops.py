"""Model FLOPs of a training step, counted as matrix products: what MFU is measured against.

A product of (n, k) with (k, m) is 2 n k m; the backward pass is twice the forward; table lookups, normalisation,
softmax and sampling are not counted. Attention is counted in full (it is not causal).
"""

import functools
import time
from typing import List

import torch

from amos_fairseq.modules.encoder import EncoderConfig

BACKWARD_AND_FORWARD = 3


def encoder_flops(config: EncoderConfig, tokens: int, length: int, layers: int, queries: int | None = None) -> int:
    """Forward FLOPs of `layers` layers over `tokens` positions in sequences of `length`, and of the projection.

    With `queries` the last layer computes keys and values of all positions, the rest of it for so many (`Queries`).
    """
    keys_and_values = 4 * config.dim**2
    query_and_output = 4 * config.dim**2 + 4 * length * config.dim
    feed_forward = 4 * config.dim * config.ffn_dim
    projection = 2 * config.embedding_width * config.dim if config.embedding_width != config.dim else 0
    asked = layers * tokens if queries is None else (layers - 1) * tokens + queries
    return tokens * (layers * keys_and_values + projection) + asked * (query_and_output + feed_forward)


def mlm_head_flops(dim: int, table_rows: int, table_width: int, positions: int) -> int:
    """Forward FLOPs of the MLM head's dense layer and its product with the token table over `positions`."""
    return positions * 2 * (dim * table_width + table_width * table_rows)


# Dense bf16 peak of one device, FLOP/s, by a part of its name.
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "A10G": 70e12, "L40S": 362e12, "V100": 125e12}


@functools.lru_cache(maxsize=None)
def peak_flops(device: torch.device) -> float:
    """FLOP/s that MFU is a share of: the vendor's bf16 peak of a known GPU, elsewhere what a large product reaches."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_FLOPS.items():
            if part in name:
                return peak
    return _measured_flops(device)


def _measured_flops(device: torch.device, size: int = 1024, trials: int = 2, budget: float = 0.25) -> float:
    """The best of `trials` products or more, as many as `budget` seconds allow.

    A CPU is timed by the seconds that its threads ran: those in which others had it are no part of its peak.
    """
    matrix = torch.ones(size, size, device=device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # the CPU's: of all threads together
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    seconds: List[float] = []
    begin = time.perf_counter()
    while len(seconds) < trials or time.perf_counter() - begin < budget:
        start = clock()
        (matrix @ matrix)[0, 0].item()  # reading a value waits for the device
        seconds.append(clock() - start)
    return threads * 2 * size**3 / min(seconds)
