"""Cropping: a contiguous part of a block, COCO-LM's second view of it."""

import numpy as np

STREAM = 1  # beside (seed, epoch, index): masks are drawn from the same three


def crop_block(original_tokens: np.ndarray, keep_fraction: float, seed: int, epoch: int, index: int) -> np.ndarray:
    """`<s>` and a contiguous part of the rest, together round(keep_fraction * T) tokens but 1 at least.

    All starts are equally likely. A function of (seed, epoch, index), independent of the masks drawn for them.

    original_tokens: (T,), the first of which is `<s>`
    """
    kept = max(1, round(keep_fraction * len(original_tokens))) - 1  # beside <s>
    generator = np.random.default_rng([seed, epoch, index, STREAM])
    start = generator.integers(1, len(original_tokens) - kept, endpoint=True)
    return np.concatenate([original_tokens[:1], original_tokens[start : start + kept]])
