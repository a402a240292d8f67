"""Google ELECTRA's count of FLOPs, whose numbers the successors' tables continue (Clark et al., 2020).

Every elementary operation of the forward pass, table lookups as if they were products with one-hot vectors, an MLM head
at 20 of 128 positions. All of it is per token; symbols: h width, i feed-forward width, e width of the token table, V
vocabulary. What hardware computes is counted by `amos_fairseq.flops`.
"""

from amos_fairseq.modules.encoder import EncoderConfig

# Operations per element.
DROPOUT, LAYER_NORM, ACTIVATION, SOFTMAX = 4, 5, 8, 5
PREDICTED = 20 / 128  # share of the positions that an MLM head is charged for
TIED_DISCOUNT = 1 / 2  # of a layer that two networks share, one pass is charged with its backward half only


def block(config: EncoderConfig, length: int) -> float:
    """One layer: 24 h^2 + 4 h s with i = 4 h and sequences of s = length, and what is linear in h, i and s."""
    h, i = config.dim, config.ffn_dim
    after_each = h + DROPOUT * h + h + LAYER_NORM * h  # bias, dropout, residual sum, LayerNorm
    queries_keys_values = 6 * h * h + 3 * h
    attention = 4 * h * length + length * config.heads * (SOFTMAX + DROPOUT + 1)
    feed_forward = 4 * h * i + (1 + ACTIVATION) * i
    return queries_keys_values + attention + 2 * h * h + after_each + feed_forward + after_each


def input_embedding(config: EncoderConfig, length: int) -> float:
    """Token, position and segment tables as dense products, and the projection to the width of the layers."""
    h, e = config.dim, config.embedding_width
    projection = 2 * h * e + h if e != h else 0
    return 2 * e * config.vocab_size + 2 * e * (length + 2) + (2 + LAYER_NORM + DROPOUT) * e + projection


def network(config: EncoderConfig, length: int) -> float:
    return config.layers * block(config, length) + input_embedding(config, length)


def mlm_head(config: EncoderConfig) -> float:
    """At one position: dense layer to the table's width, GELU, LayerNorm, the product with the table, softmax."""
    h, e = config.dim, config.embedding_width
    return 2 * h * e + e + (ACTIVATION + LAYER_NORM) * e + output_layer(config)


def output_layer(config: EncoderConfig) -> float:
    """At one position: the product with the table, bias and softmax."""
    return 2 * config.embedding_width * config.vocab_size + (SOFTMAX + 2) * config.vocab_size


def detection_head(config: EncoderConfig) -> float:
    """Dense layer, GELU and the score: always charged with ELECTRA's hidden layer, as the papers do."""
    h = config.dim
    return 2 * h * h + h + ACTIVATION * h + 2 * h
