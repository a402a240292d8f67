"""Claims of the five papers that a small run can speak to, and what a run's numbers say about each."""

from typing import Callable, Dict, List, NamedTuple, Sequence

import numpy as np
from scipy import stats

LEVEL = 0.05  # of each one-sided test


class Measured(NamedTuple):
    """Of one pre-training run.

    score       mean accuracy over the labelled tasks and fine-tuning seeds
    validation  what was logged at the end of pre-training; `first` at its first validation
    seconds     that all of it took
    """

    score: float
    validation: Dict[str, float]
    first: Dict[str, float]
    seconds: float = 0.0


Runs = Dict[str, List[Measured]]  # by variant, one for each pre-training seed


class Claim(NamedTuple):
    """`differences` has a number for each pre-training seed, positive where the run is as the paper says."""

    text: str
    source: str
    unit: str
    differences: Callable[[Runs], List[float]]


class Verdict(NamedTuple):
    mean: float
    low: float  # of the 90 % confidence interval, whose ends are the one-sided 95 % bounds
    high: float
    words: str


def judge(differences: Sequence[float]) -> Verdict:
    """By a t-test of the mean against 0 over pre-training seeds: seen, not seen (the opposite is), or undecided."""
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return Verdict(mean, float("nan"), float("nan"), "undecided (one seed)")
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    margin = float(stats.t.ppf(1 - LEVEL, len(values) - 1)) * error
    low, high = mean - margin, mean + margin
    return Verdict(mean, low, high, "seen" if low > 0 else "not seen" if high < 0 else "undecided")


def better(first: str, second: str, text: str, source: str) -> Claim:
    """Downstream score of one variant minus that of another, seed by seed."""
    def differences(runs: Runs) -> List[float]:
        return [100 * (a.score - b.score) for a, b in zip(runs[first], runs[second])]

    return Claim(text, source, "points", differences)


def logged(variant: str, text: str, source: str, unit: str, quantity: Callable[[Measured], float]) -> Claim:
    return Claim(text, source, unit, lambda runs: [quantity(measured) for measured in runs[variant]])


CLAIMS = [
    better("BERT", "untrained", "pre-training is worth something", "common ground"),
    better("ELECTRA", "BERT", "ELECTRA is better than BERT at equal FLOPs", "all five papers' baselines"),
    better("AMOS", "ELECTRA", "AMOS is better than ELECTRA", "AMOS Table 1"),
    better("AMOS", "AMOS, no adversary", "the adversarial mixture helps", "AMOS Table 2, - adv. train"),
    better("AMOS", "AMOS, random layer", "a learned mixture is better than a random layer", "AMOS Table 2"),
    better("AMOS", "AMOS, one depth", "several depths are better than one", "AMOS Table 2"),
    logged("AMOS", "the deeper generator predicts better", "AMOS Fig. 1a", "nats",
           lambda run: run.validation["mlm_1"] - run.validation["mlm_2"]),
    logged("AMOS", "the mixture leans to the deeper generator", "AMOS Fig. 3a", "weight above 1/2",
           lambda run: run.validation["mixture_weight_2"] - 0.5),
    Claim("the adversary makes replacements harder to detect", "AMOS Fig. 3b", "AUC",
          lambda runs: [uniform.validation["rtd_auc_words"] - amos.validation["rtd_auc_words"]
                        for uniform, amos in zip(runs["AMOS, no adversary"], runs["AMOS"])]),
    better("COCO-LM", "ELECTRA", "COCO-LM is better than ELECTRA", "COCO-LM Table 1"),
    better("COCO-LM", "COCO-LM, no SCL", "sequence contrast helps", "COCO-LM Table 3"),
    logged("COCO-LM", "two views of a sequence come closer than two sequences", "COCO-LM Fig. 7", "cosine",
           lambda run: run.validation["scl_cosine_positive"] - run.validation["scl_cosine_negative"]),
    better("TEAMS", "ELECTRA", "TEAMS is better than ELECTRA", "TEAMS Table 1"),
    better("TEAMS", "TEAMS, no MWS", "multi-word selection helps", "TEAMS Table 2"),
    better("PEER", "ELECTRA", "PEER is better than ELECTRA", "PEER Table 3"),
    better("PEER", "PEER, K = 2", "three quality levels are better than two", "PEER Table 5"),
    logged("PEER", "fewer draws are of unknown quality as the generator learns", "PEER Figs. 4, 5", "share",
           lambda run: run.first["unknown_share"] - run.validation["unknown_share"]),
    better("SCRIPT", "BERT", "SCRIPT is better than BERT", "SCRIPT Table 2"),
    better("SCRIPT", "SCRIPT, no critic", "the self-critic helps", "SCRIPT Sec. 3"),
    logged("SCRIPT", "the critic ranks replaced tokens below originals", "SCRIPT Sec. 2", "AUC above 1/2",
           lambda run: run.validation["rtd_auc_words"] - 0.5),
]
