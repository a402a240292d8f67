"""New texts through a fine-tuned network, as its test files are predicted."""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from amos_fairseq.finetune import tables
from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.model import Finetuned
from amos_fairseq.finetune.tables import Table


def predictions(finetuned: Finetuned, texts: Sequence[Tuple[str, ...]]) -> List[Dict[str, Any]]:
    """What the kind of problem tells of each text, or pair: {"label", "probabilities"} or {"value"}.

    Cut as in training where it is longer than that read. Raises ValueError for a kind of problem that reads more.
    """
    problem, network, tokenizer, _ = finetuned
    max_length = problem.about.get("source", {}).get("max_length", network.encoder.config.max_positions)
    table = Table(Path(), list(range(len(texts))), list(texts))
    examples, _ = tables.encode(table, tokenizer, max_length, None)
    return kind_of(problem.kind).told(problem, predict(network, examples))
