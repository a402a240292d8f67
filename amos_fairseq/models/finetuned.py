"""A network on labelled data as a fairseq model; its shape is that of what was pre-trained, which the task knows."""

from dataclasses import dataclass

from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model

from amos_fairseq.finetune.model import Network, new_network
from amos_fairseq.models.base import Model
from amos_fairseq.options import SHARE, option
from amos_fairseq.pretrained.loading import FINETUNING


@dataclass
class FinetunedModelConfig(FairseqDataclass):
    dropout: float = option(0.1, "dropout after embeddings, attention and feed-forward layers of the encoder", SHARE)
    attention_dropout: float = option(0.1, "dropout on the encoder's attention probabilities", SHARE)
    pooler_dropout: float = option(0.1, "dropout in the head of classification and regression", SHARE)


@register_model("finetuned", dataclass=FinetunedModelConfig)
class FinetunedModel(Model):
    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    @classmethod
    def build_model(cls, cfg, task):
        name = task.cfg._name
        if name != FINETUNING:
            raise ValueError(f"arch finetuned is of task finetuning, not {name}: use it with --task finetuning")
        options = (cfg.dropout, cfg.attention_dropout, cfg.pooler_dropout)
        return cls(new_network(task.origin, task.problem, task.tokenizer.mask, *options))

    def forward(self, tokens, padding_mask=None):
        return self.network(tokens, padding_mask)

    def max_positions(self):
        return self.network.encoder.config.max_positions
