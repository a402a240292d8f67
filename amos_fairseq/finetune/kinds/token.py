"""Token: one of the labels for each word, at its first token; files are `tagged`'s."""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.finetune import tagged
from amos_fairseq.finetune.kinds.base import Kind
from amos_fairseq.finetune.labelled import IGNORED, Batch
from amos_fairseq.finetune.metrics import OF_TAGS, compared_tags
from amos_fairseq.modules.initialization import initialize
from amos_fairseq.ops import full_precision


class TokenHead(nn.Module):
    """(B, T, C) -> (B, T, L): dropout, linear (Devlin et al., 2019, Sec. 5.3)."""

    def __init__(self, dim: int, labels: int, dropout: float = 0.0):
        super().__init__()
        self.out_proj = nn.Linear(dim, labels)
        self.dropout = nn.Dropout(dropout)
        self.apply(initialize)

    def read_at(self, tokens: Tensor) -> None:
        """All positions."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out_proj(self.dropout(hidden))


class TokenClassification(Kind):
    name = "token"
    metrics = OF_TAGS
    per_token = True
    head_class = "token"

    def new_head(self, problem, encoder, method, mask_token, dropout):
        return TokenHead(encoder.config.dim, len(problem.labels), dropout)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """- sum over the words of log softmax(output)[target], outputs (B, T, L)"""
        logits = full_precision(outputs).transpose(1, 2)
        return F.cross_entropy(logits, batch.targets, ignore_index=IGNORED, reduction="sum")

    def check_targets(self, problem, examples, mask_token, refuse):
        classes = range(len(problem.labels))
        wrong = (examples.targets != IGNORED) & ~np.isin(examples.targets, classes)
        refuse(examples.number_in_each(wrong) > 0, f"has a token with none of the {len(classes)} labels")

    def judged(self, folder, problem, split, outputs):
        """`metrics.compared_tags` of each sentence, and its tags."""
        _, predicted, known = tagged.answers(folder, problem, split, outputs)
        return compared_tags(predicted, known), np.array([" ".join(tags) for tags in known])

    def predictions_name(self, task, split):
        return f"{task}.conll"

    def write_predictions(self, path, folder, problem, split, outputs):
        """CoNLL with the predicted column last, behind the known one if there is one."""
        tagged.write_predictions(path, *tagged.answers(folder, problem, split, outputs))

    def examples_of(self, problem, table, tokenizer, max_length):
        """Words between spaces."""
        sentences = [tuple(text.split()) for text, in table.texts]
        return tagged.encode(table._replace(texts=sentences), problem.labels, tokenizer, max_length), 0  # in windows

    def told(self, problem, table, examples, outputs):
        """words, tags"""
        sentences = [text.split() for text, in table.texts]
        tags = tagged.tags_of(outputs.argmax(axis=-1)[examples.candidates], problem.labels, sentences)
        return [{"words": words, "tags": of_words} for words, of_words in zip(sentences, tags)]

    def reading(self, problem, tokenizer):
        return "A word's tag is that of its first token."
