"""What a path is, and what was pre-trained loaded from it."""

from pathlib import Path
from typing import Mapping, NamedTuple

from torch import Tensor

from amos_fairseq.checkpoints import storage, store
from amos_fairseq.data.manifest import located
from amos_fairseq.data.vocabulary_files import load_tokenizer, vocabulary_file
from amos_fairseq.json_files import formed
from amos_fairseq.methods import METHODS, build
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.options import declared
from amos_fairseq.pretrained import exported, released, stock
from amos_fairseq.pretrained.filling import filled
from amos_fairseq.pretrained.model import Pretrained

EXPORTED, STOCK, RELEASED = "exported", "stock", "released"  # kinds
PRETRAINING, FINETUNING = "pretraining", "finetuning"
VOCABULARY = "sentencepiece_model"  # in a checkpoint's `task_state`


class Found(NamedTuple):
    """What a path is, one of the kinds above, and the folder or file of it: of a run, that of a checkpoint."""

    kind: str
    path: Path


def identify(path) -> Found:
    """Tell a folder that `amos-fairseq export` wrote, a stock model of Hugging Face, Microsoft's checkpoints, and
    those of our training apart.

    Of a run's folder it is the newest valid checkpoint, of a fine-tuning run the best one if any was validated; its
    files are as they were written. Raises ValueError if it is nothing of this, Damaged if no checkpoint is valid.
    """
    path = Path(path)
    if exported.is_exported(path):
        return Found(EXPORTED, path)
    if stock.is_stock(path):
        return Found(STOCK, path)
    if released.is_released(path):
        return Found(RELEASED, path)
    folder = store.find(path, verify=True)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder that training wrote: a file of fairseq's holds no vocabulary")
    if storage.read_state(folder, ["cfg"])["cfg"]["task"].get("_name") != FINETUNING:
        return Found(PRETRAINING, folder)
    best = path / store.BEST
    return Found(FINETUNING, store.find(best, verify=True) if best.exists() else folder)


def from_pretrained(path, data=None) -> Pretrained:
    """Load a run's folder (its newest valid checkpoint), one checkpoint, a folder that `amos-fairseq export` wrote,
    a local one of Hugging Face's BERT, ELECTRA, MPNet or RoBERTa, or a checkpoint of Microsoft's AMOS or COCO-LM.

    data: prepared folder, for a checkpoint that holds no vocabulary of its own
    Raises ValueError, in one line, if it is none of these, or if `data` are of another vocabulary.
    """
    return load(identify(path), data)


def load(found: Found, data=None) -> Pretrained:
    """`from_pretrained` of what `identify` found."""
    folder = found.path
    if found.kind == EXPORTED:
        return exported.load(folder)
    if found.kind == STOCK:
        return stock.pretrained(folder)
    if found.kind == RELEASED:
        return released.load(folder)
    if found.kind == FINETUNING:
        raise ValueError(f"{folder} was fine-tuned: name what it started from, or the folder that it is exported to")
    state = storage.read_state(folder, ["cfg", "task_state", "model"])
    name, options = state["cfg"]["task"].get("_name"), state["cfg"]["model"]
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"{folder} is of a run of {name}, none of {', '.join(METHODS)}")
    tokenizer = load_tokenizer(vocabulary_of(state["task_state"], data, folder), str(folder))
    total_updates = state["cfg"].get("optimization", {}).get("max_update", 0)
    config_class = METHODS[name].config_class
    names = {option.name for option in declared(config_class)}
    known = {option: value for option, value in options.items() if option in names}
    formed(known, config_class, folder / storage.STATE, "cfg.model")

    def make() -> PretrainingMethod:
        return build(name, options, Vocabulary.of(tokenizer), total_updates=total_updates)

    depths = (known.get(option) for option in ("encoder_layers", "generator_layers", "generator_depths"))
    layers = max(number for depth in depths for number in (depth if isinstance(depth, list) else [depth or 0]))
    method = filled(make, parameters_of(state["model"]), layers, folder)
    counts = state["model"].get("token_counts")  # (2, V), as the original and as a replacement: 0 without replacements
    counts = counts[0] if counts is not None and counts[0].any() else None
    return Pretrained(str(folder), name, method.exported_encoder(), tokenizer, method, counts)


def parameters_of(state: Mapping) -> dict:
    """The method's, of a checkpoint's `model`, which also holds what training counted."""
    return {key.removeprefix("method."): tensor for key, tensor in state.items() if key.startswith("method.")}


def vocabulary_of(task_state: Mapping, data, source) -> bytes:
    """Of a checkpoint, else of prepared `data`. Raises ValueError if neither has one, or both differ."""
    own = formed(task_state[VOCABULARY], Tensor, source, VOCABULARY) if VOCABULARY in task_state else None
    own = None if own is None else own.numpy().tobytes()
    given = Path(vocabulary_file(located(data)[0])).read_bytes() if data else None
    vocabulary = given if own is None else own
    if vocabulary is None:
        raise ValueError(f"{source} holds no vocabulary: name the folder of its prepared data")
    if given not in (None, vocabulary):
        raise ValueError(f"{data} has another vocabulary than {source}: name the one of its own data, or none")
    return vocabulary
