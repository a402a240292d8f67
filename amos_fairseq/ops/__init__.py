"""Operations with a precision or a backward pass of their own."""

from amos_fairseq.ops.gradient_reversal import gradient_reversal
from amos_fairseq.ops.linear_logsumexp import linear_logsumexp
from amos_fairseq.ops.precision import full_precision
from amos_fairseq.ops.rows_of_others import rows_of_others
from amos_fairseq.ops.straight_through import straight_through_gumbel_softmax

__all__ = [
    "full_precision",
    "gradient_reversal",
    "linear_logsumexp",
    "rows_of_others",
    "straight_through_gumbel_softmax",
]
