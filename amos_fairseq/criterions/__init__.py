"""fairseq's view of the methods' losses."""

from amos_fairseq.criterions import pretraining  # noqa: F401
