"""TEAMS: ELECTRA augmented with multi-word selection (Shen et al., Findings of ACL 2021, arXiv:2106.00139).

    masked -> generator, its bottom half the encoder's -> sample, candidates -> corrupt -> trunk -> MWS | RTD branch
    loss = mlm + rtd_weight * rtd + mws_weight * mws  (Eq. 9); no gradient passes through the draws
"""

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from amos_fairseq import reference_flops as reference
from amos_fairseq.corruption import Corruption, check_negatives, corrupt, sample_candidates
from amos_fairseq.flops import encoder_flops, mlm_head_flops
from amos_fairseq.methods.base import Look, accuracy
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import ENCODER_SIZES, Vocabulary
from amos_fairseq.methods.stages import TokenProbability, Words
from amos_fairseq.methods.two_networks import DetectionConfig, SharedGeneratorConfig, SharedGeneratorMethod
from amos_fairseq.modules.encoder import EncoderConfig, EncoderLayer, PassKey
from amos_fairseq.modules.heads import DetectionHead, ProjectionHead
from amos_fairseq.modules.initialization import initialize
from amos_fairseq.objectives import LossTerm, Mean, candidate_logits, mws_loss, rtd_loss
from amos_fairseq.ops import MaskedLMReading
from amos_fairseq.options import COUNT, NOT_NEGATIVE, option
from amos_fairseq.quantities import DETECTION, GENERATOR, HIGHER, LOWER, RTD, Overlay, Quantity


@dataclass
class TeamsConfig(SharedGeneratorConfig, DetectionConfig):
    """The two tasks of the encoder and their heads. Defaults are the paper's, the other values its ablations."""

    rtd_weight: float = option(
        5.0, "weight of replaced token detection in the loss; 0: without it (Table 2)", NOT_NEGATIVE
    )
    mws_weight: float = option(2.0, "weight of multi-word selection in the loss; 0: without it (Table 2)", NOT_NEGATIVE)
    num_negatives: int = option(5, "K, other tokens among which the original is to be selected (Fig. 5)", COUNT)
    negatives: str = option(
        "sampled", "sampled: drawn without replacement | hardest: the likeliest ones (Fig. 5)",
        choices=("sampled", "hardest"),
    )
    task_heads: str = option(
        "split",
        "layers of the tasks (Table 3). split: the encoder's last layer for one, a second one beside it for the other; "
        "on_top: a layer for each on top of the encoder, which keeps one of them; ffn: feed-forward heads only",
        choices=("split", "on_top", "ffn"),
    )
    exported_branch: str = option(
        "mws", "task whose layer is the encoder's last, which is kept: mws | rtd (Table 3)", choices=("mws", "rtd")
    )

    def __post_init__(self):
        super().__post_init__()
        weights = f"rtd_weight {self.rtd_weight} and mws_weight {self.mws_weight}"
        if not self.rtd_weight + self.mws_weight:
            raise ValueError(f"{weights} must not both be 0")
        if self.exported_branch == "rtd" and not self.has_two_branches():
            raise ValueError(
                f"exported_branch rtd needs two branches, but task_heads {self.task_heads} with {weights} has one"
            )

        if not self.rtd_weight:
            self.refuse_idle(["detection_bias_init"], "rtd_weight 0.0")
        if not self.mws_weight:
            self.refuse_idle(["num_negatives", "negatives"], "mws_weight 0.0")

    def has_two_branches(self) -> bool:
        """Whether the tasks read different layers; the encoder's last one serves a single task, or both with ffn."""
        return self.task_heads != "ffn" and bool(self.rtd_weight and self.mws_weight)

    def trunk_depth(self) -> int:
        """Layers below the branches."""
        return self.encoder_layers if self.task_heads == "on_top" else self.encoder_layers - 1

    def encoder_config(self, vocabulary: Vocabulary, **changes) -> EncoderConfig:
        return super().encoder_config(vocabulary, **{"layers": self.trunk_depth() + 1, **changes})


class TeamsOutput(NamedTuple):
    """Without one of the tasks its fields are None."""

    masked_lm: MaskedLMReading  # the generator's
    sampled_tokens: Tensor  # (M,)
    candidate_tokens: Optional[Tensor]  # (M, 1 + K) the original first
    corruption: Corruption
    mws_hidden: Optional[Tensor]  # (M, E) what selects among
    candidate_embeddings: Optional[Tensor]  # (M, 1 + K, E)
    rtd_logits: Optional[Tensor]  # (B, T) positive = original (Eq. 6)


class Teams(SharedGeneratorMethod[TeamsConfig, TeamsOutput]):
    """A generator on the encoder's bottom layers; an encoder of one branch and, on its trunk, a layer for the other."""

    citation = (
        "Shen et al., Training ELECTRA Augmented with Multi-word Selection, Findings of ACL 2021, arXiv:2106.00139"
    )
    short_name = "teams"
    config_class = TeamsConfig
    masking = (0.8, 0.1, 0.1)  # BERT's (App. B)
    sizes = {  # absolute positions only, as BERT; half of tiny's 2 layers would leave none to share
        size: dict(rel_pos_buckets=0, generator_layers=2 if size == "tiny" else 0) for size in ENCODER_SIZES
    }

    def __init__(self, config: TeamsConfig, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        check_negatives(config.num_negatives, vocabulary.size, len(vocabulary.excluded))
        dim = config.encoder_embed_dim
        self.branch_layer = EncoderLayer(self.encoder.config).apply(initialize) if config.has_two_branches() else None
        self.mws_head = ProjectionHead(dim, self.encoder.config.embedding_width) if config.mws_weight else None
        hidden_layer = config.rtd_head_hidden_layer or config.task_heads == "ffn"
        self.rtd_head = DetectionHead(dim, hidden_layer) if config.rtd_weight else None

    def forward(self, batch: PretrainingBatch) -> TeamsOutput:
        look = self.candidates(batch)
        masked_lm = self.generate(batch, None if self.samples_in_second_pass else look)
        drawn = self.without_dropout(masked_lm, batch, look)
        sampled_tokens, candidate_tokens = drawn.sampled, drawn.looked
        corruption = corrupt(batch.original_tokens, batch.masked_positions, sampled_tokens)
        mws_states, rtd_states = self.encode(
            corruption.corrupted_tokens, batch.padding_mask, self.pass_key(batch, stream=1)
        )
        mws_hidden, candidate_embeddings = self.select(mws_states, candidate_tokens, batch)
        rtd_logits = self.rtd_head(rtd_states) if self.rtd_head is not None else None
        return TeamsOutput(
            masked_lm, sampled_tokens, candidate_tokens, corruption, mws_hidden, candidate_embeddings, rtd_logits
        )

    def candidates(self, batch: PretrainingBatch) -> Optional[Look]:
        """What makes the (M, 1 + K) candidates of the generator's logits while these exist, a chunk of rows at a time.

        They come from the generator, independent of what replaces the original (Sec. 3.2) and at a temperature of 1.
        """
        if self.mws_head is None:
            return None
        originals, number = batch.mlm_targets, self.config.num_negatives
        noise, bias = self.sampling_noise(batch, stream=1), self.mlm_head.bias

        def propose(rows: slice, logits: Tensor) -> Tensor:
            drawn = None if self.config.negatives == "hardest" else noise[rows]
            return sample_candidates(logits.squeeze(1), bias, originals[rows], number, drawn, self.excluded_tokens)

        return propose

    def encode(
        self, tokens: Tensor, padding_mask: Optional[Tensor], key: Optional[PassKey] = None
    ) -> Tuple[Tensor, Tensor]:
        """Hidden states (B, T, C) for selection and for detection, of two branches on one trunk.

        The branches share the relative position bias as any two layers of the encoder do.
        """
        encoder, trunk_depth = self.encoder, self.config.trunk_depth()
        hidden, layers = encoder.begin(encoder.token_embeddings(tokens), padding_mask, key)
        trunk = layers.run(hidden, stop=trunk_depth)
        exported = layers.run(trunk, start=trunk_depth)
        other = exported if self.branch_layer is None else layers.beside(self.branch_layer, trunk)
        return (exported, other) if self.config.exported_branch == "mws" else (other, exported)

    def select(
        self, hidden: Tensor, candidate_tokens: Optional[Tensor], batch: PretrainingBatch
    ) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        """(M, E) and (M, 1 + K, E), whose products are the logits of Eq. 7, from hidden states (B, T, C)."""
        if self.mws_head is None:
            return None, None
        return self.mws_head(batch.at_masked(hidden)), self.encoder.token_embeddings(candidate_tokens)

    def losses(self, output: TeamsOutput, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        config = self.config
        terms = self.generator_terms(output.masked_lm)
        if self.rtd_head is not None:
            replaced = output.corruption.replaced_positions
            terms["rtd"] = rtd_loss(output.rtd_logits, replaced, *self.judged(batch, config.rtd_weight))
        if self.mws_head is not None:
            terms["mws"] = mws_loss(output.mws_hidden, output.candidate_embeddings, self.warmed_up(config.mws_weight))
        return terms

    def statistics(self, output: TeamsOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        statistics = self.generator_statistics(output.masked_lm.predicted[:, 0], output.sampled_tokens, batch)
        if self.mws_head is not None:
            selected = candidate_logits(output.mws_hidden, output.candidate_embeddings).argmax(dim=-1)
            statistics["mws_accuracy"] = accuracy(selected, torch.zeros_like(selected))
        if self.rtd_head is not None:
            statistics.update(self.detection_statistics(output.rtd_logits, output.corruption, batch))
        return statistics

    quantities = {
        **GENERATOR, **RTD,
        "mws": Quantity("word selection loss", "nats per masked token", LOWER),
        **DETECTION,
        "mws_accuracy": Quantity("word selection accuracy", "% of masked tokens", HIGHER),
    }
    figures = {
        "word_selection": Overlay(
            "TEAMS: selection of the original among candidates",
            "The multi-word selection task of TEAMS, Sec. 3.1. It starts at 1 / (1 + num_negatives) and keeps rising "
            "only while the generator's candidates do not get harder faster.",
            ("mws_accuracy", "mws"), needs="mws_accuracy",
        ),
    }

    def reference_flops(self, length: int) -> float:
        """With the layer of the second branch; the selection head is not charged, as in the papers."""
        branch = reference.block(self.encoder.config, length) if self.branch_layer is not None else 0
        return super().reference_flops(length) + branch

    def forward_flops(self, tokens: int, length: int, masked: int) -> int:
        encoder = self.encoder
        layers = len(encoder.layers) + (self.branch_layer is not None)
        flops = self.generator_flops(tokens, length, masked) + encoder_flops(encoder.config, tokens, length, layers)
        if self.mws_head is not None:
            candidates = 1 + self.config.num_negatives
            flops += mlm_head_flops(encoder.config.dim, candidates, encoder.config.embedding_width, masked)
        return flops

    @property
    def detection_head(self) -> Optional[DetectionHead]:
        """None if it is on the other branch than the exported one."""
        on_the_other = self.branch_layer is not None and self.config.exported_branch != "rtd"
        return None if on_the_other else self.rtd_head

    def corruptions(self, batch: PretrainingBatch) -> Dict[str, Corruption]:
        return {} if self.rtd_head is None else super().corruptions(batch)

    def detection_logits(self, tokens: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:
        if self.rtd_head is None:
            raise ValueError("a run with rtd_weight 0 does not learn to detect replaced tokens")
        return self.rtd_head(self.encode(tokens, padding_mask)[1])

    def details(
        self, output: TeamsOutput, batch: PretrainingBatch, words: Words
    ) -> Dict[str, List[Optional[List[TokenProbability]]]]:
        """softmax(mws_hidden . candidate_embeddings)  (Eq. 7): of being selected, the original first."""
        if self.mws_head is None:
            return {}
        probabilities = candidate_logits(output.mws_hidden, output.candidate_embeddings).softmax(dim=-1).tolist()
        return {"candidates": [
            None if original is None else words.named(*row)
            for original, *row in zip(words.known, output.candidate_tokens.tolist(), probabilities)
        ]}
