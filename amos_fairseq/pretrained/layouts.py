"""Which of Hugging Face's models an encoder of ours is, and what these call its parameters."""

from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, TypedDict, Union

import torch
from torch import Tensor, nn

from amos_fairseq import json_files
from amos_fairseq.data.vocabulary import PAD
from amos_fairseq.json_files import formed
from amos_fairseq.modules.encoder import Encoder, EncoderConfig
from amos_fairseq.pretrained.filling import Network, filled, sketch
from amos_fairseq.user_errors import Damaged

Names = Dict[str, Union[str, List[str]]]  # our modules -> theirs; of several, ours has the rows one after the other
CONFIG = "config.json"
MPNET_BUCKETS = (32, 128, "t5")  # constants of its code, whatever its config says
MPNET_FIRST_POSITION = PAD + 1

SUFFIXES = {
    "encoder": "Model", "masked_lm": "ForMaskedLM", "detection": "ForPreTraining",
    "sequence": "ForSequenceClassification", "choice": "ForMultipleChoice", "span": "ForQuestionAnswering",
    "token": "ForTokenClassification",
}
AUTO_CLASSES = {task: f"AutoModel{suffix.removeprefix('Model')}" for task, suffix in SUFFIXES.items()}

SHAPE = {  # their options and ours, where these mean the same
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_hidden_layers": "layers", "num_attention_heads": "heads",
    "intermediate_size": "ffn_dim", "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
BERT_NAMES: Names = {
    "token_embeddings": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.layer_norm": "embeddings.LayerNorm",
    "embeddings.projection": "embeddings_project",  # ELECTRA's
    "layers.{i}.self_attn.in_proj": [
        f"encoder.layer.{{i}}.attention.self.{part}" for part in ("query", "key", "value")
    ],
    "layers.{i}.self_attn.out_proj": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.self_attn_layer_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.fc1": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.fc2": "encoder.layer.{i}.output.dense",
    "layers.{i}.final_layer_norm": "encoder.layer.{i}.output.LayerNorm",
}
MPNET_NAMES: Names = BERT_NAMES | {
    "relative_position_bias": "encoder.relative_attention_bias",
    "layers.{i}.self_attn.in_proj": [f"encoder.layer.{{i}}.attention.attn.{part}" for part in "qkv"],
    "layers.{i}.self_attn.out_proj": "encoder.layer.{i}.attention.attn.o",
    "layers.{i}.self_attn_layer_norm": "encoder.layer.{i}.attention.LayerNorm",
}

# Heads of ours, by task; "" is the head itself, whose bias is the masked LM's.
ROBERTA_HEADS: Dict[str, Names] = {
    "masked_lm": {"": "lm_head", "dense": "lm_head.dense", "layer_norm": "lm_head.layer_norm"},
    "sequence": {"dense": "classifier.dense", "out_proj": "classifier.out_proj"},
    "span": {"out_proj": "qa_outputs"}, "token": {"out_proj": "classifier"},
}
MPNET_HEADS = ROBERTA_HEADS | {"choice": {"dense": "mpnet.pooler.dense", "out_proj": "classifier"}}
AMOS_HEADS = ROBERTA_HEADS | {"choice": ROBERTA_HEADS["sequence"]}
BERT_HEADS: Dict[str, Names] = {
    "masked_lm": {
        "": "cls.predictions", "dense": "cls.predictions.transform.dense",
        "layer_norm": "cls.predictions.transform.LayerNorm",
    },
    "sequence": {"dense": "bert.pooler.dense", "out_proj": "classifier"},
    "choice": {"dense": "bert.pooler.dense", "out_proj": "classifier"},
    "span": {"out_proj": "qa_outputs"}, "token": {"out_proj": "classifier"},
}
ELECTRA_HEADS: Dict[str, Names] = {  # its sequence classifier has a GELU where ours has tanh
    "masked_lm": {
        "": "generator_lm_head", "dense": "generator_predictions.dense", "layer_norm": "generator_predictions.LayerNorm"
    },
    "detection": {"dense": "discriminator_predictions.dense", "score": "discriminator_predictions.dense_prediction"},
    "choice": {"dense": "sequence_summary.summary", "out_proj": "classifier"},
    "span": {"out_proj": "qa_outputs"}, "token": {"out_proj": "classifier"},
}


class Layout(NamedTuple):
    """How one of their models is made.

    model_type   in config.json
    prefix       what their heads call the encoder
    fits         whether an encoder of ours is one of theirs
    names        of an encoder's modules, {i} a layer's number; None: they are named as ours
    heads        names of the modules of heads, by task
    """

    model_type: str
    prefix: str
    class_prefix: str
    fits: Callable[[EncoderConfig], bool]
    names: Optional[Names]
    heads: Dict[str, Names]

    def class_name(self, task: str) -> str:
        return self.class_prefix + SUFFIXES[task]


def is_mpnet(config: EncoderConfig) -> bool:
    buckets = config.rel_pos_buckets, config.rel_pos_max_distance, config.rel_pos_bucketing
    return config.embedding_width == config.dim and buckets == MPNET_BUCKETS and config.padding_idx == PAD


def is_electra(config: EncoderConfig) -> bool:
    return not config.rel_pos_buckets


def is_bert(config: EncoderConfig) -> bool:
    return config.embedding_width == config.dim and is_electra(config)


MPNET = Layout("mpnet", "mpnet", "MPNet", is_mpnet, MPNET_NAMES, MPNET_HEADS)
BERT = Layout("bert", "bert", "Bert", is_bert, BERT_NAMES, BERT_HEADS)
ROBERTA = Layout("roberta", "roberta", "Roberta", is_bert, BERT_NAMES, ROBERTA_HEADS)  # read, never written
ELECTRA = Layout("electra", "electra", "Electra", is_electra, BERT_NAMES, ELECTRA_HEADS)
AMOS = Layout("amos_encoder", "amos", "Amos", lambda config: True, None, AMOS_HEADS)  # modeling_amos.py
LAYOUTS = {layout.model_type: layout for layout in (MPNET, BERT, ROBERTA, ELECTRA, AMOS)}


class Part(NamedTuple):
    """One network as a class of theirs has it.

    task    a key of SUFFIXES; its head is None for `encoder`
    labels  of a classification; empty for a regression
    sets    whether any number of labels may hold at once
    """

    task: str
    encoder: Encoder
    head: Optional[nn.Module] = None
    labels: Sequence[str] = ()
    sets: bool = False

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, C) hidden states -> what their class puts out.

        Detection has its sign turned, here and in `head_tensors` only: their positive logit says `replaced`.
        """
        assert self.head is not None
        if self.task in ("sequence", "choice"):
            return self.head(hidden[:, 0]).view(len(hidden), -1)
        return -self.head(hidden) if self.task == "detection" else self.head(hidden)


def their_names(name: str, names: Optional[Names], prefix: str) -> List[str]:
    """Of the parameter that ours calls `name`."""
    module, _, kind = name.rpartition(".")
    if names is None:
        return [prefix + name]
    parts = module.split(".")
    number = parts[1] if parts[0] == "layers" else ""
    theirs = names[".".join(["layers", "{i}", *parts[2:]]) if number else module]
    return [f"{prefix}{their.format(i=number)}.{kind}" for their in ([theirs] if isinstance(theirs, str) else theirs)]


def encoder_tensors(part: Part, layout: Layout) -> Iterator[Tuple[str, Tensor]]:
    """The encoder's parameters by their names, and those that only theirs has."""
    prefix = "" if part.task == "encoder" else f"{layout.prefix}."
    for name, tensor in part.encoder.state_dict().items():
        if layout is MPNET and name == "embeddings.positions.weight":
            tensor = torch.cat([tensor.new_zeros(MPNET_FIRST_POSITION, tensor.size(1)), tensor])
        names = their_names(name, layout.names, prefix)
        yield from zip(names, tensor.chunk(len(names)))
    dim = part.encoder.config.dim
    if layout in (BERT, ELECTRA):  # token types, which add nothing
        yield f"{prefix}embeddings.token_type_embeddings.weight", torch.zeros(2, part.encoder.config.embedding_width)
    if layout in (MPNET, BERT) and part.task == "encoder":
        # AutoModel has a pooler. No method trains one: it gives tanh of <s> instead of a random projection of it.
        yield "pooler.dense.weight", torch.eye(dim)
        yield "pooler.dense.bias", torch.zeros(dim)


def head_tensors(part: Part, layout: Layout) -> Iterator[Tuple[str, Tensor]]:
    if part.head is None:
        return
    for name, tensor in part.head.state_dict().items():
        if name.startswith("token_embeddings."):  # tied, which their config says
            continue
        turned = part.task == "detection" and name.startswith("score.")
        (theirs,) = their_names(name, layout.heads[part.task], "")
        yield theirs, -tensor if turned else tensor


def tensors_of(part: Part, layout: Layout) -> Dict[str, Tensor]:
    """model.safetensors, in float32."""
    tensors = [*encoder_tensors(part, layout), *head_tensors(part, layout)]
    return {name: tensor.detach().float().contiguous() for name, tensor in tensors}


def config_of(part: Part, layout: Layout) -> Dict[str, Any]:
    """config.json"""
    shape = part.encoder.config
    config = {
        "model_type": layout.model_type, "architectures": [layout.class_name(part.task)],
        **{theirs: getattr(shape, ours) for theirs, ours in SHAPE.items()}, "hidden_act": "gelu",
        "max_position_embeddings": shape.max_positions + (MPNET_FIRST_POSITION if layout is MPNET else 0),
        "layer_norm_eps": shape.layer_norm_eps, "pad_token_id": shape.padding_idx,
        "tie_word_embeddings": True,
    }
    if layout is MPNET:
        config["relative_attention_num_buckets"] = shape.rel_pos_buckets
    if layout in (BERT, ELECTRA):
        config["type_vocab_size"] = 2
    if layout in (ELECTRA, AMOS):
        config["embedding_size"] = shape.embedding_width
    if layout is AMOS:
        config |= {
            "relative_buckets": shape.rel_pos_buckets, "relative_max_distance": shape.rel_pos_max_distance,
            "relative_bucketing": shape.rel_pos_bucketing,
        }
        classes = {AUTO_CLASSES[task]: layout.class_name(task) for task in ("encoder", *layout.heads)}
        names = {"AutoConfig": "AmosConfig", **classes}
        config["auto_map"] = {auto: f"modeling_amos.{name}" for auto, name in names.items()}
    if part.task == "choice" and layout is ELECTRA:
        config["summary_activation"] = "tanh"
    if part.task in ("sequence", "token"):
        labels = dict(enumerate(part.labels)) or {0: "value"}
        config |= {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    if part.task == "sequence":
        classification = "multi_label_classification" if part.sets else "single_label_classification"
        config["problem_type"] = classification if part.labels else "regression"
    return config


def first_position(config: Mapping[str, Any]) -> int:
    """Row of the first token's position: RoBERTa's and MPNet's begin behind the padding's row."""
    return config["pad_token_id"] + 1 if LAYOUTS[config["model_type"]] in (MPNET, ROBERTA) else 0


class Config(TypedDict, total=False):
    """What is read of a config.json, Hugging Face's, one of `config_of` or Microsoft's."""

    model_type: Optional[str]
    architectures: Optional[List[str]]
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    embedding_size: int
    max_position_embeddings: int
    pad_token_id: int
    hidden_act: str
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    layer_norm_eps: float
    tie_word_embeddings: bool
    relative_buckets: int
    relative_max_distance: int
    relative_bucketing: str
    max_rel_pos: int
    generator_depths: List[int]
    pre_tokenized: bool
    amos_fairseq: Dict[str, str]


def read_config(path: Path) -> Dict[str, Any]:
    """A config.json, {} if there is none. Raises Damaged, in one line, if it is malformed."""
    return json_files.read(path, Config) if path.is_file() else {}


def encoder_config(config: Mapping[str, Any], source: object) -> EncoderConfig:
    """Of a config.json, theirs or one of `config_of`. Raises Damaged, in one line, if an option is absent or wrong."""
    layout = LAYOUTS[config["model_type"]]
    none = {"relative_buckets": 0, "relative_max_distance": MPNET_BUCKETS[1], "relative_bucketing": MPNET_BUCKETS[2]}
    buckets, max_distance, bucketing = MPNET_BUCKETS if layout is MPNET else ({**none, **config}[name] for name in none)
    width = "embedding_size" if layout is ELECTRA or "embedding_size" in config else "hidden_size"
    try:
        options = dict(
            **{ours: config[theirs] for theirs, ours in SHAPE.items()}, padding_idx=config["pad_token_id"],
            embedding_dim=config[width], max_positions=config["max_position_embeddings"] - first_position(config),
            rel_pos_buckets=buckets, rel_pos_max_distance=max_distance, rel_pos_bucketing=bucketing,
            layer_norm_eps=config["layer_norm_eps"],
        )
    except KeyError as error:
        raise Damaged(f"{source} lacks {error}: save the model again with save_pretrained, or export it anew") from None
    return formed(options, EncoderConfig, source)


def network_of(
    make: Callable[[], Network], layers: int, names: Optional[Names], prefix: str, tensors: Mapping[str, Tensor],
    source: object,
) -> Network:
    """`make()` in evaluation mode with the parameters that theirs calls by `names`: see `filled`.

    Raises Damaged, in one line, for the first that is absent.
    """
    state = {}
    for name in sketch(make, layers, len(tensors), source).state_dict():
        theirs = their_names(name, names, prefix)
        absent = [their for their in theirs if their not in tensors]
        if absent:
            raise Damaged(f"{source} does not hold the weights of its {CONFIG}: {absent[0]} is absent")
        state[name] = tensors[theirs[0]] if len(theirs) == 1 else torch.cat([tensors[their] for their in theirs])
    return filled(make, state, layers, source)


def encoder_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> Encoder:
    """The encoder of a folder of theirs, or of one written with `config_of` and `tensors_of`.

    Token types are those of a single text, whose row every position gets. Raises ValueError, in one line, for weights
    that are not those of its config.json.
    """
    layout, shape = LAYOUTS[config["model_type"]], encoder_config(config, folder / CONFIG)
    tensors = dict(tensors)
    prefix = f"{layout.prefix}." if any(name.startswith(f"{layout.prefix}.") for name in tensors) else ""
    positions, types = (f"{prefix}embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
    if positions in tensors:
        tensors[positions] = tensors[positions][first_position(config) :]
        if types in tensors:
            tensors[positions] = tensors[positions] + tensors[types][0]
    return network_of(lambda: Encoder(shape), shape.layers, layout.names, prefix, tensors, folder)
