"""The stages of a sentence as a person reads them: masked, proposed and drawn, corrupted with the encoder's verdicts.

Marks and words say everything; colour only makes them easier to see, and is told apart with any colour vision.
"""

from dataclasses import fields, is_dataclass
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from amos_fairseq.analysis.pipeline import Position, Sentence, Token
from amos_fairseq.data.tokenizer import SPACE
from amos_fairseq.data.vocabulary import MASK
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.stages import TokenProbability
from amos_fairseq.terminal import visible

WIDTH = 100  # columns of a line where there is no terminal

FOUND, MISSED, MISTAKEN, FILLED = "found", "missed", "mistaken", "filled"
# Colours that are readable on black and on white.
STYLES = {FOUND: "bold magenta", MISSED: "bold red", MISTAKEN: "underline", FILLED: "bold", "": ""}
WORDS = {
    FOUND: "replaced, found", MISSED: "replaced, missed", MISTAKEN: "original, mistaken", FILLED: "filled in",
    "": "original",
}

LEGEND = {
    FOUND: "[original -> drawn p]  replaced, and found by the encoder; p is its P(original)",
    MISSED: "[original -> drawn p missed]  replaced, taken for original",
    MISTAKEN: "{token p}  original, taken for replaced",
}
STAGES_LEGEND = (
    "[1 <mask>]  selected position 1, in the table: tokens with probabilities, = before the original;\n"
    "            weight: AMOS's mixture weight; p: the encoder's P(original) of what was drawn"
)
HIDDEN = ("<s>", "</s>")


class Mark(NamedTuple):
    """One token as it is printed."""

    text: str
    style: str
    starts_word: bool


def kind(token: Token, threshold: float) -> str:
    """FOUND, MISSED, MISTAKEN, FILLED where the text had <mask>, or nothing to tell about an original token.

    A token whose probability is below `threshold` is taken for replaced.
    """
    if token.original is None:
        return FILLED
    called_replaced = token.probability < threshold
    if token.replaced:
        return FOUND if called_replaced else MISSED
    return MISTAKEN if called_replaced else ""


def matched_threshold(sentences: Sequence[Sentence]) -> float:
    """The threshold that takes as many tokens for replaced as were replaced: it shows how the encoder ranks tokens.

    A model that has learnt little gives every token a P(original) near the share of originals, and says nothing at 0.5.
    """
    tokens = list(shown_tokens(sentences))
    ranked = sorted(token.probability for token in tokens)
    return ranked[min(sum(bool(token.replaced) for token in tokens), len(ranked) - 1)]


def shown_tokens(sentences: Iterable[Sentence]) -> Iterator[Token]:
    """All but <s> and </s>, unless these are selected."""
    for sentence in sentences:
        yield from (token for token in sentence.tokens if token.selected or token.original not in HIDDEN)


def is_judged(sentences: Sequence[Sentence]) -> bool:
    """Whether the encoder says which tokens are original."""
    return any(token.probability is not None for token in shown_tokens(sentences))


def render_verdicts(sentence: Sentence, threshold: float, width: int = WIDTH) -> Text:
    """The corrupted sentence with the encoder's verdicts."""
    return wrapped([mark_verdict(token, threshold) for token in shown_tokens([sentence])], width)


def mark_verdict(token: Token, threshold: float) -> Mark:
    verdict = kind(token, threshold)
    if verdict in (FOUND, MISSED, FILLED):
        missed = " missed" if verdict == MISSED else ""
        text = f"[{piece(token.original or MASK)} -> {piece(token.corrupted)} {token.probability:.2f}{missed}]"
    else:
        text = token.corrupted.replace(SPACE, "")
        text = f"{{{text} {token.probability:.2f}}}" if verdict == MISTAKEN else text
    return Mark(text, STYLES[verdict], (token.original or SPACE).startswith(SPACE))


def render_masked(sentence: Sentence, width: int = WIDTH) -> Text:
    """The sentence with its selected positions numbered: [1 <mask>], [2 kept: token], [3 random: token]."""
    marks, number = [], 0
    for token in shown_tokens([sentence]):
        number += token.selected
        marks.append(mark_masked(token, number))
    return wrapped(marks, width)


def mark_masked(token: Token, number: int) -> Mark:
    starts_word = (token.original or SPACE).startswith(SPACE)
    if not token.selected:
        return Mark(token.masked.replace(SPACE, ""), "", starts_word)
    fate = "" if token.masked == MASK else "kept: " if token.masked == token.original else "random: "
    return Mark(f"[{number} {fate}{piece(token.masked)}]", "bold", starts_word)


def piece(text: str) -> str:
    """A token that stands alone; letters inside a word are told from a word's first ones by a dash."""
    if text == SPACE:
        return "(space)"
    return text.replace(SPACE, "") if text.startswith(SPACE) or not text[0].isalnum() else f"-{text}"


def wrapped(marks: Sequence[Mark], width: int) -> Text:
    """Lines of at most `width` columns, broken between words only."""
    words: List[List[Mark]] = []
    for mark in (mark._replace(text=visible(mark.text)) for mark in marks):
        if mark.starts_word or not words:
            words.append([])
        words[-1].append(mark)
    text, column = Text(), 0
    for word in words:
        size = sum(cell_len(mark.text) for mark in word)
        if column:
            text.append("\n" if column + 1 + size > width else " ")
            column = 0 if column + 1 + size > width else column + 1
        for mark in word:
            text.append(mark.text, mark.style)
        column += size
    return text


def render_stages(sentence: Sentence, threshold: float, width: int = WIDTH) -> Group:
    """All stages, one below the other."""
    parts = [heading(f"{sentence.method}: original"), Text(visible(sentence.text))]
    parts += [heading("masked"), render_masked(sentence, width)]
    if sentence.positions:
        drawn = sentence.positions[0].sampled is not None
        parts += [heading("proposed, drawn, judged" if drawn else "proposed"), render_positions(sentence, threshold)]
    if is_judged([sentence]):
        parts += [heading("corrupted"), render_verdicts(sentence, threshold, width)]
    return Group(*parts)


def heading(text: str) -> Text:
    return Text(f"-- {text}", "dim")


def render_positions(sentence: Sentence, threshold: float) -> Table:
    """A row for each selected position, a column for each generator and for what else the method has there."""
    rows = [cells_of(sentence, position, threshold) for position in sentence.positions]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), leading=1)
    for title in ("", *rows[0]):
        table.add_column(title)
    for number, cells in enumerate(rows, start=1):
        table.add_row(str(number), *cells.values())
    return table


def cells_of(sentence: Sentence, position: Position, threshold: float) -> Dict[str, Text]:
    """By title of the column."""
    token = sentence.tokens[position.index]
    original = token.original
    cells = {"original": lines("?" if original is None else piece(original))}
    for proposal in position.proposals:
        weight = () if proposal.mixture_weight is None else (f"weight {proposal.mixture_weight:.3f}",)
        cells[proposal.generator] = lines(*weight, *listed(proposal.top, original), *share(proposal.original))
    if position.sampled is not None:
        cells["drawn"] = lines(*listed([position.sampled], original))
    if token.probability is not None:
        title = METHODS[sentence.method].judge
        verdict = kind(token, threshold)
        cells[title] = lines(f"p {token.probability:.3f}", f"logit {token.logit:.2f}", WORDS[verdict])
        cells[title].stylize(STYLES[verdict])
    for name, detail in position.details.items():
        cells[getattr(detail, "title", name)] = lines(*detail_lines(name, detail, original))
    return cells


def detail_lines(name: str, detail: Any, original: Optional[str]) -> List[str]:
    """Of what one method alone has, by its type."""
    if detail is None:
        return []
    if hasattr(detail, "lines"):
        return detail.lines()
    if isinstance(detail, TokenProbability):
        return [f"-> {line}" for line in listed([detail], original)]
    if is_dataclass(detail):
        parts = {field.name: getattr(detail, field.name) for field in fields(detail)}
        return [line for name, part in parts.items() for line in detail_lines(name, part, original)]
    if isinstance(detail, list) and all(isinstance(part, TokenProbability) for part in detail):
        return listed(detail, original)
    if isinstance(detail, float):
        return share(detail) if name == "original" else [f"{name} {detail:.3f}"]
    return [f"{name} {detail}"]


def lines(*texts: str) -> Text:
    return Text("\n".join(map(visible, texts)), no_wrap=True)


def listed(tokens: Iterable[TokenProbability], original: Optional[str]) -> List[str]:
    """A line for each; = stands before the original token."""
    return [f"{'=' if token.token == original else ''}{piece(token.token)} {token.probability:.3f}" for token in tokens]


def share(original: Optional[float]) -> List[str]:
    return [] if original is None else [f"(original {original:.3f})"]


def legend(stages: bool) -> Text:
    """What the marks mean, one a line."""
    text = Text("\n").join(Text(words, STYLES[kind]) for kind, words in LEGEND.items())
    return Text("\n").join([Text(STAGES_LEGEND), text]) if stages else text


def summary(sentences: Sequence[Sentence], threshold: float) -> str:
    """How often the encoder was right, in one line."""
    kinds = [kind(token, threshold) for token in shown_tokens(sentences)]
    known = len(kinds) - kinds.count(FILLED)
    replaced = kinds.count(FOUND) + kinds.count(MISSED)
    return (
        f"{replaced} of {known} tokens were replaced; the encoder found {kinds.count(FOUND)} of them "
        f"and took {kinds.count(MISTAKEN)} of the other {known - replaced} for replaced."
    )
