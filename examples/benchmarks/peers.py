"""The other sides, written from their published semantics: public AMOS code, Hugging Face's ELECTRA, fairseq's RoBERTa.

What another package provides is imported where it is used: whoever lacks it gets its ImportError as the row's reason.
Shapes: B sequences, T tokens, M selected positions, G generator depths, E embedding width, V vocabulary.
"""

import argparse
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.methods.amos import Amos
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import PretrainingConfig, Vocabulary
from amos_fairseq.modules.encoder import Encoder, EncoderLayer
from amos_fairseq.ops import use


def full(x: Tensor) -> Tensor:
    """fp32, or fp64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---- The vocabulary part of AMOS: G losses, a draw from the mixture, its embedding ----------------------------------


class Vocabularies(NamedTuple):
    """Inputs of the vocabulary part of an AMOS step, G heads at M selected positions."""

    hidden: Tensor  # (M, G, E) after the MLM head's projection
    scores: Tensor  # (M, G) whose softmax over depths are the mixture weights, fp32
    table: Tensor  # (V, E)
    bias: Tensor  # (V,)
    targets: Tensor  # (M,)
    temperature: float
    gumbel: Optional[Tensor] = None  # (M, V) noise to use in place of noise drawn on the spot
    sampled: Optional[Tensor] = None  # (M,) draws to use in place of the likeliest under the noise


class Drawn(NamedTuple):
    loss: Tensor  # () sum of the G heads' losses at all positions
    embeddings: Tensor  # (M, E) of the drawn tokens
    sampled: Tensor  # (M,)


class _Multiply(torch.autograd.Function):
    """Identity forward, `scale` times the gradient backward."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.scale * gradient, None


class _LookUp(torch.autograd.Function):
    """one_hot @ table as a lookup; backward as of the product, for the soft one-hot has a gradient."""

    @staticmethod
    def forward(ctx, one_hot: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, table)
        return table[tokens]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        tokens, table = ctx.saved_tensors
        return gradient @ table.T, None, torch.zeros_like(table).index_add_(0, tokens, gradient)


def multiply_gradient(x: Tensor, scale: float) -> Tensor:
    return _Multiply.apply(x, scale)


def heads_and_mixture(x: Vocabularies) -> Tuple[Tensor, Tensor]:
    """() summed losses, and (M, V) mixture of the heads' logits whose gradient reaches the mixture weights alone."""
    heads = [F.linear(hidden, x.table, x.bias) for hidden in x.hidden.unbind(1)]
    log_probabilities = [full(logits).log_softmax(-1) for logits in heads]
    loss = sum(F.nll_loss(row, x.targets, reduction="sum") for row in log_probabilities)
    stacked = torch.stack([logits.detach() for logits in heads], dim=-1)  # (M, V, G)
    weights = x.scores.softmax(-1).to(stacked.dtype)
    return loss, (stacked @ weights.unsqueeze(-1)).squeeze(-1)


def hard_gumbel_softmax(x: Vocabularies, logits: Tensor) -> Tensor:
    """(M, V) one-hot of the draw, with the soft draw's gradient."""
    gumbel = torch.empty_like(logits).exponential_().log().neg() if x.gumbel is None else x.gumbel
    soft = ((logits + gumbel) / x.temperature).softmax(-1)
    index = soft.max(-1, keepdim=True)[1] if x.sampled is None else x.sampled.unsqueeze(-1)
    hard = torch.zeros_like(logits).scatter_(-1, index, 1.0)
    return hard - soft.detach() + soft


def public_vocabulary(x: Vocabularies) -> Drawn:
    """The public AMOS forward: all logits and log-probabilities, one-hot draws, their product with the table."""
    loss, logits = heads_and_mixture(x)
    one_hot = hard_gumbel_softmax(x, full(logits)).to(x.table.dtype)
    tokens = one_hot.argmax(-1)
    return Drawn(loss, multiply_gradient(one_hot, -1.0) @ x.table, tokens)


def lookup_vocabulary(x: Vocabularies) -> Drawn:
    """The same, with F.gumbel_softmax (which takes no noise) and a lookup in place of the product with the one-hot."""
    loss, logits = heads_and_mixture(x)
    if x.gumbel is None:
        one_hot = F.gumbel_softmax(full(logits), x.temperature, hard=True)
    else:
        one_hot = hard_gumbel_softmax(x, full(logits))
    tokens = one_hot.argmax(-1)
    embeddings = _LookUp.apply(multiply_gradient(one_hot, -1.0).to(x.table.dtype), tokens, x.table)
    return Drawn(loss, embeddings, tokens)


# ---- Linear cross entropy: (hidden (M, E), table (V, E), bias (V,), targets (M,)) -> () sum of the losses -----------


def eager_cross_entropy(hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(full(F.linear(hidden, table, bias)), targets, reduction="sum")


def torch_cross_entropy(chunking_method: Optional[str]) -> Callable:
    """F.linear_cross_entropy of torch >= 2.13 in chunks of its own choice or, without a method, all rows at once."""

    def cross_entropy(hidden, table, bias, targets):
        options = nn.LinearCrossEntropyOptions(chunking_method=chunking_method)
        return F.linear_cross_entropy(hidden, table, targets, linear_bias=bias, reduction="sum", options=options)

    return cross_entropy


def liger_cross_entropy(hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(table, hidden, targets, bias)


def cut_cross_entropy(hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, table, targets, bias=bias, reduction="sum", impl="cce_kahan_full_c")


# ---- Whole steps: modules whose forward(batch) is the loss ----------------------------------------------------------


class PublicAmos(nn.Module):
    """The public AMOS forward on the parameters of a method of ours, with the criterion's loss.

    Attention scores, and the relative bias repeated for every sequence, are materialised; selected positions are found
    by boolean masks; the vocabulary part is `public_vocabulary`. Sequences without padding only.
    """

    def __init__(self, method: Amos):
        super().__init__()
        self.method = method

    def forward(self, batch: PretrainingBatch, gumbel: Optional[Tensor] = None) -> Tensor:
        method, masked = self.method, batch.masked_positions
        table, head = method.encoder.token_embeddings, method.mlm_head
        depths, (tower,) = method.config.generator_depths, method.generators
        features = public_layers(tower, table(batch.masked_tokens), read_after=depths)
        features = torch.stack([hidden[masked] for hidden in features], dim=1)  # (M, G, C)
        scores = full(method.mixture_head(features).squeeze(-1))
        targets = batch.original_tokens[masked]
        temperature = method.config.gumbel_temperature
        drawn = public_vocabulary(
            Vocabularies(head.project(features), scores, table.weight, head.bias, targets, temperature, gumbel)
        )
        corrupted, embeddings = batch.masked_tokens.clone(), table(batch.masked_tokens)
        corrupted[masked] = drawn.sampled
        embeddings[masked] = drawn.embeddings
        (hidden,) = public_layers(method.encoder, embeddings, read_after=[len(method.encoder.layers)])
        original = full((corrupted == batch.original_tokens).to(hidden.dtype))
        rtd_loss = F.binary_cross_entropy_with_logits(full(method.rtd_head(hidden)), original)
        return drawn.loss / len(targets) + method.config.rtd_weight * rtd_loss


def public_layers(network: Encoder, embeddings: Tensor, read_after: List[int]) -> List[Tensor]:
    """Hidden states (B, T, C) after the given numbers of layers; the gradient is cut after each."""
    hidden, _ = network.begin(embeddings)
    with use("pytorch"):  # the bias as a matrix
        bias = network.attention_bias(None, hidden.size(1)).repeat(len(hidden), 1, 1, 1).flatten(0, 1)  # (B * H, T, T)
    states = []
    for count, layer in enumerate(network.layers, start=1):
        hidden = public_layer(layer, hidden, bias)
        if count in read_after:
            states.append(hidden)
            hidden = hidden.detach()
    return states


def public_layer(layer: EncoderLayer, hidden: Tensor, bias: Tensor) -> Tensor:
    attention = layer.self_attn
    query, key, value = (
        part.unflatten(-1, (attention.heads, -1)).transpose(1, 2).flatten(0, 1)
        for part in attention.in_proj(hidden).chunk(3, -1)
    )
    attended = materialised_attention(query, key, value, bias, attention.dropout * attention.training)
    attended = attended.unflatten(0, (-1, attention.heads)).transpose(1, 2).flatten(2)
    hidden = layer.self_attn_layer_norm(hidden + layer.dropout(attention.out_proj(attended)))
    hidden[hidden != hidden] = 0  # as there: an attention of padding alone is NaN
    return layer.final_layer_norm(hidden + layer.dropout(layer.fc2(F.gelu(layer.fc1(hidden)))))


def materialised_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """query, key, value: (N, T, D)   bias: (N, T, T)   ->   (N, T, D); softmax in fp32."""
    scores = torch.bmm(query * query.size(-1) ** -0.5, key.transpose(1, 2)) + bias
    return torch.bmm(F.dropout(full(scores).softmax(-1).to(scores.dtype), dropout), value)


class HuggingFaceElectra(nn.Module):
    """ElectraForMaskedLM and ElectraForPreTraining on one token table, replacements by Gumbel-max.

    Its generator returns logits at all positions; with `selected_only` its parts are called as an expert would, with
    the MLM head at the selected positions alone.
    """

    def __init__(self, config: PretrainingConfig, vocabulary: Vocabulary, selected_only: bool):
        super().__init__()
        from amos_fairseq.export.huggingface import import_transformers

        transformers = import_transformers()
        self.selected_only, self.rtd_weight = selected_only, config.rtd_weight
        width = config.generator_embed_dim
        common = dict(
            vocab_size=vocabulary.size,
            embedding_size=config.token_embed_dim or config.encoder_embed_dim,
            max_position_embeddings=config.max_positions,
            pad_token_id=vocabulary.padding,
            layer_norm_eps=1e-5,
        )
        generator = transformers.ElectraConfig(
            **common,
            hidden_size=width,
            num_hidden_layers=config.generator_layers or config.encoder_layers,
            num_attention_heads=max(1, width // 64),
            intermediate_size=4 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        discriminator = transformers.ElectraConfig(
            **common,
            hidden_size=config.encoder_embed_dim,
            num_hidden_layers=config.encoder_layers,
            num_attention_heads=config.encoder_attention_heads,
            intermediate_size=config.encoder_ffn_embed_dim,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.attention_dropout,
        )
        self.generator = transformers.ElectraForMaskedLM(generator)
        self.discriminator = transformers.ElectraForPreTraining(discriminator)
        self.generator.set_input_embeddings(self.discriminator.get_input_embeddings())
        self.generator.tie_weights()

    def forward(self, batch: PretrainingBatch, gumbel: Optional[Tensor] = None) -> Tensor:
        masked = batch.masked_positions
        targets = batch.original_tokens[masked]
        if self.selected_only:
            hidden = self.generator.electra(batch.masked_tokens).last_hidden_state[masked]
            logits = self.generator.generator_lm_head(self.generator.generator_predictions(hidden))
            mlm_loss = F.cross_entropy(full(logits), targets)
        else:
            labels = batch.original_tokens.masked_fill(~masked, -100)
            output = self.generator(batch.masked_tokens, labels=labels)
            logits, mlm_loss = output.logits[masked], output.loss
        with torch.no_grad():
            if gumbel is None:
                gumbel = torch.empty_like(full(logits)).exponential_().log().neg()
            corrupted = batch.original_tokens.masked_scatter(masked, (full(logits) + gumbel).argmax(-1))
        replaced = (corrupted != batch.original_tokens).long()
        return mlm_loss + self.rtd_weight * self.discriminator(corrupted, labels=replaced).loss


class FairseqRoberta(nn.Module):
    """fairseq's RobertaEncoder with the loss of its masked_lm criterion, as a mean."""

    def __init__(self, config: PretrainingConfig, vocabulary: Vocabulary):
        super().__init__()
        from fairseq.data import Dictionary
        from fairseq.models.roberta.model import RobertaEncoder

        dictionary = Dictionary()
        for index in range(len(dictionary), vocabulary.size):
            dictionary.add_symbol(f"word{index}")
        names = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
        sizes = {f"encoder_{name}": getattr(config, f"encoder_{name}") for name in names}
        dropouts = {name: getattr(config, name) for name in ("dropout", "attention_dropout", "activation_dropout")}
        self.encoder = RobertaEncoder(
            argparse.Namespace(**sizes, **dropouts, max_positions=config.max_positions), dictionary
        )

    def forward(self, batch: PretrainingBatch) -> Tensor:
        logits, _ = self.encoder(batch.masked_tokens, masked_tokens=batch.masked_positions)
        return F.cross_entropy(full(logits), batch.original_tokens[batch.masked_positions])


CROSS_ENTROPIES: Dict[str, Callable] = {
    "eager": eager_cross_entropy,
    "F.linear_cross_entropy, one chunk": torch_cross_entropy(None),
    "F.linear_cross_entropy, its chunks": torch_cross_entropy("auto"),
    "Liger": liger_cross_entropy,
    "cut-cross-entropy": cut_cross_entropy,
}
