"""The text encoder that every method trains: post-LN BERT with an optional relative position bias."""

from dataclasses import dataclass
from typing import List, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.modules.attention import DropoutKey, SelfAttention, aligned
from amos_fairseq.modules.initialization import LAYER_NORM_EPS, initialize
from amos_fairseq.modules.queries import Queries
from amos_fairseq.modules.relative_position import BUCKETINGS, RelativePositionBias
from amos_fairseq.modules.token_table import TokenTable
from amos_fairseq.ops import RelativeBias
from amos_fairseq.ops.implementation import attention_kernels
from amos_fairseq.ops.precision import compute_dtype
from amos_fairseq.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, check, option


@dataclass(frozen=True)
class EncoderConfig:
    padding_idx: int
    vocab_size: int = option(range=COUNT)
    layers: int = option(range=COUNT)
    dim: int = option(range=COUNT)
    heads: int = option(range=COUNT)
    ffn_dim: int = option(range=COUNT)
    embedding_dim: int = option(0, "width of the token table; 0: dim; else projected to dim", NOT_NEGATIVE)
    max_positions: int = option(512, range=COUNT)
    dropout: float = option(0.1, range=SHARE)
    attention_dropout: float = option(0.1, range=SHARE)
    activation_dropout: float = option(0.0, range=SHARE)
    rel_pos_buckets: int = option(32, "0: no relative position bias", NOT_NEGATIVE)
    rel_pos_max_distance: int = 128
    rel_pos_bucketing: str = option("t5", choices=BUCKETINGS)
    layer_norm_eps: float = option(LAYER_NORM_EPS, range=POSITIVE)

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.padding_idx < self.vocab_size:
            raise ValueError(f"padding_idx {self.padding_idx} is no row of a vocabulary of {self.vocab_size}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not divisible by heads {self.heads}: change one of them")
        if self.rel_pos_buckets and (self.rel_pos_buckets < 4 or self.rel_pos_buckets % 2):
            raise ValueError(f"rel_pos_buckets {self.rel_pos_buckets} must be even and at least 4, or 0 for none")
        if self.rel_pos_buckets and self.rel_pos_max_distance <= self.rel_pos_buckets // 2:
            raise ValueError(
                f"rel_pos_max_distance {self.rel_pos_max_distance} must exceed half of rel_pos_buckets "
                f"{self.rel_pos_buckets}: raise it or use fewer buckets"
            )

    @property
    def embedding_width(self) -> int:
        """Width of the token table, with `embedding_dim=0` resolved."""
        return self.embedding_dim or self.dim


class InputEmbeddings(nn.Module):
    """Adds learned absolute positions 0..T-1, LayerNorm, dropout, and a projection if the table has another width."""

    def __init__(
        self, max_positions: int, embedding_dim: int, dim: int, dropout: float = 0.0, eps: float = LAYER_NORM_EPS
    ):
        super().__init__()
        self.positions: TokenTable = nn.Embedding(max_positions, embedding_dim)
        self.layer_norm = nn.LayerNorm(embedding_dim, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(embedding_dim, dim) if embedding_dim != dim else nn.Identity()

    def forward(self, token_embeddings: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """token_embeddings: (B, T, E)   padding_mask: (B, T) bool, zero in the result   ->   (B, T, C)"""
        length, max_positions = token_embeddings.size(1), self.positions.num_embeddings
        if length > max_positions:
            raise ValueError(f"input of {length} tokens exceeds max_positions {max_positions}: truncate or raise it")
        hidden = self.layer_norm(token_embeddings + self.positions.weight[:length])
        hidden = self.projection(self.dropout(hidden))
        return hidden if padding_mask is None else hidden.masked_fill(padding_mask.unsqueeze(-1), 0.0)


class EncoderLayer(nn.Module):
    """x = LN(x + drop(attention(x)));  x = LN(x + drop(fc2(drop(gelu(fc1(x))))))"""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.self_attn = SelfAttention(config.dim, config.heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim)
        self.final_layer_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(
        self, hidden: Tensor, attention_bias: Tensor | RelativeBias | None = None, queries: Queries | None = None,
        key: DropoutKey | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); with `queries` their rows (M, C) of it, and no others are computed."""
        attended = self.self_attn(hidden, attention_bias, queries, key)
        if queries is not None:
            hidden = queries.rows(hidden)
        hidden = self.self_attn_layer_norm(hidden + self.dropout(attended))
        transformed = self.fc2(self.activation_dropout(F.gelu(self.fc1(hidden))))
        return self.final_layer_norm(hidden + self.dropout(transformed))


class PassKey(NamedTuple):
    """Names the attention dropout of one pass: where kernels draw it, a sequence's is the same in whichever batch."""

    seed: int  # 0 <= seed < 2**62, one for each (run, update, pass)
    sample_ids: Tensor  # (B,) int64


class LayerRun(NamedTuple):
    """An encoder's layers and what they are given in one pass beside the hidden states."""

    layers: nn.ModuleList
    attention_bias: Tensor | RelativeBias | None  # as `Encoder.attention_bias` gives it
    keys: List[Optional[DropoutKey]]  # of each layer, and of one `beside` the last

    def run(self, hidden: Tensor, start: int = 0, stop: int | None = None, at: Queries | None = None) -> Tensor:
        """Layers start..stop-1 (all by default) on hidden (B, T, C).

        With `at` = Queries.of(index, counts, T) the result is its rows at those positions, (M, C), and the last of the
        layers, of which there must be one, computes only what they need: keys and values of all positions, the rest of
        the selected ones.
        """
        layers = list(zip(self.layers, self.keys))[start:stop]
        for layer, key in layers if at is None else layers[:-1]:
            hidden = layer(hidden, self.attention_bias, None, key)
        if at is None:
            return hidden
        layer, key = layers[-1]
        return layer(hidden, self.attention_bias, at, key)

    def beside(self, layer: EncoderLayer, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C): a layer that is none of the encoder's, given what these are."""
        return layer(hidden, self.attention_bias, None, self.keys[-1])


def compile_layers(network: nn.Module, **options) -> None:
    """torch.compile, with its `options`, of every encoder layer in `network`; parameters keep their names.

    All layers share what is compiled: a graph for each width, with and without gradient, padding, dropout and queries,
    and the same for lengths and batches that vary.
    """
    from torch._dynamo import config  # seconds to import

    config.cache_size_limit = max(64, config.cache_size_limit)  # of graphs; after 8, the default, it would give up
    for module in network.modules():
        if isinstance(module, EncoderLayer):
            module.compile(**options)


class Encoder(nn.Module):
    """Post-LN BERT encoder; `forward` is `begin` and the run of all layers, which methods also call apart.

    `token_embeddings`: a table to share (it keeps its values); without it the encoder makes its own.
    """

    def __init__(self, config: EncoderConfig, token_embeddings: nn.Embedding | None = None):
        super().__init__()
        self.config = config
        width = config.embedding_width
        if token_embeddings is None:
            token_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.padding_idx)
            initialize(token_embeddings)
        if token_embeddings.weight.shape != (config.vocab_size, width):
            raise ValueError(
                f"shared token table is {tuple(token_embeddings.weight.shape)}, this encoder needs "
                f"({config.vocab_size}, {width}): set embedding_dim and vocab_size alike"
            )
        self.embeddings = InputEmbeddings(
            config.max_positions, width, config.dim, config.dropout, config.layer_norm_eps
        )
        self.relative_position_bias = None
        if config.rel_pos_buckets:
            self.relative_position_bias = RelativePositionBias(
                config.rel_pos_buckets, config.heads, config.rel_pos_max_distance, config.max_positions,
                config.rel_pos_bucketing,
            )
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.apply(initialize)
        self.token_embeddings: TokenTable = token_embeddings  # after `apply`: a shared table is not drawn again

    def share_bottom(self, other: "Encoder", layers: int) -> "Encoder":
        """Take `other`'s embedding network (tokens, positions, LayerNorm, projection) and its first `layers` layers.

        The modules are one: `parameters()` counts them once, and both networks' gradients and `other`'s dropout act in
        them. The relative position bias stays each network's own, for it also serves the layers above (TEAMS, whose
        sharing this is, has absolute positions only). Returns itself.
        """
        for name in ("vocab_size", "dim", "embedding_width", "heads", "ffn_dim", "max_positions"):
            own, others = getattr(self.config, name), getattr(other.config, name)
            if own != others:
                raise ValueError(f"{name} is {own} here and {others} in the network to share with: set them alike")
        if layers > min(len(self.layers), len(other.layers)):
            raise ValueError(f"cannot share {layers} layers of networks of {len(self.layers)} and {len(other.layers)}")
        self.token_embeddings = other.token_embeddings
        self.embeddings = other.embeddings
        for index in range(layers):
            self.layers[index] = other.layers[index]
        return self

    def forward(
        self, tokens: Tensor, padding_mask: Tensor | None = None, at: Queries | None = None, key: PassKey | None = None
    ) -> Tensor:
        """tokens: (B, T)   padding_mask: (B, T) bool   ->   last hidden state (B, T, C), or its rows `at` (M, C)

        Without any padding pass None: the bias is then one (H, T, T) block for the whole batch.
        """
        hidden, layers = self.begin(self.token_embeddings(tokens), padding_mask, key)
        return layers.run(hidden, at=at)

    def begin(
        self, token_embeddings: Tensor, padding_mask: Tensor | None = None, key: PassKey | None = None
    ) -> "tuple[Tensor, LayerRun]":
        """The first layer's input (B, T, C) from rows of the token table (B, T, E), and the layers to run on it."""
        hidden = self.embeddings(token_embeddings, padding_mask)
        bias = self.attention_bias(padding_mask, hidden.size(1))
        return hidden, LayerRun(self.layers, bias, self._keys(key, bias, hidden.device))

    def _keys(
        self, key: PassKey | None, bias: Tensor | RelativeBias | None, device: torch.device
    ) -> "List[Optional[DropoutKey]]":
        """Of each layer and one more, in one launch and without a wait; without `key`, by torch's generator."""
        number = len(self.layers) + 1
        if not (self.training and self.config.attention_dropout and isinstance(bias, RelativeBias)):
            return [None] * number
        if key is None:
            seeds = torch.randint(2**62, (2 * number,), device=device)
        else:
            seeds = torch.arange(key.seed, key.seed + 2 * number, device=device)
        # Every other one, which begins at a multiple of 16 bytes: compiled layers would copy what does not.
        return [DropoutKey(seed, key and key.sample_ids) for seed in seeds.view(-1, 2)[:, :1]]

    def attention_bias(self, padding_mask: Tensor | None, length: int) -> Tensor | RelativeBias | None:
        """Relative bias with -inf at padded keys, (1 or B, H or 1, T, T), `aligned`; None if there is neither.

        Where kernels read it by distance, it is a RelativeBias: no matrix.
        """
        weight = self.embeddings.layer_norm.weight
        dtype = compute_dtype(weight)  # the queries'
        hidden_keys = None
        if padding_mask is not None:
            # A row of nothing but padding may see all of itself: a softmax over no key at all is NaN.
            hidden_keys = padding_mask & ~padding_mask.all(dim=1, keepdim=True)
        width = self.config.dim // self.config.heads
        if self.relative_position_bias is not None and attention_kernels(weight.device.type, dtype, width, length):
            return self.relative_position_bias.by_distance(length, hidden_keys)
        bias = None
        if self.relative_position_bias is not None:
            bias = self.relative_position_bias(length).to(dtype)
        if hidden_keys is None:
            return bias if bias is None else aligned(bias)
        if bias is None:
            bias = torch.zeros(1, 1, length, length, dtype=dtype, device=weight.device)
        return aligned(bias.masked_fill(hidden_keys[:, None, None, :], float("-inf")))
