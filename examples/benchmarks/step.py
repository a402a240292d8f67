"""Whole training steps of this package beside others': forward, backward and AdamW, of equal networks.

    python examples/benchmarks/step.py --out step.json            a few minutes on two cores
    python examples/benchmarks/step.py --quick --only amos

README.md beside this file says how to read the table.
"""

from functools import partial
from typing import Any, Callable, Dict, Iterator

import peers
import torch
from networks import loss_of, make_batch, make_method
from timing import Comparison, Settings, main
from torch import nn

from amos_fairseq import ops
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.modules.encoder import EncoderLayer

MASKED_SHARE = 0.15
FEWEST_SEQUENCES = 32  # per step on a GPU


class Training:
    """A model with AdamW; a call is a step. The model is made when first called: it may need what is not installed."""

    def __init__(self, make: Callable[[], nn.Module], loss: Callable[[nn.Module, Any], torch.Tensor], choice="auto"):
        self.make, self.loss, self.choice = make, loss, choice
        self.model = None

    def __call__(self, batch: PretrainingBatch) -> Dict[str, torch.Tensor]:
        if self.model is None:
            self.model = self.make()
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        with ops.use(self.choice):
            loss = self.loss(self.model, batch)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach()}


def forward(model: nn.Module, batch: PretrainingBatch) -> torch.Tensor:
    return model(batch)


def with_compiled_layers(method: PretrainingMethod) -> PretrainingMethod:
    for module in method.modules():
        if isinstance(module, EncoderLayer):
            module.compile(dynamic=False)
    return method


def shapes(settings: Settings, sequences=(FEWEST_SEQUENCES,)) -> Iterator[Dict[str, Any]]:
    """B sequences of T tokens over V words, by size."""
    if settings.quick:
        yield dict(size="tiny", B=2, T=32, V=200)
    elif settings.on_gpu:
        yield from (dict(size="base", B=b, T=512, V=32768) for b in sequences)
    else:
        yield dict(size="small", B=8, T=128, V=32768)


def batch_of(settings: Settings, shape: Dict[str, Any], trial: int = 0) -> PretrainingBatch:
    masked = round(MASKED_SHARE * shape["T"])
    return make_batch(settings.device, shape["B"], shape["T"], masked, shape["V"], seed=trial)


def comparison(settings: Settings, shape: Dict[str, Any], sides: Dict[str, Training], methods: Dict[str, Any]):
    """`methods` are networks that need the FLOPs of the sides of the same names."""

    flops = {name: method.training_flops(batch_of(settings, shape)) for name, method in methods.items()}
    return Comparison(shape, sides, partial(batch_of, settings, shape), tokens=shape["B"] * shape["T"], flops=flops)


def maker(name: str, settings: Settings, shape: Dict[str, Any], **options) -> Callable[[], PretrainingMethod]:
    options["max_positions"] = shape["T"]

    def make() -> PretrainingMethod:
        with settings.device:  # where parameters are drawn much faster than on a CPU
            return make_method(name, shape["size"], shape["V"], settings.device, settings.dtype, **options)

    return make


def vocabulary_of(shape: Dict[str, Any]) -> Vocabulary:
    return Vocabulary(shape["V"], padding=1, excluded=[])


def ours(make: Callable[[], PretrainingMethod]) -> Dict[str, Training]:
    return {
        "ours": Training(make, loss_of),
        "ours, without kernels": Training(make, loss_of, "pytorch"),
        "ours, layers compiled": Training(lambda: with_compiled_layers(make()), loss_of),
    }


def amos(settings: Settings) -> Iterator[Comparison]:
    """Against the public code's forward, whose attention scores, logits and one-hots are materialised."""
    for shape in shapes(settings, sequences=(FEWEST_SEQUENCES, 64, 128)):
        make = maker("amos_rtd", settings, shape)
        public = Training(lambda: peers.PublicAmos(make()), forward)
        sides = {**ours(make), "public code": public}
        if shape["B"] > FEWEST_SEQUENCES:
            del sides["ours, layers compiled"]  # which takes long to compile and gains most on small batches
        yield comparison(settings, shape, sides, dict.fromkeys(sides, make()))


def electra(settings: Settings) -> Iterator[Comparison]:
    """Against Hugging Face's two models: absolute positions alone, a hidden layer in the detection head."""
    for shape in shapes(settings):
        make = maker("electra_rtd", settings, shape, rel_pos_buckets=0, rtd_head_hidden_layer=True)
        method = make()

        def hugging_face(selected_only: bool) -> Training:
            def build() -> nn.Module:
                electra = peers.HuggingFaceElectra(method.config, vocabulary_of(shape), selected_only)
                return electra.to(settings.device, settings.dtype).train()

            return Training(build, forward)

        sides = {
            **ours(make),
            "Hugging Face": hugging_face(False),
            "Hugging Face, selected positions": hugging_face(True),
        }
        yield comparison(settings, shape, sides, dict.fromkeys(sides, method))


def bert(settings: Settings) -> Iterator[Comparison]:
    """Against fairseq's RoBERTa: absolute positions alone, no factorised table."""
    for shape in shapes(settings):
        make = maker("bert_mlm", settings, shape, rel_pos_buckets=0, token_embed_dim=0)
        method = make()

        def roberta() -> nn.Module:
            model = peers.FairseqRoberta(method.config, vocabulary_of(shape))
            return model.to(settings.device, settings.dtype).train()

        sides = {**ours(make), "fairseq roberta": Training(roberta, forward)}
        yield comparison(settings, shape, sides, dict.fromkeys(sides, method))


def amos_and_electra(settings: Settings) -> Iterator[Comparison]:
    """Both ours: what the generator's greater depth and the adversarial mixture cost per token."""
    for shape in shapes(settings):
        makers = {name: maker(name, settings, shape) for name in ("amos_rtd", "electra_rtd")}
        sides = {name: Training(make, loss_of) for name, make in makers.items()}
        yield comparison(settings, shape, sides, {name: make() for name, make in makers.items()})


SECTIONS = {"amos": amos, "electra": electra, "bert": bert, "amos_and_electra": amos_and_electra}

if __name__ == "__main__":
    main(SECTIONS)
