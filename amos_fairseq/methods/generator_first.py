"""The generator first: it learns alone, and the encoder starts from its tower."""

import logging
from typing import Dict, Iterable, Mapping

import torch
from torch import Tensor

from amos_fairseq.flops import BACKWARD_AND_FORWARD
from amos_fairseq.methods.base import PretrainingMethod, Start
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.continuation import (
    DELTA,
    EarlierRun,
    check_same_options,
    check_same_shapes,
    generator_heads,
    generators,
)
from amos_fairseq.modules.encoder import EncoderConfig
from amos_fairseq.objectives import LossTerm, Mean, mlm_loss
from amos_fairseq.ops import MaskedLMReading

logger = logging.getLogger(__name__)

SHAPE = {"dim": "embed_dim", "heads": "attention_heads", "ffn_dim": "ffn_embed_dim"}  # in the words of the options


class _NoGradient(torch.autograd.Function):
    """The loss, which gives these parameters a gradient of 0: one node for all of them."""

    @staticmethod
    def forward(ctx, loss, *parameters):
        ctx.save_for_backward(*parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient, *map(torch.zeros_like, ctx.saved_tensors))


class GeneratorAlone:
    """What trains in a method's first `generator_warmup_updates`: masked -> generator -> MLM head, loss = mlm.

    It answers for the method what is asked of one in a step of training.
    """

    def __init__(self, method: PretrainingMethod):
        self.method = method

    def __call__(self, batch: PretrainingBatch) -> MaskedLMReading:
        """Nothing is drawn. All else gets a gradient of 0, which DDP waits for and no step of the optimizer sees."""
        method = self.method
        projected = method.mlm_head.project(method.masked_lm_states(batch))
        heads_last = projected.transpose(0, 1) if projected.dim() == 3 else projected
        masked_lm = method.mlm_head.read(heads_last, batch.mlm_targets)
        return masked_lm._replace(loss=_NoGradient.apply(masked_lm.loss, *method.idle_parameters()))

    def losses(self, masked_lm: MaskedLMReading, batch: PretrainingBatch) -> Dict[str, LossTerm]:
        return {"mlm": mlm_loss(masked_lm)}

    def statistics(self, masked_lm: MaskedLMReading, batch: PretrainingBatch) -> Dict[str, Mean]:
        return self.method.masked_lm_statistics(masked_lm, batch)

    def judged_logits(self, masked_lm: MaskedLMReading) -> None:
        """There is no encoder that judges."""

    def training_flops(self, batch: PretrainingBatch) -> int:
        tokens, length = batch.original_tokens.numel(), batch.original_tokens.size(1)
        return BACKWARD_AND_FORWARD * self.method.generator_flops(tokens, length, sum(batch.num_masked))


def learner(method: PretrainingMethod) -> "PretrainingMethod | GeneratorAlone":
    """In training, during the generator's warm-up, that alone; in validation always all of the method."""
    return GeneratorAlone(method) if method.training and method.num_updates < method.generator_warmup else method


def start_of(encoder: torch.nn.Module, tower: Mapping[str, Tensor]) -> Start:
    """Parameters of the same name: embeddings, relative position bias, and layers from the bottom up.

    A token table of the encoder's own, too; one that is a difference to the generator's has learned nothing by then.
    """
    parameters = {name: value for name, value in encoder.named_parameters() if not name.endswith(DELTA)}
    copied = [name for name in parameters if name in tower and tower[name] is not parameters[name]]
    new = [name for name in parameters if name not in tower]
    words = f"copied {listed(copied)}; new: {listed(new)}"
    return Start([(parameters[name], tower[name]) for name in copied], words)


def listed(names: Iterable[str]) -> str:
    """Modules of an encoder, its layers as a range."""
    paths = [name.split(".") for name in names]
    modules = list(dict.fromkeys(path[0] for path in paths if path[0] != "layers"))
    layers = sorted({int(path[1]) for path in paths if path[0] == "layers"})
    if layers:
        modules.append(f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}")
    return ", ".join(modules) or "nothing"


def check_same_width(option: str, generator: EncoderConfig, encoder: EncoderConfig) -> None:
    """Raises ValueError for an `option` by which an encoder is to start from a generator that is not as wide."""
    for field, name in SHAPE.items():
        own, others = getattr(generator, field), getattr(encoder, field)
        if own != others:
            raise ValueError(
                f"{option} starts the encoder from the generator, but generator_{name} is {own} against encoder_{name} "
                f"{others}: set generator_embed_dim 0, or generator_warmup_without_copy"
            )


@torch.no_grad()
def start_from_generator(method: PretrainingMethod, run: EarlierRun) -> None:
    """Give a new `method`'s encoder the generator of an earlier run, of several the deepest: see `start_of`.

    Raises ValueError that names the first difference if the generator is not as wide as the encoder.
    """
    parameters = dict(method.encoder.named_parameters())
    towers = []
    for name in generators(run.state):
        prefix = f"{name}."
        values = {key.removeprefix(prefix): run.state[key] for key in run.state if key.startswith(prefix)}
        towers.append((depth(values), values))
    if not towers:
        raise ValueError(f"{run.source} holds no generator: name a run of a method that has one")
    layers, tower = max(towers, key=lambda tower: tower[0])
    common = min(layers, depth(parameters))
    wanted, found = (
        {key: value for key, value in state.items() if depth([key]) <= common} for state in (parameters, tower)
    )
    check_same_shapes(
        "generator", wanted, found, run.source, "the encoder's options (generator_embed_dim 0 there) and the vocabulary"
    )
    _, heads = generator_heads(method.config, run)
    check_same_options(method.config, run, (method.config.encoder_attention_heads, heads))
    start = start_of(method.encoder, tower)
    for parameter, value in start.copies:
        parameter.copy_(value)
    logger.info("%s: generator -> encoder: %s", run.source, start.words)


def depth(names: Iterable[str]) -> int:
    """Of the network whose parameters these are."""
    return max((1 + int(name.split(".")[1]) for name in names if name.startswith("layers.")), default=0)
