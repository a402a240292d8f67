"""What pre-training costs, counted in two ways: as google ELECTRA does for the papers' tables, and as hardware does.

`electra` is the convention of Clark et al. (2020), whose numbers the successors' tables continue: every elementary
operation of the forward pass, table lookups as if they were products with one-hot vectors, an MLM head at 20 of 128
positions, and a backward pass that costs as much as the forward pass. `hardware` is what MFU is measured with (see
`amos_fairseq.flops`): matrix products alone, a backward pass of twice the forward pass, lookups for nothing.

Everything of `electra` is per token. Its symbols: h width, a heads, i feed-forward width, s length of the sequence,
e width of the token table, V vocabulary.
"""

from typing import Callable, Dict, NamedTuple, Type

import torch

from amos_fairseq.methods import build, size_options
from amos_fairseq.methods.amos import Amos
from amos_fairseq.methods.base import GeneratorMethod, PretrainingBatch, PretrainingMethod, Vocabulary
from amos_fairseq.methods.coco_lm import CocoLM
from amos_fairseq.methods.electra import Electra
from amos_fairseq.methods.mlm import MaskedLM
from amos_fairseq.methods.peer import Peer
from amos_fairseq.methods.script import Script
from amos_fairseq.methods.teams import Teams
from amos_fairseq.modules.encoder import EncoderConfig

# Operations per element.
DROPOUT, LAYER_NORM, ACTIVATION, SOFTMAX = 4, 5, 8, 5
PREDICTED = 20 / 128  # share of the positions that an MLM head is charged for
TIED_DISCOUNT = 1 / 2  # of a layer that two networks share, one pass is charged with its backward half only


def block(config: EncoderConfig, length: int) -> float:
    """One layer: 24 h^2 + 4 h s with i = 4 h, and what is linear in h, i and s."""
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
    h, e, v = config.dim, config.embedding_width, config.vocab_size
    return 2 * h * e + e + (ACTIVATION + LAYER_NORM) * e + 2 * e * v + (SOFTMAX + 2) * v


def detection_head(config: EncoderConfig) -> float:
    """Dense layer, GELU and the score: always charged with ELECTRA's hidden layer, as the papers do."""
    h = config.dim
    return 2 * h * h + h + ACTIVATION * h + 2 * h


def electra(method: GeneratorMethod, length: int) -> float:
    """A generator with an MLM head and an encoder with a detection head: what most of the others are counted from."""
    generator, encoder = method.generator.config, method.encoder.config
    generating = network(generator, length) + PREDICTED * mlm_head(generator)
    return generating + network(encoder, length) + detection_head(encoder)


def masked_lm(method: MaskedLM, length: int) -> float:
    return network(method.encoder.config, length) + PREDICTED * mlm_head(method.encoder.config)


def amos(method: Amos, length: int) -> float:
    """Every generator tower, an MLM head for each depth, and the soft sample's product with the table (Sec. 3.3)."""
    encoder = method.encoder.config
    heads = len(method.config.generator_depths) * mlm_head(encoder)
    soft_sample = 2 * encoder.embedding_width * encoder.vocab_size if method.mixture_head is not None else 0
    towers = sum(network(tower.config, length) for tower in method.generators)
    return towers + PREDICTED * (heads + soft_sample) + network(encoder, length) + detection_head(encoder)


def coco_lm(method: CocoLM, length: int) -> float:
    """Generator, encoder on the corrupted and on the cropped sequence, corrective head without a dense layer."""
    encoder = method.encoder.config
    corrective = 2 * encoder.embedding_width * encoder.vocab_size + (SOFTMAX + 2) * encoder.vocab_size
    corrected = (1 if method.config.clm_all_tokens else PREDICTED) if method.clm_head is not None else 0
    cropped = method.cropping * network(encoder, round(method.cropping * length)) if method.config.scl_weight else 0
    return electra(method, length) + corrected * corrective + cropped


def peer(method: Peer, length: int) -> float:
    """ELECTRA with the paper's discount for tied layers; thresholds cost nothing."""
    discount = TIED_DISCOUNT * method.config.tied_depth() * block(method.encoder.config, length)
    return electra(method, length) - discount


def teams(method: Teams, length: int) -> float:
    """As PEER and the layer of the second branch; the selection head is not charged, as in the papers."""
    branch = block(method.encoder.config, length) if method.branch_layer is not None else 0
    return peer(method, length) + branch


def script(method: Script, length: int) -> float:
    """The encoder twice, its head at the selected positions, then at all of them."""
    encoder = method.encoder.config
    return 2 * network(encoder, length) + (PREDICTED + 1) * mlm_head(encoder)


FORWARD: Dict[Type[PretrainingMethod], Callable[[PretrainingMethod, int], float]] = {
    Amos: amos, CocoLM: coco_lm, Teams: teams, Peer: peer, Script: script, Electra: electra, MaskedLM: masked_lm,
}


class Geometry(NamedTuple):
    """What a run reads."""

    sequences: int  # per update
    length: int
    updates: int
    mask_prob: float = 0.15


def electra_flops(method: PretrainingMethod, length: int) -> float:
    """Training FLOPs per token, by ELECTRA's convention: the backward pass counts as one forward pass."""
    return 2 * FORWARD[type(method)](method, length)


def hardware_flops(method: PretrainingMethod, geometry: Geometry) -> float:
    """Training FLOPs per token, as the trainer's MFU counts them."""
    shape = geometry.sequences, geometry.length
    tokens = torch.empty(shape, dtype=torch.long, device="meta")
    cropped = tokens[:, : round(method.cropping * geometry.length)] if method.cropping else None
    masked = round(geometry.mask_prob * tokens.numel())
    batch = PretrainingBatch(tokens, tokens, tokens.bool(), tokens[0, :0], [masked], [], cropped_tokens=cropped)
    return method.training_flops(batch) / tokens.numel()


def without_memory(name: str, size: str, vocab_size: int, geometry: Geometry) -> PretrainingMethod:
    """The method of a size, its parameters without values."""
    options = {**size_options(name, size), "max_positions": geometry.length}
    with torch.device("meta"):
        return build(name, options, Vocabulary(vocab_size, 1, [0, 1, 2, 3]), total_updates=geometry.updates)
