"""`amos-fairseq inspect`: what a trained generator replaces, and what the encoder says about every token."""
import argparse
import contextlib
import sys
from pathlib import Path
from typing import List, Optional

HELP = (
    "Corrupt text with the generators of a trained run and print it with the encoder's verdicts: "
    "held-out text of the run, unless --text or --file gives another."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, or one of its checkpoints")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", help="text to corrupt")
    text.add_argument("--file", type=Path, help="text to corrupt, line by line")
    parser.add_argument("--data", type=Path, help="prepared data; default: RUN/data, else where the run was trained")
    parser.add_argument("--count", type=int, default=3, help="how many held-out blocks (default: 3)")
    parser.add_argument(
        "--threshold", type=threshold, default=0.5, metavar="P",
        help="P(original) below which a token is taken for replaced (default: 0.5), or `matched`: takes as many for "
        "replaced as were, which shows how a young model, sure of nothing, ranks the tokens",
    )
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="auto: only to a terminal (the default)"
    )


def threshold(text: str) -> Optional[float]:
    """A probability, or None for `matched`."""
    if text == "matched":
        return None
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is neither a probability between 0 and 1 nor `matched`")


def run(args: argparse.Namespace) -> None:
    if args.count < 1:
        raise ValueError(f"--count must be at least 1, got {args.count}")
    lines = [args.text] if args.text else None
    if args.file:
        lines = [line for line in args.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if lines is not None and not any(line.strip() for line in lines):
        raise ValueError("there is no text to inspect")

    show(args.run, args.count, lines, args.data, args.color, args.threshold)


def show(
    run: Path,
    count: int,
    lines: Optional[List[str]] = None,
    data: Optional[Path] = None,
    color: str = "auto",
    threshold: Optional[float] = 0.5,
) -> None:
    """Print `lines`, or else `count` held-out blocks, as the run's model corrupts and judges them."""
    from amos_fairseq.analysis import inspection
    from amos_fairseq.analysis.checkpoint import load_run

    trained = load_run(run, data)
    sequences = trained.inspect_text(lines) if lines else trained.inspect_held_out(count)
    threshold = inspection.matched_threshold(sequences) if threshold is None else threshold
    sequences = inspection.judged(sequences, threshold)
    color = color == "always" or (color == "auto" and sys.stdout.isatty())
    for sequence in sequences:
        print(inspection.render(sequence, color) + "\n")
    print(inspection.legend(color))
    print(inspection.summary(sequences))
    print(f"Taken for replaced: tokens whose P(original) is below {threshold:.2f}.")
