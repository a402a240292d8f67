"""What a kind of downstream problem says of itself; everything that fine-tuning does with a problem asks its kind."""

from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from torch import Tensor, nn

from amos_fairseq import json_files
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.files import replace_durably
from amos_fairseq.finetune import glue, tables
from amos_fairseq.finetune.labelled import Batch, Examples, Problem, read_examples
from amos_fairseq.finetune.tables import Table
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.pretrained.model import Pretrained


class Kind:
    """A kind of problem, without state: the problem is handed to it.

    name          in problem.json
    metrics       functions of (predicted, targets), of any examples, by name; higher is better
    per_token     whether each token has a target; else each sequence has one
    sets          whether any number of labels may hold at once
    draws_data    whether a seed draws the data, too: then each seed takes the setting that is best on its `valid`, and
                  mean and standard deviation over seeds of what that reaches on the test sets are reported
    note          below a table of results that shows such a problem
    head_class    of transformers' classes, as `pretrained.layouts.SUFFIXES` calls it; None: none equals its network

    Shapes: N sequences of a split, B of a batch, T tokens of the longest, C channels, L labels.
    """

    name: str
    metrics: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {}
    per_token = False
    sets = False
    draws_data = False
    note = ""
    head_class: Optional[str] = None

    # The network

    def new_head(self, problem: Problem, encoder: Encoder, method: str, mask_token: int, dropout: float) -> nn.Module:
        """With new parameters, for an encoder that `method` pre-trains.

        Its read_at((B, T) tokens) is (B,) the position of each sequence that it reads, or None: all; its forward goes
        from the states there, (B, C) or (B, T, C), to outputs.
        """
        raise NotImplementedError

    def start_head(self, head: nn.Module, pretrained: Pretrained) -> None:
        """Give a new head what was pre-trained for it, if anything was."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The sum over the batch's sequences, in fp32 whatever the outputs are in."""
        raise NotImplementedError

    # Examples

    def check(
        self, problem: Problem, examples: Examples, source: str, vocabulary_size: int, mask_token: int, max_tokens: int
    ) -> None:
        """Raises ValueError, which names the first example that a network could not be trained or validated on."""
        lengths, targets = examples.lengths.astype(np.int64), examples.targets

        def refuse(wrong: np.ndarray, what: str) -> None:
            if wrong.any():
                number = int(wrong.argmax())
                values = dict(length=examples.longest[number], target=None if targets is None else targets[number])
                raise ValueError(f"example {number} of {source} {what.format(**values)}")

        if not len(lengths) or lengths.min() < 1 or lengths.sum() != len(examples.tokens):
            raise ValueError(f"{source} is empty or damaged: its {len(lengths)} lengths are not those of its tokens")
        if targets is None or len(targets) != len(examples.tokens if self.per_token else lengths):
            raise ValueError(f"{source} has no targets for its {len(lengths)} examples: it can be predicted only")
        limit = f"more than the encoder's {max_tokens} positions"
        remedy = f"encode it anew with a --max-length of at most {max_tokens}"
        refuse(examples.longest > max_tokens, f"has {{length}} tokens, {limit}: {remedy}")
        outside = (examples.tokens < 0) | (examples.tokens >= vocabulary_size)
        refuse(examples.number_in_each(outside) > 0, f"has ids outside of the vocabulary of {vocabulary_size}")
        self.check_targets(problem, examples, mask_token, refuse)

    def check_targets(
        self, problem: Problem, examples: Examples, mask_token: int, refuse: Callable[[np.ndarray, str], None]
    ) -> None:
        """Ask to refuse((N,) where, what is wrong there: {target} and {length} are those of the example)."""

    # What outputs are worth

    def judged(self, folder: Path, problem: Problem, split: str, outputs: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(N, ..) what `predict`'s outputs for a split of a folder say of each example, and (N, ..) its target."""
        return self.predicted(outputs), read_examples(folder, split).targets

    def measure(self, names: Sequence[str], predicted: np.ndarray, targets: np.ndarray) -> Dict[str, float]:
        """The named metrics, and perhaps more, each in [0, 1], correlations in [-1, 1]."""
        for name in names:
            if name not in self.metrics:
                raise ValueError(f"metric {name!r} is none of {self.name}: choose from {', '.join(self.metrics)}")
        if len(predicted) != len(targets) or len(targets) == 0:
            raise ValueError(f"{len(predicted)} predictions for {len(targets)} targets: as many are needed, and some")
        return {name: self.metrics[name](predicted, targets) for name in names}

    def evaluate(self, folder: Path, problem: Problem, split: str, outputs: np.ndarray) -> Dict[str, float]:
        return self.measure(problem.metrics, *self.judged(folder, problem, split, outputs))

    def predicted(self, outputs: np.ndarray) -> np.ndarray:
        """What is compared with the targets: of logits (.., L) the highest."""
        return outputs.argmax(axis=-1)

    def shown(self, metrics: Sequence[str], splits: Collection[str]) -> List[Tuple[str, str]]:
        """(split, metric) of what a table shows, in the order of the papers: MNLI-m/mm, and valid/test."""
        prefixes = ("test",) if self.draws_data else ("valid", "test")
        return [(split, metrics[0]) for prefix in prefixes for split in sorted(splits) if split.startswith(prefix)]

    # Predictions

    def predictions_name(self, task: str, split: str) -> str:
        """Of the file, or the folder, that `write_predictions` writes for a split."""
        return glue.server_file(task, split)

    def write_predictions(self, path: Path, folder: Path, problem: Problem, split: str, outputs: np.ndarray) -> None:
        """index<TAB>prediction of a split of `folder`, as the server of GLUE wants it, and for own files alike."""
        indices = Path(folder) / f"{split}.json"
        names = json_files.read(indices, List[Any]) if indices.exists() else range(len(outputs))
        rows = [f"{index}\t{answer}\n" for index, answer in zip(names, self.answers(problem, outputs))]
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, "".join(["index\tprediction\n", *rows]).encode())

    def answers(self, problem: Problem, outputs: np.ndarray) -> Iterable[str]:
        """Outputs as the labels are written."""
        return (problem.labels[place] for place in self.predicted(outputs))

    def examples_of(
        self, problem: Problem, table: Table, tokenizer: Tokenizer, max_length: int
    ) -> Tuple[Examples, int]:
        """Of new texts, for `told`, without targets, and how many were longer. Raises ValueError if the kind reads more
        than texts.
        """
        raise ValueError(f"{problem.name} is a problem of {self.name}, which reads more than texts: predict cannot")

    def told(self, problem: Problem, table: Table, examples: Examples, outputs: np.ndarray) -> List[Dict[str, Any]]:
        """What `amos-fairseq predict` says of each new text."""
        raise NotImplementedError

    # As one of transformers' classes

    def exported_head(self, problem: Problem, head: nn.Module) -> Optional[nn.Module]:
        """The head as theirs has it; None if it is none of theirs."""
        return head

    def reading(self, problem: Problem, tokenizer: Tokenizer) -> str:
        """A sentence on how its outputs are read, if that is not plain."""
        return ""


class TextKind(Kind):
    """A kind that reads one text or several, columns of a file, of which another column is the target."""

    def learnt(self, train: Table) -> Tuple[List[str], Dict[str, Any]]:
        """Labels of a user's own training table, and what else `Problem.about` keeps.

        Raises ValueError if there is nothing to learn.
        """
        raise NotImplementedError

    def metrics_of(self, labels: Sequence[str]) -> List[str]:
        return list(self.metrics)

    def targets(self, problem: Problem, table: Table) -> Optional[np.ndarray]:
        """(N, ..); None without labels. Raises ValueError for a label that the problem lacks."""
        return tables.classes(table, problem.labels)

    def examples_of(self, problem, table, tokenizer, max_length):
        return tables.encode(table, tokenizer, max_length, None)
