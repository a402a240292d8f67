"""Local folders of Hugging Face's BERT, ELECTRA, MPNet and RoBERTa, as their own library saves them.

    config.json, model.safetensors | pytorch_model.bin    the encoder, with its heads if it has any
    generator/                                            the same of ELECTRA's generator, if it is there
    tokenizer.json                                        whose ids the rows of the token table belong to

What these classes compute, an `Encoder` does, too: post-LN, learned positions, biases, erf GELU, `layer_norm_eps`,
ELECTRA's narrower table, MPNet's relative bias. RoBERTa's and MPNet's positions begin behind the padding's row. Token
types are those of a single text, whose row every position gets.
"""

import logging
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple

import torch
from torch import Tensor

from amos_fairseq.data.fast_tokenizer import read_fast
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary_files import load_tokenizer, vocabulary_file
from amos_fairseq.methods import build
from amos_fairseq.methods.config import Vocabulary, heads_of_generator
from amos_fairseq.methods.continuation import EarlierRun, part
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.modules.heads import DetectionHead, MaskedLMHead
from amos_fairseq.pretrained import layouts
from amos_fairseq.pretrained.layouts import BERT, CONFIG, ELECTRA, MPNET, MPNET_BUCKETS, ROBERTA, Layout, read_config
from amos_fairseq.pretrained.model import Pretrained
from amos_fairseq.pretrained.released import read_tensors

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LAYOUTS = {layout.model_type: layout for layout in (BERT, ELECTRA, MPNET, ROBERTA)}
# Of config.json, what an encoder of ours is
SUPPORTED = dict(
    hidden_act="gelu", position_embedding_type="absolute", is_decoder=False,
    relative_attention_num_buckets=MPNET_BUCKETS[0],
)
DECODERS = ("cls.predictions.decoder", "generator_lm_head", "lm_head.decoder")  # of which the table may be a copy
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
logger = logging.getLogger(__name__)


class Stock(NamedTuple):
    """One network of theirs; heads by the names that our methods give them."""

    layout: Layout
    encoder: Encoder
    heads: Dict[str, Any]

    @property
    def state(self) -> Dict[str, Tensor]:
        """By the names of a method's parameters."""
        return torch.nn.ModuleDict({"encoder": self.encoder, **self.heads}).state_dict()


def is_stock(path) -> bool:
    """Whether `path` is a folder of one of their models."""
    return read_config(Path(path, CONFIG)).get("model_type") in LAYOUTS


def load(path) -> Stock:
    """Its encoder, and the MLM or detection head if it has one.

    Raises ValueError, in one line, for a model that no encoder of ours equals, and for weights that are not those of
    its config.json.
    """
    folder = Path(path)
    config = read_config(folder / CONFIG)
    layout = LAYOUTS[config["model_type"]]
    for name, value in SUPPORTED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder} has {name} {config[name]!r}, this package's encoder only {value!r}")
    if layout in (BERT, ELECTRA):
        config = {"pad_token_id": 0, **config}
    tensors = read_weights(folder)
    encoder = layouts.encoder_of(config, tensors, folder)
    return Stock(layout, encoder, heads_in(folder, config, layout, tensors, encoder))


def earlier_run(path, source: str) -> EarlierRun:
    """What a new run takes of the folder, and of `generator/` in it, by the names that methods have."""
    main = load(path)
    state, config = main.state, main.encoder.config
    options = {
        "encoder_attention_heads": config.heads, "layer_norm_eps": config.layer_norm_eps,
        "rel_pos_max_distance": config.rel_pos_max_distance, "rel_pos_bucketing": config.rel_pos_bucketing,
    }
    place = Path(path) / "generator"
    if is_stock(place):
        generator = load(place)
        shape = generator.encoder.config
        width = 0 if (shape.dim, shape.heads) == (config.dim, config.heads) else shape.dim
        if shape.heads == heads_of_generator(width, config.heads) and shape.layer_norm_eps == config.layer_norm_eps:
            renamed = {f"generator.{name.removeprefix('encoder.')}": tensor
                       for name, tensor in part(generator.state, ["encoder"]).items()}
            state = {**state, **renamed, **part(generator.state, ["mlm_head"])}
            options["generator_embed_dim"] = width
        else:
            logger.warning("%s: heads or layer_norm_eps are no generator's here: not taken", place)
    return EarlierRun(source, state, options)


def read_weights(folder: Path) -> Dict[str, Tensor]:
    """In float32, by the names of today."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        if any(folder.glob("*.index.json")):
            remedy = "save it again with save_pretrained(FOLDER, max_shard_size='100GB')"
            raise ValueError(f"{folder} has its weights in several files: {remedy}")
        raise ValueError(f"{folder} holds none of {', '.join(WEIGHTS)}")
    tensors = {}
    for name, tensor in read_tensors(found[0]).items():
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


def heads_in(
    folder: Path, config: Mapping[str, Any], layout: Layout, tensors: Mapping[str, Tensor], encoder: Encoder
) -> Dict[str, Any]:
    """mlm_head or rtd_head, if the folder has it; an MLM head with a decoder of its own is left, and told of."""
    shape, heads = encoder.config, dict[str, Any]()
    names = layout.heads["masked_lm"]
    if f"{names['dense']}.weight" in tensors:
        decoders = [tensors[f"{name}.weight"] for name in DECODERS if f"{name}.weight" in tensors]
        tied = config.get("tie_word_embeddings", True)
        if decoders:
            tied = torch.equal(decoders[0], encoder.token_embeddings.weight)
        if tied:
            known = {**tensors, "token_embeddings.weight": encoder.token_embeddings.weight}
            heads["mlm_head"] = layouts.network_of(
                lambda: MaskedLMHead(shape.dim, encoder.token_embeddings, shape.layer_norm_eps), 0,
                {**names, "token_embeddings": "token_embeddings"}, "", known, folder,
            )
        else:
            logger.warning("%s: its MLM head has a decoder of its own, not the token table: not taken", folder)
    if "detection" in layout.heads and f"{layout.heads['detection']['dense']}.weight" in tensors:
        head = heads["rtd_head"] = layouts.network_of(
            lambda: DetectionHead(shape.dim, hidden_layer=True), 0, layout.heads["detection"], "", tensors, folder
        )
        with torch.no_grad():  # theirs says `replaced`, ours `original`
            head.score.weight.neg_()
            head.score.bias.neg_()
    return heads


def tokenizer_of(path) -> Tokenizer:
    """Of a folder of theirs, or of one that `amos-fairseq export` wrote."""
    own = Path(vocabulary_file(path))
    return load_tokenizer(own.read_bytes(), str(own)) if own.is_file() else read_fast(str(path))


def pretrained(path) -> Pretrained:
    """With its tokenizer: a model with an MLM head on its token table as `bert_mlm`, of all others the encoder alone.

    Raises ValueError as `load` does, and if the tokenizer is absent or another model's.
    """
    found, tokenizer = load(path), tokenizer_of(path)
    shape = found.encoder.config
    theirs, ours = (shape.vocab_size, shape.padding_idx), (len(tokenizer), tokenizer.pad)
    if theirs != ours:
        both = "{} symbols with the pad at {}, but its model {} with the pad at {}".format(*ours, *theirs)
        raise ValueError(f"{path}: its tokenizer has {both}: save both of one model")
    if "mlm_head" not in found.heads:
        name = "electra_rtd" if found.layout is ELECTRA else "bert_mlm"
        return Pretrained(str(path), name, found.encoder, tokenizer)
    method = build("bert_mlm", dict(
        encoder_layers=shape.layers, encoder_embed_dim=shape.dim, encoder_ffn_embed_dim=shape.ffn_dim,
        encoder_attention_heads=shape.heads, token_embed_dim=shape.embedding_dim, max_positions=shape.max_positions,
        rel_pos_buckets=shape.rel_pos_buckets, rel_pos_max_distance=shape.rel_pos_max_distance,
        rel_pos_bucketing=shape.rel_pos_bucketing, layer_norm_eps=shape.layer_norm_eps,
    ), Vocabulary.of(tokenizer)).eval()
    method.load_state_dict(found.state)
    return Pretrained(str(path), "bert_mlm", method.encoder, tokenizer, method)
