"""A trained run, loaded to look at what it does with text."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from amos_fairseq.analysis import pipeline
from amos_fairseq.analysis.pipeline import Sentence
from amos_fairseq.checkpoints import storage
from amos_fairseq.data.manifest import VALID_SHARD, load_manifest_for, located
from amos_fairseq.data.masking import MaskingOptions
from amos_fairseq.pretrained.loading import PRETRAINING, identify, load
from amos_fairseq.pretrained.model import Pretrained


class Sampling(NamedTuple):
    """What is masked and drawn, and how much is told of it."""

    mask_prob: Optional[float] = None  # None: the run's own
    seed: int = 1
    top: int = 3  # likeliest tokens of a language model


class TrainedRun(NamedTuple):
    """A run's method in evaluation mode and the options of its task, none of one from elsewhere."""

    model: Pretrained
    data: Optional[Path]  # prepared folder; None: where the run was trained
    task: Mapping[str, Any]

    def inspect_text(self, lines: Sequence[str], sampling: Sampling = Sampling()) -> List[Sentence]:
        """Lines of text, each a sentence of its own; where one has <mask>, that is all that is masked."""
        tokenizer, longest = self.model.tokenizer, self.model.max_tokens
        sentences = []
        for number, line in enumerate(lines, start=1):
            tokens = np.array(tokenizer.sequence(tokenizer.encode_masked(line)))
            if len(tokens) > longest:
                raise ValueError(f"line {number} has {len(tokens)} tokens, but the model reads {longest}: shorten it")
            sentences.append(tokens)
        return self.inspect(sentences, sampling)

    def inspect_held_out(self, count: int, sampling: Sampling = Sampling()) -> List[Sentence]:
        """`count` blocks from all over the validation data."""
        data = str(self.data or self.task.get("data") or "")
        if not data:
            raise ValueError(f"{self.model.source} was trained elsewhere: give --text, or prepared --data")
        blocks = held_out_blocks(data, self.model, count, remedy=": name its own data with --data")
        return self.inspect([block.numpy() for block in blocks], sampling)

    def inspect(self, sentences: Sequence[np.ndarray], sampling: Sampling) -> List[Sentence]:
        model, masking = self.model, MaskingOptions.of(self.task)
        if sampling.mask_prob is not None:
            masking = replace(masking, mask_prob=sampling.mask_prob)
        model.method.noise_seed = sampling.seed
        batches = [
            pipeline.batch_of(tokens, tokens, tokens == model.tokenizer.mask, number)
            if model.tokenizer.mask in tokens
            else pipeline.masked_batch(model, tokens, masking, sampling.seed, number)
            for number, tokens in enumerate(sentences)
        ]
        return [pipeline.follow(model, batch, sampling.top) for batch in batches]


def held_out_blocks(data: str, model: Pretrained, count: int, remedy: str = ""):
    """`count` token tensors from all over a prepared folder's validation data, or all if it has fewer.

    Raises ValueError, which ends with `remedy`, unless `model` has its vocabulary.
    """
    from fairseq.data import data_utils

    manifest, _ = load_manifest_for(data)
    folder = os.path.join(located(data)[0], VALID_SHARD)
    if manifest.sentencepiece_sha256 != model.tokenizer.sha256:
        raise ValueError(f"{data} has another vocabulary than {model.source}{remedy}")
    blocks = data_utils.load_indexed_dataset(str(Path(folder) / "valid"), None)
    count = min(count, len(blocks))
    return [blocks[len(blocks) * (2 * i + 1) // (2 * count)] for i in range(count)]


def load_run(run: Path, data: Optional[Path] = None) -> TrainedRun:
    """What `from_pretrained` takes, if it has its method; `data` if the prepared folder is not RUN/data.

    Raises ValueError if it has only an encoder.
    """
    found = identify(run)
    own = found.path.parent / "data"
    data = data or (own if own.is_dir() else None)
    model = load(found, data)
    model.method_with("its heads")
    trained = found.kind == PRETRAINING
    return TrainedRun(model, data, storage.read_state(found.path, ["cfg"])["cfg"]["task"] if trained else {})
