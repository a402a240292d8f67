"""The checkpoints of Microsoft's AMOS and COCO-LM (github.com/microsoft/AMOS, microsoft/COCO-LM), read and written.

    fairseq       model.pt: the parameters of their fairseq model, the networks of pre-training among them if present
    huggingface   pytorch_model.bin: the encoder's, by the names of their `transformers` model
    both          sp.model, dict.txt, and config.json, which is of `transformers` and which fairseq does not need

How an encoder reads distances is `released_buckets`, positions count from 0, and a pair has two separators.
"""

import argparse
import fnmatch
import io
import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from amos_fairseq.checkpoints import storage
from amos_fairseq.data.released_tokenizer import ReleasedTokenizer
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import DICTIONARY_NAME
from amos_fairseq.files import check_regular, new_folder
from amos_fairseq.methods import build
from amos_fairseq.methods.config import PretrainingConfig, Vocabulary
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.modules.initialization import INIT_STD, LAYER_NORM_EPS
from amos_fairseq.pretrained.layouts import SHAPE, read_config
from amos_fairseq.pretrained.model import Pretrained

MODEL_TYPES = {"amos_rtd": "amos", "coco_lm": "cocolm"}  # by method, as in config.json and in front of parameters
WEIGHTS = {"fairseq": "model.pt", "huggingface": "pytorch_model.bin"}
READABLE = (*WEIGHTS.values(), "model.safetensors")
SENTENCEPIECE_NAME, CONFIG_NAME = "sp.model", "config.json"
GENERATOR_DEPTHS = {8: [4, 6, 8]}  # of AMOS, by layers of the generator: the default of Microsoft's code
MAX_DISTANCES = {128: 256}  # by buckets, of COCO-LM large; else 128
# Of config.json, what an encoder of ours is
SUPPORTED = dict(hidden_act="gelu", type_vocab_size=0, layer_norm_eps=LAYER_NORM_EPS, layer_norm_type="post")

# Our modules and theirs; {i} is a layer.
EMBEDDINGS = {
    "token_embeddings": ("embed_tokens", "embeddings.word_embeddings"),
    "embeddings.positions": ("embed_positions", "embeddings.position_embeddings"),
    "embeddings.layer_norm": ("emb_layer_norm", "embeddings.LayerNorm"),
    "relative_position_bias": ("relative_attention_bias", "relative_attention_bias"),
}
LAYER = {
    "self_attn.in_proj": "attention.self_attn.in_proj",  # query, key, value: in this order here as there
    "self_attn.out_proj": "attention.self_attn.out_proj",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}
HEADS = {  # fairseq's
    "rtd_head.score": "encoder.binary_head.out_proj",
    "clm_head": "encoder.lm_head",
    "clm_head.token_embeddings": "encoder.lm_head",
    "scl_head": "encoder.seq_head",
    "mlm_head": "auxiliary.lm_head",
    "mlm_head.token_embeddings": "auxiliary.lm_head",
    "mixture_head": "auxiliary.lm_head.layer_mixture",
}
MIXTURE = "auxiliary.lm_head.layer_mixture.weight"
PRETRAINING_HEADS = ("encoder.binary_head.", "encoder.lm_head.", "encoder.seq_head.", "scl_head.")
TASK_HEADS = ("classification_heads.", "classifier.", "qa_outputs.")
logger = logging.getLogger(__name__)


class Weights(NamedTuple):
    """A file's tensors by the names of its layout, of which `model_type` is what stood before them, if anything."""

    layout: str
    model_type: str
    tensors: Dict[str, Tensor]


def load(
    path, sentencepiece=None, dictionary=None, *, name: Optional[str] = None, max_distance: Optional[int] = None,
    generator_depths: Optional[Sequence[int]] = None, allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Pretrained:
    """A released checkpoint, or one that was made with Microsoft's code: its file, or the folder that holds it.

    With a generator it is the whole method, else the encoder alone. Whatever their precision, parameters become fp32;
    heads that have no place, of a task for instance, are named in a warning.

    sentencepiece, dictionary   sp.model and dict.txt, if they are not beside it
    name                amos_rtd | coco_lm, if neither the tensors, config.json nor the path tell
    max_distance        of the relative positions; else config.json's, else 256 with 128 buckets, 128 with others
    generator_depths    of AMOS; else config.json's, else 4, 6, 8 of 8 layers
    allow_missing, allow_unexpected   patterns of parameters that may lack, and then have initial values, or be too many
    Raises ValueError, in one line, for what does not fit.
    """
    file = find(Path(path))
    config = read_config(file.parent / CONFIG_NAME)
    weights = read_weights(file)
    name = method_of(weights, config, file) if name is None else name
    if name not in MODEL_TYPES:
        raise ValueError(f"method {name!r} is none of those that Microsoft released: {', '.join(MODEL_TYPES)}")
    tokenizer = find_tokenizer(file.parent, sentencepiece, dictionary, config)
    has_generator = any(parameter.startswith("auxiliary.") for parameter in weights.tensors)
    options = encoder_options(weights, config, max_distance, file)
    if has_generator:
        options |= generator_options(weights, config, name, generator_depths, file)
    rows = weights.tensors[their_name("encoder.token_embeddings.weight", weights.layout)].size(0)
    if rows != len(tokenizer):
        raise ValueError(f"{file} has a table of {rows} tokens, dict.txt makes {len(tokenizer)}: name the right one")
    vocabulary = Vocabulary.of(tokenizer)
    network: Any
    if has_generator:
        network = build(name, options, vocabulary)
    else:
        network = nn.ModuleDict({"encoder": Encoder(PretrainingConfig(**options).encoder_config(vocabulary))})
    unread = TASK_HEADS if has_generator else (*TASK_HEADS, *PRETRAINING_HEADS)
    heads = [parameter for parameter in weights.tensors if parameter.startswith(unread)]
    if heads:
        logger.warning("%s: not read: %s", file, listed(heads))
    fill(network, weights, [*allow_unexpected, *heads], allow_missing, file)
    network.eval()
    encoder = network.exported_encoder() if has_generator else network["encoder"]
    return Pretrained(str(file), name, encoder, tokenizer, network if has_generator else None)


def is_released(path) -> bool:
    """Whether `path` looks like what `load` reads: a file of tensors, or a folder with one that no one else claims."""
    path = Path(path)
    if path.is_file():
        return path.suffix in (".pt", ".bin", ".safetensors")
    if (path / storage.STATE).exists() or not any((path / name).is_file() for name in READABLE):
        return False
    return read_config(path / CONFIG_NAME).get("model_type") in (None, *MODEL_TYPES.values())


def find(path: Path) -> Path:
    """The file of tensors that `path` is, or the only one in it."""
    if path.is_file():
        return path
    names = [name for name in READABLE if (path / name).is_file()]
    if len(names) != 1:
        found = " and ".join(names) or f"none of {', '.join(READABLE)}"
        raise ValueError(f"{path} holds {found}: name one file" if path.is_dir() else f"{path} does not exist")
    return path / names[0]


def read_weights(file: Path) -> Weights:
    """Of fairseq's layout, wrapped in {"model": ..} or not, the names begin with encoder. | decoder. | neither."""
    state = read_tensors(file)
    for model_type in (*MODEL_TYPES.values(), ""):
        prefix = f"{model_type}." if model_type else ""
        if f"{prefix}embeddings.word_embeddings.weight" in state:
            names = {parameter: parameter.removeprefix(prefix) for parameter in state}
            return Weights("huggingface", model_type, renamed(state, names, file))
    for prefix in ("encoder.sentence_encoder.", "decoder.sentence_encoder.", "sentence_encoder.", ""):
        if f"{prefix}embed_tokens.weight" in state:
            own = prefix.removesuffix("sentence_encoder.")
            root = "encoder." if prefix else "encoder.sentence_encoder."
            apart = ("auxiliary.", *TASK_HEADS)
            names = {name: name if name.startswith(apart) else root + name.removeprefix(own) for name in state}
            return Weights("fairseq", "", renamed(state, names, file))
    raise ValueError(f"{file} is no checkpoint of AMOS or COCO-LM: it has no embed_tokens and no word_embeddings")


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str], file: Path) -> Dict[str, Tensor]:
    found = {names[parameter]: tensor for parameter, tensor in state.items()}
    if len(found) < len(state):
        raise ValueError(f"{file} has parameters under two names, with and without its prefix")
    return found


def read_tensors(file: Path) -> Mapping[str, Tensor]:
    """Of a safetensors file or one of torch.save, which is refused if it holds more than data."""
    state: Any
    try:
        check_regular(file)
        torch.serialization.add_safe_globals([argparse.Namespace])  # fairseq's options: plain values
        tensors = file.suffix == ".safetensors"
        state = load_file(file) if tensors else torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(storage.refusal(file, error)) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {(str(error) or 'it ends early').splitlines()[0]}") from None
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    strays = [key for key, value in state.items() if not torch.is_tensor(value)] if isinstance(state, Mapping) else [""]
    if strays:
        raise ValueError(f"{file} is no dictionary of tensors {strays[0]}".rstrip())
    storage.check_finite(state, file)
    return state


def method_of(weights: Weights, config: Mapping[str, Any], file: Path) -> str:
    """Which of the two it is; their encoders are alike."""
    if MIXTURE in weights.tensors:
        return "amos_rtd"
    its_own = ("auxiliary.", "encoder.lm_head.", "encoder.seq_head.")
    if any(parameter.startswith(its_own) for parameter in weights.tensors):
        return "coco_lm"
    path = "/".join(file.absolute().parts[-2:])
    said = re.sub("[-_]", "", weights.model_type or config.get("model_type") or path).lower()
    names = [name for name, model_type in MODEL_TYPES.items() if model_type in said]
    if len(names) != 1:
        raise ValueError(f"{file} may be of AMOS or of COCO-LM, nothing tells: name the method, amos_rtd or coco_lm")
    return names[0]


def their_name(ours: str, layout: str) -> Optional[str]:
    """A parameter's name in the layout, None if it has no place there."""
    network = re.fullmatch(r"(encoder|generator|generators\.0)\.(?:layers\.(\d+)\.)?(.+)\.(weight|bias)", ours)
    if network is None:
        heads = [head for head in HEADS if ours.startswith(f"{head}.") and layout == "fairseq"]
        return HEADS[max(heads, key=len)] + ours.removeprefix(max(heads, key=len)) if heads else None
    owner, layer, module, kind = network.groups()
    if module not in (EMBEDDINGS if layer is None else LAYER):
        return None
    if layout == "fairseq":
        root = "encoder.sentence_encoder" if owner == "encoder" else "auxiliary.sentence_encoder"
        return f"{root}.{EMBEDDINGS[module][0] if layer is None else f'layers.{layer}.{module}'}.{kind}"
    if owner != "encoder":
        return None
    return f"{EMBEDDINGS[module][1] if layer is None else f'encoder.layer.{layer}.{LAYER[module]}'}.{kind}"


def encoder_options(weights: Weights, config: Mapping[str, Any], max_distance: Optional[int], file: Path) -> Dict:
    """Options of `PretrainingConfig`: sizes as the tensors have them, the rest from config.json or by rule."""
    for key, value in SUPPORTED.items():
        if config.get(key, value) != value:
            raise ValueError(f"{file.parent / CONFIG_NAME} has {key} {config[key]!r}, the releases {value!r}")

    def shape(ours: str) -> List[int]:
        theirs = their_name(ours, weights.layout)
        if theirs not in weights.tensors or weights.tensors[theirs].dim() != 2:
            raise ValueError(f"{file} lacks {theirs}, a matrix from which sizes are read")
        return list(weights.tensors[theirs].shape)

    buckets, heads = shape("encoder.relative_position_bias.weight")
    return dict(
        encoder_layers=depth("encoder", weights, file), encoder_attention_heads=heads,
        encoder_embed_dim=shape("encoder.token_embeddings.weight")[1],
        encoder_ffn_embed_dim=shape("encoder.layers.0.fc1.weight")[0],
        max_positions=shape("encoder.embeddings.positions.weight")[0],
        dropout=config.get("hidden_dropout_prob", 0.1),
        attention_dropout=config.get("attention_probs_dropout_prob", 0.1),
        rel_pos_buckets=buckets, rel_pos_bucketing="released",
        rel_pos_max_distance=max_distance or config.get("max_rel_pos") or MAX_DISTANCES.get(buckets, 128),
    )


def generator_options(
    weights: Weights, config: Mapping[str, Any], name: str, depths: Optional[Sequence[int]], file: Path
) -> Dict[str, Any]:
    layers = depth("generator", weights, file)
    if name == "amos_rtd":
        depths = depths or config.get("generator_depths") or GENERATOR_DEPTHS.get(layers)
        if depths is None:
            raise ValueError(
                f"{file}: nothing tells which of the generator's {layers} layers have heads: name generator_depths"
            )
        if max(depths) > layers:
            raise ValueError(f"{file}: generator_depths {list(depths)} exceed the generator's {layers} layers")
        return {"generator_depths": list(depths)}
    heads = {"clm_weight": "encoder.lm_head.", "scl_weight": "encoder.seq_head."}
    trained = {weight: any(name.startswith(head) for name in weights.tensors) for weight, head in heads.items()}
    return {"generator_layers": layers, **{weight: float(there) for weight, there in trained.items()}}


def depth(network: str, weights: Weights, file: Path) -> int:
    """Number of layers of `encoder` or `generator`."""
    pattern = re.escape(their_name(f"{network}.layers.0.fc1.weight", weights.layout).partition(".0.")[0])
    matches = (re.match(rf"{pattern}\.(\d+)\.", parameter) for parameter in weights.tensors)
    numbers = {int(match[1]) for match in matches if match}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"{file} has layers {', '.join(map(str, sorted(numbers)))} of its {network}: some are missing")
    return len(numbers)


@torch.no_grad()
def fill(
    network: nn.Module, weights: Weights, allow_unexpected: Sequence[str], allow_missing: Sequence[str], file: Path
) -> None:
    """Copy all tensors to their parameters. What is one parameter for us must have equal copies in the file."""
    tensors = weights.tensors
    places = {ours: their_name(ours, weights.layout) for ours, _ in network.named_parameters(remove_duplicate=False)}
    for verb, names, allowed, option in (
        ("lacks", set(places.values()) - tensors.keys(), allow_missing, "allow_missing"),
        ("has also", tensors.keys() - set(places.values()), allow_unexpected, "allow_unexpected"),
    ):
        refused = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)]
        if refused:
            raise ValueError(f"{file} {verb} {listed(refused)}: if that is right, name it in {option}")
    filled: Dict[nn.Parameter, str] = {}
    for ours, parameter in network.named_parameters(remove_duplicate=False):
        theirs = places[ours]
        if theirs not in tensors:
            continue
        tensor = tensors[theirs]
        if tensor.shape != parameter.shape:
            raise ValueError(f"{file}: {theirs} is {tuple(tensor.shape)}, where it should be {tuple(parameter.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: {theirs} holds {tensor.dtype}, no floating point numbers")
        first = filled.setdefault(parameter, theirs)
        if not torch.equal(tensors[first], tensor):
            raise ValueError(f"{file}: {first} and {theirs} differ, but are one parameter")
        parameter.copy_(tensor)


def find_tokenizer(folder: Path, sentencepiece, dictionary, config: Mapping[str, Any]) -> Tokenizer:
    sentencepiece = Path(sentencepiece or folder / SENTENCEPIECE_NAME)
    dictionary = Path(dictionary or folder / DICTIONARY_NAME)
    absent = [str(path) for path in (sentencepiece, dictionary) if not path.is_file()]
    if absent:
        raise ValueError(
            f"{' and '.join(absent)} not found: put sp.model and dict.txt, which the releases have in dict.tar.gz, "
            "beside the checkpoint, or name them as sentencepiece and dictionary"
        )
    tokenizer = ReleasedTokenizer(sentencepiece.read_bytes(), dictionary.read_bytes(), str(dictionary))
    if config.get("pre_tokenized", True):
        return tokenizer
    plain = Tokenizer(tokenizer.sentencepiece, str(sentencepiece))
    if plain.symbols != tokenizer.symbols:
        raise ValueError(f"{dictionary} and {sentencepiece} do not belong together")
    return plain


def listed(names: Sequence[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def write(pretrained: Pretrained, out, layout: str = "fairseq", encoder_only: bool = False) -> None:
    """Write a new folder that Microsoft's code reads, and `load` with every bit as it was.

    layout   fairseq: with the networks of pre-training unless `encoder_only`; huggingface: the encoder
    Raises ValueError, in one line, for what the layout has no place for; then nothing is left.
    """
    out, source = Path(out), pretrained.source
    if layout not in WEIGHTS:
        raise ValueError(f"layout {layout!r} is none of {', '.join(WEIGHTS)}")
    if pretrained.name not in MODEL_TYPES:
        raise ValueError(f"{source} is of {pretrained.name}: only {' and '.join(MODEL_TYPES)} have such a layout")
    bucketing, buckets = pretrained.encoder.config.rel_pos_bucketing, pretrained.encoder.config.rel_pos_buckets
    if bucketing != "released" or not buckets:
        raise ValueError(
            f"{source} was trained with rel_pos_bucketing {bucketing} and {buckets} rel_pos_buckets, which Microsoft's "
            "code would read otherwise: train with --rel-pos-bucketing released, or export to Hugging Face"
        )
    if pretrained.encoder.config.layer_norm_eps != LAYER_NORM_EPS:
        eps = pretrained.encoder.config.layer_norm_eps
        raise ValueError(f"{source} has layer_norm_eps {eps}, Microsoft's code {LAYER_NORM_EPS}: export it instead")
    whole = layout == "fairseq" and pretrained.method is not None and not encoder_only
    network = pretrained.method if whole else nn.ModuleDict({"encoder": pretrained.encoder})
    parameters = dict(network.named_parameters(remove_duplicate=False))
    places = {ours: their_name(ours, layout) for ours in parameters}
    strays = [ours for ours, theirs in places.items() if theirs is None]
    if strays:
        raise ValueError(f"{source}: the {layout} layout has no place for {listed(strays)}; the encoder alone may have")
    if whole and pretrained.name == "amos_rtd" and MIXTURE not in places.values():
        raise ValueError(f"{source} has no learned mixture, which that of AMOS has: write the encoder only")
    prefix = f"{MODEL_TYPES[pretrained.name]}." if layout == "huggingface" else ""
    tensors = {f"{prefix}{places[ours]}": parameter.detach().cpu() for ours, parameter in parameters.items()}
    with new_folder(out) as partial:
        tokenizer = pretrained.tokenizer
        if isinstance(tokenizer, ReleasedTokenizer):
            files = {SENTENCEPIECE_NAME: tokenizer.sentencepiece, DICTIONARY_NAME: tokenizer.dictionary}
        else:
            counts = np.zeros(len(tokenizer), dtype=np.int64)  # nobody reads them
            files = {SENTENCEPIECE_NAME: tokenizer.model, DICTIONARY_NAME: tokenizer.dict_txt(counts)}
        weights = io.BytesIO()  # of a disk that is full in the middle torch.save tells no OSError
        torch.save(tensors, weights)
        files.update({CONFIG_NAME: config_bytes(pretrained, whole), WEIGHTS[layout]: weights.getvalue()})
        for name, content in files.items():
            (partial / name).write_bytes(content)
        check(partial, pretrained, network)


def check(folder: Path, pretrained: Pretrained, network: nn.Module) -> None:
    """Raises ValueError unless the folder holds what it was written from."""
    try:
        found = load(folder)
    except ValueError as error:
        raise ValueError(f"{pretrained.source} does not fit Microsoft's layout: {error}") from None
    read = (found.method or nn.ModuleDict({"encoder": found.encoder})).state_dict()
    same = found.name == pretrained.name and found.tokenizer.model == pretrained.tokenizer.model
    if not same or not all(torch.equal(read[name], tensor.cpu()) for name, tensor in network.state_dict().items()):
        raise ValueError(f"{pretrained.source} differs when it is read again: nothing was written; please report this")


def config_bytes(pretrained: Pretrained, whole: bool) -> bytes:
    """config.json of Microsoft's `transformers` model, and what `load` would else have to be told."""
    encoder = pretrained.encoder.config
    config = dict(
        **{theirs: getattr(encoder, ours) for theirs, ours in SHAPE.items()}, **SUPPORTED,
        model_type=MODEL_TYPES[pretrained.name], cls_dropout_prob=encoder.dropout, initializer_range=INIT_STD,
        max_position_embeddings=encoder.max_positions, rel_pos_bins=encoder.rel_pos_buckets,
        max_rel_pos=encoder.rel_pos_max_distance, pre_tokenized=isinstance(pretrained.tokenizer, ReleasedTokenizer),
    )
    if whole and pretrained.name == "amos_rtd":
        config["generator_depths"] = list(pretrained.method.config.generator_depths)
    return json.dumps(config, indent=2).encode()
