"""Gumbel noise that is a pure function of what it is for, by a counter-based generator.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): Philox4x32-10 turns a key and a counter into
four random words. Here the key is a seed and the counter is (token // 4, position, sample id), so a token's noise
depends neither on the device, nor on the number of processes, nor on how rows are grouped into batches and chunks.
"""

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Noise:
    """Names the Gumbel noise of M rows over a vocabulary, without holding it; see `gumbel_noise`."""

    seed: int  # 0 <= seed < 2**63, one for each (run, update, purpose)
    rows: Tensor  # (M, 2) int64: sample id and position in it, on the device of the logits

    def __getitem__(self, rows) -> "Noise":
        """The noise of some of the rows."""
        return Noise(self.seed, self.rows[rows])


def check_draw(
    temperature: float, noise: Optional[Noise] = None, weights: Optional[Tensor] = None, heads: int = 1
) -> None:
    """One line for a draw without a meaning; weights: of the mixture of several heads."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if weights is None and heads > 1 and noise is not None:
        raise ValueError(f"weights are missing: to draw from {heads} heads, say how they are mixed")


def philox(seed: int, counter: Sequence[Tensor], rounds: int = ROUNDS) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32: four random words of 32 bits for each counter, which is four such words; words as int64."""
    key = [seed & WORD, seed >> 32]
    a, b, c, d = torch.broadcast_tensors(*counter)
    for _ in range(rounds):
        # The upper half of a product of 64 bits has its sign extended, which the masks take away again.
        of_a, of_c = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = (of_c >> 32 ^ b ^ key[0]) & WORD, of_c & WORD
        c, d = (of_a >> 32 ^ d ^ key[1]) & WORD, of_a & WORD
        key = [(k + step) & WORD for k, step in zip(key, KEY_STEPS)]
    return a, b, c, d


def gumbel(words: Tensor) -> Tensor:
    """Gumbel(0, 1) in fp64 from random words: -log(-log(1 - v)), v = (word + 1/2) / 2^32.

    The largest values decide a draw; a v near 0 gives them with full precision, up to 22.9.
    """
    uniform = (words.double() + 0.5) * 2.0**-32
    return uniform.neg_().log1p_().neg_().log_().neg_()


def threshold_of(share: float) -> int:
    """The words below it are `share` of all words, to 2^-32."""
    return min(round(share * 2**32), WORD)
