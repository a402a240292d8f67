"""Does a score prefer the better of two texts? Minimal pairs of grammar (BLiMP, Warstadt et al., 2020) and of world
knowledge (EWoK, Ivanova et al., 2024), from their files or from any like them.

    files -> pairs -> scores of both texts -> 1 where the good one has the higher, 1/2 where both are equal, else 0

Beside the scores stands what the frequencies of the tokens alone would say. EWoK's row is one item of two pairs, the
same target after the right and the wrong context, whose frequencies are equal.
"""

from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from amos_fairseq.data.manifest import located
from amos_fairseq.data.vocabulary_files import read_counts
from amos_fairseq.finetune.intervals import Estimate, mean, mean_of_strata
from amos_fairseq.finetune.tables import records_of
from amos_fairseq.methods.base import log_frequencies
from amos_fairseq.modules.batching import BATCH_TOKENS
from amos_fairseq.pretrained.model import Pretrained
from amos_fairseq.pretrained.scoring import SCORINGS, Score, Sequences, unigram_scores

SUFFIXES = (".jsonl", ".tsv", ".csv")  # of what is read of a folder


class Text(NamedTuple):
    context: str  # read, and not scored
    text: str


class Pair(NamedTuple):
    path: Path
    line: int
    phenomenon: str
    good: Text
    bad: Text


class Layout(NamedTuple):
    """pairs: of columns, (context, text) of the good and of the bad one; a context of None is empty."""

    phenomenon: str
    pairs: Sequence[Tuple[Tuple[Optional[str], str], Tuple[Optional[str], str]]]

    @property
    def columns(self) -> List[str]:
        return list(dict.fromkeys(name for pair in self.pairs for side in pair for name in side if name is not None))


LAYOUTS = {
    "BLiMP": Layout("linguistics_term", [((None, "sentence_good"), (None, "sentence_bad"))]),
    "EWoK": Layout(
        "Domain",
        [(("Context1", "Target1"), ("Context2", "Target1")), (("Context2", "Target2"), ("Context1", "Target2"))],
    ),
    "pairs": Layout("phenomenon", [((None, "good"), (None, "bad"))]),
}


class Scored(NamedTuple):
    """scores: (2 N) of the good text of each pair and its bad one, one after the other."""

    model: str
    scoring: str
    scores: List[Score]


class Judged(NamedTuple):
    """Shares of pairs in which the good text has the higher score, equal ones being half of one.

    overall         of all items        other: the same, of means over tokens instead of sums, or of sums instead
    of_phenomena    the mean of the phenomena's
    ties            pairs with equal scores
    with_frequency, without_frequency: of the pairs that frequencies judge rightly, and of all others; None of no pair
    """

    phenomena: Dict[str, Estimate]
    overall: Estimate
    of_phenomena: Estimate
    other: Estimate
    ties: int
    with_frequency: Optional[float]
    without_frequency: Optional[float]


def read(paths: Sequence[Path], by: Optional[str] = None) -> List[Pair]:
    """The pairs of files, or of all files in folders, .jsonl, .tsv or .csv with the columns of one of LAYOUTS.

    by: column of the phenomenon; by default the layout's own, or the file's name where it has none
    Raises ValueError, in one line, for anything else.
    """
    pairs = [pair for path in map(Path, paths) for file in files_of(path) for pair in pairs_of(file, by)]
    if not pairs:
        raise ValueError(f"{', '.join(map(str, paths))}: there is no pair")
    return pairs


def files_of(path: Path) -> List[Path]:
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]


def pairs_of(path: Path, by: Optional[str]) -> Iterator[Pair]:
    for number, record in records_of(path):
        where = f"{path}, line {number}"
        layout = next((layout for layout in LAYOUTS.values() if set(layout.columns) <= record.keys()), None)
        if layout is None:
            known = "; ".join(f"{', '.join(layout.columns)} ({name})" for name, layout in LAYOUTS.items())
            raise ValueError(f"{where}: columns {', '.join(map(str, record))} hold no pair: needed are {known}"[:500])
        if by is not None and by not in record:
            raise ValueError(f"{where}: there is no column {by!r} among {', '.join(map(str, record))}"[:500])
        for name in layout.columns:
            if not isinstance(record[name], str) or not record[name].strip():
                raise ValueError(f"{where}: {name} is {str(record[name])[:40]!r}, no text")
        phenomenon = str(record.get(by or layout.phenomenon, path.stem))
        for pair in layout.pairs:
            good, bad = (
                Text("" if context is None else record[context].strip(), record[text].strip()) for context, text in pair
            )
            yield Pair(path, number, phenomenon, good, bad)


def available(model: Pretrained) -> List[str]:
    """Those of SCORINGS that a model has. Raises ValueError, with the reason, if there is none."""
    found, reason = [], None
    for scoring in SCORINGS:
        try:
            model.score([""], scoring)
            found.append(scoring)
        except ValueError as error:
            reason = error
    if not found:
        raise ValueError(str(reason))
    return found


class Texts:
    """The texts of pairs as a model reads them; those with the same tokens are one, and score the same."""

    def __init__(self, pairs: Sequence[Pair], model: Pretrained):
        texts = [text for pair in pairs for text in (pair.good, pair.bad)]
        sequences = model.sequences([text.text for text in texts], contexts=[text.context for text in texts])
        keys = [
            b" ".join(part.numpy().tobytes() for part in parts) for parts in zip(sequences.tokens, sequences.counted)
        ]
        # self.place: in `distinct`, of the good text of each pair and its bad one
        _, first, self.place = np.unique(np.array(keys, dtype=object), return_index=True, return_inverse=True)
        self.distinct = [texts[number] for number in first]
        self.sequences = Sequences(*([part[number] for number in first] for part in sequences[:2]))
        self.model = model

    def score(
        self, scoring: str, batch_tokens: int = BATCH_TOKENS, progress: Callable[[int], object] = lambda texts: None
    ) -> List[Score]:
        """Of the good text of each pair and its bad one, one after the other."""
        contexts = [text.context for text in self.distinct]
        options = dict(contexts=contexts, batch_tokens=batch_tokens, progress=progress)
        found = self.model.score([text.text for text in self.distinct], scoring, **options)
        return [found[place] for place in self.place]

    def unigram_score(self, counts: torch.Tensor) -> List[Score]:
        """By the frequencies of the tokens in training, (V,) counts."""
        regular = counts.index_fill(0, torch.tensor(self.model.tokenizer.excluded), 0)
        found = unigram_scores(log_frequencies(regular), self.sequences)
        return [found[place] for place in self.place]


def counts_of(model: Pretrained, data: Optional[Path]) -> Optional[torch.Tensor]:
    """(V,) of prepared data, else those that training counted, else None."""
    if data is None:
        return model.token_counts
    return torch.from_numpy(read_counts(located(data)[0], model.tokenizer))


def preferences(scores: Sequence[Score], per_token: bool) -> np.ndarray:
    """(N,) of each pair 1 where the good text scores higher, 1/2 where both are equal, else 0.

    per_token: means over tokens are compared instead of sums
    """
    found = np.array([score.pll / max(score.tokens, 1) if per_token else score.pll for score in scores])
    good, bad = found[::2], found[1::2]
    return (good > bad) + 0.5 * (good == bad)


def judge(
    pairs: Sequence[Pair], scores: Sequence[Score], frequencies: Optional[Sequence[Score]], per_token: bool = False
) -> Judged:
    """scores, frequencies: (2 N), as in `Scored`; the second of the same texts by their tokens' frequencies."""
    right = preferences(scores, per_token)
    strata = by_phenomenon(pairs, right)
    others = by_phenomenon(pairs, preferences(scores, not per_token))
    shares: List[np.ndarray] = []
    if frequencies is not None:
        by_frequency = preferences(frequencies, per_token)
        shares = [right[by_frequency == 1], right[by_frequency < 1]]
    told = [float(share.mean()) if len(share) else None for share in shares]
    return Judged(
        {name: mean(items) for name, items in strata.items()},
        over(strata, len), over(strata, lambda items: 1), over(others, len), int((right == 0.5).sum()),
        *(told or (None, None)),
    )


def as_row(number: int, pair: Pair, scored: Sequence[Scored]) -> Dict[str, Any]:
    """A pair with its scores, as JSON."""
    scores = []
    for model, scoring, of_texts in scored:
        good, bad = (score._asdict() for score in of_texts[2 * number : 2 * number + 2])
        scores.append({"model": model, "score": scoring, "good": good, "bad": bad})
    texts = {"good": pair.good._asdict(), "bad": pair.bad._asdict()}
    return {**pair._asdict(), "path": str(pair.path), **texts, "scores": scores}


def by_phenomenon(pairs: Sequence[Pair], right: np.ndarray) -> Dict[str, np.ndarray]:
    """(N,) `preferences` as those of items: the mean of the pairs of a line."""
    items: Dict[str, Dict[Tuple[Path, int], List[float]]] = {}
    for pair, value in zip(pairs, right.tolist()):
        items.setdefault(pair.phenomenon, {}).setdefault((pair.path, pair.line), []).append(value)
    return {name: np.array([sum(item) / len(item) for item in lines.values()]) for name, lines in items.items()}


def over(strata: Dict[str, np.ndarray], weight: Callable[[np.ndarray], int]) -> Estimate:
    return mean_of_strata(list(strata.values()), list(map(weight, strata.values())))
