"""`amos-fairseq report`: a page of figures and a summary table of one or several training runs."""
import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, List, Sequence

from amos_fairseq.cli.processes import held_interrupts
from amos_fairseq.terminal import show_log, table, visible

if TYPE_CHECKING:
    from amos_fairseq.run_log import Run

HELP = (
    "Write the figures of training runs as one page, report.html, and as PNG files beside it, and print what the runs "
    "measured. Most figures come from the logs, those of sequences and pseudo-likelihoods from the newest checkpoints."
)
BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
TREND = 12  # characters of a trend
NONE = "-"  # in place of a value that a run did not log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or its log")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: RUN/report, of one run)")
    parser.add_argument(
        "--names", type=lambda text: text.split(","), default=[], metavar="NAME,..", help="of the runs, in their order"
    )
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE",
        help="sentence1, sentence2, score, as STS-B has them, .tsv, .csv or .jsonl: those of the highest score are the "
        "similar pairs, in place of held-out sequences and their crops",
    )
    parser.add_argument("--logs-only", action="store_true", help="read no checkpoints")


def run(args: argparse.Namespace) -> None:
    show_log()

    from tqdm import tqdm

    from amos_fairseq.analysis import held_out_figures, report, similarity

    if args.logs_only and args.pairs:
        raise ValueError("--pairs is read by a checkpoint, of which --logs-only reads none: leave one out")
    if args.out is None and (len(args.runs) > 1 or not args.runs[0].is_dir()):
        raise ValueError("--out FOLDER says where a report of several runs, or of a log, is written")
    out, pairs = args.out or args.runs[0] / "report", args.pairs
    report.check_replaceable(out)
    runs = report.open_runs(args.runs, args.names)
    scored = similarity.read_sts(pairs) if pairs else None
    print_table(one_run(runs[0]) if len(runs) == 1 else several_runs(runs))
    read = [] if args.logs_only else tqdm(runs, desc="checkpoints", unit="run", leave=False, disable=None)
    kind = f"Similar: the pairs of the highest score in {pairs.name}." if pairs else held_out_figures.CROPS
    found, left_out = report.read_checkpoints(read, scored)
    with held_interrupts() as interrupt_point:
        page = report.write(runs, out, found, left_out, kind)
        interrupt_point()
    for line in left_out:
        print(f"without checkpoint or held-out text  {visible(line)}")
    print(f"\nfigures   {visible(page)}, and as PNG files and curves.csv beside it")


def one_run(run: "Run") -> List[List[str]]:
    """What it measured, over updates, in the last validation, and against what is expected of its settings."""
    from amos_fairseq import run_log
    from amos_fairseq.analysis import expectations, quantities
    from amos_fairseq.analysis.expectations import number
    from amos_fairseq.run_log import RATES

    expected = expectations.of_run(run.folder)
    rows = [["", "trend", "measured", "valid", *(["expected", ""] if expected else [])]]
    for comparison in expectations.compare(run.log, expected):
        name, validated = comparison.name, run_log.series(run.log.validation, comparison.name)[1]
        measured = [number(comparison.measured), number(validated[-1]) if validated and name not in RATES else ""]
        limits = " - ".join(map(number, comparison.expected or ()))
        trend = sparkline(run_log.series(run.log.train, name)[1] or validated)
        rows.append([quantities.title(name), trend, *measured, *([limits, comparison.mark] if expected else [])])
    return rows


def several_runs(runs: Sequence["Run"]) -> List[List[str]]:
    """Last validation of each beside the others, the best marked; the trend is that of the loss.

    Below, what the runs took, and the options in which they differ.
    """
    from amos_fairseq import run_log
    from amos_fairseq.analysis import quantities, report
    from amos_fairseq.analysis.expectations import number

    rows = [["", *(run.name for run in runs)]]
    rows.append(["trend", *(sparkline(run_log.series(run.log.train, "loss")[1]) for run in runs)])
    for line in report.summary(runs):
        cells = [NONE if value is None else number(value) for value in line.values]
        marks = [" *" if best else "  " for best in line.best]
        rows.append([quantities.title(line.name), *map(str.__add__, cells, marks)])
    took = [report.about(run) for run in runs]
    facts = {name: [of_run[name] for of_run in took] for name in took[0]}
    differing = run_log.differing_options(runs)
    facts.update({name: list(map(str, values)) for name, values in differing.items() if name != "model"})  # see about
    rows += [[name, *(f"{value}  " for value in values)] for name, values in facts.items() if len(set(values)) > 1]
    return rows


def sparkline(values: Sequence[float]) -> str:
    """At most TREND of the values, evenly taken, from lowest to highest; not the first tenth, which dwarfs the rest."""
    values = [value for value in values[len(values) // 10 :] if math.isfinite(value)]
    count = min(TREND, len(values))
    taken = [values[i * (len(values) - 1) // max(1, count - 1)] for i in range(count)]
    low, high = min(taken, default=0), max(taken, default=0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(BARS[round((value - low) * scale)] for value in taken)


def print_table(rows: List[List[str]]) -> None:
    """The first row and column are titles. Trends, a column or a row, are for terminals that can show them."""
    if not sys.stdout.isatty() or "utf" not in (sys.stdout.encoding or "utf-8").lower():
        shown = [index for index, title in enumerate(rows[0]) if title != "trend"]
        rows = [[row[index] for index in shown] for row in rows if row[0] != "trend"]
    print(table(rows, stream=sys.stdout))
