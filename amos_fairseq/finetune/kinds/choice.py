"""Choice: the best of several texts, as of answers to a question; each is read as a pair with the first text.

As in BERT on SWAG (Devlin et al., 2019, Sec. 4.4), and in transformers: a softmax over one score for each choice.
"""

from amos_fairseq.finetune.kinds.classification import Classification
from amos_fairseq.finetune.kinds.regression import RegressionHead
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

    def learnt(self, train):
        """Labels are the places of the choices, from 0."""
        return list(map(str, range(len(train.texts[0]) - 1))), {}
