"""Hugging Face's models beside ours: which names correspond, parameters copied, gradients compared."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from typing import Dict, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn

Names = Dict[str, List[str]]  # our modules or parameters -> theirs, whose rows follow each other in ours

EMBEDDINGS: Names = {
    "token_embeddings.weight": ["embeddings.word_embeddings.weight"],
    "embeddings.positions.weight": ["embeddings.position_embeddings.weight"],
    "embeddings.layer_norm": ["embeddings.LayerNorm"],
    "embeddings.projection": ["embeddings_project"],  # of a factorised table
    "relative_position_bias": ["encoder.relative_attention_bias"],  # MPNet's
}
BERT_LAYER: Names = {
    "self_attn.in_proj": ["attention.self.query", "attention.self.key", "attention.self.value"],
    "self_attn.out_proj": ["attention.output.dense"],
    "self_attn_layer_norm": ["attention.output.LayerNorm"],
    "fc1": ["intermediate.dense"],
    "fc2": ["output.dense"],
    "final_layer_norm": ["output.LayerNorm"],
}
MPNET_LAYER = BERT_LAYER | {
    "self_attn.in_proj": ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    "self_attn.out_proj": ["attention.attn.o"],
    "self_attn_layer_norm": ["attention.LayerNorm"],
}


def encoder_names(layers: int, layer: Names = BERT_LAYER, ours: str = "", theirs: str = "") -> Names:
    """Names of an encoder of ours at the prefix `ours` and of theirs at `theirs`."""
    names = EMBEDDINGS | {
        f"layers.{i}.{part}": [f"encoder.layer.{i}.{source}" for source in sources]
        for i in range(layers)
        for part, sources in layer.items()
    }
    return {ours + name: [theirs + source for source in sources] for name, sources in names.items()}


def hide_torchaudio(monkeypatch) -> None:
    """A torchaudio built for another torch (fairseq requires one) would break the import of models without audio."""
    monkeypatch.setitem(sys.modules, "torchaudio", module_from_spec(ModuleSpec("torchaudio", None)))


class Twins(NamedTuple):
    """A network of ours and one of theirs."""

    ours: nn.Module
    theirs: nn.Module
    names: Names
    first_rows: Dict[str, int] = {}  # of theirs that ours has, 0 by default
    negated: Sequence[str] = ()  # parameters of opposite sign

    def as_ours(self, name: str, tensors: Dict[str, Tensor]) -> Tensor:
        """What belongs to our parameter `name` among tensors that have their parameters' names."""
        module, _, kind = name.rpartition(".")
        sources = self.names[name] if name in self.names else [f"{source}.{kind}" for source in self.names[module]]
        joined = torch.cat([tensors[source] for source in sources])[self.first_rows.get(name, 0) :]
        return -joined if name in self.negated else joined

    def draw_parameters(self) -> "Twins":
        """Gives both the same random parameters, token types apart, which ours lacks."""
        torch.manual_seed(0)
        parameters = dict(self.theirs.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
                parameter.normal_(centre, 0.15).mul_("token_type" not in name)
            for name, parameter in self.ours.named_parameters():
                parameter.copy_(self.as_ours(name, parameters))
        return self

    def gradients(self) -> Dict[str, Tuple[Tensor, Tensor]]:
        """Ours and theirs by the name of our parameter."""
        theirs = {name: parameter.grad for name, parameter in self.theirs.named_parameters()}
        return {name: (parameter.grad, self.as_ours(name, theirs)) for name, parameter in self.ours.named_parameters()}

    def assert_equal_gradients(self, smallest: float = 1e-4) -> None:
        """Within 1e-5, and each of theirs above `smallest` somewhere, so that none is compared with nothing."""
        pairs = self.gradients()
        gaps = {name: (ours - theirs).abs().max().item() for name, (ours, theirs) in pairs.items()}
        largest = max(theirs.abs().max().item() for _, theirs in pairs.values())
        print(f"gradients differ by {max(gaps.values()):.1e} of {largest:.1f}, worst {max(gaps, key=gaps.get)}")
        for name, (ours, theirs) in pairs.items():
            assert theirs.abs().max() > smallest, name
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=name)
