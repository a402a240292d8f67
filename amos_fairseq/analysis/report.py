"""A report of training runs: one page with its figures inlined, and the same figures as PNG files beside it."""

import base64
import csv
import html
import io
import math
from pathlib import Path
from string import Template
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from amos_fairseq import run_log
from amos_fairseq.analysis import figures, held_out_figures, quantities
from amos_fairseq.analysis.expectations import measure_of, number
from amos_fairseq.analysis.figures import MAX_RUNS, Picture
from amos_fairseq.analysis.held_out import Probe, probe
from amos_fairseq.analysis.similarity import Sts
from amos_fairseq.files import is_temporary, remove_leftovers, replace_durably
from amos_fairseq.methods.config import ENCODER_SIZES
from amos_fairseq.quantities import HIGHER, LOWER
from amos_fairseq.run_log import RATES, Run

PAGE, CURVES = "report.html", "curves.csv"
MARK = "<!-- amos-fairseq report -->"  # by it, a report is known from what must not be replaced
DPI = 150
DASH = "\u2013"

TEMPLATE = Template(f"""<!doctype html>
{MARK}
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #111; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }}
h1, h2 {{ line-height: 1.2 }}
h2 {{ margin-top: 3rem; border-bottom: 1px solid #bbb }}
table {{ border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto }}
th, td {{ padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
td.best {{ font-weight: bold; text-decoration: underline }}
figure {{ margin: 2rem 0; break-inside: avoid }}
img {{ max-width: 100% }}
figcaption, .note {{ color: #333; max-width: 46rem }}
</style>
<h1>$title</h1>
$body
</html>
""")


class Line(NamedTuple):
    """One quantity of all runs; None where a run did not log it."""

    name: str
    values: List[Optional[float]]
    comparable: bool = True  # the runs that logged it are of one method, or it is a speed

    @property
    def best(self) -> List[bool]:
        """The runs that show no worse number than any other; none if all show the same, or there is no better."""
        better = quantities.of(self.name).better if self.comparable else 0
        known = [value for value in self.values if value is not None and math.isfinite(value)]
        if not better or len(set(map(number, known))) < 2:
            return [False] * len(self.values)
        best = number({LOWER: min, HIGHER: max}[better](known))
        return [value is not None and number(value) == best for value in self.values]


class Section(NamedTuple):
    title: str
    note: str
    pictures: Dict[str, Picture]  # by file name


def open_runs(paths: Sequence[Path], names: Sequence[str] = ()) -> List[Run]:
    """Runs by distinct names: those given, else their folders', with as many parents' as tell them apart."""
    if names and len(names) != len(paths):
        raise ValueError(f"--names gives {len(names)} names for {len(paths)} runs: one for each, separated by commas")
    if len(paths) > MAX_RUNS:
        raise ValueError(f"{len(paths)} runs are more than can be told apart in a figure: give {MAX_RUNS} at most")
    runs = [run_log.open_run(path, name) for path, name in zip(paths, names or [""] * len(paths))]
    parents = [[parent.name for parent in path.resolve().parents if parent.name] for path in paths]
    for depth in range(0 if names else max(map(len, parents))):
        if len({run.name for run in runs}) == len(runs):
            break
        runs = [run._replace(name="/".join([*of[depth : depth + 1], run.name])) for run, of in zip(runs, parents)]
    if len({run.name for run in runs}) < len(runs):
        found = [run.name for run in runs]
        raise ValueError(f"two runs have the name {max(found, key=found.count)}: tell them apart with --names")
    return runs


def write(runs: Sequence[Run], out: Path, probes: Sequence[Probe], left_out: Sequence[str], pairs: str) -> Path:
    """Write the page and its figures into `out`, whose earlier report it replaces; returns the page.

    probes, left_out: what `read_checkpoints` gives; pairs: a sentence that says which pairs are similar
    """
    check_replaceable(out)
    page, images = render(runs, sections(runs, probes, left_out, pairs))
    out.mkdir(parents=True, exist_ok=True)
    replace_durably(out / PAGE, page.encode())  # first: by it the next report knows what it may replace
    write_curves(runs, out / CURVES)
    for name in (*figures.CURVES, *figures.papers(), *figures.COURSE, *held_out_figures.FIGURES):
        path = out / f"{name}.png"
        path.unlink(missing_ok=True)
        if name in images:
            replace_durably(path, images[name])
    remove_leftovers(out)
    return out / PAGE


def write_curves(runs: Sequence[Run], path: Path) -> None:
    """All rows of all runs; what a row has not is empty."""
    rows = [
        {"run": run.name, "kind": kind, **row}
        for run in runs for kind, part in zip((run_log.TRAIN, run_log.VALIDATION), run.log) for row in part
    ]
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    replace_durably(path, stream.getvalue().encode())


def check_replaceable(out: Path) -> None:
    """Raises ValueError unless `out` is new, empty, or an earlier report."""
    page = out / PAGE
    if page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")[:200]:
        return
    if out.exists() and (not out.is_dir() or not all(map(is_temporary, out.iterdir()))):
        raise ValueError(f"--out {out} holds something else than a report: name another folder")


def read_checkpoints(runs: Iterable[Run], pairs: Optional[Sts]) -> Tuple[List[Probe], List[str]]:
    """What the runs' checkpoints say, and of those that cannot be read why."""
    probes, left_out = [], []
    for run in runs:
        try:
            probes.append(probe(run, pairs))
        except (ValueError, OSError) as error:
            left_out.append(f"{run.name}: {' '.join(str(error).split())}")
    return probes, left_out


def sections(runs: Sequence[Run], probes: Sequence[Probe], left_out: Sequence[str], pairs: str) -> List[Section]:
    def drawn(draws, *arguments) -> Dict[str, Picture]:
        pictures = {name: draw(*arguments) for name, draw in draws.items()}
        return {name: picture for name, picture in pictures.items() if picture is not None}

    from_checkpoints = drawn(held_out_figures.FIGURES, probes, pairs) if probes else {}
    without = f"Without checkpoint or held-out text: {'; '.join(left_out)}." if left_out else ""
    found = [
        Section("Curves", "", drawn(figures.CURVES, runs)),
        Section("The papers' figures", "", drawn(figures.papers(), runs)),
        Section("From the checkpoints", without, from_checkpoints),
        Section("Course of training", "", drawn(figures.COURSE, runs)),
    ]
    return [section for section in found if section.pictures or section.note]


def summary(runs: Sequence[Run]) -> List[Line]:
    """Last validation of each quantity, and of RATES the mean over the last tenth of training.

    Methods put one name to what is easier for one than for another: detection behind a better generator, a masked LM
    of more layers.
    """
    lines = []
    for name in quantities.summarized([run.log for run in runs]):
        values = [final(run, name) for run in runs]
        methods = {run.options.get("task") for run, value in zip(runs, values) if value is not None}
        lines.append(Line(name, values, comparable=name in RATES or len(methods) == 1))
    return lines


def final(run: Run, name: str) -> Optional[float]:
    """The last validation's value; of RATES, and of what was never validated, training's. No sums over depths."""
    if name not in run_log.names(run.log, run_log.split_depth(name)[0]):
        return None
    validated = run_log.series(run.log.validation, name)[1]
    return validated[-1] if validated and name not in RATES else measure_of(run.log, name)


def render(runs: Sequence[Run], sections: Sequence[Section]) -> Tuple[str, Dict[str, bytes]]:
    """The page, and its figures as PNG."""
    images = {name: png(picture) for section in sections for name, picture in section.pictures.items()}
    names = ", ".join(run.name for run in runs)
    took = [{"run": run.name, **about(run)} for run in runs]
    body = [
        table([*took[0]], [[*facts.values()] for facts in took]),
        "<h2>Summary</h2>",
        note(
            "Last validation; of speed, and of what was not validated, the mean over the last tenth of training. Of "
            "runs of one method, and of all in speed, the best is bold and underlined. Methods are no match for each "
            "other here, and detection gets harder behind a better generator: a lower number there is no worse encoder."
        ),
        table(
            ["", *(run.name for run in runs)],
            [[quantities.title(line.name), *map(cell, line.values, line.best)] for line in summary(runs)],
        ),
    ]
    for section in sections:
        body += [f"<h2>{html.escape(section.title)}</h2>", note(section.note)]
        body += [figure(picture, images[name]) for name, picture in section.pictures.items()]
    differing = run_log.differing_options(runs)
    if differing:
        rows = [[name, *map(shown, values)] for name, values in differing.items()]
        body += ["<h2>Options that differ</h2>", table(["", *(run.name for run in runs)], rows)]
    return TEMPLATE.substitute(title=html.escape(f"Training: {names}"), body="\n".join(body)), images


def about(run: Run) -> Dict[str, str]:
    """What it is and what it took, in words; of a resumed run, without what was lost by going back."""
    last = run.log.train[-1]["num_updates"]
    tokens = sum(
        (row["num_updates"] - before) * row.get("wpb", 0)
        for before, row in zip([0, *(row["num_updates"] for row in run.log.train)], run.log.train)
    )
    seconds = run.log.train[-1].get("wall")
    return {
        "method": str(run.options.get("task", DASH)), "architecture": architecture(run.options),
        "updates": f"{last:,.0f}", "tokens": f"{tokens:,.0f}" if tokens else DASH,
        "hours": DASH if seconds is None else f"{seconds / 3600:.2f}",
    }


def architecture(options: Mapping[str, Any]) -> str:
    """By name; configurations name only the method, whose size is the one with an encoder of that shape."""
    name = str(options.get("model", DASH))
    for size, shape in ENCODER_SIZES.items():
        encoder = {option: value for option, value in shape.items() if option.startswith("encoder_")}
        if name == options.get("task") and encoder.items() <= options.items():
            return f"{name}_{size}"
    return name


class Best(str):
    """A cell of a table that stands out."""


def cell(value: Optional[float], best: bool) -> str:
    text = DASH if value is None else number(value)
    return Best(text) if best else text


def shown(value) -> str:
    return DASH if value is None else str(value)


def png(picture: Picture) -> bytes:
    stream = io.BytesIO()
    picture.figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


def figure(picture: Picture, image: bytes) -> str:
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    width = round(picture.figure.get_figwidth() * 96)
    source = base64.b64encode(image).decode()
    return (
        f'<figure><img src="data:image/png;base64,{source}" width="{width}" alt="{title}">'
        f"<figcaption><b>{title}.</b> {caption}</figcaption></figure>"
    )


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    lines = [
        "".join(f"<td{' class=best' if isinstance(text, Best) else ''}>{html.escape(text)}</td>" for text in row)
        for row in rows
    ]
    return "\n".join(["<table>", *(f"<tr>{line}</tr>" for line in (head, *lines)), "</table>"])
