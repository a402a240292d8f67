"""What is trained: the methods with the recipe, their central ablations, and the recipe with one thing changed."""

from typing import Any, Dict, NamedTuple

from amos_fairseq.cli import recipe


class Variant(NamedTuple):
    """A method, and what is otherwise than in the recipe."""

    method: str
    changes: Dict[str, Any] = {}  # of the model and of masking
    pretrained: bool = True
    generator_alone: float = recipe.GENERATOR_ALONE  # share of the updates
    ramp: float = 0.0  # share of the updates in which the weight of detection rises
    batch_size: int = 0  # 0: the budget's

    def options(self, updates: int, papers: bool = False) -> Dict[str, Any]:
        """Of the model; papers: their settings, not the recipe's."""
        if papers:
            return dict(self.changes)
        alone, ramp = int(self.generator_alone * updates), int(self.ramp * updates)
        changes = {"generator_warmup_updates": alone, "rtd_warmup_updates": ramp, **self.changes}
        return recipe.model_options(self.method, updates, **changes)

    def masking(self, papers: bool = False) -> Dict[str, Any]:
        return {} if papers else {name: self.changes.get(name, value) for name, value in recipe.MASKING.items()}


METHODS: Dict[str, Variant] = {
    "untrained": Variant("bert_mlm", pretrained=False),
    "BERT": Variant("bert_mlm", dict(mask_prob=0.15, output_bias_init="zero")),  # its best of the search
    "ELECTRA": Variant("electra_rtd"),
    "AMOS": Variant("amos_rtd"),
    "AMOS, no adversary": Variant("amos_rtd", dict(mixture="uniform")),
    "AMOS, random layer": Variant("amos_rtd", dict(mixture="random_layer")),
    "COCO-LM": Variant("coco_lm"),
    "COCO-LM, no SCL": Variant("coco_lm", dict(scl_weight=0.0)),
    "TEAMS": Variant("teams_mws"),
    "TEAMS, no MWS": Variant("teams_mws", dict(mws_weight=0.0)),
    "PEER": Variant("peer_tqr"),
    "PEER, K = 2": Variant("peer_tqr", dict(tqr_partition=[])),
    "SCRIPT": Variant("script_selfcritic"),
    "SCRIPT, no critic": Variant("script_selfcritic", dict(critic_weight=0.0)),
}
PLAIN = {  # the methods themselves, as their papers have them
    "untrained": METHODS["untrained"],
    **{name: Variant(METHODS[name].method) for name in METHODS if "," not in name and name != "untrained"},
}
AMOS = {  # the claims of its own budget
    **{name: METHODS[name] for name in METHODS if name.startswith("AMOS")},
    "AMOS, one depth": Variant("amos_rtd", dict(generator_depths=[2])),  # by the recipe it is ELECTRA, to the bit
}


def changed(
    generator_alone: float = recipe.GENERATOR_ALONE, ramp: float = 0.0, batch_size: int = 0, **changes: Any
) -> Variant:
    """AMOS by the recipe but for this."""
    return Variant("amos_rtd", changes, True, generator_alone, ramp, batch_size)


SEARCH: Dict[str, Variant] = {
    "untrained": METHODS["untrained"],
    "AMOS": changed(),
    "- position bias rate": changed(rel_pos_lr_factor=1.0),
    "- generator alone": changed(generator_alone=0.0),
    "- copy": changed(generator_warmup_without_copy=True),
    "- mask .3": changed(mask_prob=0.15),
    "+ encoder rate": changed(encoder_lr_factor=0.5),
    "- words only": changed(detection_on_words=False),
    "- prior": changed(detection_bias_init="zero"),
    "- log frequency": changed(output_bias_init="zero"),
    "- 1,024 tokens per update": changed(batch_size=32),
    "+ gdes": changed(token_table="gdes"),
    "+ separate tables": changed(token_table="separate"),
    "+ ramp": changed(ramp=0.16),
    "+ joined blocks": changed(join_blocks=True),
    "nothing of it": changed(
        0.0, rel_pos_lr_factor=1.0, detection_on_words=False, detection_bias_init="zero", output_bias_init="zero",
        mask_prob=0.15,
    ),
    "ELECTRA": METHODS["ELECTRA"],
    "SCRIPT": METHODS["SCRIPT"],
    "SCRIPT - masked LM alone": Variant("script_selfcritic", generator_alone=0.0),
    "SCRIPT, weight 5": Variant("script_selfcritic", dict(critic_weight=5.0)),
    "SCRIPT, weight 1": Variant("script_selfcritic", dict(critic_weight=1.0)),
    "SCRIPT, BERT's settings": Variant("script_selfcritic", dict(mask_prob=0.15, output_bias_init="zero")),
    "BERT": Variant("bert_mlm"),
    "BERT - position bias rate": Variant("bert_mlm", dict(rel_pos_lr_factor=1.0)),
    "BERT - mask .3": Variant("bert_mlm", dict(mask_prob=0.15)),
    "BERT - log frequency": Variant("bert_mlm", dict(output_bias_init="zero")),
    "BERT - 1,024 tokens per update": Variant("bert_mlm", batch_size=32),
}
