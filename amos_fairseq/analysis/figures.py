"""Figures of a training run: loss terms, AMOS's mixture weights, detection accuracy, over updates."""
from pathlib import Path
from typing import Callable, Dict, List, Optional

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from amos_fairseq.analysis import run_log
from amos_fairseq.analysis.run_log import RunLog

# Okabe and Ito's colours, told apart with any colour vision; the dashes tell them apart in black and white.
STYLES = [
    ("#0072B2", "-"),
    ("#D55E00", (0, (6, 2))),
    ("#009E73", (0, (2, 1.5))),
    ("#CC79A7", (0, (6, 2, 1.5, 2))),
    ("#E69F00", "-"),
    ("#56B4E9", (0, (6, 2))),
    ("#000000", (0, (2, 1.5))),
]

LOSS_TERMS = {  # by what they are averaged over, hence by scale: a panel each
    "nats per masked token": ("mlm", "clm", "mws"),
    "nats per token": ("rtd", "critic", "tqr"),
    "nats per sequence": ("scl",),
}

LABELS = {
    "mlm": "masked LM",
    "clm": "corrective LM",
    "mws": "word selection",
    "rtd": "detection",
    "critic": "self-critic",
    "tqr": "quality ranking",
    "scl": "contrast",
    "mixture_weight": "generator",
    "rtd_accuracy_original": "original tokens",
    "rtd_accuracy_replaced": "replaced tokens",
}


def write(log: RunLog, folder: Path) -> List[Path]:
    """Draw every figure that the run has numbers for; returns the PNG files written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        figure = draw(log)
        if figure is not None:
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=200)
    return paths


def loss_terms(log: RunLog) -> Optional[Figure]:
    """The unweighted loss terms, those of one scale in one panel."""
    panels = {unit: [name for term in terms for name in run_log.names(log, term)] for unit, terms in LOSS_TERMS.items()}
    panels = {unit: names for unit, names in panels.items() if names}
    if not panels:
        return None
    figure = new_figure(height=2.2 * len(panels) + 0.4)
    for axes, (unit, names) in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items()):
        draw_lines(axes, log, names, f"loss ({unit})")
    axes.set_xlabel("updates")
    figure.suptitle("Loss terms", fontsize=11)
    return figure


def mixture_weights(log: RunLog) -> Optional[Figure]:
    """Mean weight of each generator depth in AMOS's mixture (AMOS Fig. 3a); the dotted line is a uniform mixture."""
    names = run_log.names(log, "mixture_weight")
    if not names:
        return None
    figure = new_figure()
    axes = figure.subplots()
    axes.axhline(1 / len(names), color="0.5", linewidth=1, linestyle=":", label=f"uniform (1/{len(names)})")
    draw_lines(axes, log, names, "mean mixture weight (sum 1)")
    axes.set_xlabel("updates")
    figure.suptitle("Weight of each generator depth", fontsize=11)
    return figure


def detection_accuracy(log: RunLog) -> Optional[Figure]:
    """Share of original and of replaced tokens that the encoder recognises as such (replaced: AMOS Fig. 3b)."""
    names = [name for name in ("rtd_accuracy_original", "rtd_accuracy_replaced") if run_log.names(log, name)]
    if not names:
        return None
    figure = new_figure()
    axes = figure.subplots()
    draw_lines(axes, log, names, "detection accuracy (% of tokens)", scale=100.0)
    axes.set_ylim(0, 102)
    axes.set_xlabel("updates")
    figure.suptitle("Replaced token detection", fontsize=11)
    return figure


FIGURES: Dict[str, Callable[[RunLog], Optional[Figure]]] = {
    "loss_terms": loss_terms,
    "mixture_weights": mixture_weights,
    "detection_accuracy": detection_accuracy,
}


def new_figure(height: float = 3.4) -> Figure:
    return Figure(figsize=(7.2, height), layout="constrained")


def draw_lines(axes: Axes, log: RunLog, names: List[str], ylabel: str, scale: float = 1.0) -> None:
    """One line a name from the training rows, one hollow circle in its colour a validation."""
    for name, (color, dashes) in zip(names, STYLES):
        updates, values = run_log.series(log.train, name)
        values = [scale * value for value in values]
        axes.plot(updates, values, color=color, linestyle=dashes, linewidth=1.8, label=label_of(name))
    validated = False
    for name, (color, _) in zip(names, STYLES):
        updates, values = run_log.series(log.validation, name)
        values = [scale * value for value in values]
        axes.plot(updates, values, "o", color=color, markerfacecolor="white", markersize=4.5)
        validated = validated or bool(updates)
    if validated:
        axes.plot([], [], "o", color="0.3", markerfacecolor="white", markersize=4.5, label="validation")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))  # never on the lines


def label_of(name: str) -> str:
    """mlm_4 -> masked LM, layer 4"""
    base, depth = run_log.split_depth(name)
    return LABELS[base] + (f", layer {depth}" if depth else "")
