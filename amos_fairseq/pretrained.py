"""What was pre-trained, loaded to be used: `amos_fairseq.from_pretrained(path)`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Mapping, Optional

from amos_fairseq.checkpoints import storage, store
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import MODEL_NAME
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.base import PretrainingMethod, Vocabulary
from amos_fairseq.modules.encoder import Encoder

VOCABULARY = "sentencepiece_model"  # in a checkpoint's `task_state`


@dataclass(frozen=True)
class Pretrained:
    """An encoder and its vocabulary, in evaluation mode, on the CPU; `method` has its heads and generator, if known.

    source: where it was found
    name: registered name of its method
    """

    source: str
    name: str
    encoder: Encoder
    tokenizer: Tokenizer
    method: Optional[PretrainingMethod] = None


def from_pretrained(path, data=None) -> Pretrained:
    """Load a run's folder (its newest valid checkpoint) or one checkpoint.

    data: prepared folder, for a checkpoint that holds no vocabulary of its own
    Raises ValueError, in one line, if it is no checkpoint of one of the methods.
    """
    folder = store.find(Path(path))
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder that training wrote: a file of fairseq's holds no vocabulary")
    state = storage.read(folder, ["cfg", "task_state", "model"])
    name = state["cfg"]["task"]["_name"]
    if name not in METHODS:
        raise ValueError(f"{folder} is of a run of {name}, none of {', '.join(METHODS)}")
    tokenizer = Tokenizer(vocabulary_of(state["task_state"], data, folder), str(folder))
    parameters = {key.removeprefix("method."): tensor for key, tensor in state["model"].items()}
    method = build(name, state["cfg"]["model"], tokenizer)
    method.load_state_dict(parameters)
    return Pretrained(str(folder), name, method.encoder.eval(), tokenizer, method.eval())


def build(name: str, options: Mapping, tokenizer: Tokenizer) -> PretrainingMethod:
    """A new method of that name; an option that is absent, of a checkpoint from before it existed, has its default."""
    config_class = METHODS[name].config_class
    names = {field.name for field in fields(config_class)} & set(options)
    config = config_class(**{option: options[option] for option in names})
    return METHODS[name](config, Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded))


def vocabulary_of(task_state: Mapping, data, source) -> bytes:
    if data is None and VOCABULARY not in task_state:
        raise ValueError(f"{source} holds no vocabulary: name the folder of its prepared data")
    return (Path(data) / MODEL_NAME).read_bytes() if data else task_state[VOCABULARY].numpy().tobytes()
