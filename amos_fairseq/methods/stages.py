"""What a method tells of single texts, in plain data: `amos-fairseq inspect` prints it, whichever the method."""

from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Sequence

from torch import Tensor


class Proposals(NamedTuple):
    """What one masked language model says at M selected positions."""

    logits: Tensor  # (M, V)
    weights: Optional[Tensor] = None  # (M,) of these logits among those that are mixed to draw from; None: not mixed


@dataclass
class TokenProbability:
    token: str
    probability: float


class Words(NamedTuple):
    """How ids are told in words. A detail may hold numbers, `TokenProbability`s, lists of them, or be a dataclass
    of these, which says by `lines()` how it is printed if not one field a line."""

    symbols: Sequence[str]  # of the vocabulary
    known: Sequence[Optional[int]]  # (M,) original tokens at the selected positions; None: the text itself has <mask>
    top: int  # how many tokens of each language model

    def named(self, tokens: Sequence[int], probabilities: Sequence[float]) -> List[TokenProbability]:
        return [TokenProbability(self.symbols[token], probability) for token, probability in zip(tokens, probabilities)]

    def likeliest(self, probabilities: Tensor, count: int = 0) -> List[TokenProbability]:
        """Of (V,), likeliest first: `top`, or `count`."""
        best = probabilities.topk(count or self.top)
        return self.named(best.indices.tolist(), best.values.tolist())

    def of_original(self, row: int, probabilities: Tensor) -> Optional[float]:
        """Of (V,) at selected position `row`."""
        return None if self.known[row] is None else probabilities[self.known[row]].item()
