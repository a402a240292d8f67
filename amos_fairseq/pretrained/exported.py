"""Folders that `amos-fairseq export` wrote, read back: the encoder and its vocabulary."""

import json
from pathlib import Path
from typing import Any, Dict

import safetensors.torch

from amos_fairseq.data.tokenizer import load_tokenizer, vocabulary_file
from amos_fairseq.pretrained.layouts import LAYOUTS, encoder_of
from amos_fairseq.pretrained.model import Pretrained
from amos_fairseq.user_errors import Damaged

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
OURS = "amos_fairseq"  # in config.json: the method and the version that wrote it


def is_exported(path) -> bool:
    """Whether `load` reads it."""
    return (Path(path) / CONFIG).is_file() and OURS in read_config(Path(path))


def load(path) -> Pretrained:
    """The encoder and the vocabulary. Raises ValueError, in one line, if it is no such folder, or is damaged."""
    folder = Path(path)
    if not is_exported(folder):
        raise ValueError(f"{folder} was not written by `amos-fairseq export`")
    vocabulary = Path(vocabulary_file(folder))
    if not vocabulary.is_file():
        raise ValueError(f"{folder} holds no {vocabulary.name}: copy it from the folder that was exported")
    config = read_config(folder)
    try:
        encoder = encoder_of(config, safetensors.torch.load_file(folder / WEIGHTS))
    except (FileNotFoundError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise Damaged(f"{folder} is damaged: {type(error).__name__} {error}") from None
    tokenizer = load_tokenizer(vocabulary.read_bytes(), str(vocabulary))
    if len(tokenizer) != encoder.config.vocab_size:
        raise ValueError(
            f"{vocabulary} makes {len(tokenizer)} symbols, but the model has {encoder.config.vocab_size}: "
            "copy it from the folder that was exported"
        )
    return Pretrained(str(folder), config[OURS]["method"], encoder.eval(), tokenizer)


def read_config(folder: Path) -> Dict[str, Any]:
    """config.json, {} if it is of no model that an export may be of."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except ValueError as error:
        raise Damaged(f"{folder / CONFIG} is damaged: {error}") from None
    return config if isinstance(config, dict) and config.get("model_type") in LAYOUTS else {}
