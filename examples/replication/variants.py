"""What is trained: the seven methods and their central ablations, on one encoder."""

from typing import Dict, NamedTuple, Tuple

# The same encoder for all: relative positions for TEAMS, PEER and SCRIPT, too, and for all the same dropout.
ENCODER = dict(rel_pos_buckets=32, dropout=0.0, attention_dropout=0.0)


class Variant(NamedTuple):
    method: str
    options: Dict[str, object] = {}
    pretrained: bool = True


def arguments(method: str, size: str, options: Dict[str, object]) -> Tuple[str, ...]:
    """Of fairseq-train."""
    names = ("--task", method, "--arch", f"{method}_{size}", "--criterion", method)
    return (*names, *(part for name, value in options.items() for part in argument(name, value)))


def argument(name: str, value: object) -> Tuple[str, ...]:
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return (option,)
    return (option, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))


VARIANTS: Dict[str, Variant] = {
    "untrained": Variant("bert_mlm", pretrained=False),
    "BERT": Variant("bert_mlm"),
    "ELECTRA": Variant("electra_rtd", dict(generator_embed_dim=0, generator_layers=1)),
    "AMOS": Variant("amos_rtd"),
    "AMOS, no adversary": Variant("amos_rtd", dict(mixture="uniform")),
    "AMOS, random layer": Variant("amos_rtd", dict(mixture="random_layer")),
    "AMOS, one depth": Variant("amos_rtd", dict(generator_depths=[2])),
    "COCO-LM": Variant("coco_lm", dict(generator_dropout=0.0)),
    "COCO-LM, no SCL": Variant("coco_lm", dict(generator_dropout=0.0, scl_weight=0.0)),
    "TEAMS": Variant("teams_mws"),
    "TEAMS, no MWS": Variant("teams_mws", dict(mws_weight=0.0)),
    "PEER": Variant("peer_tqr"),
    "PEER, K = 2": Variant("peer_tqr", dict(tqr_partition=[])),
    "SCRIPT": Variant("script_selfcritic"),
    "SCRIPT, no critic": Variant("script_selfcritic", dict(critic_weight=0.0)),
}
