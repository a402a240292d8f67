"""Folders that `amos-fairseq export` wrote, read back: the encoder and its vocabulary."""

from pathlib import Path

from amos_fairseq.data.vocabulary_files import load_tokenizer, vocabulary_file
from amos_fairseq.pretrained.layouts import CONFIG, LAYOUTS, encoder_of, read_config
from amos_fairseq.pretrained.model import Pretrained
from amos_fairseq.pretrained.released import read_tensors
from amos_fairseq.user_errors import Damaged

WEIGHTS, CARD = "model.safetensors", "README.md"
OURS = "amos_fairseq"  # in config.json: the method and the version that wrote it


def is_exported(path) -> bool:
    """Whether `load` reads it."""
    config = read_config(Path(path) / CONFIG)
    return OURS in config and config.get("model_type") in LAYOUTS


def load(path) -> Pretrained:
    """The encoder and the vocabulary. Raises ValueError, in one line, if it is no such folder, or is damaged."""
    folder = Path(path)
    if not is_exported(folder):
        raise ValueError(f"{folder} was not written by `amos-fairseq export`")
    vocabulary = Path(vocabulary_file(folder))
    if not vocabulary.is_file():
        raise ValueError(f"{folder} holds no {vocabulary.name}: copy it from the folder that was exported")
    config = read_config(folder / CONFIG)
    if "method" not in config[OURS]:
        raise Damaged(f"{folder / CONFIG}: {OURS}.method is absent")
    encoder = encoder_of(config, read_tensors(folder / WEIGHTS), folder)
    tokenizer = load_tokenizer(vocabulary.read_bytes(), str(vocabulary))
    if len(tokenizer) != encoder.config.vocab_size:
        raise ValueError(
            f"{vocabulary} makes {len(tokenizer)} symbols, but the model has {encoder.config.vocab_size}: "
            "copy it from the folder that was exported"
        )
    return Pretrained(str(folder), config[OURS]["method"], encoder, tokenizer)
