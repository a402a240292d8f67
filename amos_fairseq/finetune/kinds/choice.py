"""Choice: the best of several texts, as answers to a question or as ends of a story; each is read beside the first text.

As in BERT on SWAG (Devlin et al., 2019, Sec. 4.4), and in transformers: a softmax over one score for each choice.
"""

from amos_fairseq.finetune.kinds.classification import Classification
from amos_fairseq.finetune.kinds.regression import RegressionHead
from amos_fairseq.finetune.labelled import Problem
from amos_fairseq.finetune.metrics import accuracy


class Choice(Classification):
    name = "choice"
    metrics = {"accuracy": accuracy}
    head_class = "choice"

    def new_head(self, problem, encoder, method, mask_token, dropout):
        """The score of each sequence; `Network` puts those of an example's choices together, (B, C)."""
        return RegressionHead(encoder.config.dim, dropout)

    def reading(self, problem, tokenizer):
        return "It takes ids of (texts, choices, tokens), each choice being the second text of a pair."

    # Of a column of labels

    def own_problem(self, name, train, source, first_metric=None):
        """Labels are the places of the choices, from 0."""
        labels = list(map(str, range(len(train.texts[0]) - 1)))
        return Problem(name, self.name, list(self.metrics), source["vocabulary"], labels, about={"source": source})
