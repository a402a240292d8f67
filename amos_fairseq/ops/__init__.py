"""Operations with a precision, a memory or a backward pass of their own.

Each says its meaning as code, runs on every device, and takes the compiled kernels where they were built
(`amos-fairseq doctor` tells, `use` chooses).
"""

from amos_fairseq.ops.attention import AttentionDropout, RelativeBias, relative_attention
from amos_fairseq.ops.gradient_reversal import gradient_reversal
from amos_fairseq.ops.gumbel_softmax import gumbel_noise, gumbel_softmax, top_tokens
from amos_fairseq.ops.implementation import use
from amos_fairseq.ops.linear_logsumexp import (
    LinearReading,
    linear_cross_entropy,
    linear_logits,
    linear_logsumexp,
    read_linear,
)
from amos_fairseq.ops.masked_lm import MaskedLMReading, masked_lm
from amos_fairseq.ops.noise import Noise
from amos_fairseq.ops.precision import full_precision, without_autocast
from amos_fairseq.ops.rows_of_others import rows_of_others
from amos_fairseq.ops.straight_through import SPARSE_TEMPERATURE, soft_embedding, straight_through_gumbel_softmax

__all__ = [
    "AttentionDropout", "LinearReading", "MaskedLMReading", "Noise", "RelativeBias", "SPARSE_TEMPERATURE",
    "full_precision", "gradient_reversal", "gumbel_noise", "gumbel_softmax", "linear_cross_entropy", "linear_logits",
    "linear_logsumexp", "masked_lm", "read_linear", "relative_attention", "rows_of_others", "soft_embedding",
    "straight_through_gumbel_softmax", "top_tokens", "use", "without_autocast",
]
