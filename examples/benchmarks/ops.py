"""The operations of this package beside others' ways to compute the same, forward and backward:

    python examples/benchmarks/ops.py --out ops.json            a few minutes on two cores
    python examples/benchmarks/ops.py --quick --only vocabulary

Needs torch and this package; neither a network nor fairseq. README.md beside this file says how to read the table.
"""

from functools import partial
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

import peers
import torch
from peers import Drawn, Vocabularies, full
from timing import Comparison, Settings, Side, main, relative_errors
from torch import Tensor
from torch.nn import functional as F

from amos_fairseq import ops
from amos_fairseq.modules.attention import aligned
from amos_fairseq.modules.relative_position import RelativePositionBias
from amos_fairseq.ops import Noise
from amos_fairseq.ops.implementation import attention_kernels

TEMPERATURE = 0.3
HEADS = 3
EXACT_ROWS = 256  # whose gradients are compared with float64, at most
LOGITS_STD = 2.0


def compiled(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)


def with_ops(choice: str, side: Side) -> Side:
    """A side of ours with an implementation of the ops by name."""

    def run(inputs):
        with ops.use(choice):
            return side(inputs)

    return run


def ours(side: Side) -> Dict[str, Side]:
    """As users get it, and what the kernels, where they are built, add to PyTorch."""
    return {"ours": side, "ours, without kernels": with_ops("pytorch", side)}


def product_shapes(settings: Settings) -> List[Dict[str, int]]:
    """M rows, V words, E width."""
    if settings.quick:
        return [dict(M=24, V=96, E=16)]
    if not settings.on_gpu:
        return [dict(M=512, V=8192, E=256)]
    return [dict(M=rows, V=words, E=768) for words in (32768, 64000) for rows in (2458, 9830)]


def random_noise(settings: Settings, rows: int, trial: int) -> Noise:
    return Noise(trial, torch.stack([torch.arange(rows), torch.arange(rows) % 512], 1).to(settings.device))


def normal(settings: Settings, *shape: int, std: float = 1.0, learns: bool = True) -> Tensor:
    return (std * torch.randn(shape, device=settings.device)).to(settings.dtype).requires_grad_(learns)


def random_table(settings: Settings, V: int, E: int) -> Tensor:
    """Whose products with hidden states of unit variance have the spread of a generator's logits."""
    return normal(settings, V, E, std=LOGITS_STD / E**0.5)


# ---- The vocabulary part of AMOS ------------------------------------------------------------------------------------


class VocabularyInputs(NamedTuple):
    x: Vocabularies
    noise: Noise
    upstream: Tensor  # (M, E) gradient at the drawn embeddings


def vocabulary_inputs(settings: Settings, M: int, V: int, E: int, trial: int) -> VocabularyInputs:
    x = Vocabularies(
        hidden=normal(settings, M, HEADS, E),
        scores=torch.randn(M, HEADS, device=settings.device, requires_grad=True),
        table=random_table(settings, V, E),
        bias=normal(settings, V),
        targets=torch.randint(V, (M,), device=settings.device),
        temperature=TEMPERATURE,
    )
    return VocabularyInputs(x, random_noise(settings, M, trial), normal(settings, M, E, std=0.1, learns=False))


def ours_vocabulary(x: Vocabularies, noise: Noise) -> Drawn:
    """What `amos_fairseq.methods.amos` does between the MLM head's projection and the encoder's input."""
    weights = x.scores.softmax(-1)
    reading = ops.masked_lm(
        x.hidden, x.table, x.bias, x.targets, weights, noise=noise, temperature=x.temperature, candidates=True
    )
    mixed = torch.einsum("mg,mge->me", weights, full(x.hidden.detach()))
    embeddings = ops.straight_through_gumbel_softmax(
        F.embedding(reading.sampled, x.table).unsqueeze(0),
        ops.gradient_reversal(mixed),
        x.table,
        x.bias,
        torch.arange(len(x.hidden), device=x.hidden.device),
        noise,
        x.temperature,
        reading.candidates,
    )
    return Drawn(reading.loss, embeddings.squeeze(0), reading.sampled)


def vocabulary_step(part: Callable[..., Drawn], takes_noise: bool, inputs: VocabularyInputs) -> Dict[str, Tensor]:
    """Forward and backward; of the others' noise a part is made of their own, unless it is given in the inputs."""
    x = inputs.x
    drawn = part(x, inputs.noise) if takes_noise else part(x)
    leaves = dict(hidden=x.hidden, scores=x.scores, table=x.table, bias=x.bias)
    outputs, gradients = (drawn.loss, drawn.embeddings), (torch.ones_like(drawn.loss), inputs.upstream)
    found = dict(zip(leaves, torch.autograd.grad(outputs, list(leaves.values()), gradients)))
    return {"loss": drawn.loss.detach(), "sampled": drawn.sampled, **found}


def in_float64(x: Vocabularies) -> Vocabularies:
    tensors = {name: getattr(x, name).detach().double() for name in ("hidden", "scores", "table", "bias", "gumbel")}
    return x._replace(**{name: t.requires_grad_(name != "gumbel") for name, t in tensors.items()})


def vocabulary_errors(settings: Settings, shape: Dict[str, int], side: Side) -> Dict[str, float]:
    """Loss and gradients against the public code in float64 with the side's own noise and draws."""
    inputs = vocabulary_inputs(settings, **{**shape, "M": min(EXACT_ROWS, shape["M"])}, trial=0)
    x = inputs.x._replace(gumbel=ops.gumbel_noise(inputs.noise, shape["V"]))
    found = side(inputs._replace(x=x))
    exact = in_float64(x)._replace(sampled=found.pop("sampled"))
    expected = vocabulary_step(
        peers.public_vocabulary, False, inputs._replace(x=exact, upstream=inputs.upstream.double())
    )
    expected.pop("sampled")
    return relative_errors(found, expected)


def vocabulary(settings: Settings) -> Iterator[Comparison]:
    """G = 3 losses, a draw from the heads' mixture, its embedding; the gradient reversed into the mixture."""
    public, lookup = peers.public_vocabulary, peers.lookup_vocabulary
    sides = {
        **ours(partial(vocabulary_step, ours_vocabulary, True)),
        "public code": partial(vocabulary_step, public, False),
        "public code, compiled": partial(vocabulary_step, compiled(public), False),
        "F.gumbel_softmax, lookup": partial(vocabulary_step, lookup, False),
        "F.gumbel_softmax, lookup, compiled": partial(vocabulary_step, compiled(lookup), False),
    }
    for shape in product_shapes(settings):
        yield Comparison(
            {**shape, "G": HEADS},
            sides,
            partial(_of_trial, vocabulary_inputs, settings, shape),
            partial(vocabulary_errors, settings, shape),
        )


def _of_trial(make: Callable, settings: Settings, shape: Dict[str, int], trial: int):
    return make(settings, **shape, trial=trial)


# ---- One linear layer onto the vocabulary: cross entropy, log-sum-exp -----------------------------------------------


class LinearInputs(NamedTuple):
    hidden: Tensor  # (M, E)
    table: Tensor  # (V, E)
    bias: Tensor  # (V,)
    targets: Tensor  # (M,)


def linear_inputs(settings: Settings, M: int, V: int, E: int, trial: int) -> LinearInputs:
    targets = torch.randint(V, (M,), device=settings.device)
    return LinearInputs(normal(settings, M, E), random_table(settings, V, E), normal(settings, V), targets)


def linear_step(function: Callable, inputs: LinearInputs) -> Dict[str, Tensor]:
    loss = function(*inputs)
    names = ("hidden", "table", "bias")
    return {"loss": loss.detach(), **dict(zip(names, torch.autograd.grad(loss, inputs[:3])))}


def linear_errors(settings: Settings, shape: Dict[str, int], exact: Callable, side: Side) -> Dict[str, float]:
    inputs = linear_inputs(settings, **{**shape, "M": min(EXACT_ROWS, shape["M"])}, trial=0)
    in_double = [t.detach().double().requires_grad_() for t in inputs[:3]]
    return relative_errors(side(inputs), linear_step(exact, LinearInputs(*in_double, inputs.targets)))


def linear_comparison(settings, shape, functions: Dict[str, Callable], exact: Callable) -> Comparison:
    sides = {name: partial(linear_step, function) for name, function in functions.items()}
    return Comparison(
        shape,
        {**ours(sides.pop("ours")), **sides},
        partial(_of_trial, linear_inputs, settings, shape),
        partial(linear_errors, settings, shape, exact),
    )


def linear_cross_entropy(settings: Settings) -> Iterator[Comparison]:
    """The summed cross entropy of one head."""
    functions = {
        "ours": ops.linear_cross_entropy,
        **peers.CROSS_ENTROPIES,
        "eager, compiled": compiled(peers.eager_cross_entropy),
    }
    for shape in product_shapes(settings):
        yield linear_comparison(settings, shape, functions, peers.eager_cross_entropy)


def sum_of_logsumexp(logsumexp: Callable, hidden: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """With a weight for each row, as a loss has."""
    return (logsumexp(hidden, table, bias) * torch.linspace(0, 1, len(hidden), device=hidden.device)).sum()


def eager_logsumexp(hidden: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    return full(F.linear(hidden, table, bias)).logsumexp(-1)


def logsumexp(settings: Settings) -> Iterator[Comparison]:
    """SCRIPT's critic: the log-sum-exp of the logits of every position."""
    shape = product_shapes(settings)[0]
    if not settings.quick:
        shape = {**shape, "M": 16384 if settings.on_gpu else 2048}
    functions = {"ours": ops.linear_logsumexp, "eager": eager_logsumexp, "eager, compiled": compiled(eager_logsumexp)}
    functions = {name: partial(sum_of_logsumexp, function) for name, function in functions.items()}
    yield linear_comparison(settings, shape, functions, functions["eager"])


# ---- On logits that exist -------------------------------------------------------------------------------------------


class LogitsInputs(NamedTuple):
    logits: Tensor  # (M, V)
    noise: Noise
    upstream: Tensor  # (M, V) gradient at the result


def logits_inputs(settings: Settings, M: int, V: int, trial: int) -> LogitsInputs:
    logits = normal(settings, M, V, std=LOGITS_STD)
    return LogitsInputs(logits, random_noise(settings, M, trial), normal(settings, M, V, learns=False))


def logits_shape(settings: Settings) -> Dict[str, int]:
    shape = product_shapes(settings)[0]
    return dict(M=shape["M"], V=shape["V"])


def multinomial_sample(logits: Tensor) -> Tensor:
    return torch.multinomial(full(logits).softmax(-1), 1).squeeze(-1)


def gumbel_max_sample(logits: Tensor) -> Tensor:
    return (full(logits) + torch.empty_like(full(logits)).exponential_().log().neg()).argmax(-1)


def gumbel_softmax_sample(logits: Tensor) -> Tensor:
    return F.gumbel_softmax(full(logits), TEMPERATURE, hard=True).argmax(-1)


def samplers(settings: Settings) -> Iterator[Comparison]:
    """Draws (M,) from softmax(logits) without a gradient; our noise has a name, so the draw is that of any device."""

    def ours_sample(inputs: LogitsInputs) -> Tensor:
        logits = inputs.logits.detach()
        return (full(logits) + ops.gumbel_noise(inputs.noise, logits.size(-1))).argmax(-1)

    others = {
        "torch.multinomial": multinomial_sample,
        "F.gumbel_softmax, argmax": gumbel_softmax_sample,
        "Gumbel-max": gumbel_max_sample,
        "Gumbel-max, compiled": compiled(gumbel_max_sample),
    }
    others = {name: partial(_on_logits, sample) for name, sample in others.items()}
    shape = logits_shape(settings)
    yield Comparison(shape, {**ours(ours_sample), **others}, partial(_of_trial, logits_inputs, settings, shape))


def _on_logits(function: Callable, inputs: LogitsInputs):
    return function(inputs.logits.detach())


def _through(function: Callable, inputs: LogitsInputs) -> Dict[str, Tensor]:
    """Forward, and backward to the logits."""
    result = function(inputs)
    (gradient,) = torch.autograd.grad(result, inputs.logits, inputs.upstream)
    return {"logits": gradient}


def public_gumbel_softmax(logits: Tensor) -> Tensor:
    return F.gumbel_softmax(full(logits), TEMPERATURE, hard=True).to(logits.dtype)


def gumbel_softmax(settings: Settings) -> Iterator[Comparison]:
    """The (M, V) straight-through one-hot itself, which no method of ours makes."""
    eager = compiled(public_gumbel_softmax)
    sides = {
        **ours(lambda inputs: ops.gumbel_softmax(inputs.logits, TEMPERATURE, inputs.noise, hard=True)),
        "F.gumbel_softmax": lambda inputs: public_gumbel_softmax(inputs.logits),
        "F.gumbel_softmax, compiled": lambda inputs: eager(inputs.logits),
    }
    sides = {name: partial(_through, function) for name, function in sides.items()}
    shape = logits_shape(settings)
    yield Comparison(shape, sides, partial(_of_trial, logits_inputs, settings, shape))


def gradient_reversal(settings: Settings) -> Iterator[Comparison]:
    """Ours has no kernel: forward is a view, backward one negation, which autograd runs at the speed of memory."""
    sides = {
        "ours": lambda inputs: ops.gradient_reversal(inputs.logits),
        "copy and multiply": lambda inputs: peers.multiply_gradient(inputs.logits, -1.0),
    }
    sides = {name: partial(_through, function) for name, function in sides.items()}
    shape = logits_shape(settings)
    yield Comparison(shape, sides, partial(_of_trial, logits_inputs, settings, shape))


# ---- Attention ------------------------------------------------------------------------------------------------------


class AttentionInputs(NamedTuple):
    packed: Tensor  # (B, T, 3, H, D): query, key and value, as their projection leaves them
    relative: RelativePositionBias
    bias: ops.RelativeBias  # what kernels read of it, and as a (1, H, T, T) matrix: a network makes one for all layers
    matrix: Tensor
    seed: Tensor
    upstream: Tensor  # (B, T, H, D)


def attention_inputs(settings: Settings, B: int, H: int, T: int, D: int, trial: int) -> AttentionInputs:
    relative = RelativePositionBias(32, H, 128, T).to(settings.device)
    matrix = aligned(relative(T).detach().to(settings.dtype)).requires_grad_()
    seed = torch.tensor([trial], device=settings.device)
    upstream = normal(settings, B, T, H, D, learns=False)
    return AttentionInputs(normal(settings, B, T, 3, H, D), relative, relative.by_distance(T), matrix, seed, upstream)


def our_attention(inputs: AttentionInputs, dropout: float) -> Tensor:
    """As `amos_fairseq.modules` choose and call it."""
    device, dtype, (_, length, _, _, width) = inputs.packed.device.type, inputs.packed.dtype, inputs.packed.shape
    if attention_kernels(device, dtype, width, length):
        drops = ops.AttentionDropout(dropout, inputs.seed)
        return ops.relative_attention(inputs.packed, inputs.bias, dropout=drops)
    return fused_attention(inputs.packed, inputs.matrix.expand(len(inputs.packed), -1, -1, -1), dropout)


def fused_attention(packed: Tensor, bias: Optional[Tensor], dropout: float) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in packed.unbind(2))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout).transpose(1, 2)


def unbiased_attention(inputs: AttentionInputs, dropout: float) -> Tensor:
    """Another function: what a relative bias costs is the difference to this."""
    return fused_attention(inputs.packed, None, dropout)


def materialised_attention(inputs: AttentionInputs, dropout: float, function=peers.materialised_attention) -> Tensor:
    bias = inputs.matrix.repeat(len(inputs.packed), 1, 1, 1).flatten(0, 1)
    query, key, value = (x.transpose(1, 2) for x in inputs.packed.unbind(2))
    attended = function(*(x.flatten(0, 1) for x in (query, key, value)), bias, dropout)
    return attended.view_as(query).transpose(1, 2)


def attention_step(function: Callable, dropout: float, inputs: AttentionInputs) -> Dict[str, Tensor]:
    leaves = dict(packed=inputs.packed, table=inputs.relative.weight, matrix=inputs.matrix)
    result = function(inputs, dropout)
    gradients = torch.autograd.grad(result, list(leaves.values()), inputs.upstream, allow_unused=True)
    return {"result": result.detach(), **{name: x for name, x in zip(leaves, gradients) if x is not None}}


def attention_errors(settings: Settings, shape: Dict[str, int], side: Side) -> Dict[str, float]:
    inputs = attention_inputs(settings, **{**shape, "B": min(2, shape["B"])}, trial=0)
    table = inputs.relative.weight.detach().double()
    relative = RelativePositionBias(*table.shape, 128, shape["T"]).to(settings.device).double()
    relative.load_state_dict({"weight": table})

    def by_bucket(found):
        spread = relative(shape["T"])
        if "matrix" in found:
            (found["table"],) = torch.autograd.grad(spread, relative.weight, found.pop("matrix").double())
        return found

    found = side(inputs)
    if "table" not in found and "matrix" not in found:  # without any bias
        return {}
    matrix = relative(shape["T"]).detach().requires_grad_()
    packed, upstream = inputs.packed.detach().double().requires_grad_(), inputs.upstream.double()
    exact = inputs._replace(packed=packed, relative=relative, matrix=matrix, upstream=upstream)
    return relative_errors(by_bucket(found), by_bucket(attention_step(materialised_attention, 0.0, exact)))


def attention(settings: Settings) -> Iterator[Comparison]:
    """One layer's attention with a learned relative bias, its gradient included."""
    eager = compiled(peers.materialised_attention)
    functions = {
        "ours": our_attention,
        "public code, materialised": materialised_attention,
        "materialised, compiled": partial(materialised_attention, function=eager),
        "without any bias": unbiased_attention,
    }
    shape = dict(B=2, H=2, T=16, D=8)
    if not settings.quick:
        shape = dict(B=32, H=12, T=512, D=64) if settings.on_gpu else dict(B=8, H=4, T=128, D=64)
    for dropout in (0.0, 0.1):
        sides = {name: partial(attention_step, function, dropout) for name, function in functions.items()}
        yield Comparison(
            {**shape, "dropout": dropout},
            {**ours(sides.pop("ours")), **sides},
            partial(_of_trial, attention_inputs, settings, shape),
            None if dropout else partial(attention_errors, settings, shape),
        )


SECTIONS = {  # what decides comes first
    "attention": attention,
    "vocabulary": vocabulary,
    "linear_cross_entropy": linear_cross_entropy,
    "logsumexp": logsumexp,
    "samplers": samplers,
    "gumbel_softmax": gumbel_softmax,
    "gradient_reversal": gradient_reversal,
}

if __name__ == "__main__":
    main(SECTIONS)
