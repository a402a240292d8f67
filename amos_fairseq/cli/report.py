"""`amos-fairseq report`: figures and a summary table of a training run."""
import argparse
from pathlib import Path

HELP = "Write the figures of a training run into RUN/figures and print what it measured, against what is expected."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that holds the run's train.log")


def run(args: argparse.Namespace) -> None:
    show(args.run)


def show(run: Path) -> None:
    """Print the run's table and draw its figures."""
    from amos_fairseq.analysis import expectations, figures, run_log

    log = run_log.read(run / run_log.FILE_NAME)
    if not log.train:
        raise ValueError(f"{run / run_log.FILE_NAME} holds no training line yet (train with --log-format json)")
    print(expectations.format_table(log, expectations.of_run(run)))
    print()
    for path in figures.write(log, run / "figures"):
        print(f"figure  {path}")
