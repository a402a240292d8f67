"""What reaches a terminal: text whose control characters are written out, in lines and tables of the terminal's width;
colour only where it is seen and wanted.
"""

import itertools
import json
import logging
import os
import re
import shutil
import textwrap
from typing import Any, List, Optional, Sequence, TextIO

# What a terminal obeys instead of showing it: C0 but for tab and line feed, DEL, C1, and what reorders text by
# embedding, override or isolation; with them surrogates, of bytes that are no UTF-8, which no terminal can be sent.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

BOLD, RED, GREEN, MAGENTA = "1", "31", "32", "35"  # readable on black and on white, which yellow, blue and cyan are not
GAP = "  "  # between the columns of a table
NOTHING = {"", "-"}  # cells without a value


def visible(text: object) -> str:
    """Controls as Python writes them: a text's escape character is `\\x1b`."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], str(text))


def show_controls(handler: logging.Handler) -> logging.Handler:
    """Have the log's handler write out what a terminal would obey; returns it."""
    plain = handler.format
    setattr(handler, "format", lambda record: visible(plain(record)))
    return handler


def show_log() -> None:
    """Warnings of all loggers, as they are worded, on standard error; to be called before fairseq's imports do else."""
    handler = show_controls(logging.StreamHandler())
    handler.setFormatter(logging.Formatter())  # basicConfig's own names level and logger
    logging.basicConfig(handlers=[handler])


def json_line(value: Any) -> str:
    """The same value whoever reads it, its controls as JSON writes them: `\\u001b`."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def shows_colour(stream: TextIO) -> bool:
    """A terminal that can, of a user who has not set NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str, stream: TextIO, *codes: str) -> str:
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if shows_colour(stream) else text


def width() -> int:
    """Columns of the terminal, or what COLUMNS says; 80 where there is neither."""
    return shutil.get_terminal_size().columns


def filled(text: object, hanging: int = 0) -> str:
    """Each line broken between words, to go on in the column `hanging`. A word longer than a line stays whole."""
    options: Any = dict(subsequent_indent=" " * hanging, break_long_words=False, break_on_hyphens=False)
    return "\n".join(textwrap.fill(line, width(), **options) for line in visible(text).split("\n"))


def table(rows: Sequence[Sequence[object]], left: int = 1, stream: Optional[TextIO] = None) -> str:
    """Aligned columns, the first `left` of them to the left, the others to the right; the first row has their titles.

    Columns for which the terminal is too narrow go below, behind the first one, without rows that have nothing there;
    a cell that is wider goes on below itself. In a stream with colour, titles and what ends with an asterisk are bold.
    """
    texts, total = [list(map(visible, row)) for row in rows], width()
    sizes = [max(1, *map(len, column)) for column in zip(*texts)]
    sizes[0] = max(1, min(sizes[0], 3 * total // 5))
    sizes[1:] = [max(1, min(size, total - sizes[0] - len(GAP))) for size in sizes[1:]]
    parts, used = [[0]], sizes[0]  # numbers of the columns that stand side by side
    for number, size in enumerate(sizes[1:], start=1):
        if len(parts[-1]) > 1 and used + len(GAP) + size > total:
            parts, used = [*parts, [0]], sizes[0]
        parts[-1].append(number)
        used += len(GAP) + size

    def lines_of(part: List[int], row: List[str]) -> List[str]:
        folded = ([row[n][at : at + sizes[n]] for at in range(0, len(row[n]), sizes[n])] for n in part)
        made = []
        for pieces in itertools.zip_longest(*folded, fillvalue=""):
            cells = (piece.ljust(sizes[n]) if n < left else piece.rjust(sizes[n]) for n, piece in zip(part, pieces))
            made.append(GAP.join(bold(cell) if cell.endswith("*") else cell for cell in cells).rstrip())
        return made

    def bold(text: str) -> str:
        return coloured(text, stream, BOLD) if stream else text

    blocks = []
    for part in parts:
        blocks.append([*map(bold, lines_of(part, texts[0]))])
        for row in texts[1:]:
            if len(parts) == 1 or {row[n].strip() for n in part[1:]} - NOTHING:
                blocks[-1] += lines_of(part, row)
    return "\n\n".join(map("\n".join, blocks))


def duration(seconds: float) -> str:
    for unit, length, least in (("days", 86400, 4), ("h", 3600, 1), ("min", 60, 1)):
        if seconds >= least * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"
