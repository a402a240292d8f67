"""N-best lists of speech recognition or translation, ranked by a first pass and a language model (SCRIPT, Table 3).

    score = (1 - weight) first_pass + weight pll
"""

import math
from typing import Dict, List, NamedTuple, Sequence

import numpy as np

from amos_fairseq.user_errors import edit_distance

WEIGHTS = np.linspace(0, 1, 101)  # of which one is tuned


class Hypothesis(NamedTuple):
    """A line of an n-best list. group: its id   first_pass: 0 where there is none"""

    line: int
    group: str
    first_pass: float
    sentence: str


class WordErrors(NamedTuple):
    """Word error rates: of the chosen hypotheses, of the first pass's, and of the best that there are."""

    chosen: float
    first_pass: float
    oracle: float


def combined(hypotheses: Sequence[Hypothesis], plls: Sequence[float], weight: float) -> List[float]:
    return [(1 - weight) * item.first_pass + weight * pll for item, pll in zip(hypotheses, plls)]


def best_of_each(hypotheses: Sequence[Hypothesis], scores: Sequence[float], tokens: Sequence[int]) -> Dict[str, int]:
    """Of each id the highest score's place, of equals the first; one without a token only among its like."""
    best: Dict[str, int] = {}
    for place, item in enumerate(hypotheses):
        rival = best.setdefault(item.group, place)
        if (tokens[place] > 0, scores[place]) > (tokens[rival] > 0, scores[rival]):
            best[item.group] = place
    return best


def word_errors(hypothesis: str, reference: str) -> int:
    """Fewest words that are substituted, inserted or left out between both."""
    return edit_distance(hypothesis.split(), reference.split(), exchanges=False)


class Rescoring:
    """An n-best list with its references, by id, and the language model's scores."""

    def __init__(
        self, hypotheses: Sequence[Hypothesis], plls: Sequence[float], tokens: Sequence[int], references: Dict[str, str]
    ):
        self.hypotheses, self.plls, self.tokens = hypotheses, plls, tokens
        groups = dict.fromkeys(item.group for item in hypotheses)
        absent = [group for group in groups if group not in references]
        if absent:
            raise ValueError(f"there is no reference for {absent[0]!r}: lines are id<TAB>sentence")
        without = [group for group in references if group not in groups]
        if without:
            raise ValueError(f"{len(without)} references have no hypothesis, first {without[0]!r}: leave them out")
        self.words = sum(len(references[group].split()) for group in groups)
        if not self.words:
            raise ValueError("the references hold no word")
        self.errors = [word_errors(item.sentence, references[item.group]) for item in hypotheses]

    def rate(self, scores: Sequence[float]) -> float:
        best = best_of_each(self.hypotheses, scores, self.tokens)
        return sum(self.errors[place] for place in best.values()) / self.words

    def tuned(self) -> float:
        """The weight with the fewest errors, of equal ones the one in the middle."""
        rates = [self.rate(combined(self.hypotheses, self.plls, weight)) for weight in WEIGHTS]
        best = np.flatnonzero(np.array(rates) == min(rates))
        return float(WEIGHTS[best[len(best) // 2]])

    def word_errors(self, weight: float) -> WordErrors:
        ranked = (self.rate(combined(self.hypotheses, self.plls, share)) for share in (weight, 0.0))
        fewest: Dict[str, int] = {}
        for item, errors in zip(self.hypotheses, self.errors):
            fewest[item.group] = min(errors, fewest.get(item.group, errors))
        return WordErrors(*ranked, sum(fewest.values()) / self.words)


def parse(text: str, path: str, nbest: bool = True, first_pass: bool = False) -> List[Hypothesis]:
    """Lines that are not blank: a sentence; of n-best lists id<TAB>sentence or id<TAB>score<TAB>sentence, the sentence
    being perhaps empty. Raises ValueError for anything else."""
    layout = "id<TAB>score<TAB>sentence" if first_pass else "id<TAB>sentence"
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        *fields, sentence = line.split("\t", 1 + first_pass) if nbest else [line]
        if nbest and (len(fields) != 1 + first_pass or not fields[0]):
            raise ValueError(f"{path}, line {number}: n-best lines are {layout}, got {line[:40]!r}")
        try:
            score = float(fields[1]) if first_pass else 0.0
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"{path}, line {number}: the first pass's score {fields[1][:40]!r} is no number")
        found.append(Hypothesis(number, fields[0] if nbest else "", score, sentence))
    if not found:
        raise ValueError(f"{path}: there is no sentence to score")
    return found
