"""What runs log: in words, in which unit, and which of two values is the better one."""

from typing import Dict, List, NamedTuple, Sequence

from amos_fairseq.analysis import run_log
from amos_fairseq.analysis.run_log import RunLog

LOWER, HIGHER = -1, 1


class Quantity(NamedTuple):
    """One logged name, or its part before a generator's depth or a level."""

    words: str
    unit: str = ""  # on an axis; "%" of something: values are shares, drawn times 100
    better: int = 0  # LOWER, HIGHER; 0: neither

    @property
    def scale(self) -> float:
        return 100.0 if self.unit.startswith("%") else 1.0

    @property
    def title(self) -> str:
        """For a table, whose values are not scaled."""
        return f"{self.words} (nats)" if self.unit.startswith("nats") else self.words


QUANTITIES: Dict[str, Quantity] = {
    "mlm": Quantity("masked LM loss", "nats per masked token", LOWER),
    "mlm_accuracy": Quantity("masked LM accuracy", "% of masked tokens", HIGHER),
    "generator_accuracy": Quantity("generator accuracy", "% of masked tokens", HIGHER),
    "sampled_accuracy": Quantity("accuracy of draws", "% of masked tokens"),
    "rtd": Quantity("detection loss", "nats per token", LOWER),
    "critic": Quantity("self-critic loss", "nats per token", LOWER),
    "tqr": Quantity("quality ranking loss", "nats per token", LOWER),
    "clm": Quantity("corrective LM loss", "nats per masked token", LOWER),
    "mws": Quantity("word selection loss", "nats per masked token", LOWER),
    "scl": Quantity("contrastive loss", "nats per sequence", LOWER),
    "rtd_accuracy_original": Quantity("detection accuracy, original", "% of original tokens", HIGHER),
    "rtd_accuracy_replaced": Quantity("detection accuracy, replaced", "% of replaced tokens", HIGHER),
    "rtd_auc": Quantity("detection AUC (validation)", "0.5 by chance", HIGHER),
    "replaced_share": Quantity("share of tokens replaced", "% of tokens"),
    "mixture_weight": Quantity("mean mixture weight", "weights sum to 1"),
    "clm_accuracy_original": Quantity("correction accuracy, original", "% of original tokens", HIGHER),
    "clm_accuracy_replaced": Quantity("correction accuracy, replaced", "% of replaced tokens", HIGHER),
    "scl_cosine_positive": Quantity("cosine of positive pairs", "cosine"),
    "scl_cosine_negative": Quantity("cosine of negative pairs", "cosine"),
    "mws_accuracy": Quantity("word selection accuracy", "% of masked tokens", HIGHER),
    "unknown_share": Quantity("share of unknown quality", "% of masked tokens"),
    "level_accuracy": Quantity("quality accuracy", "% of known tokens", HIGHER),
    "level_threshold": Quantity("quality threshold", "score"),
    "critic_logit_original": Quantity("critic logit, original", "logit"),
    "critic_logit_replaced": Quantity("critic logit, replaced", "logit"),
    "wps": Quantity("tokens per second", "tokens / s", HIGHER),
    "tflops": Quantity("model TFLOP/s per device", "TFLOP / s"),
    "mfu": Quantity("model FLOPs utilisation", "% of peak", HIGHER),
    "candidate_tail": Quantity("share of the soft draw without gradient"),
    "gnorm": Quantity("gradient norm", "before clipping"),
    "lr": Quantity("learning rate"),
    "loss_scale": Quantity("fp16 loss scale"),
}


# Of the course of a run, not of what it learnt.
COURSE = ("candidate_tail", "gnorm", "lr", "loss_scale")


def summarized(logs: Sequence[RunLog]) -> List[str]:
    """What one of the runs logged, in the order of QUANTITIES, without COURSE; of depths and levels, each."""
    bases = [base for base in QUANTITIES if base not in COURSE]
    return list(dict.fromkeys(name for base in bases for log in logs for name in run_log.names(log, base)))


def label(name: str) -> str:
    """mlm_4 -> masked LM loss, layer 4; level_accuracy_2 -> quality accuracy, level 2"""
    base, depth = run_log.split_depth(name)
    return QUANTITIES[base].words + part(base, depth)


def title(name: str) -> str:
    """As `label`, for a table: mlm_4 -> masked LM loss (nats), layer 4"""
    base, depth = run_log.split_depth(name)
    return QUANTITIES[base].title + part(base, depth)


def part(base: str, depth: str) -> str:
    return f", {'level' if base.startswith('level') else 'layer'} {depth}" if depth else ""
