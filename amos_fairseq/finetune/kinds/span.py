"""Span: the first and the last token of a question's answer in a text, <s> if there is none; files are `squad`'s."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from amos_fairseq.finetune import squad
from amos_fairseq.finetune.kinds.base import Kind
from amos_fairseq.finetune.kinds.token import TokenHead
from amos_fairseq.finetune.labelled import Batch
from amos_fairseq.ops import full_precision


class QuestionAnswering(Kind):
    name = "span"
    metrics = squad.SCORES
    note = "Of SQuAD, F1 selects."
    head_class = "span"

    def new_head(self, problem, encoder, method, mask_token, dropout):
        """(B, T, C) -> (B, T, 2): logits of the answer's first and last token (Devlin et al., 2019, Sec. 4.2)"""
        return TokenHead(encoder.config.dim, labels=2)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """0.5 (start + end) cross-entropy, each over the positions where an answer may lie, outputs (B, T, 2)"""
        logits = full_precision(outputs).masked_fill(~batch.candidates.unsqueeze(-1), float("-inf"))
        return 0.5 * F.cross_entropy(logits, batch.targets, reduction="sum")

    def check_targets(self, problem, examples, mask_token, refuse):
        first, last = examples.targets.astype(np.int64).T
        outside = (first < 0) | (first > last) | (last >= examples.lengths)
        refuse(outside, "has span {target}, which is none of its {length} tokens")
        allowed = examples.candidates[examples.starts + first] & examples.candidates[examples.starts + last]
        refuse(~allowed, "has span {target}, which is outside of its candidates")

    def judged(self, folder, problem, split, outputs):
        """`squad.compared` records of the questions, and their ids."""
        return squad.judge(folder, split, outputs)

    def measure(self, names, predicted, targets):
        return squad.measure(predicted)

    def shown(self, metrics, splits):
        """EM/F1"""
        return [("valid", metric) for metric in sorted(metrics[:2])]

    def predictions_name(self, task, split):
        return task

    def write_predictions(self, path, folder, problem, split, outputs):
        squad.write_predictions(folder, split, outputs, path)
