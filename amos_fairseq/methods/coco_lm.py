"""COCO-LM: correcting and contrasting text sequences (Meng et al., NeurIPS 2021, arXiv:2102.08473).

    masked -> shallow generator -> sample -> corrupt -> encoder -> RTD head, also the CLM head's copy mechanism
    cropped ------------------------------------------> encoder -> SCL head on <s> of both sequences
    loss = mlm + rtd_weight * rtd + clm_weight * clm + scl_weight * scl  (Eq. 4); no gradient passes through the sample
"""

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amos_fairseq import ops
from amos_fairseq import reference_flops as reference
from amos_fairseq.corruption import Corruption, corrupt
from amos_fairseq.flops import BACKWARD_AND_FORWARD
from amos_fairseq.methods.base import Look, accuracy
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.stages import Proposals, TokenProbability, Words
from amos_fairseq.methods.two_networks import GeneratorConfig, GeneratorMethod
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.modules.heads import CorrectionHead, DetectionHead, ProjectionHead
from amos_fairseq.modules.token_table import folded
from amos_fairseq.objectives import LossTerm, Mean, clm_loss, corrected_tokens, cosines, rtd_loss, scl_loss
from amos_fairseq.ops import LinearReading, MaskedLMReading, Noise, full_precision
from amos_fairseq.options import NOT_NEGATIVE, POSITIVE, SHARE, option
from amos_fairseq.quantities import DETECTION, GENERATOR, HIGHER, LOWER, RTD, ByRun, Overlay, Quantity


@dataclass
class CocoLMConfig(GeneratorConfig):
    """The generator and the two tasks of the encoder. Defaults are the paper's, the other values its ablations."""

    generator_layers: int = option(4, "layers of the generator (Sec. 3.3); 0: as many as the encoder", NOT_NEGATIVE)
    generator_embed_dim: int = option(0, "width of the generator; 0: the encoder's", NOT_NEGATIVE)
    generator_dropout: float = option(
        0.1, "dropout of the generator's layers; a second pass without any, which the embeddings that it shares with "
        "the encoder have, too, is sampled from", SHARE
    )
    random_replacements: bool = option(False, "draw all words equally often, without a generator (Table 3)")
    clm_weight: float = option(
        1.0, "weight of corrective language modelling beside detection; 0: none (Table 3)", NOT_NEGATIVE
    )
    clm_without_copy: bool = option(False, "predict the original by the language model alone (Table 3)")
    clm_without_stop_gradient: bool = option(False, "let the language model's loss train detection, too (Table 3)")
    clm_all_tokens: bool = option(
        False, "correct every position; Table 3 has rtd-weight 0, scl-weight 0 and clm-without-stop-gradient with it"
    )
    scl_weight: float = option(1.0, "weight of sequence contrastive learning; 0: none (Table 3)", NOT_NEGATIVE)
    scl_temperature: float = option(1.0, "what cosine similarities are divided by (App. B)", POSITIVE)
    scl_without_head: bool = option(False, "contrast <s> itself (Sec. 3.3), not dense + GELU + LayerNorm of it (code)")
    scl_gather: bool = option(False, "contrast with the sequences of all GPUs, not of the same GPU only")

    def __post_init__(self):
        super().__post_init__()
        for name, unset in (
            ("generator_checkpoint", ""), ("output_bias_init", "zero"), ("token_table", "shared"),
            ("sampling_temperature", 1.0), ("generator_warmup_updates", 0),
        ):
            if self.random_replacements and getattr(self, name) != unset:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is of a generator, which random_replacements "
                    f"{self.random_replacements} does without: choose one"
                )
        if not self.clm_weight:
            self.refuse_idle(["clm_without_copy", "clm_without_stop_gradient", "clm_all_tokens"], "clm_weight 0.0")
        for name in ("clm_without_stop_gradient", "clm_all_tokens"):
            if getattr(self, name) and self.clm_without_copy:
                raise ValueError(
                    f"{name} {getattr(self, name)} is about the copy mechanism, which clm_without_copy "
                    f"{self.clm_without_copy} takes away: leave one out"
                )
        if not self.scl_weight:
            self.refuse_idle(["scl_without_head", "scl_gather", "scl_temperature"], "scl_weight 0.0")
        if not self.rtd_weight and not self.clm_without_stop_gradient:
            raise ValueError(
                f"rtd_weight {self.rtd_weight} leaves detection untrained with clm_without_stop_gradient "
                f"{self.clm_without_stop_gradient}: set one of them"
            )


class SequenceViews(NamedTuple):
    """One embedding for each sequence of the batch."""

    corrupted_embeddings: Tensor  # (B, C)
    cropped_embeddings: Tensor  # (B, C)


class Correction(NamedTuple):
    """What the encoder's language model says at N positions."""

    log_lm: Tensor  # (N,) log-probability of the original token, with gradient
    lm: LinearReading  # (N,) each
    logits_of_corrupted: Tensor  # (N,) its logits of the input tokens


class CocoLMOutput(NamedTuple):
    masked_lm: Optional[MaskedLMReading]  # the generator's; None with random replacements
    sampled_tokens: Tensor  # (M,)
    corruption: Corruption
    rtd_logits: Tensor  # (B, T) positive = original, hence copied (Eq. 2)
    correction: Optional[Correction]  # of M positions, of B * T with clm_all_tokens; None without CLM
    sequence_views: Optional[SequenceViews]  # None without SCL, but for validation


@dataclass
class CorrectionDetail:
    """What `amos-fairseq inspect` shows of the corrective language model at a selected position."""

    copy: Optional[float]  # p_copy; None: without copy mechanism
    language_model: List[TokenProbability]  # likeliest first
    corrected: TokenProbability  # the likeliest by p_LM, of copying and language model together
    original: Optional[float]  # p_LM of the original token


class CocoLM(GeneratorMethod[CocoLMConfig, CocoLMOutput]):
    """A shallow generator with an MLM head; an encoder with RTD, CLM and SCL heads; one embedding network.

    Every loss term but `scl` is the same however processes and micro-batches share the sequences: a sequence's
    negatives are those of its micro-batch on its process, or with `scl_gather` on all processes, by definition.
    """

    citation = (
        "Meng et al., COCO-LM: Correcting and Contrasting Text Sequences for Language Model Pretraining, NeurIPS 2021, "
        "arXiv:2102.08473"
    )
    short_name = "coco_lm"
    config_class = CocoLMConfig
    encoder_lm_head_class = CorrectionHead
    cropping = 0.9  # Sec. 3.3
    batchwise_terms = ("scl",)
    sizes = {
        "tiny": dict(generator_layers=1),
        "small": dict(generator_layers=4),
        "base": dict(generator_layers=4),  # a third: Sec. 3.3
        "large": dict(generator_layers=6),  # a fourth: Sec. 3.3
    }

    def __init__(self, config: CocoLMConfig, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        dim = config.encoder_embed_dim
        if not config.random_replacements:
            self.add_generator(vocabulary)
            # As wide as the encoder: one embedding network, as in the author's code.
            if config.shares_table() and not config.generator_embed_dim:
                self.generator.share_bottom(self.encoder, layers=0)
        self.rtd_head = DetectionHead(dim, config.rtd_head_hidden_layer)
        self.clm_head = CorrectionHead(dim, self.encoder.token_embeddings) if config.clm_weight else None
        has_scl_head = config.scl_weight and not config.scl_without_head
        self.scl_head = ProjectionHead(dim, dim) if has_scl_head else nn.Identity()

    def check_batch_size(self, sequences: int, split: str) -> None:
        gathers = self.config.scl_gather and split == "train"
        if sequences < 2 and self.config.scl_weight and not gathers:
            suffix = "" if split == "train" else "-valid"
            raise ValueError(
                f"{split}: batches of {sequences} sequence leave scl_weight {self.config.scl_weight} without a "
                f"negative: raise --batch-size{suffix} or --max-tokens{suffix}, prepare more text for {split}, use "
                "--scl-gather on several GPUs, or set --scl-weight 0"
            )

    @property
    def forward_is_local(self) -> bool:
        return not self.config.scl_gather

    def forward(self, batch: PretrainingBatch) -> CocoLMOutput:
        masked_lm = self.generate(batch)
        sampled_tokens = self.sample(masked_lm, batch)
        corruption = corrupt(batch.original_tokens, batch.masked_positions, sampled_tokens)
        key = self.pass_key(batch, stream=1)
        hidden = self.encoder(corruption.corrupted_tokens, batch.padding_mask, key=key)
        rtd_logits = self.rtd_head(hidden)
        correction = self.correct(hidden, corruption, batch)
        sequence_views = self.embed_sequences(hidden, batch)
        return CocoLMOutput(masked_lm, sampled_tokens, corruption, rtd_logits, correction, sequence_views)

    def generate(self, batch: PretrainingBatch, look: Optional[Look] = None) -> Optional[MaskedLMReading]:
        """The generator's losses and predictions at the selected positions; None if there is no generator."""
        return None if self.config.random_replacements else super().generate(batch, look)

    @torch.no_grad()
    def sample(self, masked_lm: Optional[MaskedLMReading], batch: PretrainingBatch) -> Tensor:
        """(M,) draws from the generator without its dropout; without generator, of any word."""
        if masked_lm is not None:
            return self.without_dropout(masked_lm, batch).sampled
        return draw_evenly(self.excluded_tokens, self.sampling_noise(batch))

    def correct(self, hidden: Tensor, corruption: Corruption, batch: PretrainingBatch) -> Optional[Correction]:
        """What the encoder's language model says of the original and of the corrupted tokens."""
        if self.clm_head is None:
            return None
        tokens = (batch.original_tokens, corruption.corrupted_tokens)
        originals, corrupted = (self.at_corrected(x, batch) for x in tokens)
        output_layer = self.clm_head.output_layer(self.at_corrected(hidden, batch))
        lm = ops.read_linear(*output_layer)
        log_lm = ops.linear_logits(*output_layer, originals) - lm.logsumexp
        with torch.no_grad():
            return Correction(log_lm, lm, ops.linear_logits(*output_layer, corrupted))

    def at_corrected(self, x: Tensor, batch: PretrainingBatch) -> Tensor:
        """(B, T, ...) -> (M or B * T, ...): the rows that the language model corrects."""
        return x.flatten(0, 1) if self.config.clm_all_tokens else batch.at_masked(x)

    def embed_sequences(self, hidden: Tensor, batch: PretrainingBatch) -> Optional[SequenceViews]:
        """<s> of the corrupted sequences, whose hidden states are given, and of the cropped ones.

        Validation without SCL has both as well: its cosines are what those with SCL compare with (Fig. 7).
        """
        if self.training and not self.config.scl_weight:
            return None
        key = self.pass_key(batch, stream=2)
        cropped_hidden = self.encoder(batch.cropped_tokens, batch.cropped_padding_mask, key=key)
        return SequenceViews(self.scl_head(hidden[:, 0]), self.scl_head(cropped_hidden[:, 0]))

    def losses(self, output: CocoLMOutput, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        config, terms = self.config, {}
        replaced = output.corruption.replaced_positions
        if output.masked_lm is not None:
            terms.update(self.generator_terms(output.masked_lm))
        terms["rtd"] = rtd_loss(output.rtd_logits, replaced, *self.judged(batch, config.rtd_weight))
        if config.clm_weight:
            terms["clm"] = self.correction_loss(output, batch)
        if config.scl_weight:
            negatives = self.negatives(output.sequence_views, batch)
            terms["scl"] = scl_loss(*output.sequence_views, config.scl_temperature, config.scl_weight, negatives)
        return terms

    def correction_loss(self, output: CocoLMOutput, batch: PretrainingBatch) -> LossTerm:
        config = self.config
        if config.clm_without_copy:
            return LossTerm(-output.correction.log_lm.sum(), len(batch.masked_index), config.clm_weight)
        return clm_loss(
            output.correction.log_lm, self.at_corrected(output.rtd_logits, batch),
            ~self.at_corrected(output.corruption.replaced_positions, batch),
            stop_gradient=not config.clm_without_stop_gradient, weight=config.clm_weight,
            valid_positions=batch.valid_positions.flatten() if config.clm_all_tokens else None,
        )

    def negatives(self, sequence_views: SequenceViews, batch: PretrainingBatch) -> Optional[Tensor]:
        """(K, C) views of the other processes' sequences, if training gathers them.

        Validation does not, so that its loss depends on the batch size only, not on the number of processes.
        """
        if not self.config.scl_gather or not self.training:
            return None
        views = torch.cat(sequence_views)
        return ops.rows_of_others(views[:0] if batch.stand_in else views)

    def statistics(self, output: CocoLMOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        """Copying is right where detection is; the language model's accuracy is that of the whole of p_LM (Fig. 8)."""
        statistics = self.detection_statistics(output.rtd_logits, output.corruption, batch)
        if output.masked_lm is None:
            statistics["sampled_accuracy"] = accuracy(output.sampled_tokens, batch.mlm_targets)
        else:
            predicted = output.masked_lm.predicted[:, 0]
            statistics.update(self.generator_statistics(predicted, output.sampled_tokens, batch))
        if output.correction is not None:
            statistics.update(self.correction_statistics(output, batch))
        if output.sequence_views is not None:
            statistics.update(cosine_statistics(output.sequence_views))
        return statistics

    def correction_statistics(self, output: CocoLMOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        """Accuracy of the language model on original and on replaced tokens, of the positions that it corrects."""
        originals, corrupted, replaced, valid, copy_logits = (
            self.at_corrected(x, batch)
            for x in (batch.original_tokens, *output.corruption, batch.valid_positions, output.rtd_logits)
        )
        if self.config.clm_without_copy:
            predicted = output.correction.lm.likeliest
        else:
            predicted = corrected_tokens(*output.correction[1:], copy_logits, corrupted)
        return {
            f"clm_accuracy_{kind}": Mean(((predicted == originals) & where).sum(), where.sum())
            for kind, where in (("original", valid & ~replaced), ("replaced", valid & replaced))
        }

    quantities = {
        **GENERATOR, **RTD,
        "clm": Quantity("corrective LM loss", "nats per masked token", LOWER),
        "scl": Quantity("contrastive loss", "nats per sequence", LOWER),
        **DETECTION,
        "clm_accuracy_original": Quantity("correction accuracy, original", "% of original tokens", HIGHER),
        "clm_accuracy_replaced": Quantity("correction accuracy, replaced", "% of replaced tokens", HIGHER),
        "scl_cosine_positive": Quantity("cosine of positive pairs", "cosine"),
        "scl_cosine_negative": Quantity("cosine of negative pairs", "cosine"),
    }
    figures = {
        "cosines": ByRun(
            "COCO-LM: cosine of contrasted sequences",
            "COCO-LM Fig. 7a and b. With SCL the positive pairs (a corrupted sequence and its crop) part from the "
            "negative ones; without (scl_weight 0, validation only) both stay together and near 1.",
            ("scl_cosine_positive", "scl_cosine_negative"), limits=(None, 1.02),
        ),
        "correction": Overlay(
            "COCO-LM: copying and correction",
            "COCO-LM Fig. 8. Copying is detection; correction is the language model with its copy mechanism. Look for "
            "originals near 100 % while replaced tokens rise; an all-token LM without copying stays behind on both.",
            ("rtd_accuracy_replaced", "rtd_accuracy_original_words", "clm_accuracy_replaced", "clm_accuracy_original"),
            needs="clm_accuracy_replaced",
        ),
    }

    def reference_flops(self, length: int) -> float:
        """Generator, encoder on the corrupted and on the cropped sequence, corrective head without a dense layer."""
        config, encoder = self.config, self.encoder.config
        flops = super().reference_flops(length)
        if config.random_replacements:  # no masked LM
            flops -= reference.PREDICTED * reference.mlm_head(encoder)
        if self.clm_head is not None:
            flops += (1 if config.clm_all_tokens else reference.PREDICTED) * reference.output_layer(encoder)
        if config.scl_weight:
            flops += self.cropping * reference.network(encoder, round(self.cropping * length))
        return flops

    def forward_flops(self, tokens: int, length: int, masked: int) -> int:
        """Without the cropped sequences, which depend on the batch: see `training_flops`."""
        flops = super().forward_flops(tokens, length, masked)
        if self.clm_head is not None:
            corrected = tokens if self.config.clm_all_tokens else masked
            encoder = self.encoder.config
            flops += 2 * corrected * encoder.vocab_size * encoder.embedding_width
        return flops

    def generator_flops(self, tokens: int, length: int, masked: int) -> int:
        return 0 if self.config.random_replacements else super().generator_flops(tokens, length, masked)

    @property
    def samples_in_second_pass(self) -> bool:
        return not self.config.random_replacements and super().samples_in_second_pass

    def training_flops(self, batch: PretrainingBatch) -> int:
        """With the encoder's pass over the cropped sequences."""
        flops = super().training_flops(batch)
        if self.config.scl_weight:
            tokens, length = batch.cropped_tokens.numel(), batch.cropped_tokens.size(1)
            flops += BACKWARD_AND_FORWARD * self.network_flops(self.encoder, tokens, length)
        return flops

    @property
    def masked_lm_encoder(self) -> Encoder:
        if self.config.random_replacements:
            raise ValueError("a run with random_replacements has no generator, hence no masked language model")
        return self.generator

    def networks(self) -> Dict[str, Encoder]:
        return {"encoder": self.exported_encoder()} if self.config.random_replacements else super().networks()

    @property
    def encoder_lm_head(self) -> Optional[CorrectionHead]:
        disentangled = self.clm_head is not None and self.config.token_table == "gdes"
        return folded(self.clm_head) if disentangled else self.clm_head

    def proposals(self, output: CocoLMOutput, batch: PretrainingBatch) -> Dict[str, Proposals]:
        return {} if self.config.random_replacements else super().proposals(output, batch)

    def details(self, output: CocoLMOutput, batch: PretrainingBatch, words: Words) -> Dict[str, List[CorrectionDetail]]:
        """p_LM(x) = 1[x = corrupted] p_copy + (1 - p_copy) softmax(lm)[x], all x  (Sec. 3.3)."""
        if self.clm_head is None:
            return {}
        hidden = self.encoder(output.corruption.corrupted_tokens, batch.padding_mask)
        logits = F.linear(*self.clm_head.output_layer(batch.at_masked(hidden)))
        language_model = full_precision(logits).softmax(dim=-1)
        copy = full_precision(batch.at_masked(output.rtd_logits)).sigmoid()
        if self.config.clm_without_copy:
            copy = torch.zeros_like(copy)
        corrected = (1 - copy[:, None]) * language_model
        corrected.scatter_add_(1, output.sampled_tokens[:, None], copy[:, None])
        return {"correction": [
            CorrectionDetail(
                None if self.config.clm_without_copy else copy[row].item(), words.likeliest(language_model[row]),
                words.likeliest(corrected[row], 1)[0], words.of_original(row, corrected[row]),
            )
            for row in range(len(copy))
        ]}


def draw_evenly(excluded_tokens: Tensor, noise: Noise) -> Tensor:
    """(M,) draws of any token that is not among `excluded_tokens` (V,) bool: a masked LM's whose logits are all 0."""
    hidden = torch.zeros(len(noise.rows), 1, device=noise.rows.device)
    table = hidden.new_zeros(len(excluded_tokens), 1)
    targets = noise.rows.new_zeros(len(noise.rows))
    return ops.masked_lm(hidden, table, table.squeeze(1), targets, excluded=excluded_tokens, noise=noise).sampled


def cosine_statistics(views: SequenceViews) -> Dict[str, Mean]:
    """Mean cosine of the two views of a sequence, and of views of different sequences of the process (Fig. 7)."""
    sequences = len(views.corrupted_embeddings)
    similarities = cosines(*(torch.cat(views),) * 2)
    positive = similarities.diagonal(sequences).sum()
    negative = similarities.sum() - similarities.trace() - 2 * positive
    return {
        "scl_cosine_positive": Mean(positive, sequences),
        "scl_cosine_negative": Mean(negative, 2 * sequences * (2 * sequences - 2)),
    }
