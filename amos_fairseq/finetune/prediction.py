"""New texts through a fine-tuned network, as its test files are predicted."""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.kinds import kind_of
from amos_fairseq.finetune.model import Finetuned
from amos_fairseq.finetune.tables import Table


def predictions(finetuned: Finetuned, texts: Sequence[Tuple[str, ...]]) -> Tuple[List[Dict[str, Any]], int]:
    """What the kind of problem tells of each text, or texts that go together; how many were longer than training read,
    and were cut as there. Raises ValueError for a kind of problem that reads more.
    """
    problem, network, tokenizer, _ = finetuned
    kind = kind_of(problem.kind)
    max_length = problem.about.get("source", {}).get("max_length", network.encoder.config.max_positions)
    table = Table(Path(), list(range(len(texts))), list(texts))
    examples, cut = kind.examples_of(problem, table, tokenizer, max_length)
    return kind.told(problem, table, examples, predict(network, examples)), cut
