"""Networks as fairseq models."""

from amos_fairseq.models import finetuned, pretraining  # noqa: F401
