"""ELECTRA (Clark et al., ICLR 2020): replaced token detection with one generator, the baseline of the family.

    masked -> generator -> sample -> corrupt -> encoder -> RTD head
    loss = mlm + rtd_weight * rtd; no gradient passes through the sample
"""

from typing import Dict, NamedTuple

from torch import Tensor

from amos_fairseq.corruption import Corruption, corrupt
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.two_networks import GeneratorConfig, GeneratorMethod
from amos_fairseq.modules.heads import DetectionHead
from amos_fairseq.objectives import LossTerm, Mean, rtd_loss
from amos_fairseq.ops import MaskedLMReading
from amos_fairseq.quantities import DETECTION, GENERATOR, RTD


class ElectraOutput(NamedTuple):
    masked_lm: MaskedLMReading  # the generator's
    sampled_tokens: Tensor  # (M,)
    corruption: Corruption
    rtd_logits: Tensor  # (B, T) positive = original


class Electra(GeneratorMethod[GeneratorConfig, ElectraOutput]):
    """A generator with an MLM head, an encoder with an RTD head, one token table."""

    citation = (
        "Clark et al., ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators, ICLR 2020, "
        "arXiv:2003.10555"
    )
    short_name = "electra"
    sizes = {
        "tiny": dict(generator_embed_dim=64),
        "small": dict(generator_embed_dim=64),  # 1/4, 1/3 and 1/4 of the encoder: ELECTRA, Table 6
        "base": dict(generator_embed_dim=256),
        "large": dict(generator_embed_dim=256),
    }

    def __init__(self, config: GeneratorConfig, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        self.add_generator(vocabulary)
        self.rtd_head = DetectionHead(config.encoder_embed_dim, config.rtd_head_hidden_layer)

    def forward(self, batch: PretrainingBatch) -> ElectraOutput:
        masked_lm = self.generate(batch)
        sampled_tokens = self.without_dropout(masked_lm, batch).sampled
        corruption = corrupt(batch.original_tokens, batch.masked_positions, sampled_tokens)
        key = self.pass_key(batch, stream=1)
        rtd_logits = self.rtd_head(self.encoder(corruption.corrupted_tokens, batch.padding_mask, key=key))
        return ElectraOutput(masked_lm, sampled_tokens, corruption, rtd_logits)

    def losses(self, output: ElectraOutput, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        replaced = output.corruption.replaced_positions
        return {
            **self.generator_terms(output.masked_lm),
            "rtd": rtd_loss(output.rtd_logits, replaced, *self.judged(batch, self.config.rtd_weight)),
        }

    def statistics(self, output: ElectraOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        return {
            **self.generator_statistics(output.masked_lm.predicted[:, 0], output.sampled_tokens, batch),
            **self.detection_statistics(output.rtd_logits, output.corruption, batch),
        }

    quantities = {**GENERATOR, **RTD, **DETECTION}
