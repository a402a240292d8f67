"""`amos-fairseq inspect`: what a trained model does with a text, stage by stage, and what its encoder says about it."""
import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import List, Optional

from amos_fairseq.cli.trained import add_text, lines_of
from amos_fairseq.files import check_new, result_written
from amos_fairseq.terminal import json_line, show_log, shows_colour, visible

HELP = (
    "Follow text through a trained model: what is masked, what each generator would put there and what is drawn, the "
    "corrupted text, and what the encoder says about every token. Held-out text of the run, unless --text or --file "
    "gives another."
)
HTML_WIDTH = 120  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, or one of its checkpoints")
    add_text(parser, "text to read; where it has <mask>, nothing else is masked")
    parser.add_argument(
        "--data", type=Path,
        help="prepared data, for held-out text and for a checkpoint that holds no vocabulary; default: RUN/data, else "
        "where the run was trained",
    )
    parser.add_argument("--count", type=int, default=3, help="how many held-out blocks (default: 3)")
    parser.add_argument("--mask-prob", type=float, metavar="P", help="share that is masked (default: the run's)")
    parser.add_argument("--seed", type=int, default=1, help="of what is masked and drawn (default: 1)")
    parser.add_argument("--top", type=int, default=3, help="how many tokens of each language model (default: 3)")
    parser.add_argument(
        "--stages", action=argparse.BooleanOptionalAction,
        help="all stages (the default for given text), or the corrupted text only (for held-out text)",
    )
    parser.add_argument(
        "--threshold", type=threshold, default=0.5, metavar="P",
        help="P(original) below which a token is taken for replaced (default: 0.5), or `matched`: takes as many for "
        "replaced as were, which shows how a young model, sure of nothing, ranks the tokens",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="auto: only to a terminal (the default)"
    )
    output.add_argument("--json", action="store_true", help="one JSON object for each sentence, with all numbers")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page that needs no other file")


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
    if args.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {args.seed}")
    if args.html:
        check_new("--html", args.html)
    show_log()
    lines = [] if args.text is None and args.file is None else lines_of(args)

    from rich.console import Console

    from amos_fairseq.analysis.checkpoint import Sampling, load_run

    trained = load_run(args.run, args.data)
    vocabulary = len(trained.model.tokenizer)
    if not 0 < args.top <= vocabulary:
        raise ValueError(f"--top {args.top} must lie between 1 and the vocabulary's {vocabulary}")
    sampling = Sampling(args.mask_prob, args.seed, args.top)
    sentences = trained.inspect_text(lines, sampling) if lines else trained.inspect_held_out(args.count, sampling)
    if args.json:
        for sentence in sentences:
            print(json_line(sentence.as_json()))
        return
    stages = bool(lines) if args.stages is None else args.stages
    if args.html:
        console = Console(record=True, file=io.StringIO(), width=HTML_WIDTH)
        write(console, sentences, args.threshold, stages)
        with result_written(args.html) as stream:
            stream.write(console.export_html().encode())
        print(visible(args.html))
    else:
        write(terminal(args.color), sentences, args.threshold, stages)


def write(console, sentences: List, threshold: Optional[float], stages: bool) -> None:
    """Sentences, then what the marks mean and how often the encoder was right; without an encoder that judges, stages.

    threshold: None for that which takes as many tokens for replaced as were
    """
    from amos_fairseq.analysis import inspection

    judged = inspection.is_judged(sentences)
    if threshold is None:
        threshold = inspection.matched_threshold(sentences) if judged else 0.5
    stages = stages or not judged
    render = inspection.render_stages if stages else inspection.render_verdicts
    for sentence in sentences:
        console.print(render(sentence, threshold, console.width))
        console.print()
    if judged:
        console.print(inspection.legend(stages))
        console.print(inspection.summary(sentences, threshold), highlight=False, soft_wrap=True)
        console.print(f"Taken for replaced: tokens whose P(original) is below {threshold:.2f}.", highlight=False)


def terminal(color: str):
    """Where to print: as wide as the terminal; without colour where none is shown, unless it is asked for."""
    from rich.console import Console

    from amos_fairseq.analysis.inspection import WIDTH

    width = None if sys.stdout.isatty() else WIDTH
    if color == "always":
        return Console(color_system="standard", force_terminal=True, no_color=False, width=width)
    shown = color == "auto" and shows_colour(sys.stdout)
    return Console(color_system="auto" if shown else None, width=width)
