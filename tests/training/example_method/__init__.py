"""A method in a package of its own: ELECTRA whose encoder reads a token table that detection alone changes.

    masked -> generator -> sample -> corrupt -> encoder on table + delta -> RTD head
    loss = mlm + rtd_weight * rtd; neither loss reaches the other's part of the table
"""

import copy
from dataclasses import dataclass
from typing import Dict

import torch
from torch import nn

import amos_fairseq.tasks  # noqa: F401 (for fairseq: with `fairseq-train --user-dir` nothing else imports it)
from amos_fairseq.methods import register
from amos_fairseq.methods.electra import Electra, ElectraOutput
from amos_fairseq.methods.two_networks import GeneratorConfig
from amos_fairseq.objectives import Mean
from amos_fairseq.options import NOT_NEGATIVE, option
from amos_fairseq.quantities import Quantity


@dataclass
class DeltaElectraConfig(GeneratorConfig):
    delta_init_std: float = option(0.0, "standard deviation that the table's change starts with", range=NOT_NEGATIVE)


class DeltaElectra(Electra):
    """The encoder's table is stop_gradient(the generator's) + delta  (He et al., 2021, Eq. 5)."""

    config_class = DeltaElectraConfig
    citation = "He et al., DeBERTaV3, ICLR 2023, arXiv:2111.09543"
    quantities = {**Electra.quantities, "delta_norm": Quantity("length of the table's change", "per token")}

    def __init__(self, config, vocabulary, **schedule):
        super().__init__(config, vocabulary, **schedule)
        self.delta = nn.Embedding(*self.encoder.token_embeddings.weight.shape)
        nn.init.normal_(self.delta.weight, std=config.delta_init_std)

    def detection_logits(self, tokens, padding_mask=None):
        embeddings = self.encoder.token_embeddings(tokens).detach() + self.delta(tokens)
        hidden, layers = self.encoder.begin(embeddings, padding_mask)
        return self.rtd_head(layers.run(hidden))

    def statistics(self, output: ElectraOutput, batch) -> Dict[str, Mean]:
        lengths = self.delta.weight.norm(dim=1)
        return {**super().statistics(output, batch), "delta_norm": Mean(lengths.sum(), len(lengths))}

    @torch.no_grad()
    def exported_encoder(self):
        """With the sum of both tables as its own."""
        encoder = copy.deepcopy(self.encoder)
        encoder.token_embeddings.weight += self.delta.weight
        return encoder


register("delta_electra", DeltaElectra)
