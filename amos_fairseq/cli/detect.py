"""`amos-fairseq detect`: which tokens of a text a model takes for replaced."""
import argparse
import sys

from amos_fairseq.cli import trained
from amos_fairseq.terminal import BOLD, RED, coloured, json_line, visible

HELP = (
    "Print a text with the tokens that the encoder takes for replaced, [token probability], by a run of any method "
    "that learns to detect them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained.add_run(parser)
    trained.add_text(parser, "text to read", required=True)
    parser.add_argument("--threshold", type=float, default=0.5, metavar="P",
                        help="probability of being replaced from which a token is marked (default: 0.5)")
    parser.add_argument("--json", action="store_true", help="one JSON list of all tokens for each line")


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold} is no probability: give 0 to 1")
    lines = trained.lines_of(args)

    model = trained.load(args)
    try:
        for line in lines:
            model.encode(line)
    except ValueError as error:
        raise ValueError(f"{args.file or '--text'}: {error}") from None
    for line in lines:
        detections = model.detect(line)
        if args.json:
            print(json_line([detection._asdict() for detection in detections]))
        else:
            print(marked(line, detections, args.threshold))


def marked(line: str, detections, threshold: float) -> str:
    """The line with [token probability] for each token that is taken for replaced."""
    text, end = "", 0
    for detection in detections:
        if detection.replaced >= threshold:
            mark = f"[{visible(line[detection.begin:detection.end])} {detection.replaced:.2f}]"
            text += visible(line[end:detection.begin]) + coloured(mark, sys.stdout, BOLD, RED)
            end = detection.end
    return text + visible(line[end:])
