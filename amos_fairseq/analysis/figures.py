"""Figures of one or several training runs over their updates: what their logs hold, and what the papers show of it.

A run has one colour, line and marker in all figures that overlay runs. A figure with a panel for each run tells its
quantities apart by shade and line instead.
"""

import math
from functools import partial
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from amos_fairseq import run_log
from amos_fairseq.analysis import quantities
from amos_fairseq.quantities import ByRun, Overlay, Plan
from amos_fairseq.run_log import Row, Run, RunLog

matplotlib.rcParams["text.parse_math"] = False  # names of runs may have a $

# Okabe and Ito's colours, told apart with any colour vision; lines and markers tell runs apart in black and white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v")
SHADES = ("#00224E", "#2F6FA8", "#8A6D3B", "#C49A2C", "#7D7C78")  # of quantities, dark to light
MAX_RUNS = len(COLORS) * len(DASHES)  # 7 and 4 have no common factor: so many pairs are all different
POINTS = 100  # of a line; more are smoothed to about as many independent ones
MARKS = 20  # validations marked on a line
LOG_SPAN = 50  # updates of the last row over those of the first, from which an axis is logarithmic
HOLLOW = dict(markerfacecolor="white", markersize=4.5, linewidth=1.7)
FLOP_UNITS = ((1e9, "ZFLOP"), (1e6, "EFLOP"), (1e3, "PFLOP"), (1, "TFLOP"))  # in TFLOP


class Picture(NamedTuple):
    title: str
    caption: str  # which figure of which paper, and what to look for
    figure: Figure


class Style(NamedTuple):
    color: str
    dashes: object
    marker: str


Draw = Callable[[Sequence[Run]], Optional[Picture]]


def style(index: int, colors: Sequence[str] = COLORS) -> Style:
    return Style(*(choices[index % len(choices)] for choices in (colors, DASHES, MARKERS)))


shade = partial(style, colors=SHADES)


def overlay(plan: Overlay, runs: Sequence[Run]) -> Optional[Picture]:
    styles = {run.name: style(index) for index, run in enumerate(runs)}
    runs = [run for run in runs if not plan.needs or run_log.names(run.log, plan.needs)]
    if not plan.validation:
        runs = [run._replace(log=RunLog(run.log.train, [])) for run in runs]
    panels = [name for name in plan.names if any(run_log.names(run.log, name) for run in runs)]
    if not panels:
        return None
    figure, grid = new_figure(len(panels))
    lines: Dict[str, List[Tuple[RunLog, str]]] = {}
    for axes, name in zip(grid, panels):
        for run in runs:
            for logged in run_log.names(run.log, name)[-1:]:
                lines.setdefault(run.name, []).append((run.log, logged))
                draw_line(axes, run.log, logged, styles[run.name])
        decorate(axes, quantities.of(name).words, quantities.of(name).unit, plan.log_updates and spans(runs))
    legend(figure, *drawn(lines, styles))
    return Picture(plan.title, plan.caption + smoothed(runs), figure)


def drawn(lines: Dict[str, List[Tuple[RunLog, str]]], styles: Dict[str, Style]) -> Tuple[Dict[str, Style], bool]:
    """For a legend, the styles of what has lines, with a marker if one of them was validated; whether any was."""
    marked = {
        label for label, parts in lines.items()
        if any(run_log.series(log.validation, name)[0] for log, name in parts)
    }
    shown = {label: styles[label] if label in marked else styles[label]._replace(marker="") for label in lines}
    return shown, bool(marked)


def by_run(plan: ByRun, runs: Sequence[Run]) -> Optional[Picture]:
    logged = {run.name: [found for name in plan.names for found in run_log.names(run.log, name)] for run in runs}
    runs = [run for run in runs if len(logged[run.name]) > 1]
    if not runs:
        return None
    lines = list(dict.fromkeys(name for run in runs for name in logged[run.name]))
    styles = {name: shade(index) for index, name in enumerate(lines)}
    figure, grid = new_figure(len(runs), sharey=True)
    for axes, run in zip(grid, runs):
        for name in logged[run.name]:
            draw_line(axes, run.log, name, styles[name])
        if plan.uniform:
            axes.axhline(1 / len(logged[run.name]), color="0.5", linewidth=1)
    for axes, run in zip(grid, runs):  # after all lines: limits that are set no longer follow them
        unit = quantities.of(plan.names[0]).unit if axes.get_subplotspec().is_first_col() else ""
        decorate(axes, run.name, unit, plan.log_updates and spans(runs))
    if plan.limits:
        grid[0].set_ylim(*plan.limits)
    shown, marked = drawn({name: [(run.log, name) for run in runs] for name in lines}, styles)
    more = [Line2D([], [], color="0.5", linewidth=1, label="all equal")] if plan.uniform else []
    legend(figure, {quantities.label(name): shown[name] for name in lines}, marked, more)
    return Picture(plan.title, plan.caption + smoothed(runs), figure)


def losses(runs: Sequence[Run]) -> Optional[Picture]:
    found = {name: quantity.unit for name, quantity in quantities.known().items() if quantity.is_loss}
    units = list(found.values())
    caption = (
        "Unweighted, of AMOS the deepest generator's masked LM. Detection, ranking and criticism get harder behind a "
        "better generator: between methods, these losses rank nothing."
    )
    names = sorted(found, key=lambda name: units.index(found[name]))
    return overlay(Overlay("Loss terms", caption, names, log_updates=True), runs)


def others(runs: Sequence[Run]) -> Optional[Picture]:
    """What was logged and no other figure is about."""
    shown = {name for plan in (*PLANS.values(), *paper_plans().values()) for name in plan.names}
    names = [name for name in quantities.logged([run.log for run in runs]) if name not in shown]
    names = [name for name in names if not (quantities.of(name).of_course or quantities.of(name).is_loss)]
    return overlay(Overlay("Other quantities", "What was logged and no other figure is about.", names), runs)


def learning_by_compute(runs: Sequence[Run]) -> Optional[Picture]:
    """Validation over the model FLOPs spent, all devices together."""
    spent = [compute(run) for run in runs]
    panels = [name for name in ("rtd_auc_words", "mlm") if any(run_log.names(validation_of(run), name) for run in runs)]
    largest = max((total for _, totals in spent for total in totals), default=0)
    if not panels or not largest:
        return None
    factor, unit = next((factor, unit) for factor, unit in FLOP_UNITS if largest >= factor or factor == 1)
    figure, grid = new_figure(len(panels))
    shown = {}
    for axes, name in zip(grid, panels):
        for index, (run, (updates, totals)) in enumerate(zip(runs, spent)):
            color, dashes, marker = style(index)
            for logged in run_log.names(validation_of(run), name)[-1:] if totals else ():
                shown[run.name] = style(index)
                at, values = run_log.series(run.log.validation, logged)
                flops = np.interp(at, updates, totals) / factor
                axes.plot(flops, values, color=color, linestyle=dashes, marker=marker, **HOLLOW)
        decorate(axes, quantities.of(name).words, quantities.of(name).unit, False, f"{unit} spent in training")
    legend(figure, {run.name: shown[run.name] for run in runs if run.name in shown}, validated=False)
    return Picture(
        "Learning by compute",
        "Validation over the FLOPs of all matrix products of training, on all devices; of AMOS the deepest generator's "
        "masked LM. AMOS Fig. 4, COCO-LM Fig. 3 and TEAMS Fig. 3 have downstream accuracy over hours.",
        figure,
    )


def validation_of(run: Run) -> RunLog:
    return RunLog([], run.log.validation)


def compute(run: Run) -> Tuple[List[float], List[float]]:
    """(updates, TFLOP spent until then), from the rows that say how many FLOPs a token took: a rate of 0 is rounded."""
    devices = run.options.get("distributed_world_size", 1)
    updates, totals = [0.0], [0.0]
    for row in run.log.train:
        if row.get("wps") and row.get("tflops") and "wpb" in row:
            tokens = (row["num_updates"] - updates[-1]) * row["wpb"]
            updates.append(row["num_updates"])
            totals.append(totals[-1] + tokens * devices * row["tflops"] / row["wps"])
    return (updates, totals) if len(updates) > 1 else ([], [])


def by_option(runs: Sequence[Run]) -> Optional[Picture]:
    """Where runs differ in one number: the last validation over it, a line for each value of one other option."""
    differing = {name: values for name, values in run_log.differing_options(runs).items() if None not in values}
    numbers = [name for name, values in differing.items() if all(type(value) in (int, float) for value in values)]
    others = [name for name in differing if name not in numbers]
    panels = [
        name for name in ("rtd_auc_words", "rtd_accuracy_replaced", "mlm", "mws_accuracy")
        if all(run_log.names(validation_of(run), name) for run in runs)
    ]
    if len(runs) < 3 or len(numbers) != 1 or len(others) > 1 or not panels:
        return None
    (number,), groups = numbers, differing[others[0]] if others else [""] * len(runs)
    lines = {group: style(index) for index, group in enumerate(dict.fromkeys(map(str, groups)))}
    figure, grid = new_figure(len(panels))
    for axes, name in zip(grid, panels):
        for group, (color, dashes, marker) in lines.items():
            points = sorted(
                (value, scaled(run.log.validation, run_log.names(run.log, name)[-1])[1][-1])  # of depths, the deepest
                for run, value, of in zip(runs, differing[number], groups) if str(of) == group
            )
            axes.plot(*zip(*points), color=color, linestyle=dashes, marker=marker, **HOLLOW)
        decorate(axes, quantities.of(name).words, quantities.of(name).unit, False, number)
    if others:
        legend(figure, {f"{others[0]} {group}": style for group, style in lines.items()}, validated=False)
    return Picture(
        f"Last validation by {number}",
        "The runs differ in this option. TEAMS Fig. 4 (generator_layers), TEAMS Fig. 5 (num_negatives, by kind of "
        "negatives) and COCO-LM Fig. 4 (crop_keep_fraction) have downstream scores here: detection that gets harder "
        "is no fault by itself.",
        figure,
    )


# By file name.
PLANS = {
    "detection": Overlay(
        "Detection of replaced tokens",
        "Accuracy on replaced tokens is AMOS Fig. 3b: it falls as replacements become harder, and must not stay at 0. "
        "A young encoder calls everything original (100 % and 0 %). It has learnt to detect as far as its AUC over "
        "words is above what each token by itself gives away.",
        ("rtd_accuracy_replaced", "rtd_accuracy_original_words", "rtd_auc_words", "rtd_auc_identity", "replaced_share"),
    ),
    "detection_all": Overlay(
        "Detection over all positions",
        "With <s> and </s>, which are never replaced: an encoder that tells only them from words has an AUC above 0.5.",
        ("rtd_accuracy_original_all", "rtd_auc_all"),
    ),
    "hidden_states": Overlay(
        "Hidden states of the encoder",
        "In validation, of words that are read as they are. A cosine near 1 and an effective rank near 1 are those of "
        "a collapsed encoder, which tells no word from another.",
        ("hidden_cosine", "hidden_rank"),
    ),
    "generators": Overlay(
        "Masked language model",
        "Generator accuracy is of AMOS that of the mixture, of SCRIPT the encoder's own; masked LM accuracy is BERT's, "
        "and AMOS's deepest generator's. Draws are right less often than the likeliest tokens: the share of selected "
        "positions that stay as they were.",
        ("generator_accuracy", "sampled_accuracy", "mlm_accuracy"),
    ),
    "speed": Overlay(
        "Throughput",
        "MFU is the share of the devices' peak that the model's matrix products take; dips are validations and saves.",
        ("wps", "tflops", "mfu"), validation=False,
    ),
    "optimization": Overlay(
        "Optimisation",
        "A gradient norm that keeps growing, or an fp16 loss scale that keeps falling, announces divergence.",
        ("lr", "gnorm", "loss_scale"),
    ),
}


def paper_plans() -> Dict[str, Plan]:
    from amos_fairseq.methods import METHODS  # and with it torch

    return {name: plan for method in METHODS.values() for name, plan in method.figures.items()}


def papers() -> Dict[str, Draw]:
    """By file name, the methods' own figures."""
    plans = paper_plans()
    return {name: partial(overlay if isinstance(plan, Overlay) else by_run, plan) for name, plan in plans.items()}


# In the order of the page.
COURSE: Dict[str, Draw] = {name: partial(overlay, PLANS[name]) for name in ("speed", "optimization")}
CURVES: Dict[str, Draw] = {
    "losses": losses, **{name: partial(overlay, plan) for name, plan in PLANS.items() if name not in COURSE},
    "others": others, "learning_by_compute": learning_by_compute, "by_option": by_option,
}


def new_figure(panels: int, sharey: bool = False) -> Tuple[Figure, Sequence[Axes]]:
    """A figure of so many panels, at most three in a row."""
    columns = min(panels, 2 if panels in (2, 4) else 3)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=((6.0, 7.8, 11.1)[columns - 1], 0.9 + 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).flatten()
    for unused in grid[panels:]:
        unused.remove()
    return figure, grid[:panels]


def draw_line(axes: Axes, log: RunLog, name: str, style: Style) -> None:
    """Training as a line, over what it smoothes if that is long; validation as markers, joined if there is no line."""
    color, dashes, marker = style
    updates, values = scaled(log.train, name)
    window = smoothing(len(values))
    if window > 1:
        axes.plot(updates, values, color=color, linewidth=0.6, alpha=0.25)
    alone = "." if len(updates) == 1 else ""  # one point is no line
    axes.plot(updates, smooth(values, window), color=color, linestyle=dashes, linewidth=1.7, marker=alone)
    joined = "none" if updates else dashes
    updates, values = scaled(log.validation, name)
    every = math.ceil(len(updates) / MARKS) or 1
    axes.plot(updates[::-every], values[::-every], color=color, linestyle=joined, marker=marker, **HOLLOW)


def scaled(rows: List[Row], name: str) -> Tuple[List[float], List[float]]:
    """(updates, values) as they are shown."""
    updates, values = run_log.series(rows, name)
    return updates, [quantities.of(name).scale * value for value in values]


def smoothing(points: int) -> int:
    """How many neighbouring points are averaged into one; odd."""
    return max(1, points // POINTS) // 2 * 2 + 1


def smooth(values: Sequence[float], window: int) -> List[float]:
    """Each value's mean with its (window - 1) / 2 neighbours to either side, as many as there are on both."""
    half = window // 2
    reach = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return [float(np.mean(values[i - r : i + r + 1])) for i, r in enumerate(reach)]


def smoothed(runs: Sequence[Run]) -> str:
    """What was averaged, for a caption."""
    windows = {run.name: smoothing(len(run.log.train)) for run in runs}
    words = [f"{name} over {window} logged intervals" for name, window in windows.items() if window > 1]
    return f" Smoothed: {', '.join(words)}; the faint line is not." if words else ""


def spans(runs: Sequence[Run]) -> bool:
    """Whether some run has rows so far apart that only a logarithmic axis shows its start."""
    return any(run.log.train[-1]["num_updates"] >= LOG_SPAN * run.log.train[0]["num_updates"] for run in runs)


def decorate(axes: Axes, title: str, ylabel: str, log_updates: bool, xlabel: str = "updates") -> None:
    """After all lines of the figure are drawn."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(ylabel, fontsize=9)
    axes.set_xlabel(xlabel + " (log scale)" if log_updates else xlabel, fontsize=9)
    if log_updates:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=xlabel == "updates", min_n_ticks=1))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    low, high = axes.get_ylim()
    if high >= 1000:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if ylabel.startswith("%"):
        bound_shares(axes)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    if xlabel == "updates" and not log_updates:
        axes.set_xlim(left=0)  # what was not trained at first is seen to be so


def bound_shares(axes: Axes) -> None:
    """An axis of percents that is wide enough not to show noise, and ends where shares do, unless a value is beyond."""
    extents = [other.dataLim.intervaly for other in axes.get_shared_y_axes().get_siblings(axes)]
    extents = [extent for extent in extents if np.isfinite(extent).all()]
    if not extents:  # nothing was drawn
        return
    lowest, highest = np.min(extents), np.max(extents)
    low, high = axes.get_ylim()
    if highest - lowest < 1:
        low, high = lowest - 0.5, highest + 0.5
    margin = 0.03 * (high - low)  # of markers
    axes.set_ylim(max(low, min(0, lowest) - margin), min(high, max(100, highest) + margin))


def legend(figure: Figure, shown: Dict[str, Style], validated: bool, more: Sequence[Line2D] = ()) -> None:
    """Below the panels, never on the lines."""
    handles = [
        Line2D([], [], color=color, linestyle=dashes, marker=marker, label=name, **HOLLOW)
        for name, (color, dashes, marker) in shown.items()
    ]
    handles += more
    widest = max(len(handle.get_label()) for handle in handles)
    columns = int(figure.get_figwidth() / (0.7 + 0.085 * widest))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, min(len(handles), columns)), frameon=False,
        fontsize=8.5, handlelength=3.5, title="lines: training, markers: validation" if validated else None,
        title_fontsize=8.5,
    )
