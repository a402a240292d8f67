"""AMOS: an adversarial mixture of training-signal generators (Meng et al., ICLR 2022, arXiv:2204.03243).

    masked -> generators of several depths in one tower -> mixture -> Gumbel sample -> corrupt -> encoder -> RTD head
    loss = sum_d mlm_d + rtd_weight * rtd  (Eq. 4); the reversed gradient of rtd trains the mixture weights
"""

import ast
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amos_fairseq import ops
from amos_fairseq import reference_flops as reference
from amos_fairseq.corruption import Corruption, corrupt
from amos_fairseq.methods.base import accuracy
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.continuation import MODULES_OF_GENERATOR
from amos_fairseq.methods.stages import Proposals
from amos_fairseq.methods.two_networks import DetectionConfig, TwoNetworksMethod
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.modules.heads import DetectionHead, MaskedLMHead
from amos_fairseq.objectives import LossTerm, Mean, rtd_loss
from amos_fairseq.ops import MaskedLMReading, Noise, full_precision
from amos_fairseq.options import COUNT, NOT_NEGATIVE, POSITIVE, Range, option
from amos_fairseq.quantities import DETECTION, GENERATOR, MASKED_LM, RTD, ByRun, Quantity

MIXTURES = ("learned", "random_layer", "layer_switch", "uniform")


@dataclass
class AmosConfig(DetectionConfig):
    """The generators and their mixture. Defaults are the paper's, the other values its ablations."""

    generator_depths: List[int] = option([4, 6, 8], "layers of the generator that carry the MLM head (Sec. 3.3)", COUNT)
    generator_layers: int = option(0, "layers of the generator; 0: up to the deepest of generator-depths", NOT_NEGATIVE)
    gumbel_temperature: float = option(0.3, "tau of the Gumbel-Softmax gradient (App. B)", POSITIVE)
    mixture: str = option(
        "learned", "learned | random_layer | layer_switch | uniform | fixed:[w,..], one w per depth (Table 2)"
    )
    adversarial_mlm_scale: float = option(
        0.0, "share of the reversed gradient that also reaches the MLM embeddings; the paper tried 0.1 (Table 2)",
        Range(0, 1, with_high=True),
    )
    join_blocks: bool = option(False, "let gradient pass between the tower's blocks, i.e. no stop-gradient (Table 2)")
    separate_generators: bool = option(False, "one generator per depth instead of one tower (Table 2)")

    def __post_init__(self):
        super().__post_init__()
        depths = self.generator_depths
        if not depths:
            raise ValueError(f"generator_depths {depths} must be layer numbers from 1: for example 4,6,8")
        if self.generator_layers and max(depths) > self.generator_layers:
            raise ValueError(
                f"generator_depths {depths} go deeper than generator_layers {self.generator_layers}: "
                f"lower the depths, or set generator_layers to {max(depths)} or 0"
            )
        if self.generator_layers > max(depths):
            raise ValueError(
                f"generator_layers {self.generator_layers} exceed the deepest of generator_depths {depths}, so the top "
                f"would never be trained: set generator_layers to {max(depths)} or 0"
            )
        if not self.separate_generators and sorted(set(depths)) != list(depths):
            raise ValueError(
                f"generator_depths {depths} must increase within one tower: sort them, or use separate_generators"
            )
        if self.adversarial_mlm_scale and self.mixture != "learned":
            raise ValueError(
                f"adversarial_mlm_scale {self.adversarial_mlm_scale} needs mixture learned, got {self.mixture!r}"
            )
        for name in ("adversarial_mlm_scale", "join_blocks"):
            if getattr(self, name) and self.generator_checkpoint:
                raise ValueError(
                    f"{name} {getattr(self, name)} trains the generator, which generator_checkpoint "
                    f"{self.generator_checkpoint!r} freezes: leave one out"
                )
        if self.mixture != "learned":
            self.refuse_idle(["gumbel_temperature"], f"mixture {self.mixture}")
        if self.separate_generators or len(depths) == 1:
            one = "separate_generators" if self.separate_generators else f"generator_depths {depths}"
            self.refuse_idle(["join_blocks"], one)
        if self.gdes_positions and self.separate_generators:
            raise ValueError(
                "gdes_positions follow those of one generator, not those of separate_generators: leave one out"
            )
        self.fixed_mixture()

    def fixed_mixture(self) -> Optional[List[float]]:
        """The weights of `fixed:[..]`, normalised; None for the named mixtures."""
        if self.mixture in MIXTURES:
            return None
        expected = f"{', '.join(MIXTURES)} or fixed:[w,..] with {len(self.generator_depths)} weights of 0 or more"
        try:
            kind, listed = self.mixture.split(":", 1)
            weights = [float(weight) for weight in ast.literal_eval(listed)]
            if kind != "fixed" or len(weights) != len(self.generator_depths) or min(weights) < 0 or not sum(weights):
                raise ValueError
        except (ValueError, TypeError, SyntaxError):
            raise ValueError(f"unknown mixture {self.mixture!r}: choose {expected}") from None
        return [weight / sum(weights) for weight in weights]

    def depth_names(self) -> List[str]:
        """One name per generator, its depth; equal depths are told apart by a letter (4a, 4b, 4c)."""
        depths = self.generator_depths
        return [
            f"{depth}{chr(ord('a') + depths[:i].count(depth))}" if depths.count(depth) > 1 else str(depth)
            for i, depth in enumerate(depths)
        ]


class AmosOutput(NamedTuple):
    """G generator depths."""

    masked_lm: MaskedLMReading  # G generators, one per depth
    mixture_weights: Tensor  # (M, G) gamma of Eq. 3
    sampled_tokens: Tensor  # (M,) drawn from the mixture
    corruption: Corruption
    rtd_logits: Tensor  # (B, T) positive = original (Eq. 1)


class Amos(TwoNetworksMethod[AmosConfig, AmosOutput]):
    """One generator tower whose MLM head is read at several depths; an encoder with an RTD head; one token table.

    With `token_table` gdes or separate, detection trains the encoder's table and the masked LM the generator's, which
    the reversed gradient reaches, too, as it does whatever computes f_d.
    """

    citation = (
        "Meng et al., Pretraining Text Encoders with Adversarial Mixture of Training Signal Generators, ICLR 2022, "
        "arXiv:2204.03243"
    )
    short_name = "amos"
    config_class = AmosConfig
    generator_modules = (*MODULES_OF_GENERATOR, "mixture_head")
    sizes = {
        "tiny": dict(generator_depths=[1, 2]),
        "small": dict(generator_depths=[4, 6, 8]),
        "base": dict(generator_depths=[4, 6, 8]),  # Sec. 4
        "large": dict(generator_depths=[4, 6, 8]),  # the released code's, of no published run
    }

    generators: Any  # nn.ModuleList, of one encoder or one for each depth

    def __init__(self, config: AmosConfig, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        dim, table = config.encoder_embed_dim, self.table_of_generator()
        towers = config.generator_depths if config.separate_generators else config.generator_depths[-1:]
        # No dropout in the generator, trained or sampled from (Sec. 4).
        no_dropout = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
        self.generators = nn.ModuleList(
            Encoder(config.encoder_config(vocabulary, layers=layers, **no_dropout), table) for layers in towers
        )
        self.mlm_head = MaskedLMHead(dim, table, config.layer_norm_eps)
        self.finish_generator()
        self.rtd_head = DetectionHead(dim, config.rtd_head_hidden_layer)
        if config.mixture == "layer_switch" and self.total_updates < 1:
            raise ValueError("mixture layer_switch divides the run in equal parts: give its length with --max-update")
        # v of Eq. 3. A single generator needs no mixture.
        self.mixture_head = None
        if config.mixture == "learned" and len(config.generator_depths) > 1:
            self.mixture_head = nn.Linear(dim, 1, bias=False)
            nn.init.normal_(self.mixture_head.weight, std=0.02)
        # The mixture's gradient needs the few tokens that hold the soft sample, where it is peaked enough.
        self.lists_candidates = self.mixture_head is not None and config.gumbel_temperature <= ops.SPARSE_TEMPERATURE

    def forward(self, batch: PretrainingBatch) -> AmosOutput:
        hidden = self.generate(batch)
        projected = self.mlm_head.project(hidden)  # h, (G, M, E)
        mixture_weights = self.mix(hidden, batch)
        noise = self.sampling_noise(batch)
        masked_lm = self.sample(projected, mixture_weights, batch.mlm_targets, noise)
        corruption = corrupt(batch.original_tokens, batch.masked_positions, masked_lm.sampled)
        mixed = self.mixed_embedding(mixture_weights, projected)
        rtd_logits = self.detect(corruption, mixed, masked_lm, noise, batch)
        return AmosOutput(masked_lm, mixture_weights, masked_lm.sampled, corruption, rtd_logits)

    def generate(self, batch: PretrainingBatch) -> Tensor:
        """f, (G, M, C): hidden states at the selected positions by depth, before the MLM projection.

        The tower is cut below each head: block d learns from its own head only (Sec. 3.3).
        """
        if self.config.separate_generators:
            return torch.stack([
                generator(batch.masked_tokens, batch.padding_mask, batch.queries, self.pass_key(batch, -number))
                for number, generator in enumerate(self.generators)
            ])
        (tower,) = self.generators
        state, layers = tower.begin(
            tower.token_embeddings(batch.masked_tokens), batch.padding_mask, self.pass_key(batch, stream=0)
        )
        states = []
        start = 0
        *depths, deepest = self.config.generator_depths
        for depth in depths:
            state = layers.run(state, start, depth)
            states.append(batch.at_masked(state))
            state = state if self.config.join_blocks else state.detach()
            start = depth
        return torch.stack([*states, layers.run(state, start, deepest, batch.queries)])

    def mix(self, hidden: Tensor, batch: PretrainingBatch) -> Tensor:
        """gamma, (M, G) in fp32: softmax over depths of v . f_d  (Eq. 3), or an ablation's fixed or random weights."""
        depths, masked, _ = hidden.shape
        if self.mixture_head is not None:
            with ops.without_autocast(hidden):
                scores = F.linear(full_precision(hidden), full_precision(self.mixture_head.weight)).squeeze(-1)
            return scores.T.softmax(dim=-1)
        fixed = self.config.fixed_mixture()
        if fixed is not None:
            return hidden.new_tensor(fixed, dtype=torch.float32).expand(masked, depths)
        if self.config.mixture == "random_layer":  # one depth per selected position
            drawn = ops.gumbel_noise(self.sampling_noise(batch, stream=1), depths).argmax(dim=-1)
            return F.one_hot(drawn, depths).float()
        if self.config.mixture == "layer_switch":  # shallow to deep in equal parts of the run (Sec. 5.1)
            updates = max(1, self.total_updates - self.generator_warmup)
            part = min(depths - 1, depths * self.joint_updates // updates)
            return F.one_hot(torch.full((masked,), part, device=hidden.device), depths).float()
        return hidden.new_full((masked, depths), 1 / depths, dtype=torch.float32)

    def mixed_embedding(self, mixture_weights: Tensor, projected: Tensor) -> Tensor:
        """hbar, (M, G), (G, M, E) -> (M, E) in fp32: sum_d gamma_d h_d  (Eq. 3).

        The gradient reaches gamma, but not h: of h's gradient `adversarial_mlm_scale` is let through. Mixing h is
        mixing logits, as the weights add up to 1.
        """
        scale = self.config.adversarial_mlm_scale
        held = projected.detach() if scale == 0 else scale * projected + (1 - scale) * projected.detach()
        held = full_precision(held)
        with ops.without_autocast(held):
            return torch.einsum("mg,gme->me", mixture_weights.to(held.dtype), held)

    def sample(self, projected: Tensor, mixture_weights: Tensor, mlm_targets: Tensor, noise: Noise) -> MaskedLMReading:
        """Losses of (G, M, E) projected states by depth, and draws from their mixture, in one pass over the logits."""
        return self.mlm_head.read(
            projected.transpose(0, 1), mlm_targets, weights=mixture_weights, excluded=self.excluded_tokens, noise=noise,
            temperature=self.config.gumbel_temperature, draw_temperature=self.draw_temperature,
            candidates=self.lists_candidates and mixture_weights.requires_grad,
        )

    def detect(
        self, corruption: Corruption, mixed: Tensor, masked_lm: MaskedLMReading, noise: Noise, batch: PretrainingBatch
    ) -> Tensor:
        """(B, T) logits of the encoder on the corrupted sequence.

        Its input is the drawn tokens' embeddings; their gradient also reaches the mixture, reversed, as if the draw
        had been soft (Sec. 3.3): of softmax((logits / T + noise) / tau), where T is the draw's own temperature. The
        tokens' probabilities are by the generator's table, what they put in by the encoder's, if these are two. The
        reversal's scale is 1, for the loss already carries `rtd_weight`.
        """
        table, temperature = self.mlm_head.token_embeddings, self.draw_temperature
        embeddings = self.encoder.token_embeddings(corruption.corrupted_tokens)
        if mixed.requires_grad:
            embeddings = ops.straight_through_gumbel_softmax(
                embeddings, ops.gradient_reversal(mixed) / temperature, table.weight, self.mlm_head.bias / temperature,
                batch.masked_index, noise, self.config.gumbel_temperature,
                masked_lm.candidates if self.lists_candidates else None, self.excluded_tokens,
                None if table is self.encoder.token_embeddings else self.encoder.token_embeddings.weight,
            )
        hidden, layers = self.encoder.begin(embeddings, batch.padding_mask, self.pass_key(batch, stream=1))
        return self.rtd_head(layers.run(hidden))

    def losses(self, output: AmosOutput, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        replaced = output.corruption.replaced_positions
        return {
            **self.generator_terms(output.masked_lm),
            "rtd": rtd_loss(output.rtd_logits, replaced, *self.judged(batch, self.config.rtd_weight)),
        }

    def statistics(self, output: AmosOutput, batch: PretrainingBatch) -> Dict[str, Mean]:
        masked_lm, masked = output.masked_lm, len(batch.masked_index)
        statistics = self.generator_statistics(masked_lm.likeliest, output.sampled_tokens, batch)
        statistics.update(self.masked_lm_statistics(masked_lm, batch))
        for depth, weights in zip(self.config.depth_names(), output.mixture_weights.T):
            statistics[f"mixture_weight_{depth}"] = Mean(weights.sum(), masked)
        if self.lists_candidates and self.training:
            statistics["candidate_tail"] = Mean(masked_lm.tail.sum(), masked)
        return {**statistics, **self.detection_statistics(output.rtd_logits, output.corruption, batch)}

    def masked_lm_statistics(self, masked_lm: MaskedLMReading, batch: PretrainingBatch) -> Dict[str, Mean]:
        statistics = {}
        for depth, losses, predicted in zip(self.config.depth_names(), masked_lm.losses.T, masked_lm.predicted.T):
            statistics[f"mlm_{depth}"] = Mean(losses.sum(), len(losses))
            statistics[f"mlm_accuracy_{depth}"] = accuracy(predicted, batch.mlm_targets)
        return statistics

    quantities = {
        **MASKED_LM, **GENERATOR, **RTD, **DETECTION,
        "mixture_weight": Quantity("mean mixture weight", "weights sum to 1"),
        "candidate_tail": Quantity("share of the soft draw without gradient", of_course=True),
    }
    figures = {
        "generator_depths": ByRun(
            "AMOS: loss by generator depth",
            "AMOS Fig. 1b. The drop is steep at first and slow afterwards; the deepest generator should end lowest.",
            ("mlm",), log_updates=True,
        ),
        "mixture_weights": ByRun(
            "AMOS: weight of each generator depth",
            "AMOS Fig. 3a, the mean over selected positions. In the paper the deepest gains weight late in training: "
            "its replacements are the hardest to detect.",
            ("mixture_weight",), limits=(0, 1), uniform=True,
        ),
    }

    def reference_flops(self, length: int) -> float:
        """Every tower, an MLM head for each depth, and the soft sample's product with the table (Sec. 3.3)."""
        encoder = self.encoder.config
        heads = len(self.config.generator_depths) * reference.mlm_head(encoder)
        soft_sample = 2 * encoder.embedding_width * encoder.vocab_size if self.mixture_head is not None else 0
        networks = sum(reference.network(network.config, length) for network in self.networks().values())
        return networks + reference.PREDICTED * (heads + soft_sample) + reference.detection_head(encoder)

    def generator_flops(self, tokens: int, length: int, masked: int) -> int:
        generators = sum(self.network_flops(network, tokens, length, masked) for network in self.generators)
        return generators + len(self.config.generator_depths) * self.head_flops(self.mlm_head, masked)

    @property
    def masked_lm_encoder(self) -> Encoder:
        """The deepest."""
        return max(self.generators, key=lambda generator: len(generator.layers))

    def masked_lm_states(self, batch: PretrainingBatch) -> Tensor:
        return self.generate(batch)

    def networks(self) -> Dict[str, Encoder]:
        """Of separate generators one for each depth."""
        if not self.config.separate_generators:
            return {**super().networks(), "generator": self.masked_lm_encoder}
        names = (f"generator {name}" for name in self.config.depth_names())
        return {**super().networks(), **dict(zip(names, self.generators))}

    def marked_layers(self, network: str) -> List[int]:
        return self.config.generator_depths if network == "generator" else []

    def proposals(self, output: AmosOutput, batch: PretrainingBatch) -> Dict[str, Proposals]:
        names = (f"layer {name}" for name in self.config.depth_names())
        logits = full_precision(self.mlm_head(self.generate(batch)))
        return dict(zip(names, map(Proposals, logits, output.mixture_weights.T)))

    def corruptions(self, batch: PretrainingBatch) -> Dict[str, Corruption]:
        """One for each depth, as if the mixture were that depth."""
        projected = self.mlm_head.project(self.generate(batch))
        depths, masked, _ = projected.shape
        found = {}
        for index, name in enumerate(self.config.depth_names()):
            alone = F.one_hot(torch.full((masked,), index), depths).float()
            sampled = self.sample(projected, alone, batch.mlm_targets, self.sampling_noise(batch)).sampled
            found[f"layer {name}"] = corrupt(batch.original_tokens, batch.masked_positions, sampled)
        return found
