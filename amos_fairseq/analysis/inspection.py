"""Corrupted text as a person reads it: what was replaced by what, and what the encoder says about every token."""
from typing import Iterable, List, NamedTuple, Sequence

WORD_START = "\u2581"  # what SentencePiece writes for a space
WIDTH = 100            # columns of a line

FOUND, MISSED, MISTAKEN = "found", "missed", "mistaken"
ANSI = {FOUND: "\033[1;34m", MISSED: "\033[1;31m", MISTAKEN: "\033[33m"}  # bold blue, bold red, yellow
ANSI_END = "\033[0m"

LEGEND = {
    FOUND: "[original -> drawn p]  replaced, and found by the encoder; p is its P(original)",
    MISSED: "[original -> drawn p missed]  replaced, taken for original",
    MISTAKEN: "{token p}  original, taken for replaced",
}


class Verdict(NamedTuple):
    """One token of a corrupted sequence. Pieces are SentencePiece's; `probability` is the encoder's P(original)."""

    original: str
    corrupted: str
    replaced: bool
    probability: float
    threshold: float = 0.5  # a token of lower probability is taken for replaced

    @property
    def kind(self) -> str:
        """FOUND, MISSED, MISTAKEN, or nothing to tell about an original token that is taken for one."""
        called_replaced = self.probability < self.threshold
        if self.replaced:
            return FOUND if called_replaced else MISSED
        return MISTAKEN if called_replaced else ""


def verdicts(
    original_tokens: Iterable[int],
    corrupted_tokens: Iterable[int],
    replaced_positions: Iterable[bool],
    probabilities: Iterable[float],
    pieces: Sequence[str],
    hidden_tokens: Iterable[int] = (),
) -> List[Verdict]:
    """One verdict for each position of a sequence (T,), `pieces` being the vocabulary; `hidden_tokens` are left out."""
    return [
        Verdict(pieces[original], pieces[corrupted], bool(replaced), float(probability))
        for original, corrupted, replaced, probability in zip(
            original_tokens, corrupted_tokens, replaced_positions, probabilities
        )
        if original not in hidden_tokens
    ]


def matched_threshold(sequences: List[List[Verdict]]) -> float:
    """The threshold that takes as many tokens for replaced as were replaced: it shows how the encoder ranks tokens.

    A model that has learnt little gives every token a P(original) near the share of originals, and says nothing at 0.5.
    """
    tokens = [verdict for sequence in sequences for verdict in sequence]
    ranked = sorted(verdict.probability for verdict in tokens)
    return ranked[min(sum(verdict.replaced for verdict in tokens), len(ranked) - 1)]


def judged(sequences: List[List[Verdict]], threshold: float) -> List[List[Verdict]]:
    """The same tokens, taken for replaced below `threshold`."""
    return [[verdict._replace(threshold=threshold) for verdict in sequence] for sequence in sequences]


def render(sequence: List[Verdict], color: bool) -> str:
    """The sequence as wrapped text. The markers say everything; colour only makes them easier to see."""
    words: List[List[Verdict]] = []
    for verdict in sequence:
        if verdict.original.startswith(WORD_START) or not words:
            words.append([])
        words[-1].append(verdict)
    lines, column = [""], 0
    for word in words:
        width = sum(len(mark(verdict)) for verdict in word)
        if column and column + 1 + width > WIDTH:
            lines.append("")
            column = 0
        lines[-1] += " " * (column > 0) + "".join(paint(mark(verdict), verdict.kind, color) for verdict in word)
        column += (column > 0) + width
    return "\n".join(lines)


def mark(verdict: Verdict) -> str:
    """The token with what there is to say about it; a letter inside a word is told from a word's first one."""
    if verdict.replaced:
        original, corrupted = (
            piece.replace(WORD_START, "") if piece.startswith(WORD_START) or not piece[0].isalnum() else f"-{piece}"
            for piece in (verdict.original, verdict.corrupted)
        )
        missed = " missed" if verdict.kind == MISSED else ""
        return f"[{original} -> {corrupted} {verdict.probability:.2f}{missed}]"
    text = verdict.corrupted.replace(WORD_START, "")
    return f"{{{text} {verdict.probability:.2f}}}" if verdict.kind == MISTAKEN else text


def paint(text: str, kind: str, color: bool) -> str:
    return f"{ANSI[kind]}{text}{ANSI_END}" if color and kind else text


def legend(color: bool) -> str:
    """What the markers mean, one a line."""
    return "\n".join(paint(text, kind, color) for kind, text in LEGEND.items())


def summary(sequences: List[List[Verdict]]) -> str:
    """How often the encoder was right, in one line."""
    tokens = [verdict for sequence in sequences for verdict in sequence]
    counts = {kind: sum(verdict.kind == kind for verdict in tokens) for kind in (FOUND, MISSED, MISTAKEN)}
    replaced = counts[FOUND] + counts[MISSED]
    return (
        f"{replaced} of {len(tokens)} tokens were replaced; the encoder found {counts[FOUND]} of them "
        f"and took {counts[MISTAKEN]} of the other {len(tokens) - replaced} for replaced."
    )
