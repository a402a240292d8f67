"""Figures of what checkpoints say about held-out text, a panel for each run."""

import math
from typing import Callable, Dict, Optional, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from amos_fairseq.analysis.figures import HOLLOW, MARKERS, Picture, Style, decorate, legend, new_figure, shade
from amos_fairseq.analysis.held_out import SCORED_SEQUENCES, Probe

BINS = 40
MAPPED = 100  # pairs in a map
MARKED = 5  # pairs of these with a shape of their own
CROPS = "Similar: a held-out sequence and its 90 % crop (the papers' are STS-B's pairs of score 5: --pairs)."

Draw = Callable[[Sequence[Probe], str], Optional[Picture]]


def sequence_cosines(probes: Sequence[Probe], pairs: str) -> Optional[Picture]:
    figure, grid = new_figure(len(probes), sharey=True)
    kinds = {"random pairs": shade(2), "similar pairs": shade(0)}
    lowest = min(min(probe.random_cosines.min(), probe.similar_cosines.min(), 0.9) for probe in probes)
    limits = math.floor(10 * lowest) / 10, 1.0
    for axes, probe in zip(grid, probes):
        by_kind = dict(zip(kinds, (probe.random_cosines, probe.similar_cosines)))
        for kind, cosines in by_kind.items():
            distribution(axes, np.minimum(cosines, 1), limits, kinds[kind])  # rounding takes some beyond
        plain(axes, with_means(probe, by_kind), "cosine at <s>", "% of pairs")
    lines(figure, kinds)
    return Picture(
        "Cosine of sequences",
        f"COCO-LM Figs. 1 and 5, at <s> of the encoder as it was pre-trained. {pairs} With contrast, similar pairs "
        "stand near 1 and random ones around 0; without, both crowd near 1. COCO-LM contrasts a projection of <s>.",
        figure,
    )


def sequence_map(probes: Sequence[Probe], pairs: str) -> Optional[Picture]:
    from sklearn.manifold import TSNE

    probes = [probe for probe in probes if len(probe.first) > MARKED]
    if not probes:
        return None
    figure, grid = new_figure(len(probes))
    for axes, probe in zip(grid, probes):
        count = min(MAPPED, len(probe.first))
        points = np.concatenate([probe.first[:count], probe.second[:count]])
        flat = TSNE(perplexity=min(30, count / 2), init="pca", random_state=0).fit_transform(points)
        axes.scatter(*flat.T, s=8, color="0.75")
        for index in range(MARKED):
            color, _, marker = shade(index)
            both = flat[[index, count + index]]
            axes.plot(*both.T, color=color, linewidth=0.8)
            axes.scatter(*both.T, s=45, color=color, marker=MARKERS[index], edgecolor="black", linewidth=0.5, zorder=3)
        plain(axes, probe.name, "", "")
        axes.set(xticks=[], yticks=[])
    return Picture(
        "Map of sequences",
        f"COCO-LM Fig. 6: t-SNE of the encoder at <s>; axes have no unit. {pairs} Of {MARKED} pairs both ends have one "
        "shape and are joined: with contrast they lie close together.",
        figure,
    )


def replaced_losses(probes: Sequence[Probe], pairs: str) -> Optional[Picture]:
    probes = [probe for probe in probes if probe.replaced_losses]
    if not probes:
        return None
    figure, grid = new_figure(len(probes), sharey=True)
    longest = max(losses.max() for probe in probes for losses in probe.replaced_losses.values())
    names = list(dict.fromkeys(name for probe in probes for name in probe.replaced_losses))
    styles = {name: shade(index) for index, name in enumerate(names)}
    for axes, probe in zip(grid, probes):
        for name, losses in probe.replaced_losses.items():
            distribution(axes, losses, (0.0, float(longest)), styles[name])
        title = with_means(probe, probe.replaced_losses)
        plain(axes, title, "detection loss on replaced tokens (nats)", "% of replaced tokens")
    lines(figure, styles)
    return Picture(
        "Detection loss on replaced tokens",
        "AMOS Fig. 1a, on held-out text. Of an AMOS run each depth replaces alone, "
        "before one encoder; in the paper each generator has an encoder of its own, as runs of one depth have here. "
        "Deeper should be harder.",
        figure,
    )


def pseudo_log_likelihoods(probes: Sequence[Probe], pairs: str) -> Optional[Picture]:
    probes = [probe for probe in probes if probe.scores is not None]
    if not probes:
        return None
    figure, grid = new_figure(len(probes))
    kinds = {"as written": shade(0)._replace(dashes="none"), "with random tokens": shade(2)._replace(dashes="none")}
    for axes, probe in zip(grid, probes):
        one_pass, masked = probe.scores
        parts = np.arange(len(masked)) < len(masked) // 2
        for (color, dashes, marker), part in zip(kinds.values(), (parts, ~parts)):
            axes.plot(masked[part], one_pass[part], color=color, linestyle=dashes, marker=marker, **HOLLOW)
        rank = spearmanr(masked, one_pass).statistic
        plain(axes, f"{probe.name}: Spearman {rank:.2f}", "masked, one pass per token", "critic, one pass")
    legend(figure, kinds, validated=False)
    return Picture(
        "SCRIPT: pseudo-log-likelihoods",
        f"SCRIPT Sec. 3.2, nats per token of {SCORED_SEQUENCES} held-out sequences, and of the same with one token in "
        "six at random. One pass of the critic should order them as the masked score does, at a pass for each token.",
        figure,
    )


DRAWN: Sequence[Draw] = (replaced_losses, sequence_cosines, sequence_map, pseudo_log_likelihoods)
FIGURES: Dict[str, Draw] = {draw.__name__: draw for draw in DRAWN}


def distribution(axes: Axes, values: np.ndarray, limits: Tuple[float, float], style: Style) -> None:
    """Histogram, in percent of the values."""
    axes.hist(
        values, bins=BINS, range=limits, weights=np.full(len(values), 100 / len(values)), histtype="stepfilled",
        facecolor=(style.color, 0.25), edgecolor=style.color, linestyle=style.dashes, linewidth=1.4,
    )


def with_means(probe: Probe, values: Dict[str, np.ndarray]) -> str:
    """A title."""
    return f"{probe.name}\nmean: " + ", ".join(f"{name} {array.mean():.3f}" for name, array in values.items())


def plain(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    decorate(axes, title, ylabel if axes.get_subplotspec().is_first_col() else "", False, xlabel)


def lines(figure, kinds: Dict[str, Style]) -> None:
    legend(figure, {name: style._replace(marker="") for name, style in kinds.items()}, validated=False)
