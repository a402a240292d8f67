"""What reaches a terminal: text whose control characters are written out, colour only where it is seen and wanted."""

import json
import logging
import os
import re
from typing import Any, Iterable, Sequence, TextIO

# What a terminal obeys instead of showing it: C0 but for tab and line feed, DEL, C1, and what reorders text by
# embedding, override or isolation; with them surrogates, of bytes that are no UTF-8, which no terminal can be sent.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

BOLD, RED, GREEN, MAGENTA = "1", "31", "32", "35"  # readable on black and on white, which yellow, blue and cyan are not


def visible(text: object) -> str:
    """Controls as Python writes them: a text's escape character is `\\x1b`."""
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], str(text))


class VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def show_log() -> None:
    """Warnings of all loggers, as they are worded, on standard error; to be called before fairseq's imports do else."""
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter())
    logging.basicConfig(handlers=[handler])


def json_line(value: Any) -> str:
    """The same value whoever reads it, its controls as JSON writes them: `\\u001b`."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def shows_colour(stream: TextIO) -> bool:
    """A terminal that can, of a user who has not set NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str, stream: TextIO, *codes: str) -> str:
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if shows_colour(stream) else text


def aligned(rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """Lines of columns as wide as their widest cell. numbers: all but the first column end, not begin, in line"""
    rows = [list(map(visible, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    sides = [str.ljust, *[str.rjust if numbers else str.ljust] * (len(widths) - 1)]
    return "\n".join("  ".join(side(*cell) for side, *cell in zip(sides, row, widths)).rstrip() for row in rows)
