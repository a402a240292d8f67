import base64
import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from amos_fairseq.analysis import report
from amos_fairseq.analysis.report import Line
from amos_fairseq.checkpoints import storage
from amos_fairseq.methods import size_options
from amos_fairseq.run_log import Run, RunLog

FIRST = RunLog(
    [{"num_updates": 10.0, "mlm": 16.0, "mlm_4": 8.0, "mlm_6": 7.9, "rtd": 0.5, "wps": 100.0, "wpb": 64.0,
      "wall": 1800.0}],
    [{"num_updates": 10.0, "mlm": 15.0, "mlm_4": 7.5, "mlm_6": 7.25, "rtd": 0.4, "rtd_auc_words": 0.7, "wps": 900.0}],
)
SECOND = RunLog([{"num_updates": 20.0, "mlm": 6.5, "rtd": 0.30001, "wps": 200.0}], [])
RUNS = [
    Run("a <b> $_{$", Path("gone"), FIRST, {"task": "amos_rtd", "model": "amos_rtd_base", "seed": 1}),
    Run("second", Path("gone"), SECOND, {"task": "electra_rtd", "seed": 2}),
]


class Page(HTMLParser):
    """Text of table cells by row, addresses, and whether every tag that needs it is closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.addresses, self.open, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "report"
    path = report.write(RUNS, out, [], ["second: gone holds no checkpoint"], "")
    return path, path.read_text(encoding="utf-8")


def test_page_holds_all_that_it_shows(written):
    path, text = written
    page = Page(text)
    assert page.open == []
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "<script" not in text and not re.search(r"https?://|url\(|@import", text)
    images = {base64.b64decode(address.split(",")[1]) for address in page.addresses}
    assert images == {file.read_bytes() for file in path.parent.glob("*.png")}


def test_page_compares_the_last_validation_and_marks_the_best(written):
    rows = {row[0]: row[1:] for row in Page(written[1]).rows}
    assert rows["masked LM loss (nats), layer 6"] == ["7.250", "–"]
    assert rows["masked LM loss (nats)"] == ["–", "6.500"]  # a sum over depths is no masked LM's loss
    assert rows["detection loss (nats)"] == ["0.400", "0.300"]
    assert rows["tokens per second"] == ["100", "200"]  # of training: those of validation are faster
    assert written[1].count("<td class=best>") == 1  # but for speed, two methods are no match
    assert "<td class=best>200</td>" in written[1]


def test_runs_of_one_method_are_compared():
    one_method = [run._replace(options={"task": "amos_rtd"}) for run in RUNS]
    best = [{line.name: line.best for line in report.summary(runs)}["rtd"] for runs in (RUNS, one_method)]
    assert best == [[False, False], [False, True]]


def test_page_says_what_the_runs_are_and_where_they_differ(written):
    rows = Page(written[1]).rows
    assert ["run", "method", "architecture", "updates", "tokens", "hours"] in rows
    assert ["a <b> $_{$", "amos_rtd", "amos_rtd_base", "10", "640", "0.50"] in rows
    assert ["second", "electra_rtd", "–", "20", "–", "–"] in rows
    assert ["seed", "1", "2"] in rows and not any(row[0] == "model" for row in rows)


def test_page_says_which_checkpoints_it_lacks(written):
    assert "Without checkpoint or held-out text: second: gone holds no checkpoint." in Page(written[1]).text


def test_curves_are_written_as_csv_too(written):
    rows = list(csv.DictReader(open(written[0].parent / "curves.csv", encoding="utf-8")))
    assert [(row["run"], row["kind"], row["num_updates"], row["mlm_4"]) for row in rows] == [
        ("a <b> $_{$", "train", "10.0", "8.0"), ("a <b> $_{$", "validation", "10.0", "7.5"),
        ("second", "train", "20.0", ""),
    ]


def test_size_of_a_configuration_is_told_by_its_encoder():
    options = {"task": "amos_rtd", "model": "amos_rtd", **size_options("amos_rtd", "small")}
    assert report.architecture(options) == "amos_rtd_small"
    assert report.architecture({**options, "encoder_layers": 5}) == "amos_rtd"
    assert report.architecture({**options, "model": "amos_rtd_base"}) == "amos_rtd_base"


def test_report_replaces_a_report_and_its_figures_only(tmp_path):
    out = tmp_path / "report"
    report.write(RUNS, out, [], [], "")
    (out / "notes.txt").write_text("mine")
    assert (out / "mixture_weights.png").exists() is False and (out / "generator_depths.png").exists()
    report.write(RUNS[1:], out, [], [], "")
    assert not (out / "generator_depths.png").exists() and (out / "notes.txt").read_text() == "mine"
    assert "a &lt;b&gt; $_{$" not in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["thesis.tex", "report.html"])
def test_something_else_is_not_replaced(tmp_path, content):
    (tmp_path / content).write_text("<html>mine")
    with pytest.raises(ValueError, match="holds something else than a report: name another folder"):
        report.write(RUNS, tmp_path, [], [], "")
    assert [path.name for path in tmp_path.iterdir()] == [content]


def test_same_runs_give_the_same_page(written, tmp_path):
    report.write(RUNS, tmp_path, [], ["second: gone holds no checkpoint"], "")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == written[1]


@pytest.mark.parametrize("name, values, best", [
    ("rtd", [0.4, None, 0.3], [False, False, True]),
    ("rtd_auc_words", [0.4, 0.3], [True, False]),
    ("rtd", [0.30001, 0.30004, 0.5], [True, True, False]),  # shown as equal
    ("rtd", [0.30001, 0.30004], [False, False]),
    ("mixture_weight_4", [0.4, 0.3], [False, False]),  # neither is better
    ("mlm_4", [0.4, 0.3], [False, True]),
    ("mlm", [float("nan"), 0.4, 0.3], [False, False, True]),  # a run that diverged
])
def test_best_is_what_no_other_is_better_than(name, values, best):
    assert Line(name, values).best == best


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    for folder in ("x/run", "y/run", "x/1/run", "y/1/run"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.log").write_text('{"num_updates": "1", "loss": "1"}\n')
    paths = [tmp_path / "x/run", tmp_path / "y/run"]
    assert [run.name for run in report.open_runs(paths)] == ["x/run", "y/run"]
    deeper = [tmp_path / "x/1/run", tmp_path / "y/1/run"]
    assert [run.name for run in report.open_runs(deeper)] == ["x/1/run", "y/1/run"]
    assert [run.name for run in report.open_runs(paths, ["a", "b"])] == ["a", "b"]
    with pytest.raises(ValueError, match="two runs have the name a: tell them apart with --names"):
        report.open_runs(paths, ["a", "a"])
    with pytest.raises(ValueError, match="--names gives 1 names for 2 runs"):
        report.open_runs(paths, ["a"])
    with pytest.raises(ValueError, match="29 runs are more than can be told apart in a figure: give 28 at most"):
        report.open_runs(paths[:1] * 29)


def test_checkpoints_that_cannot_be_read_are_left_out_with_their_reason(tmp_path):
    storage.write(tmp_path / "checkpoint_1_2", {"cfg": {}}, dict(number=1, score=None, purposes=[]))
    (tmp_path / "checkpoint_1_2" / "state.json").write_text("{}")
    probes, left_out = report.read_checkpoints([RUNS[0], RUNS[1]._replace(folder=tmp_path)], None)
    assert probes == []
    assert left_out[0] == "a <b> $_{$: gone does not exist"
    assert left_out[1].startswith("second: none of the 1 checkpoints in")
