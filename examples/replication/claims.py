"""Claims of the five papers that a small run can speak to, and what a run's numbers say about each."""

import contextlib
import math
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from scipy import stats

LEVEL = 0.05  # of all claims of a table together, looked at once
POINT = 0.01  # of the score or of an AUC: what is less than that in either direction is no difference
POWER = 0.8
MOST_SEEDS = 1000


class Measured(NamedTuple):
    """Of one pre-training run.

    score       mean of the probes and of fine-tuning
    scores      of each probe and task, and of fine-tuning, the mean of its tasks
    validation  what was logged at the end of pre-training; `first` at its first validation
    seconds     that all of it took
    """

    score: float
    scores: Dict[str, float]
    validation: Dict[str, float]
    first: Dict[str, float]
    seconds: float = 0.0


Runs = Dict[str, Dict[int, Measured]]  # by variant, by pre-training seed


class Claim(NamedTuple):
    """
    differences  one for each seed that all of its variants have, positive where the run is as the paper says
    margin       the smallest difference that matters; 0: any does
    """

    text: str
    source: str
    unit: str
    differences: Callable[[Runs], List[float]]
    margin: float = 0.0


class Verdict(NamedTuple):
    mean: float
    low: float  # of the 95 % confidence interval of this difference alone
    high: float
    p: float  # by Holm's correction, of Student's t against 0 in either direction; of no difference, against the margin
    words: str
    seeds_needed: int = 0  # to decide what is undecided, if the difference and its spread are what was seen


def verdicts(runs: Runs, level: float = LEVEL) -> List[Tuple[Claim, Verdict]]:
    """Of each claim whose variants are there; level: of all claims together."""
    differences = {}
    for claim in CLAIMS:
        with contextlib.suppress(KeyError):  # of a variant that was left out
            differences[claim] = claim.differences(runs)
    return list(zip(differences, judge(list(differences.values()), level, [claim.margin for claim in differences])))


def judge(
    families: Sequence[Sequence[float]], level: float = LEVEL, margins: Sequence[float] = ()
) -> List[Verdict]:
    """Seen, not seen (the opposite is), no difference, or undecided, of each claim of a family by its differences, seed
    by seed.

    margins: of each claim (default: none); a difference that is within it in either direction is none
    level: of all claims together, for differences and again for none
    """
    margins = margins or [0.0] * len(families)
    differs = holm([p_of(values) for values in families])
    alike = holm([p_within(values, margin) for values, margin in zip(families, margins)])
    hurdles = [level / max(1, sum(p >= level for p in ps)) for ps in (differs, alike)]  # of the next one by Holm
    return [
        verdict(np.asarray(values, dtype=float), *rest, level, hurdles)
        for values, *rest in zip(families, margins, differs, alike)
    ]


def verdict(
    values: np.ndarray, within: float, differs: float, alike: float, level: float, hurdles: Sequence[float]
) -> Verdict:
    mean, number = float(values.mean()), len(values)
    if number < 2:
        return Verdict(mean, float("nan"), float("nan"), 1.0, "undecided (one seed)")
    deviation = float(values.std(ddof=1))
    margin = float(stats.t.ppf(0.975, number - 1)) * deviation / math.sqrt(number)
    interval = mean - margin, mean + margin
    if differs < level:
        return Verdict(mean, *interval, differs, "seen" if mean > 0 else "not seen")
    if alike < level:
        return Verdict(mean, *interval, alike, "no difference")
    needed = seeds_needed(mean, deviation, hurdles[0])
    if abs(mean) < within:
        needed = min(needed, seeds_needed(within - abs(mean), deviation, 2 * hurdles[1]))  # one-sided
    return Verdict(mean, *interval, differs, "undecided", needed)


def p_of(values: Sequence[float]) -> float:
    """1 where there is one value, or where all are 0."""
    return float(stats.ttest_1samp(values, 0.0).pvalue) if len(values) > 1 and any(values) else 1.0


def p_within(values: Sequence[float], margin: float) -> float:
    """Of the mean's being within the margin in either direction, the larger p of two one-sided t-tests (Schuirmann,
    1987); 1 where there is one value, or no margin.
    """
    if len(values) < 2 or margin == 0:
        return 1.0
    above = stats.ttest_1samp(values, -margin, alternative="greater")
    below = stats.ttest_1samp(values, margin, alternative="less")
    return float(max(above.pvalue, below.pvalue))


def holm(ps: Sequence[float]) -> List[float]:
    """Corrected for their number (Holm, 1979): the k-th smallest of n times n - k + 1, never below a smaller one's."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return corrected


def seeds_needed(mean: float, deviation: float, level: float) -> int:
    """The fewest seeds at which t exceeds its two-sided quantile of `level` with POWER; MOST_SEEDS if more."""
    if deviation == 0:
        return 2
    for seeds in range(2, MOST_SEEDS):
        shift = abs(mean) / deviation * math.sqrt(seeds)
        if stats.nct.sf(stats.t.ppf(1 - level / 2, seeds - 1), seeds - 1, shift) >= POWER:
            return seeds
    return MOST_SEEDS


def pairs(runs: Runs, first: str, second: str) -> List[Tuple[Measured, Measured]]:
    """Of the seeds that both have."""
    return [(run, runs[second][seed]) for seed, run in runs[first].items() if seed in runs[second]]


def better(first: str, second: str, text: str, source: str) -> Claim:
    """Score of one variant minus that of another, seed by seed."""
    def differences(runs: Runs) -> List[float]:
        return [100 * (a.score - b.score) for a, b in pairs(runs, first, second)]

    return Claim(text, source, "points", differences, 100 * POINT)


def logged(variant: str, text: str, source: str, unit: str, quantity: Callable[[Measured], float]) -> Claim:
    return Claim(text, source, unit, lambda runs: [quantity(measured) for measured in runs[variant].values()])


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
                        for uniform, amos in pairs(runs, "AMOS, no adversary", "AMOS")], POINT),
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
