"""What can be set of every method's encoder: options and sizes."""

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Sequence

from amos_fairseq.modules.encoder import EncoderConfig
from amos_fairseq.modules.initialization import LAYER_NORM_EPS
from amos_fairseq.modules.relative_position import BUCKETINGS
from amos_fairseq.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, check, option

# The encoder of each size; a method adds its generator's values in its `sizes`.
ENCODER_SIZES = {
    "tiny": dict(encoder_layers=2, encoder_embed_dim=128, encoder_ffn_embed_dim=512, encoder_attention_heads=4),
    "small": dict(
        encoder_layers=12, encoder_embed_dim=256, encoder_ffn_embed_dim=1024, encoder_attention_heads=4,
        token_embed_dim=128,
    ),
    "base": dict(encoder_layers=12, encoder_embed_dim=768, encoder_ffn_embed_dim=3072, encoder_attention_heads=12),
    "large": dict(encoder_layers=24, encoder_embed_dim=1024, encoder_ffn_embed_dim=4096, encoder_attention_heads=16),
}
HEAD_WIDTH = 64  # width of an attention head of a generator of its own width, as in ELECTRA
LR_FACTOR = "_lr_factor"  # ends the options that multiply the learning rate of a group


def heads_of_generator(width: int, encoder_heads: int) -> int:
    """Attention heads of a generator of a width of its own, or of the encoder's if that is 0."""
    return max(1, width // HEAD_WIDTH) if width else encoder_heads


class Vocabulary(NamedTuple):
    """What the networks need to know of a dictionary."""

    size: int
    padding: int
    excluded: List[int]  # ids that are never drawn: specials, `<mask>`, padding, fillers

    @classmethod
    def of(cls, tokenizer) -> "Vocabulary":
        """Of what has a length, `pad` and `excluded`."""
        return cls(len(tokenizer), tokenizer.pad, tokenizer.excluded)


# fairseq reads these annotations: typing's List and Optional, never `list[int]` or `int | None`.
@dataclass
class PretrainingConfig:
    """The encoder, which is what pre-training keeps. Names are those of fairseq's own models where it has them."""

    encoder_layers: int = option(12, "layers of the encoder", COUNT)
    encoder_embed_dim: int = option(768, "width of the encoder", COUNT)
    encoder_ffn_embed_dim: int = option(3072, "width of the encoder's feed-forward layers", COUNT)
    encoder_attention_heads: int = option(12, "attention heads of the encoder", COUNT, unseen=True)
    token_embed_dim: int = option(
        0, "width of the shared token table, projected to each network's width; 0: encoder's", NOT_NEGATIVE
    )
    max_positions: int = option(512, "longest sequence that the learned positions cover", COUNT)
    dropout: float = option(0.1, "dropout after embeddings, attention and feed-forward layers of the encoder", SHARE)
    attention_dropout: float = option(0.1, "dropout on the encoder's attention probabilities", SHARE)
    activation_dropout: float = option(0.0, "dropout after the encoder's GELU", SHARE)
    rel_pos_buckets: int = option(32, "buckets of the T5 relative position bias; 0: no relative bias", NOT_NEGATIVE)
    rel_pos_max_distance: int = option(128, "distance from which all pairs share the last bucket", unseen=True)
    rel_pos_bucketing: str = option(
        "t5", "t5, or released for that of Microsoft's AMOS and COCO-LM checkpoints", choices=BUCKETINGS, unseen=True
    )
    layer_norm_eps: float = option(
        LAYER_NORM_EPS, "added to the variance in every LayerNorm of the networks and the MLM head; public BERT and "
        "ELECTRA have 1e-12", POSITIVE, unseen=True,
    )
    rel_pos_lr_factor: float = option(
        1.0, "times the learning rate for relative position biases, of every network: they start at std 0.02 and move "
        "by about the rate per update, while useful ones are of size 1; 100 where runs are short", POSITIVE,
    )
    init_checkpoint: str = option(
        "", "checkpoint of an earlier run, of any method, to start from: its encoder and, where it fits, its generator",
        path=True,
    )
    init_encoder_from_generator: str = option(
        "", "checkpoint of an earlier run, of any method, whose generator the encoder starts from: embeddings, "
        "relative position bias and layers from the bottom up; it must be as wide as the encoder",
        path=True,
    )
    compile_layers: bool = option(
        False, "torch.compile the layers (torch 2.5, a C++ compiler): less memory traffic, for minutes of compilation",
        free=True,
    )

    output_bias_init: str = option(
        "zero",
        "start of the masked LM's output bias. log_frequency: log (c + 1) / (sum of c + V), c being a token's count in "
        "the prepared data, 0 for what is never drawn: specials, <mask>, fillers",
        choices=("zero", "log_frequency"),
    )

    def __post_init__(self):
        check(self)
        if self.init_checkpoint and self.init_encoder_from_generator:
            raise ValueError(
                f"init_encoder_from_generator {self.init_encoder_from_generator!r} would replace the encoder of "
                f"init_checkpoint {self.init_checkpoint!r}: leave one out"
            )

    def refuse_idle(self, names: Sequence[str], condition: str) -> None:
        """Raises ValueError for an option that changes nothing on this condition, unless it has its default."""
        for name in names:
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"{name} {value} changes nothing with {condition}: leave it out")

    def lr_factors(self) -> Dict[str, float]:
        """By option: see `PretrainingMethod.learning_rate_groups`."""
        return {name: value for name, value in vars(self).items() if name.endswith(LR_FACTOR)}

    def encoder_config(self, vocabulary: Vocabulary, **changes) -> EncoderConfig:
        """The encoder's shape; `changes` make a generator's shape of it."""
        values = dict(
            vocab_size=vocabulary.size, padding_idx=vocabulary.padding, layers=self.encoder_layers,
            dim=self.encoder_embed_dim, heads=self.encoder_attention_heads, ffn_dim=self.encoder_ffn_embed_dim,
            embedding_dim=self.token_embed_dim or self.encoder_embed_dim, max_positions=self.max_positions,
            dropout=self.dropout, attention_dropout=self.attention_dropout, activation_dropout=self.activation_dropout,
            rel_pos_buckets=self.rel_pos_buckets, rel_pos_max_distance=self.rel_pos_max_distance,
            rel_pos_bucketing=self.rel_pos_bucketing, layer_norm_eps=self.layer_norm_eps,
        )
        return EncoderConfig(**{**values, **changes})


@dataclass
class JudgingConfig(PretrainingConfig):
    """Options of the methods whose encoder judges replaced tokens, by detection or a relative of it."""

    rtd_warmup_updates: int = option(
        0, "N, first updates in which the weight of detection, ranking, critic and word selection rises: u / N times "
        "the whole at update u = 0, 1, .., counted from the end of generator-warmup-updates; 0: whole from the start",
        NOT_NEGATIVE,
    )
    detection_on_words: bool = option(
        False, "take the mean of detection, ranking or critic over words only: <s> and </s>, never replaced unless "
        "mask-special-tokens, are 2 of every block's tokens and easy"
    )
    sampling_temperature: float = option(
        1.0, "T, replacements are drawn from softmax(logits / T) in training: above 1 the generator's worse guesses, "
        "which are easier to detect (Fast-ELECTRA, arXiv:2310.07347, lets T fall); validation: 1", POSITIVE,
    )
    sampling_temperature_decay: float = option(
        0.0, "tau, lets the temperature fall to 1: at update u of U it is 1 + (T - 1) exp(-u / (tau U)); 0: constant",
        NOT_NEGATIVE,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.sampling_temperature == 1.0:
            self.refuse_idle(["sampling_temperature_decay"], "sampling_temperature 1.0")
