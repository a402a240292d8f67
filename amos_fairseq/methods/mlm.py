"""BERT's masked language modelling (Devlin et al., 2019), the baseline without a generator.

    masked -> encoder -> MLM head
    loss = mlm
"""

from typing import Dict, NamedTuple

from amos_fairseq.methods.base import PretrainingMethod, accuracy
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import PretrainingConfig, Vocabulary
from amos_fairseq.modules.heads import MaskedLMHead
from amos_fairseq.objectives import LossTerm, Mean, mlm_loss
from amos_fairseq.ops import MaskedLMReading
from amos_fairseq.quantities import MASKED_LM


class MaskedLMOutput(NamedTuple):
    masked_lm: MaskedLMReading  # at the selected positions


class MaskedLM(PretrainingMethod[PretrainingConfig, MaskedLMOutput]):
    """One encoder with an MLM head on the tied table."""

    citation = (
        "Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, NAACL 2019, "
        "arXiv:1810.04805"
    )
    short_name = "bert"
    encoder_lm_head_class = MaskedLMHead
    masking = (0.8, 0.1, 0.1)

    def __init__(self, config: PretrainingConfig, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        self.mlm_head = MaskedLMHead(config.encoder_embed_dim, self.encoder.token_embeddings, config.layer_norm_eps)

    def forward(self, batch: PretrainingBatch) -> MaskedLMOutput:
        hidden = self.masked_lm_states(batch)
        return MaskedLMOutput(self.mlm_head.read(self.mlm_head.project(hidden), batch.mlm_targets))

    def losses(self, output: MaskedLMOutput, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        return {"mlm": mlm_loss(output.masked_lm)}

    def statistics(self, output: MaskedLMOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        return {"mlm_accuracy": accuracy(output.masked_lm.predicted[:, 0], batch.mlm_targets)}

    quantities = MASKED_LM

    def forward_flops(self, tokens: int, length: int, masked: int) -> int:
        return self.network_flops(self.encoder, tokens, length, masked) + self.head_flops(self.mlm_head, masked)
