"""Model FLOPs of a training step, counted as matrix products: what MFU is measured against.

A product of (n, k) with (k, m) is 2 n k m; the backward pass is twice the forward; table lookups, normalisation,
softmax and sampling are not counted. Attention is counted in full (it is not causal).
"""

import functools
import re
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


ASSUMED_MFU = 0.35  # of hours that are told before anything has run
# The vendor's dense bf16 peak of one device (V100: fp16), FLOP/s, by words of its name; the first that fits holds.
PEAK_FLOPS = {
    "B200": 2250e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12,
    "H800": 989e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "A10G": 70e12, "L40S": 362e12, "V100": 125e12,
}


@functools.lru_cache(maxsize=None)
def peak_flops(device: torch.device) -> float:
    """FLOP/s that MFU is a share of: the vendor's bf16 peak of a known GPU, elsewhere what a large product reaches."""
    if device.type == "cuda":
        words = set(re.split(r"[\s-]+", torch.cuda.get_device_name(device)))  # "H20" is no part of "H200"
        for name, peak in PEAK_FLOPS.items():
            if words >= set(name.split()):
                return peak
        return measured_flops(device, torch.bfloat16, size=8192)
    return measured_flops(device, torch.float32)


def measured_flops(
    device: torch.device, dtype: torch.dtype, size: int = 1024, trials: int = 2, budget: float = 0.25
) -> float:
    """What square products in this type reach: the best of `trials` or more, as many as `budget` seconds allow.

    A CPU is timed by the seconds that its threads ran: those in which others had it are no part of its peak.
    """
    matrix = torch.linspace(-1, 1, size**2, device=device).to(dtype).view(size, size)  # no draws: they are the run's
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # the CPU's: of all threads together
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    seconds: List[float] = []
    begin = time.perf_counter()
    while len(seconds) < trials or time.perf_counter() - begin < budget:
        start = clock()
        (matrix @ matrix)[0, 0].item()  # reading a value waits for the device
        seconds.append(clock() - start)
    return threads * 2 * size**3 / min(seconds)
