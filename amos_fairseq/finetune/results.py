"""What runs reached: medians over seeds, the best setting of each task, and a table with the papers' values beside.

Settings are compared by the median of the first metric on `valid`, of those with the most seeds; of equal ones the
first by name. Where a seed draws the data, too, each takes the setting that is best on its `valid`, and mean and
standard deviation over seeds of what that reaches on the test sets are reported, as in LM-BFF.

Models are ranked only where a test tells them apart, on predictions that each run keeps: see `leaders`.
"""

import json
import statistics
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from numpy.lib.recfunctions import repack_fields

from amos_fairseq import json_files
from amos_fairseq.checkpoints import store
from amos_fairseq.files import durably_written, replace_durably
from amos_fairseq.finetune.intervals import of_difference
from amos_fairseq.finetune.kinds import KINDS, kind_of
from amos_fairseq.finetune.presets import EIGHT, PUBLISHED, Setting
from amos_fairseq.user_errors import Damaged

RESULT, RUNS, PREDICTIONS = "result.json", "runs", "predictions.npz"
NOT_RUN = "not run"
Layout = Callable[[Sequence[str], Sequence[Sequence[Any]]], str]  # of a table: its titles and its rows


class Result(NamedTuple):
    """One finished run. scores: by split and metric, all as `Kind.evaluate` gives them."""

    task: str
    kind: str
    metrics: List[str]
    setting: Setting
    seed: int
    scores: Dict[str, Dict[str, float]]
    updates: int
    seconds: float

    @property
    def score(self) -> float:
        """What is compared."""
        return self.scores["valid"][self.metrics[0]]


class Summary(NamedTuple):
    """Of one setting: the compared score over seeds. spread: quartiles. shown: medians of what the table shows."""

    setting: Setting
    seeds: List[int]
    median: float
    spread: Tuple[float, float]
    lowest: float
    highest: float
    shown: List[float]


def write(folder: Path, result: Result) -> None:
    fields = {**result._asdict(), "setting": result.setting._asdict()}
    replace_durably(folder / RESULT, json.dumps(fields, indent=1).encode())


def read(folder: Path) -> Result:
    result = json_files.read(folder / RESULT, Result)
    if result.kind not in KINDS or not result.metrics or result.metrics[0] not in result.scores.get("valid", {}):
        raise Damaged(f"{folder / RESULT}: kind, metrics and scores.valid do not belong together")
    return result


def write_predictions(folder: Path, predictions: Mapping[str, Tuple[np.ndarray, np.ndarray]]) -> None:
    """By split, what `Kind.judged` said of a run's examples, and their targets."""
    arrays = {}
    for split, both in predictions.items():
        arrays[split], arrays[f"{split}_targets"] = both
    with durably_written(folder / PREDICTIONS) as stream:
        np.savez_compressed(stream, **arrays)


def read_predictions(folder: Path, split: str) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """None of a run that kept none."""
    if not (folder / PREDICTIONS).exists():
        return None
    try:
        with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
            return (arrays[split], arrays[f"{split}_targets"]) if split in arrays else None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{folder / PREDICTIONS} is damaged ({error}): delete it") from None


def read_all(out: Path, task: Optional[str] = None) -> Dict[Path, Result]:
    """Every finished run of a sweep, or of one task of it, by its folder."""
    found = (out / RUNS).glob(f"*/*/*/{RESULT}") if task is None else (out / RUNS / task).glob(f"*/*/{RESULT}")
    return {path.parent: read(path.parent) for path in sorted(found)}


def with_checkpoint(path: Path) -> List[Path]:
    """The runs of a sweep's folder whose best checkpoint was kept, which is that of each task's best run."""
    return sorted(best.parent for best in (Path(path) / RUNS).glob(f"*/*/*/{store.BEST}"))


def best_run(found: Dict[Path, Result]) -> Optional[Path]:
    """The folder of the run with the highest score, of equal ones the first by name."""
    return min(found, key=lambda folder: (-found[folder].score, str(folder)), default=None)


# Over seeds


def shown_scores(result: Result) -> List[Tuple[str, str]]:
    return kind_of(result.kind).shown(result.metrics, result.scores)


def means_of(paper: Optional[str], task: str) -> Tuple[str, ...]:
    """Metrics whose mean the paper gives."""
    return PUBLISHED[paper].means.get(task, ()) if paper else ()


def shown_values(result: Result, paper: Optional[str]) -> List[float]:
    """What the table shows of a run, as the paper has it."""
    means = means_of(paper, result.task)
    if means:
        splits = [split for split in result.scores if split.startswith("valid")]
        return [statistics.mean(result.scores[split][metric] for split in splits for metric in means)]
    return [result.scores[split][metric] for split, metric in shown_scores(result)]


def summarize(results: Sequence[Result], paper: Optional[str] = None) -> List[Summary]:
    """By setting, those of one task, the best first. paper: what is shown is that of this row of `PUBLISHED`"""
    by_setting: Dict[Setting, List[Result]] = {}
    for result in results:
        by_setting.setdefault(result.setting, []).append(result)
    summaries = []
    for setting, runs in by_setting.items():
        scores = [run.score for run in runs]
        shown = [statistics.median(values) for values in zip(*(shown_values(run, paper) for run in runs))]
        spread = tuple(np.percentile(scores, [25, 75]).tolist())
        median, seeds = statistics.median(scores), sorted(run.seed for run in runs)
        summaries.append(Summary(setting, seeds, median, spread, min(scores), max(scores), shown))
    return sorted(summaries, key=lambda summary: (-len(summary.seeds), -summary.median, summary.setting.name))


def reported(results: Sequence[Result]) -> List[Result]:
    """Of one task's runs those of the best setting; where a seed draws the data, too, the best run of each seed."""
    if not kind_of(results[0].kind).draws_data:
        setting = summarize(results)[0].setting
        return [result for result in results if result.setting == setting]
    best: Dict[int, Result] = {}
    for result in sorted(results, key=lambda result: result.setting.name):
        if result.seed not in best or result.score > best[result.seed].score:
            best[result.seed] = result
    return list(best.values())


def over_splits(results: Sequence[Result]) -> List[Tuple[float, float]]:
    """(mean, standard deviation) of each shown score over splits of few examples, the best setting of each."""
    best = reported(results)
    columns = [[run.scores[split][metric] for run in best] for split, metric in shown_scores(results[0])]
    return [(float(np.mean(values)), float(np.std(values))) for values in columns]


# The table


def markdown(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (titles, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(titles), *lines[1:]])


def percent(values: Sequence[float]) -> str:
    return "/".join(f"{100 * value:.1f}" for value in values)


def published(paper: Optional[str], task: str) -> str:
    """The paper's value; the average of eight is computed where the paper gives all of them."""
    values = PUBLISHED[paper].values if paper else {}
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in values.items()}
    if task == "average" and task not in values and all(name in values for name in EIGHT):
        values[task] = (statistics.mean(values[name][0] for name in EIGHT),)
    return "/".join(f"{number:.1f}" for number in values.get(task, ()))


def table_row(task: str, results: Sequence[Result], paper: Optional[str]) -> List[str]:
    if not results:
        return [task, "", published(paper, task), NOT_RUN, "", "", "", ""]
    means = means_of(paper, task)
    names = ", ".join(means) + " (mean)" if means else "/".join(
        dict.fromkeys(metric for _, metric in shown_scores(results[0]))
    )
    if kind_of(results[0].kind).draws_data:
        ours = "/".join(f"{100 * mean:.1f} ({100 * deviation:.1f})" for mean, deviation in over_splits(results))
        splits = len({result.seed for result in results})
        return [task, names, published(paper, task), ours, str(splits), "", "", "best of each split"]
    best = summarize(results, paper)[0]
    ranges = (" to ".join(percent([value]) for value in ends) for ends in (best.spread, (best.lowest, best.highest)))
    seeds = str(len(best.seeds))
    return [task, names, published(paper, task), percent(best.shown), seeds, *ranges, best.setting.name]


def format_table(results: Sequence[Result], paper: Optional[str] = None, layout: Layout = markdown) -> str:
    """The eight tasks of GLUE if any was run, and their average; then all others.

    paper: a row of `PUBLISHED`
    """
    by_task: Dict[str, List[Result]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    of_glue = EIGHT if any(task in by_task for task in EIGHT) else ()
    rows = [table_row(task, by_task.get(task, []), paper) for task in of_glue]
    if of_glue:
        rows.append(["average", "", published(paper, "average"), average(by_task, paper), "", "", "", ""])
    rows += [table_row(task, by_task[task], paper) for task in sorted(by_task) if task not in of_glue]
    titles = ("task", "metric", "paper", "ours", "seeds", "middle half", "range", "setting")
    notes = ["In per cent. Ours: the median over seeds of the best setting; middle half and range of what selects it."]
    if paper:
        notes.append(f"Paper: {paper} ({PUBLISHED[paper].source}).")
    if of_glue:
        notes.append(
            "As in the paper, MNLI is the mean of matched and mismatched, STS-B that of both correlations; the first "
            "selects." if means_of(paper, "MNLI") else
            "MNLI is matched/mismatched; matched selects and is in the average."
        )
    if any("test" in result.scores and not kind_of(result.kind).draws_data for result in results):
        notes.append("Where the test file has labels: valid/test; valid selects.")
    kinds = {result.kind for result in results}
    notes += [kind.note for name, kind in KINDS.items() if name in kinds and kind.note]
    return "\n".join([layout(titles, rows), "", " ".join(notes), ""])


def comparison(found: Mapping[str, Mapping[Path, Result]], layout: Layout = markdown) -> str:
    """A row for each model and a column for each task that any of them has, as `table_row` has them.

    found: of each model its runs, by folder
    """
    tasks = sorted({result.task for runs in found.values() for result in runs.values()})
    best = {task: leaders(found, task) for task in tasks}
    rows = []
    for model, runs in found.items():
        cells = [table_row(task, [run for run in runs.values() if run.task == task], None) for task in tasks]
        marks = [" *" if model in (best[task] or ()) else "" for task in tasks]
        texts = (f"{ours} ({seeds})" if seeds else ours for _, _, _, ours, seeds, *_ in cells)
        rows.append([model, *map(str.__add__, texts, marks)])
    notes = ["In per cent: the median over seeds (their number) of each model's best setting."]
    if any(best.values()):
        notes.append(
            "*: the highest mean over seeds, and every model that is not told from it: 0 lies in the 95 % bootstrap "
            "interval of the difference, over examples and over seeds, each seed a block."
        )
    untested = [task for task in tasks if best[task] is None]
    if untested:
        notes.append(f"Not ranked, as that takes two models, each with two seeds or more: {', '.join(untested)}.")
    return "\n".join([layout(("model", *tasks), rows), "", " ".join(notes), ""])


def leaders(found: Mapping[str, Mapping[Path, Result]], task: str) -> Optional[Set[str]]:
    """The model with the highest mean over seeds of its `reported` runs, and those that no test tells from it.

    By the first metric, on `valid`, or where a seed draws that, on `test`. None if nothing can be told: unless each
    model of the task has two seeds or more, with predictions of the same examples.
    """
    predicted, targets, metric = {}, None, None
    for model, runs in found.items():
        of_task = {folder: run for folder, run in runs.items() if run.task == task}
        if not of_task:
            continue
        chosen = reported(list(of_task.values()))
        kind = kind_of(chosen[0].kind)
        metric, split = kind.metrics[chosen[0].metrics[0]], "test" if kind.draws_data else "valid"
        kept = [read_predictions(folder, split) for folder, run in of_task.items() if run in chosen]
        if len(kept) < 2 or not all(kept):
            return None
        targets = kept[0][1] if targets is None else targets
        if not all(np.array_equal(of_run, targets) for _, of_run in kept):
            return None
        predicted[model] = [without_texts(of_run) for of_run, _ in kept]
    if len(predicted) < 2:
        return None
    means = {model: np.mean([metric(of_seed, targets) for of_seed in seeds]) for model, seeds in predicted.items()}
    best = max(means, key=means.__getitem__)
    return {
        model for model, seeds in predicted.items()
        if model == best or of_difference(predicted[best], seeds, targets, metric).low <= 0
    }


def without_texts(found: np.ndarray) -> np.ndarray:
    """Records without what no metric reads and every draw would copy."""
    if not found.dtype.names:
        return found
    return repack_fields(found[[name for name in found.dtype.names if found.dtype[name].kind != "U"]])


def average(by_task: Dict[str, List[Result]], paper: Optional[str]) -> str:
    """Of the eight tasks' medians of what is shown first."""
    missing = [task for task in EIGHT if task not in by_task]
    if missing:
        return f"{NOT_RUN}: {', '.join(missing)}"
    return percent([statistics.mean(summarize(by_task[task], paper)[0].shown[0] for task in EIGHT)])


def to_json(results: Sequence[Result], paper: Optional[str] = None) -> Dict[str, Any]:
    """Every setting of every task, the best first, and each run's scores."""
    source, values = PUBLISHED[paper][:2] if paper else (None, {})
    tasks: Dict[str, Any] = {}
    for task in sorted({result.task for result in results}):
        runs = [result for result in results if result.task == task]
        settings = []
        for summary in summarize(runs, paper):
            scores = {str(run.seed): run.scores for run in runs if run.setting == summary.setting}
            settings.append({**summary._asdict(), "setting": summary.setting._asdict(), "scores": scores})
        tasks[task] = {"metrics": runs[0].metrics, "paper": values.get(task), "settings": settings}
    return {"paper": paper, "source": source, "tasks": tasks}


def write_tables(out: Path, results: Sequence[Result], paper: Optional[str] = None, title: str = "") -> None:
    """OUT/results.md, below a title, and OUT/results.json of what was run so far."""
    table = (title and f"{title}\n\n") + format_table(results, paper)
    replace_durably(out / "results.md", table.encode())
    replace_durably(out / "results.json", json.dumps(to_json(results, paper), indent=1, sort_keys=True).encode())
