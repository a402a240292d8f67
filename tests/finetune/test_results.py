"""Medians, spreads and the table, from literal scores."""
import json

import numpy as np
import pytest

from amos_fairseq.finetune import intervals, results, squad
from amos_fairseq.finetune.metrics import compared_tags
from amos_fairseq.finetune.presets import EIGHT, Setting
from amos_fairseq.finetune.results import Result

LOW, HIGH = Setting(1e-5, 3, 16, 0.1), Setting(2e-5, 3, 16, 0.1)


def runs(task, setting, scores, kind="classification", metric="accuracy", split="valid", seeds=None):
    return [
        Result(task, kind, [metric], setting, seed, {split: {metric: score}}, 100, 1.0)
        for seed, score in zip(seeds or range(1, 99), scores)
    ]


def test_median_quartiles_and_extremes_over_seeds():
    summary, = results.summarize(runs("RTE", LOW, [0.9, 0.5, 0.6, 0.8, 0.7]))
    assert (summary.median, summary.lowest, summary.highest) == (0.7, 0.5, 0.9)
    assert summary.spread == pytest.approx((0.6, 0.8)) and summary.seeds == [1, 2, 3, 4, 5]
    even, = results.summarize(runs("RTE", LOW, [0.5, 0.6]))
    assert even.median == pytest.approx(0.55)


def test_settings_are_compared_by_median_among_those_with_the_most_seeds():
    scores = {LOW: [0.1, 0.7, 0.9], HIGH: [0.6, 0.6, 0.99], LOW._replace(epochs=9): [1.0]}
    found = [run for setting, values in scores.items() for run in runs("RTE", setting, values)]
    assert [summary.setting for summary in results.summarize(found)] == [LOW, HIGH, LOW._replace(epochs=9)]
    assert results.summarize(found[::-1]) == results.summarize(found)


def test_equal_settings_go_by_name():
    found = runs("RTE", HIGH, [0.5]) + runs("RTE", LOW, [0.5])
    assert results.summarize(found)[0].setting == LOW


def test_the_best_run_is_the_highest_and_of_equals_the_first_by_name(tmp_path):
    first, second, third = runs("RTE", LOW, [0.5, 0.7, 0.7])
    found = {tmp_path / "c": first, tmp_path / "b": second, tmp_path / "a": third}
    assert results.best_run(found) == tmp_path / "a"
    assert results.best_run({}) is None


def test_results_are_read_as_they_were_written(tmp_path):
    result, = runs("RTE", HIGH._replace(adam_betas=(0.9, 0.999)), [0.25])
    folder = tmp_path / "runs/RTE/x/seed1"
    folder.mkdir(parents=True)
    results.write(folder, result)
    assert results.read_all(tmp_path) == results.read_all(tmp_path, "RTE") == {folder: result}
    assert results.read_all(tmp_path, "CoLA") == {}


TABLE = f"""\
| task | metric | paper | ours | seeds | middle half | range | setting |
|---|---|---|---|---|---|---|---|
| MNLI | accuracy | 88.9/88.7 | 80.0/79.0 | 2 | 79.5 to 80.5 | 79.0 to 81.0 | {LOW.name} |
| QQP |  | 92.3 | not run |  |  |  |  |
| QNLI |  | 93.6 | not run |  |  |  |  |
| SST-2 |  | 94.2 | not run |  |  |  |  |
| CoLA |  | 70.7 | not run |  |  |  |  |
| RTE | accuracy | 86.6 | 62.5 | 1 | 62.5 to 62.5 | 62.5 to 62.5 | {HIGH.name} |
| MRPC |  | 90.9 | not run |  |  |  |  |
| STS-B |  | 91.6 | not run |  |  |  |  |
| average |  | 88.6 | not run: QQP, QNLI, SST-2, CoLA, MRPC, STS-B |  |  |  |  |
| SQuAD 2.0 | best_em/best_f1 | 84.2/87.2 | 70.0/75.0 | 1 | 75.0 to 75.0 | 75.0 to 75.0 | {LOW.name} |

In per cent. Ours: the median over seeds of the best setting; middle half and range of what selects it. \
Paper: amos_base (AMOS, Table 1). MNLI is matched/mismatched; matched selects and is in the average. \
Of SQuAD, F1 selects.
"""


def test_the_table_has_the_paper_s_values_beside_ours_and_what_was_not_run(tmp_path):
    mnli = [
        Result("MNLI", "classification", ["accuracy"], LOW, seed, {
            "valid": {"accuracy": matched}, "valid1": {"accuracy": mismatched}
        }, 100, 1.0) for seed, matched, mismatched in ((1, 0.79, 0.80), (2, 0.81, 0.78))
    ]
    squad = Result("SQuAD 2.0", "span", ["best_f1", "best_em"], LOW, 1, {
        "valid": {"em": 0.6, "f1": 0.6, "best_em": 0.7, "best_f1": 0.75}
    }, 100, 1.0)
    found = [*mnli, *runs("RTE", HIGH, [0.625]), squad]
    results.write_tables(tmp_path, found, "amos_base")
    assert (tmp_path / "results.md").read_text() == TABLE
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["source"] == "AMOS, Table 1" and written["tasks"]["RTE"]["paper"] == 86.6
    best, = written["tasks"]["MNLI"]["settings"]
    assert best["setting"]["lr"] == 1e-5 and best["shown"] == pytest.approx([0.8, 0.79])
    assert best["scores"]["2"] == {"valid": {"accuracy": 0.81}, "valid1": {"accuracy": 0.78}}
    assert results.format_table(found[::-1], "amos_base") == TABLE


def test_the_average_is_of_the_eight_medians():
    scores = [0.8, 0.9, 0.7, 0.6, 0.5, 0.8, 0.9, 0.4]
    found = [run for task, score in zip(EIGHT, scores) for run in runs(task, LOW, [score - 0.1, score, score + 0.05])]
    row, = [line for line in results.format_table(found, "coco_lm_base").splitlines() if line.startswith("| average")]
    assert row == "| average |  | 87.2 | 70.0 |  |  |  |  |"
    row, = [line for line in results.format_table(found, "teams_small").splitlines() if line.startswith("| average")]
    assert "| 80.7 | 70.0 |" in row
    assert "Paper:" not in results.format_table(found)


def test_as_peer_has_it_mnli_and_sts_b_are_means_and_so_is_the_average():
    mnli = Result("MNLI", "classification", ["accuracy"], LOW, 1, {
        "valid": {"accuracy": 0.8}, "valid1": {"accuracy": 0.7}
    }, 100, 1.0)
    scores = {"valid": {"spearman": 0.9, "pearson": 0.7}}
    sts_b = Result("STS-B", "regression", ["spearman", "pearson"], LOW, 1, scores, 100, 1.0)
    others = [run for task in EIGHT if task not in ("MNLI", "STS-B") for run in runs(task, LOW, [0.5])]
    table = results.format_table([mnli, sts_b, *others], "peer_base")
    rows = {line.split(" | ")[0]: line.split(" | ")[1:5] for line in table.splitlines() if line.startswith("| ")}
    assert rows["| MNLI"] == ["accuracy (mean)", "86.7", "75.0", "1"]
    assert rows["| STS-B"] == ["pearson, spearman (mean)", "90.9", "80.0", "1"]
    assert rows["| average"][2] == "56.9"  # (75 + 80 + 6 * 50) / 8
    assert "As in the paper, MNLI is the mean of matched and mismatched, STS-B that of both correlations" in table
    table = results.format_table([mnli, sts_b, *others], "amos_base")
    assert "| MNLI | accuracy | 88.9/88.7 | 80.0/70.0 |" in table and "| average |  | 88.6 | 58.8 |" in table


def test_a_test_file_with_labels_is_shown_behind_valid():
    scores = {"test": {"accuracy": 0.6}, "valid": {"accuracy": 0.7}}
    table = results.format_table([Result("own", "classification", ["accuracy"], LOW, 1, scores, 9, 1.0)])
    assert "| own | accuracy |  | 70.0/60.0 | 1 | 70.0 to 70.0 |" in table
    assert "Where the test file has labels: valid/test; valid selects." in table


@pytest.fixture
def kept(tmp_path):
    """kept(model, *shares): runs of a model by folder, a seed each, right for the given shares of 400 examples."""
    targets = np.arange(400) % 2

    def kept(model, *shares):
        found = {}
        for seed, (run, share) in enumerate(zip(runs("RTE", LOW, shares), shares)):
            folder = tmp_path / model / f"seed{seed}"
            folder.mkdir(parents=True)
            wrong = np.random.default_rng(seed).permutation(400) >= 400 * share
            results.write_predictions(folder, {"valid": (targets ^ wrong, targets)})
            found[folder] = run
        return found

    return kept


def test_models_are_ranked_where_a_test_over_examples_and_seeds_tells_them_apart(kept):
    found = {"a": kept("a", 0.9, 0.91, 0.9), "b": kept("b", 0.89, 0.91, 0.9), "c": kept("c", 0.7, 0.71, 0.7)}
    assert results.leaders(found, "RTE") == {"a", "b"}
    lines = results.comparison(found).splitlines()
    assert lines[2:5] == ["| a | 90.0 (3) * |", "| b | 90.0 (3) * |", "| c | 70.0 (3) |"]
    assert lines[-1].endswith("over examples and over seeds, each seed a block.")


def kept_of_other_kinds(kind, share, draw):
    """What `Kind.judged` says of 200 examples of which about a share is right."""
    right = draw.random(200) < share
    if kind == "prompt":
        return right.astype(int), np.ones(200, int)
    if kind == "token":
        known = [["B-X", "O"]] * 200
        predicted = [["B-X", "O"] if one else ["O", "B-X"] for one in right]
        return compared_tags(predicted, known), np.array(["B-X O"] * 200)
    texts, answers = ["one" if one else "two" for one in right], [["one"]] * 200
    odds = np.where(right, -1.0, draw.normal(size=200))
    return squad.compared(texts, answers, odds if kind == "span 2.0" else None), np.arange(200).astype(str)


@pytest.mark.parametrize("kind, metric", [
    ("token", "span_f1"), ("token", "macro_f1"), ("span", "f1"), ("span 2.0", "best_f1"), ("prompt", "accuracy")
])
def test_models_are_ranked_by_every_kind_of_problem(tmp_path, kind, metric):
    """Prompts by `test`, of each seed the run that is best on `valid`."""
    found, draw = {}, np.random.default_rng(1)
    for model, shares in {"a": (0.9, 0.88), "b": (0.89, 0.9), "c": (0.7, 0.69)}.items():
        found[model] = {}
        for seed, share in enumerate(shares):
            for setting, score in ((LOW, 0.5), (HIGH, 0.4)):
                folder = tmp_path / model / f"{seed}{setting.lr}"
                folder.mkdir(parents=True)
                right = share if setting is LOW else 0.1
                split = "test" if kind == "prompt" else "valid"
                kept = kept_of_other_kinds(kind, right, draw)
                results.write_predictions(folder, {split: kept})
                scores = {"valid": {metric: score}, split: {metric: score}}
                found[model][folder] = Result("task", kind.split()[0], [metric], setting, seed, scores, 10, 1.0)
    assert results.leaders(found, "task") == {"a", "b"}


def test_a_seed_that_differs_much_keeps_models_together(kept):
    """By 20 points on average, which 400 examples alone would tell."""
    assert results.leaders({"a": kept("a", 0.9, 0.9), "b": kept("b", 0.5, 0.9)}, "RTE") == {"a", "b"}


def test_a_model_with_one_seed_or_without_predictions_is_not_ranked(kept):
    alone = {"a": kept("a", 0.9, 0.91), "b": kept("b", 0.6)}
    assert results.leaders(alone, "RTE") is None
    assert "Not ranked, as that takes two models, each with two seeds or more: RTE." in results.comparison(alone)
    without = kept("c", 0.6, 0.6)
    predictions = next(iter(without)) / results.PREDICTIONS
    predictions.write_bytes(predictions.read_bytes()[:99])
    with pytest.raises(ValueError, match="predictions.npz is damaged .*: delete it"):
        results.leaders({"a": alone["a"], "c": without}, "RTE")
    predictions.unlink()
    assert results.leaders({"a": alone["a"], "c": without}, "RTE") is None


def test_the_difference_of_two_models_is_bracketed_as_the_normal_approximation_has_it():
    """Of one seed each, right at 300 and 200 other examples of 1,000 alone: sd^2 = (.3 + .2 - .1^2) / 1000."""
    targets = np.zeros(1000, dtype=int)
    first, second = np.ones((2, 1, 1000), dtype=int)
    first[0, :300], second[0, 300:500] = 0, 0
    found = intervals.of_difference(first, second, targets, lambda predicted, true: float((predicted == true).mean()))
    width = 1.96 * ((0.3 + 0.2 - 0.01) / 1000) ** 0.5
    assert found == pytest.approx((0.1, 0.1 - width, 0.1 + width), abs=0.006)


def test_of_prompts_each_split_takes_its_best_setting_and_reports_test():
    def run(setting, seed, valid, test):
        scores = {"valid": {"accuracy": valid}, "test": {"accuracy": test}}
        return Result("few-shot MNLI", "prompt", ["accuracy"], setting, seed, scores, 100, 1.0)

    found = [run(LOW, 13, 0.5, 0.9), run(HIGH, 13, 0.6, 0.4), run(LOW, 21, 0.7, 0.6), run(HIGH, 21, 0.6, 0.1)]
    assert results.over_splits(found) == [pytest.approx((0.5, 0.1))]
    row = results.format_table(found).splitlines()[2]
    assert row == "| few-shot MNLI | accuracy |  | 50.0 (10.0) | 2 |  |  | best of each split |"
