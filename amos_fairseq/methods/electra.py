"""ELECTRA (Clark et al., ICLR 2020): replaced token detection with one generator, the baseline of the family.

    masked -> generator -> sample -> corrupt -> encoder -> RTD head
    loss = mlm + rtd_weight * rtd; no gradient passes through the sample
"""

from dataclasses import dataclass
from typing import Dict, NamedTuple

import torch
from torch import Tensor

from amos_fairseq.corruption import Corruption, corrupt, sample_tokens
from amos_fairseq.methods.base import (
    DetectionConfig,
    PretrainingBatch,
    PretrainingMethod,
    Vocabulary,
    accuracy,
    detection_auc,
    detection_statistics,
    option,
)
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.modules.heads import DetectionHead, MaskedLMHead
from amos_fairseq.objectives import LossTerm, Mean, mlm_loss, rtd_loss

HEAD_WIDTH = 64  # width of a generator's attention head, as in ELECTRA


@dataclass
class ElectraConfig(DetectionConfig):
    """A narrow generator of full depth (ELECTRA), or a shallow one of full width (COCO-LM, Sec. 3.3)."""

    generator_layers: int = option(0, "layers of the generator; 0: as many as the encoder")
    generator_embed_dim: int = option(256, "width of the generator; 0: the encoder's")
    generator_dropout: float = option(0.0, "dropout of the generator; above 0 a second pass without it is sampled from")


class ElectraOutput(NamedTuple):
    mlm_logits: Tensor  # (M, V) the generator's
    mlm_targets: Tensor  # (M,) original tokens at the selected positions
    sampled_tokens: Tensor  # (M,)
    corruption: Corruption
    rtd_logits: Tensor  # (B, T) positive = original


class Electra(PretrainingMethod):
    """A generator with an MLM head, an encoder with an RTD head, one token table."""

    config_class = ElectraConfig
    sizes = {
        "tiny": dict(generator_embed_dim=64),
        "small": dict(generator_embed_dim=64),  # 1/4, 1/3 and 1/4 of the encoder: ELECTRA, Table 6
        "base": dict(generator_embed_dim=256),
        "large": dict(generator_embed_dim=256),
    }

    def __init__(self, config: ElectraConfig, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        dim = config.generator_embed_dim or config.encoder_embed_dim
        generator_config = config.encoder_config(
            vocabulary,
            layers=config.generator_layers or config.encoder_layers,
            dim=dim,
            heads=max(1, dim // HEAD_WIDTH) if config.generator_embed_dim else config.encoder_attention_heads,
            ffn_dim=4 * dim,
            dropout=config.generator_dropout,
            attention_dropout=config.generator_dropout,
            activation_dropout=0.0,
        )
        self.generator = Encoder(generator_config, self.encoder.token_embeddings)
        self.mlm_head = MaskedLMHead(dim, self.encoder.token_embeddings)
        self.rtd_head = DetectionHead(config.encoder_embed_dim, config.rtd_head_hidden_layer)

    def forward(self, batch: PretrainingBatch) -> ElectraOutput:
        mlm_logits = self.generate(batch)
        sampled_tokens = self.sample(mlm_logits, batch)
        corruption = corrupt(batch.original_tokens, batch.masked_positions, sampled_tokens)
        hidden = self.encoder(corruption.corrupted_tokens, batch.padding_mask)
        rtd_logits = self.rtd_head(hidden)
        mlm_targets = batch.at_masked(batch.original_tokens)
        return ElectraOutput(mlm_logits, mlm_targets, sampled_tokens, corruption, rtd_logits)

    def generate(self, batch: PretrainingBatch) -> Tensor:
        """(M, V) logits of the generator at the selected positions."""
        hidden = self.generator(batch.masked_tokens, batch.padding_mask)
        return self.mlm_head(batch.at_masked(hidden))

    @torch.no_grad()
    def sample(self, mlm_logits: Tensor, batch: PretrainingBatch) -> Tensor:
        """(M,) draws from the generator without its dropout."""
        if self.training and self.config.generator_dropout > 0:
            self.generator.eval()
            mlm_logits = self.generate(batch)
            self.generator.train()
        return sample_tokens(mlm_logits, self.sampling_noise(batch, mlm_logits.size(-1)), self.excluded_tokens)

    def losses(self, output: ElectraOutput, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        replaced = output.corruption.replaced_positions
        return {
            "mlm": mlm_loss(output.mlm_logits, output.mlm_targets),
            "rtd": rtd_loss(output.rtd_logits, replaced, batch.valid_positions, self.config.rtd_weight),
        }

    def statistics(self, output: ElectraOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        detection = (output.rtd_logits, output.corruption, batch.valid_positions)
        statistics = {
            "generator_accuracy": accuracy(output.mlm_logits.argmax(dim=-1), output.mlm_targets),
            "sampled_accuracy": accuracy(output.sampled_tokens, output.mlm_targets),
            **detection_statistics(*detection),
        }
        if not self.training:
            statistics["rtd_auc"] = detection_auc(*detection)
        return statistics

    def forward_flops(self, tokens: int, length: int, masked: int) -> int:
        networks = sum(self.network_flops(network, tokens, length) for network in (self.generator, self.encoder))
        return networks + self.head_flops(self.mlm_head, masked)
