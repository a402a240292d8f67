"""A fine-tuned network: what it is made of, how it starts, and how it is loaded again."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional

import torch
from torch import Tensor, nn

from amos_fairseq.checkpoints import storage
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary_files import load_tokenizer
from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.labelled import Problem
from amos_fairseq.finetune.results import with_checkpoint
from amos_fairseq.json_files import formed
from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.modules.queries import Queries
from amos_fairseq.pretrained.filling import filled
from amos_fairseq.pretrained.loading import FINETUNING, Found, identify, load, vocabulary_of
from amos_fairseq.pretrained.model import Pretrained


@dataclass(frozen=True)
class Origin:
    """What a network comes from: the pre-training method's registered name, and its encoder."""

    method: str
    encoder: EncoderConfig


class Description(NamedTuple):
    """Of which a checkpoint's network can be built again."""

    origin: Origin
    problem: Problem


class Network(nn.Module):
    """An encoder and the head of a kind of problem."""

    def __init__(self, encoder: Encoder, head: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, tokens: Tensor, padding_mask: Optional[Tensor] = None) -> Tensor:
        """tokens (B, T), padding_mask (B, T) bool or None -> (B, ..) outputs, or (B, T, ..) of each token.

        Of choices, (B, C, T) -> (B, C): the output of each sequence.
        """
        *examples, length = tokens.shape
        tokens = tokens.view(-1, length)
        padding_mask = None if padding_mask is None else padding_mask.view(-1, length)
        read_at = self.head.read_at(tokens)
        if read_at is not None:  # the last layer computes nothing else
            index = length * torch.arange(len(tokens), device=tokens.device) + read_at
            read_at = Queries.of(index, [1] * len(tokens), length)
        outputs = self.head(self.encoder(tokens, padding_mask, read_at))
        return outputs.view(*examples, *outputs.shape[1:])


def new_network(
    origin: Origin, problem: Problem, mask_token: int, dropout: float = 0.1, attention_dropout: float = 0.1,
    head_dropout: float = 0.1,
) -> Network:
    """With new parameters, drawn from torch's generator; `start_from` gives it the pre-trained ones.

    Raises ValueError if the kind of problem needs what the method does not train.
    """
    encoder = Encoder(replace(origin.encoder, dropout=dropout, attention_dropout=attention_dropout))
    return Network(encoder, kind_of(problem.kind).new_head(problem, encoder, origin.method, mask_token, head_dropout))


def start_from(network: Network, problem: Problem, pretrained: Pretrained) -> None:
    """Give the network what was pre-trained: the encoder, and of the head what its kind of problem starts from.

    Raises ValueError if that is not there.
    """
    network.encoder.load_state_dict(pretrained.encoder.state_dict())
    kind_of(problem.kind).start_head(network.head, pretrained)


def learning_rate_factors(network: Network, layer_decay: float, top: int = 0) -> Dict[str, float]:
    """By parameter: layer_decay ** (top + L - l), of layer l of the encoder's L (Clark et al., 2020, App. B).

    Embeddings are layer 0; the head has 1. The table of relative positions, which all layers share, has that of the
    lowest, l = 1. top: 0, so that the top layer has 1, too; 2 in google-research/electra's code.
    """
    layers = len(network.encoder.layers)

    def layer_of(name: str) -> int:
        part, *rest = name.removeprefix("encoder.").split(".")
        if part == "head":
            return layers + top
        if part == "layers":
            return int(rest[0]) + 1
        return 1 if part == "relative_position_bias" else 0

    return {name: layer_decay ** (layers + top - layer_of(name)) for name, _ in network.named_parameters()}


# Checkpoints

def described(origin: Origin, problem: Problem) -> Dict[str, Any]:
    """A `Description` in plain values."""
    return {"origin": asdict(origin), "problem": asdict(problem)}


def understood(task_state: Mapping[str, Any], source: object) -> Description:
    return formed(task_state.get("finetuned"), Description, source, "task_state.finetuned")


class Finetuned(NamedTuple):
    problem: Problem
    network: Network  # in evaluation mode, on the CPU
    tokenizer: Tokenizer
    origin: Origin


def find(path) -> Found:
    """`identify`, which of the folder of many runs, that `amos-fairseq finetune` wrote, names those to choose from."""
    runs = with_checkpoint(path)
    if runs:
        names = ", ".join(map(str, runs))
        raise ValueError(f"{path} holds runs of fine-tuning, name one; those that kept a checkpoint are {names}")
    return identify(path)


def load_start(path) -> Pretrained:
    """What `from_pretrained` loads, or the encoder of a checkpoint of fine-tuning, to go on from MNLI to RTE."""
    found = find(path)
    if found.kind != FINETUNING:
        return load(found)
    finetuned = read_finetuned(found.path)
    return Pretrained(str(found.path), finetuned.origin.method, finetuned.network.encoder, finetuned.tokenizer, None)


def load_finetuned(path) -> Finetuned:
    """Of a checkpoint of fine-tuning, or of a run's folder the best one, or, if none was validated, the newest.

    Raises ValueError, in one line, if it is none.
    """
    found = find(path)
    if found.kind != FINETUNING:
        raise ValueError(f"{found.path} is no checkpoint of fine-tuning: it is of kind {found.kind}")
    return read_finetuned(found.path)


def read_finetuned(folder: Path) -> Finetuned:
    """Of a checkpoint of fine-tuning that `identify` found."""
    state = storage.read_state(folder, ["task_state", "model"])
    tokenizer = load_tokenizer(vocabulary_of(state["task_state"], None, folder), str(folder))
    origin, problem = understood(state["task_state"], folder / storage.STATE)
    parameters = {key.removeprefix("network."): tensor for key, tensor in state["model"].items()}
    layers = origin.encoder.layers
    network = filled(lambda: new_network(origin, problem, tokenizer.mask), parameters, layers, folder)
    return Finetuned(problem, network, tokenizer, origin)
