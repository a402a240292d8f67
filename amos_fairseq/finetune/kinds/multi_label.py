"""Multi-label classification: those of the labels that hold, none to all of them, of a text or a pair."""

import json
from typing import Iterator, List

import numpy as np
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from amos_fairseq.finetune.kinds.classification import Classification
from amos_fairseq.finetune.labelled import Batch
from amos_fairseq.finetune.metrics import OF_SETS
from amos_fairseq.finetune.tables import Table
from amos_fairseq.ops import full_precision


class MultiLabel(Classification):
    name = "multi_label"
    metrics = OF_SETS
    sets = True

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """- sum_b mean_l log sigmoid(output_bl if label l holds, else - output_bl), outputs and targets (B, L)"""
        outputs = full_precision(outputs)
        losses = F.binary_cross_entropy_with_logits(outputs, batch.targets.to(outputs.dtype), reduction="none")
        return losses.mean(dim=-1).sum()

    def check_targets(self, problem, examples, mask_token, refuse):
        classes = len(problem.labels)
        wrong = examples.targets.shape[1:] != (classes,) or ~np.isin(examples.targets, (0, 1)).all(axis=-1)
        refuse(np.broadcast_to(wrong, len(examples.lengths)), f"has targets that are no 0 or 1 for each of {classes}")

    def predicted(self, outputs: np.ndarray) -> np.ndarray:
        """Those more likely than not."""
        return (outputs > 0).astype(np.int64)

    def answers(self, problem, outputs):
        return (",".join(np.array(problem.labels)[row > 0]) for row in self.predicted(outputs))

    def told(self, problem, table, examples, outputs):
        """labels: those more likely than not; probabilities: of each alone"""
        shares = expit(outputs.astype(np.float64)).tolist()
        return [
            {"labels": [label for label, share in zip(problem.labels, row) if share > 0.5],
             "probabilities": dict(zip(problem.labels, row))}
            for row in shares
        ]

    def learnt(self, train):
        labels = sorted(set().union(*sets_of(train)))
        if not labels:
            raise ValueError(f"{train.path}: there is no label in any row: there is nothing to learn")
        return labels, {}

    def targets(self, problem, table):
        """(N, L), 1 where a label holds; None without labels."""
        if table.labels is None:
            return None
        places = {label: number for number, label in enumerate(problem.labels)}
        targets = np.zeros((len(table.labels), len(places)), np.int64)
        for row, labels in enumerate(sets_of(table)):
            targets[row, [table.place(row, label, places) for label in labels]] = 1
        return targets


def sets_of(table: Table) -> Iterator[List[str]]:
    """The labels of each row: of a list of JSON, or with commas between."""
    for row, cell in enumerate(table.labels or ()):
        try:
            values = json.loads(cell) if cell.startswith("[") else cell.split(",")
        except ValueError:
            what = f"labels {cell[:40]!r} are no list of JSON"
            raise ValueError(f'{table.where(row)}: {what}: write a,b or ["a", "b"]') from None
        yield [label for value in values if (label := str(value).strip())]
