"""SCRIPT: self-critic pre-training of transformers (Nijkamp et al., NAACL 2021, aclanthology.org/2021.naacl-main.409).

    masked -> encoder, MLM head -> sample -> corrupt -> the same encoder, the same head -> critic
    loss = mlm + critic_weight * critic  (Eq. 1, 6); one network, two forward passes, one backward pass
"""

import math
from dataclasses import dataclass
from typing import Dict, NamedTuple, Optional

import torch
from torch import Tensor, nn

from amos_fairseq import reference_flops as reference
from amos_fairseq.corruption import Corruption, corrupt
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import ENCODER_SIZES, JudgingConfig, Vocabulary
from amos_fairseq.modules.encoder import PassKey
from amos_fairseq.modules.heads import MaskedLMHead
from amos_fairseq.objectives import LossTerm, Mean, critic_loss, mlm_loss
from amos_fairseq.ops import MaskedLMReading, Noise, linear_logsumexp, soft_embedding, straight_through_gumbel_softmax
from amos_fairseq.options import NOT_NEGATIVE, POSITIVE, option
from amos_fairseq.quantities import DETECTION, GENERATOR, LOWER, ByRun, Quantity


@dataclass
class ScriptConfig(JudgingConfig):
    """The critic. Defaults are the paper's, as far as it says."""

    generator_warmup_updates: int = option(
        0, "first updates in which the masked LM alone learns, in one pass instead of two; 0: the critic, too, learns "
        "from the start", NOT_NEGATIVE,
    )
    critic_weight: float = option(
        50.0, "alpha, weight of the critic in the loss (App. 4.1); 0: masked LM only", NOT_NEGATIVE
    )
    critic_bias_init: str = option(
        "paper",
        "start of the output bias. paper: 0, the critic starts sure that all is original, at logit log V; "
        "neutral: -log V, it starts undecided; with output-bias-init, that plus log V or 0. The masked LM is the same "
        "with both",
        choices=("paper", "neutral"),
    )
    sample_gradient: str = option(
        "none",
        "how the critic's gradient passes the sample. none: not at all; straight_through: as if the draw had been "
        "soft; soft: the critic reads the soft draw, a mixture of embeddings",
        choices=("none", "straight_through", "soft"),
    )
    gumbel_temperature: float = option(
        1.0, "tau of the soft draw (Eq. 3); the hard draw is the same for every tau", POSITIVE
    )

    def __post_init__(self):
        super().__post_init__()
        if self.sample_gradient == "none":
            self.refuse_idle(["gumbel_temperature"], "sample_gradient none")


class ScriptOutput(NamedTuple):
    masked_lm: MaskedLMReading
    sampled_tokens: Tensor  # (M,) drawn in the masked LM's own pass, with its dropout: another would be a third one
    corruption: Corruption
    critic_logits: Tensor  # (B, T) positive = original (Eq. 5)


class Script(PretrainingMethod[ScriptConfig, ScriptOutput]):
    """One encoder with its MLM head, which is generator and critic: no other parameters."""

    citation = (
        "Nijkamp et al., SCRIPT: Self-Critic PreTraining of Transformers, NAACL 2021, "
        "aclanthology.org/2021.naacl-main.409"
    )
    short_name = "script"
    config_class = ScriptConfig
    encoder_lm_head_class = MaskedLMHead
    scores_in_one_pass = True  # Eq. 7
    judge = "critic"
    masking = (0.8, 0.1, 0.1)  # App. 4.1
    sizes = {size: dict(rel_pos_buckets=0) for size in ENCODER_SIZES}  # absolute positions only, as BERT

    def __init__(self, config: ScriptConfig, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        self.mlm_head = MaskedLMHead(config.encoder_embed_dim, self.encoder.token_embeddings, config.layer_norm_eps)
        if config.critic_bias_init == "neutral":
            nn.init.constant_(self.mlm_head.bias, -math.log(vocabulary.size))

    def forward(self, batch: PretrainingBatch) -> ScriptOutput:
        projected = self.generate(batch)
        noise = self.sampling_noise(batch)
        masked_lm = self.mlm_head.read(
            projected, batch.mlm_targets, excluded=self.excluded_tokens, noise=noise,
            draw_temperature=self.draw_temperature,
        )
        corruption = corrupt(batch.original_tokens, batch.masked_positions, masked_lm.sampled)
        embeddings = self.corrupted_embeddings(corruption, projected, noise, batch)
        critic_logits = self.criticize(embeddings, batch.padding_mask, self.pass_key(batch, stream=1))
        return ScriptOutput(masked_lm, masked_lm.sampled, corruption, critic_logits)

    @torch.no_grad()
    def start_output_bias(self, log_frequencies: Tensor) -> None:
        """Of the critic's logit, which logsumexp of the bias is at the start, `critic_bias_init` still decides."""
        paper = self.config.critic_bias_init == "paper"
        self.mlm_head.bias.copy_(log_frequencies + math.log(len(log_frequencies)) * paper)

    def generate(self, batch: PretrainingBatch) -> Tensor:
        """(M, E): projected hidden states at the selected positions."""
        return self.mlm_head.project(self.masked_lm_states(batch))

    def corrupted_embeddings(
        self, corruption: Corruption, projected: Tensor, noise: Noise, batch: PretrainingBatch
    ) -> Tensor:
        """(B, T, E): the critic's input, rows of the token table.

        By `sample_gradient`, its gradient at the selected positions also reaches `projected`, hence the encoder, as
        that of the soft draw, of the noise that the hard one had; the output layer, table and bias, is held constant.
        """
        config, table = self.config, self.encoder.token_embeddings
        embeddings = table(corruption.corrupted_tokens)
        if config.sample_gradient == "none":
            return embeddings
        excluded, temperature = self.excluded_tokens, self.draw_temperature
        projected, output_layer = projected / temperature, (table.weight, self.mlm_head.bias / temperature)
        if config.sample_gradient == "soft":
            mixtures = soft_embedding(projected, *output_layer, noise, config.gumbel_temperature, excluded)
            embeddings = embeddings.flatten(0, 1).index_copy(0, batch.masked_index, mixtures).view_as(embeddings)
        return straight_through_gumbel_softmax(
            embeddings, projected, *output_layer, batch.masked_index, noise, config.gumbel_temperature,
            excluded=excluded,
        )

    def criticize(
        self, token_embeddings: Tensor, padding_mask: Optional[Tensor], key: Optional[PassKey] = None
    ) -> Tensor:
        """(B, T, E) -> (B, T): logsumexp of the masked LM's logits at every position, without these logits  (Eq. 5)."""
        hidden, layers = self.encoder.begin(token_embeddings, padding_mask, key)
        projected = self.mlm_head.project(layers.run(hidden))
        return linear_logsumexp(projected, self.encoder.token_embeddings.weight, self.mlm_head.bias)

    def losses(self, output: ScriptOutput, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        replaced = output.corruption.replaced_positions
        return {
            "mlm": mlm_loss(output.masked_lm),
            "critic": critic_loss(output.critic_logits, replaced, *self.judged(batch, self.config.critic_weight)),
        }

    def statistics(self, output: ScriptOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        replaced = output.corruption.replaced_positions
        original = batch.valid_positions & ~replaced
        return {
            **self.generator_statistics(output.masked_lm.predicted[:, 0], output.sampled_tokens, batch),
            "critic_logit_original": Mean(torch.where(original, output.critic_logits, 0.0).sum(), original.sum()),
            "critic_logit_replaced": Mean(torch.where(replaced, output.critic_logits, 0.0).sum(), replaced.sum()),
            **self.detection_statistics(output.critic_logits, output.corruption, batch),
        }

    quantities = {
        **GENERATOR,
        "critic": Quantity("self-critic loss", "nats per token", LOWER),
        **DETECTION,
        "critic_logit_original": Quantity("critic logit, original", "logit"),
        "critic_logit_replaced": Quantity("critic logit, replaced", "logit"),
    }
    figures = {
        "critic_logits": ByRun(
            "SCRIPT: critic logits",
            "Mean logit of original and of replaced tokens, positive = original (Eq. 5). They start near log V and "
            "should part, replaced tokens below 0.",
            ("critic_logit_original", "critic_logit_replaced"),
        ),
    }

    def reference_flops(self, length: int) -> float:
        """The encoder twice, its head at the selected positions, then at all of them."""
        encoder = self.encoder.config
        return 2 * reference.network(encoder, length) + (reference.PREDICTED + 1) * reference.mlm_head(encoder)

    def generator_flops(self, tokens: int, length: int, masked: int) -> int:
        return self.network_flops(self.encoder, tokens, length, masked) + self.head_flops(self.mlm_head, masked)

    def forward_flops(self, tokens: int, length: int, masked: int) -> int:
        critic = self.network_flops(self.encoder, tokens, length) + self.head_flops(self.mlm_head, tokens)
        return self.generator_flops(tokens, length, masked) + critic

    def detection_logits(self, tokens: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:
        return self.criticize(self.encoder.token_embeddings(tokens), padding_mask)

    def judged_logits(self, output: ScriptOutput) -> Tensor:
        return output.critic_logits
