"""Methods with a generator beside the encoder: their options, what the two share, and how each of them is trained."""

import copy
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple, Type, TypeVar, cast

import torch
from torch import Tensor, nn

from amos_fairseq import reference_flops as reference
from amos_fairseq.flops import BACKWARD_AND_FORWARD
from amos_fairseq.methods.base import Config, Look, Output, PretrainingMethod, Start
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import JudgingConfig, PretrainingConfig, Vocabulary, heads_of_generator
from amos_fairseq.methods.continuation import MODULES_OF_GENERATOR
from amos_fairseq.methods.generator_first import check_same_width, start_of
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.modules.heads import MaskedLMHead
from amos_fairseq.modules.token_table import DisentangledTable, folded
from amos_fairseq.objectives import LossTerm, mlm_loss
from amos_fairseq.ops import MaskedLMReading
from amos_fairseq.options import NOT_NEGATIVE, POSITIVE, SHARE, option

TIED_SHARES = {"none": 0.0, "half": 0.5, "all": 1.0}  # of a generator's layers, from the bottom
SharedGenerator = TypeVar("SharedGenerator", bound="SharedGeneratorConfig")


@dataclass
class TwoNetworksConfig(JudgingConfig):
    """Options of the methods that have a generator beside the encoder."""

    generator_warmup_updates: int = option(
        0, "first updates in which only the generator runs and learns (validation shows the untrained encoder, too); "
        "then its tower is copied into the encoder, as far as it goes, and all learn. 0: all from the start",
        NOT_NEGATIVE,
    )
    generator_warmup_without_copy: bool = option(
        False, "leave the encoder as it is when the generator's warm-up ends"
    )
    encoder_lr_factor: float = option(
        1.0, "times the learning rate for the encoder with its heads, but not for what it shares with the generator",
        POSITIVE,
    )
    generator_lr_factor: float = option(
        1.0, "times the learning rate for the generator with its heads, but not for what it shares with the encoder",
        POSITIVE,
    )
    detection_bias_init: str = option(
        "zero",
        "start of the logit of 'original'. prior: log (1 - p) / p with p = mask-prob, about the share of tokens that "
        "an untrained generator replaces",
        choices=("zero", "prior"),
    )
    token_table: str = option(
        "shared",
        "token table of the encoder. shared: the generator's, with the gradients of both; separate: its own, equal to "
        "the generator's at the start; gdes: stop_gradient(the generator's) + a difference of its own that starts at 0 "
        "(DeBERTaV3, arXiv:2111.09543, Sec. 3.3). Either of the last two costs a table's parameters, and no other "
        "module is shared then", choices=("shared", "separate", "gdes"),
    )
    gdes_positions: bool = option(
        False, "with token_table gdes: also the encoder's positions are the generator's and a difference"
    )
    generator_checkpoint: str = option(
        "", "checkpoint of a run whose generator is used without dropout and no longer trained (COCO-LM, Table 3, "
        "converged auxiliary; Fast-ELECTRA, arXiv:2310.07347); the encoder's table is then its own, or gdes", path=True,
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("init_checkpoint", "init_encoder_from_generator"):
            if getattr(self, name) and self.generator_warmup_updates and not self.generator_warmup_without_copy:
                raise ValueError(
                    f"generator_warmup_updates {self.generator_warmup_updates} would replace the encoder of {name} "
                    f"{getattr(self, name)!r}: leave one out, or set generator_warmup_without_copy"
                )
        if not self.generator_warmup_updates:
            self.refuse_idle(["generator_warmup_without_copy"], "generator_warmup_updates 0")
        if self.gdes_positions and self.token_table != "gdes":
            raise ValueError(f"gdes_positions needs token_table gdes, got {self.token_table}: set it, or leave it out")
        for name, unset in (("output_bias_init", "zero"), ("generator_warmup_updates", 0)):
            if self.generator_checkpoint and getattr(self, name) != unset:
                raise ValueError(
                    f"{name} {getattr(self, name)} is of a generator that is trained, not of generator_checkpoint "
                    f"{self.generator_checkpoint!r}: leave one out"
                )
        if self.init_encoder_from_generator and self.token_table == "gdes":
            raise ValueError(
                f"token_table gdes follows this run's generator, not that of init_encoder_from_generator "
                f"{self.init_encoder_from_generator!r}: leave one out, or choose separate"
            )
        if self.generator_checkpoint and self.init_checkpoint and self.token_table == "gdes":
            raise ValueError(
                f"token_table gdes cannot start from the tables of both init_checkpoint {self.init_checkpoint!r} and "
                f"generator_checkpoint {self.generator_checkpoint!r}: leave one out, or choose separate"
            )

    def shares_table(self) -> bool:
        """Whether the generator trains the encoder's token table, and may share more with it."""
        return self.token_table == "shared" and not self.generator_checkpoint


@dataclass
class DetectionConfig(TwoNetworksConfig):
    """Options of the methods whose encoder detects replaced tokens."""

    rtd_weight: float = option(50.0, "weight of replaced token detection in the loss", NOT_NEGATIVE)
    rtd_head_hidden_layer: bool = option(False, "detect with dense + GELU + linear (ELECTRA), not one linear layer")


@dataclass
class GeneratorConfig(DetectionConfig):
    """One generator: narrow and of full depth (ELECTRA), or shallow and of full width (COCO-LM, Sec. 3.3)."""

    generator_layers: int = option(0, "layers of the generator; 0: as many as the encoder", NOT_NEGATIVE)
    generator_embed_dim: int = option(256, "width of the generator; 0: the encoder's", NOT_NEGATIVE)
    generator_dropout: float = option(
        0.0, "dropout of the generator; above 0 a second pass without it is sampled from", SHARE
    )


@dataclass
class SharedGeneratorConfig(TwoNetworksConfig):
    """A generator as wide as the encoder, on the encoder's embedding network and bottom layers (TEAMS, Sec. 3.2)."""

    generator_layers: int = option(
        0, "layers of the generator, which is as wide as the encoder; 0: half the encoder's", NOT_NEGATIVE
    )
    generator_dropout: float = option(
        0.1, "dropout of the generator's own layers, those it shares having the encoder's; above 0 a second pass "
        "without any is sampled from. 0: none in any of its layers", SHARE,
    )
    tied_layers: str = option(
        "half", "bottom layers of the generator that are the encoder's, too: none | half | all", choices=TIED_SHARES
    )

    def __post_init__(self):
        super().__post_init__()
        if self.tied_depth() > self.encoder_layers:
            raise ValueError(
                f"generator_layers {self.generator_layers} with tied_layers {self.tied_layers} are {self.tied_depth()} "
                f"layers to tie, more than encoder_layers {self.encoder_layers}: lower generator_layers or tie fewer"
            )
        if self.tied_layers != "none" and not self.shares_table():
            cause = "generator_checkpoint" if self.generator_checkpoint else f"token_table {self.token_table}"
            raise ValueError(f"{cause} leaves no layers to share: set tied_layers none, not {self.tied_layers}")

    def generator_depth(self) -> int:
        return self.generator_layers or max(1, self.encoder_layers // 2)

    def tied_depth(self) -> int:
        """How many layers generator and encoder share."""
        return int(TIED_SHARES[self.tied_layers] * self.generator_depth())


class TwoNetworksMethod(PretrainingMethod[Config, Output]):
    """A method with a generator beside the encoder: what they share, and whether the generator is trained."""

    config_class: Type[PretrainingConfig] = TwoNetworksConfig
    generator_modules: Tuple[str, ...] = MODULES_OF_GENERATOR

    @property
    def samples_in_second_pass(self) -> bool:
        """Whether the logits of training, having dropout, are not those to draw from."""
        return False

    @property
    def two_networks(self) -> TwoNetworksConfig:
        return cast(TwoNetworksConfig, self.config)

    @property
    def frozen_generator(self) -> bool:
        """Whether the generator is an earlier run's, which this one does not train."""
        return bool(self.two_networks.generator_checkpoint)

    def idle_parameters(self) -> List[nn.Parameter]:
        named = self.named_parameters(remove_duplicate=False)
        learn = {parameter for name, parameter in named if name.split(".")[0] in MODULES_OF_GENERATOR}
        return [parameter for parameter in self.parameters() if parameter.requires_grad and parameter not in learn]

    def encoder_start(self) -> Start:
        copied = not self.two_networks.generator_warmup_without_copy
        return start_of(self.encoder, dict(self.masked_lm_encoder.named_parameters()) if copied else {})

    def table_of_generator(self) -> nn.Embedding:
        """The token table to make the generator on; heads on the encoder's table are made afterwards."""
        table, config = cast(nn.Embedding, self.encoder.token_embeddings), self.two_networks
        if config.token_table == "gdes":
            self.encoder.token_embeddings = DisentangledTable(table)
        elif not config.shares_table():
            return copy.deepcopy(table)
        return table

    def finish_generator(self) -> None:
        """Called once the generator and its head are made."""
        if self.two_networks.gdes_positions:
            positions = cast(nn.Embedding, self.masked_lm_encoder.embeddings.positions)
            self.encoder.embeddings.positions = DisentangledTable(positions)
        if self.frozen_generator:
            for name in MODULES_OF_GENERATOR:
                if hasattr(self, name):
                    getattr(self, name).requires_grad_(False)

    def generator_terms(self, masked_lm: MaskedLMReading) -> Dict[str, LossTerm]:
        """The generator's loss; none if it is frozen."""
        return {} if self.frozen_generator else {"mlm": mlm_loss(masked_lm)}

    def exported_encoder(self) -> Encoder:
        return folded(self.encoder) if self.two_networks.token_table == "gdes" else self.encoder

    def forward_flops(self, tokens: int, length: int, masked: int) -> int:
        return self.generator_flops(tokens, length, masked) + self.network_flops(self.encoder, tokens, length)

    def training_flops(self, batch: PretrainingBatch) -> int:
        """Of a frozen generator the forward pass alone; of one with dropout also the pass that is sampled from."""
        flops, length = super().training_flops(batch), batch.original_tokens.size(1)
        passes = 1 - BACKWARD_AND_FORWARD if self.frozen_generator else int(self.samples_in_second_pass)
        if passes:
            flops += passes * self.generator_flops(batch.original_tokens.numel(), length, sum(batch.num_masked))
        return flops


class GeneratorMethod(TwoNetworksMethod[Config, Output]):
    """A method with one generator that has an MLM head, and whose draws pass no gradient."""

    config_class: Type[PretrainingConfig] = GeneratorConfig

    def add_generator(self, vocabulary: Vocabulary) -> None:
        """Make `generator` and `mlm_head`."""
        config, token_embeddings = cast(GeneratorConfig, self.config), self.table_of_generator()
        dropout = 0.0 if self.frozen_generator else config.generator_dropout
        dim = config.generator_embed_dim or config.encoder_embed_dim
        heads = heads_of_generator(config.generator_embed_dim, config.encoder_attention_heads)
        if config.generator_embed_dim and dim % heads:
            raise ValueError(f"generator_embed_dim {dim} cannot be divided by its {heads} heads: take a multiple of 64")
        generator_config = config.encoder_config(
            vocabulary, layers=config.generator_layers or config.encoder_layers, dim=dim, heads=heads,
            ffn_dim=4 * dim if config.generator_embed_dim else config.encoder_ffn_embed_dim, dropout=dropout,
            attention_dropout=dropout, activation_dropout=0.0,
        )
        if config.generator_warmup_updates and not config.generator_warmup_without_copy:
            check_same_width("generator_warmup_updates", generator_config, self.encoder.config)
        self.generator = Encoder(generator_config, token_embeddings)
        self.mlm_head = MaskedLMHead(dim, token_embeddings, config.layer_norm_eps)
        self.finish_generator()

    @property
    def masked_lm_encoder(self) -> Encoder:
        return self.generator

    def networks(self) -> Dict[str, Encoder]:
        return {**super().networks(), "generator": self.generator}

    def generate(self, batch: PretrainingBatch, look: Optional[Look] = None) -> MaskedLMReading:
        """The generator's losses and predictions at the selected positions, and a draw; `look`: see `masked_lm`."""
        return self.read(self.mlm_head.project(self.masked_lm_states(batch)), batch, look)

    def read(self, projected: Tensor, batch: PretrainingBatch, look: Optional[Look] = None) -> MaskedLMReading:
        """`generate` from the generator's states as the token table reads them, (M, E)."""
        return self.mlm_head.read(
            projected, batch.mlm_targets, excluded=self.excluded_tokens, noise=self.sampling_noise(batch),
            draw_temperature=self.draw_temperature, look=look,
        )

    @property
    def samples_in_second_pass(self) -> bool:
        """Whether the logits of training, having dropout, are not those to draw from."""
        generator = self.generator  # whose embedding network may be the encoder's, dropout included
        return self.training and max(generator.config.dropout, generator.embeddings.dropout.p) > 0

    @torch.no_grad()
    def without_dropout(
        self, masked_lm: MaskedLMReading, batch: PretrainingBatch, look: Optional[Look] = None
    ) -> MaskedLMReading:
        """The reading to draw from: of a second pass, if `masked_lm` is of one with dropout."""
        if not self.samples_in_second_pass:
            return masked_lm
        self.generator.eval()
        reading = self.generate(batch, look)
        self.generator.train()
        return reading

    def reference_flops(self, length: int) -> float:
        """ELECTRA's: also a detection head on the encoder."""
        return super().reference_flops(length) + reference.detection_head(self.encoder.config)

    def generator_flops(self, tokens: int, length: int, masked: int) -> int:
        return self.network_flops(self.generator, tokens, length, masked) + self.head_flops(self.mlm_head, masked)


class SharedGeneratorMethod(GeneratorMethod[SharedGenerator, Output]):
    """A method whose generator and encoder share the embedding network and bottom layers (TEAMS, PEER).

    What is shared runs twice and gets both gradients.
    """

    config_class: Type[PretrainingConfig] = SharedGeneratorConfig

    def __init__(self, config: SharedGenerator, vocabulary: Vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        dropout = 0.0 if self.frozen_generator else config.generator_dropout
        generator_config = config.encoder_config(
            vocabulary, layers=config.generator_depth(), dropout=dropout, attention_dropout=dropout,
            activation_dropout=0.0,
        )
        table = self.table_of_generator()
        self.generator = Encoder(generator_config, table)
        if config.shares_table():
            self.generator.share_bottom(self.encoder, config.tied_depth())
        self.mlm_head = MaskedLMHead(config.encoder_embed_dim, table, config.layer_norm_eps)
        self.finish_generator()

    @property
    def samples_in_second_pass(self) -> bool:
        return self.training and self.generator.config.dropout > 0

    def masked_lm_states(self, batch: PretrainingBatch) -> Tensor:
        if self.generator.config.dropout:
            return super().masked_lm_states(batch)
        self.generator.eval()  # the layers shared with the encoder have its dropout
        states = super().masked_lm_states(batch)
        self.generator.train(self.training)
        return states

    def reference_flops(self, length: int) -> float:
        """With the papers' discount for tied layers."""
        tied = self.config.tied_depth() * reference.block(self.encoder.config, length)
        return super().reference_flops(length) - reference.TIED_DISCOUNT * tied
