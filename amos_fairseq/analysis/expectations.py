"""What a known setting is expected to measure, beside what a run measured."""
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple, TypedDict

from amos_fairseq import json_files, run_log
from amos_fairseq.analysis import quantities
from amos_fairseq.run_log import RunLog

SETTINGS_FILE = "quickstart.json"  # written by `amos-fairseq quickstart` into its output folder
QUICKSTART = "quickstart"          # its default settings
TAIL = 0.1                         # share of the training rows, the last ones, that a measured value averages

Range = Tuple[float, float]

# (method, setting) -> quantity -> lowest and highest value expected at the end of the run.
EXPECTED: Dict[Tuple[str, str], Dict[str, Range]] = {
    # Around this run and five seeds of the replication's `cpu` budget, which are the same: one word in four is
    # replaced, the encoder is alive, and ranks replaced words better than their tokens alone do (0.518 to 0.525).
    ("amos_rtd", QUICKSTART): {
        "mlm_1": (4.8, 5.35), "mlm_2": (4.8, 5.35), "replaced_share": (0.21, 0.26),
        "rtd_accuracy_original_words": (0.95, 1.00), "rtd_accuracy_replaced": (0.08, 0.20),
        "rtd_auc_words": (0.60, 0.67), "hidden_cosine": (0.05, 0.60),
        "mixture_weight_1": (0.25, 0.65), "mixture_weight_2": (0.35, 0.75),
    },
}


class Settings(TypedDict):
    method: str
    setting: str


class Comparison(NamedTuple):
    name: str  # as logged
    measured: float
    expected: Optional[Range]

    @property
    def mark(self) -> str:
        if self.expected is None:
            return ""
        low, high = self.expected
        return "ok" if low <= self.measured <= high else "OUTSIDE"


def of_run(folder: Path) -> Dict[str, Range]:
    """The expected ranges if the folder is a quick start with its default settings, else none."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        return {}
    settings = json_files.read(path, Settings)
    return EXPECTED.get((settings["method"], settings["setting"]), {})


def compare(log: RunLog, expected: Dict[str, Range]) -> List[Comparison]:
    """One row for each quantity that the run logged, in the order of `quantities.known`."""
    return [Comparison(name, measure_of(log, name), expected.get(name)) for name in quantities.summarized([log])]


def measure_of(log: RunLog, name: str) -> float:
    """Mean over the last tenth of the training rows; the last validation for what only validation measures."""
    _, values = run_log.series(log.train, name)
    if values:
        tail = values[-max(1, round(TAIL * len(values))) :]
        return sum(tail) / len(tail)
    return run_log.series(log.validation, name)[1][-1]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"
