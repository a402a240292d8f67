import io
import json

import pytest

from amos_fairseq.cli import main, report

ROWS = [{"epoch": 1, "loss": "9", "mlm": "7.5", "rtd": "0.4", "num_updates": "10"},
        {"epoch": 1, "loss": "8", "mlm": "7.0", "rtd": "0.3", "num_updates": "20"}]
VALID = {"epoch": 1, "valid_loss": "8.5", "valid_mlm": "7.25", "valid_num_updates": "20"}


@pytest.fixture
def make_run(tmp_path):
    def make_run(name, *rows):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.log").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return make_run


def test_report_of_a_run_prints_what_it_measured_and_where_its_figures_are(make_run, capsys):
    run = make_run("run", *ROWS, VALID)
    assert main.main(["report", run]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "                       measured  valid",
        "masked LM loss (nats)     7.000  7.250",
        "detection loss (nats)     0.300",
        f"without checkpoint or held-out text  run: {run} holds no checkpoint",
        "",
        f"figures   {run}/report/report.html, and as PNG files and curves.csv beside it",
    ]


def test_report_of_runs_compares_them(make_run, tmp_path, capsys):
    runs = [make_run("first", *ROWS), make_run("second", ROWS[0], VALID)]
    assert main.main(["report", *runs, "--out", str(tmp_path / "both"), "--names", "a,b", "--logs-only"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "                             a        b",
        "masked LM loss (nats)  7.000 *  7.250",
        "detection loss (nats)  0.300 *  0.400",
        "updates                   20       10",
        "",
        f"figures   {tmp_path}/both/report.html, and as PNG files and curves.csv beside it",
    ]


def test_a_terminal_shows_trends(make_run, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", terminal)
    assert main.main(["report", make_run("run", *ROWS), "--logs-only"]) == 0
    assert "█▁" in terminal.getvalue()


def test_a_run_that_diverged_is_reported(make_run, capsys):
    assert main.main(["report", make_run("run", ROWS[0], {**ROWS[1], "mlm": "nan", "rtd": "inf"}), "--logs-only"]) == 0
    assert "masked LM loss (nats)       nan" in capsys.readouterr().out


def test_sparkline_goes_from_the_lowest_to_the_highest_in_even_steps():
    assert report.sparkline([0, 7]) == "▁█"
    assert report.sparkline(range(8)) == report.BARS
    assert report.sparkline(range(1000)) == "▁▂▂▃▄▄▅▅▆▇▇█"
    assert report.sparkline([1000.0, *range(1, 10)]) == report.sparkline(range(1, 10))
    assert report.sparkline([1.0, float("nan"), 2.0]) == "▁█"
    assert report.sparkline([3.0, 3.0]) == "▁▁" and report.sparkline([]) == ""


@pytest.mark.parametrize("rows, message", [
    (None, "does not exist: name a run's folder, or its log"),
    ([], "holds no training row yet: there is one every --log-interval updates"),
])
def test_run_without_numbers_is_refused(make_run, tmp_path, capsys, rows, message):
    run = str(tmp_path / "gone") if rows is None else make_run("run", *rows)
    assert main.main(["report", run, "--out", str(tmp_path / "out")]) == 64
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_folder_without_log_is_refused(tmp_path, capsys):
    assert main.main(["report", str(tmp_path)]) == 64
    assert capsys.readouterr().err == (
        f"amos-fairseq report: error: {tmp_path} holds no metrics.jsonl: name a run's folder, or its log\n"
    )


def test_several_runs_need_a_folder_to_write_to(make_run, capsys):
    assert main.main(["report", make_run("a", *ROWS), make_run("b", *ROWS)]) == 64
    assert "--out FOLDER says where a report of several runs, or of a log, is written" in capsys.readouterr().err


def test_folder_of_something_else_is_refused_before_any_work(make_run, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    assert main.main(["report", make_run("run", *ROWS), "--out", str(tmp_path / "thesis")]) == 64
    captured = capsys.readouterr()
    assert captured.out == "" and "holds something else than a report: name another folder" in captured.err
