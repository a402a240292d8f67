"""Parameters shared by the methods: encoder, heads and their parts."""

from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.modules.heads import DetectionHead, MaskedLMHead
from amos_fairseq.modules.initialization import initialize
from amos_fairseq.modules.queries import Queries

__all__ = ["DetectionHead", "Encoder", "EncoderConfig", "MaskedLMHead", "Queries", "initialize"]
