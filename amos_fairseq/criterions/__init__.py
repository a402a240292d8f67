"""fairseq's view of the methods' losses."""

from amos_fairseq.criterions import finetuning, pretraining  # noqa: F401
