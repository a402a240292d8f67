"""Prompt: a classification that the pre-trained language model answers, by the labels' words at the only <mask>.

Files are those of `prompts`, with demonstrations; each seed draws its few examples.
"""

from typing import List

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.finetune import prompts
from amos_fairseq.finetune.kinds.base import Kind
from amos_fairseq.finetune.kinds.classification import Classification
from amos_fairseq.finetune.labelled import Problem, read_examples
from amos_fairseq.methods import METHODS, named
from amos_fairseq.modules.heads import MaskedLMHead
from amos_fairseq.pretrained.model import Pretrained


class PromptHead(nn.Module):
    """(B, C) -> (B, L): the pre-trained language model's logits of the labels' words at <mask>."""

    def __init__(self, lm_head: nn.Module, label_tokens: List[int], mask_token: int):
        super().__init__()
        self.lm_head = lm_head
        self.mask_token = mask_token
        self.register_buffer("label_tokens", torch.tensor(label_tokens), persistent=False)

    def read_at(self, tokens: Tensor) -> Tensor:
        return (tokens == self.mask_token).int().argmax(dim=1)

    def forward(self, hidden: Tensor) -> Tensor:
        projected, table, bias = self.lm_head.output_layer(hidden)
        return F.linear(projected, table[self.label_tokens], bias[self.label_tokens])


class Prompt(Classification):
    name = "prompt"
    draws_data = True
    note = "Of few examples: mean (standard deviation) over their splits."
    head_class = "masked_lm"

    def new_head(self, problem, encoder, method, mask_token, dropout):
        """Raises ValueError if the method trains no language model on the encoder itself."""
        lm_head_class = named(method).encoder_lm_head_class
        if lm_head_class is None:
            raise ValueError(without_language_model(f"{method} trains"))
        lm_head = lm_head_class(encoder.config.dim, encoder.token_embeddings)
        if hasattr(lm_head, "layer_norm"):
            lm_head.layer_norm.eps = encoder.config.layer_norm_eps
        return PromptHead(lm_head, problem.label_tokens, mask_token)

    def start_head(self, head: PromptHead, pretrained: Pretrained) -> None:
        """With the language model; raises ValueError if there is none."""
        lm_head = pretrained.method and pretrained.method.encoder_lm_head
        if lm_head is None:
            raise ValueError(without_language_model(f"{pretrained.source} holds"))
        head.lm_head.load_state_dict(lm_head.state_dict())

    def check_targets(self, problem, examples, mask_token, refuse):
        super().check_targets(problem, examples, mask_token, refuse)
        masks = examples.number_in_each(examples.tokens == mask_token)
        refuse(masks != 1, "has not one <mask>, but several or none")

    def judged(self, folder, problem, split, outputs):
        """By each example's mean logits over its sets of demonstrations."""
        repeats = problem.about["repeats"][split]
        return self.predicted(prompts.average(outputs, repeats)), read_examples(folder, split).targets[::repeats]

    examples_of = Kind.examples_of  # its texts stand in a template, with demonstrations

    def exported_head(self, problem: Problem, head: PromptHead):
        return head.lm_head if isinstance(head.lm_head, MaskedLMHead) else None

    def reading(self, problem: Problem, tokenizer: Tokenizer) -> str:
        words = (tokenizer.symbols[token] for token in problem.label_tokens)
        readings = ", ".join(f"`{word}` for {label}" for word, label in zip(words, problem.labels))
        return f"The answer is the likeliest of these tokens at the only `{tokenizer.roles['mask']}`: {readings}."


def without_language_model(whose: str) -> str:
    having = ", ".join(name for name, method in METHODS.items() if method.encoder_lm_head_class)
    return f"{whose} no language model on the encoder for a prompt to ask: take a checkpoint of {having}"
