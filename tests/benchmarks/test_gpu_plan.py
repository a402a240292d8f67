"""The plan for a GPU, without one: all of it runs, and what fails or hangs does not end it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "examples/benchmarks"))
import gpu  # noqa: E402


@pytest.mark.soak
def test_all_steps_run_on_a_cpu_within_three_minutes(tmp_path):
    pytest.importorskip("fairseq")
    command = ["bash", "examples/benchmarks/gpu.sh", tmp_path, "--quick"]
    start = time.monotonic()
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    assert time.monotonic() - start < 180
    report = json.loads((tmp_path / "results.json").read_text())
    assert list(report["steps"]) == ["doctor", *(step.name for step in gpu.PLAN)]
    for step in gpu.PLAN:
        told = report["steps"][step.name]
        assert told["status"] == "done", told["output"]
        measured = {name for name, figure in told["figures"].items() if figure["measured"] is not None}
        assert measured and step.predictions.keys() - measured <= {"GiB"}  # which a CPU does not tell
    assert "CPU" in report["device"] and report["versions"]["torch"]
    assert report["steps"]["training, 32"]["details"]["top"][0]["milliseconds"] > 0


def test_limits_of_steps_fit_into_nine_minutes_with_data_that_are_prepared():
    assert sum(step.seconds for step in gpu.PLAN if step.name != "public code") <= gpu.SECONDS == 540


def test_predictions_add_up():
    # AMOS on an H200: 23.3 + 18.6 + 9.4 / 0.85 + 0.9 = 53.86 ms; 32 sequences in 53.86 + 2.2 + 5 ms are 524 a second
    assert gpu.step_milliseconds("amos_rtd", 0) == pytest.approx(53.86, abs=0.01)
    assert gpu.sequences_per_second(32)[0] == pytest.approx(524, abs=1)
    # on an A100: 23.3 x 620 / 240 + 18.6 x 2.1 + (11.06 + 0.9) x 4300 / 1650 = 130.4 ms
    assert gpu.step_milliseconds("amos_rtd", 1) == pytest.approx(130.4, abs=0.1)


def test_the_readme_has_the_plan_s_predictions():
    text = (REPOSITORY / "examples/benchmarks/README.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    told = {(row[0], row[1]): row[2].split(" / ") for row in rows if len(row) == 4}
    alike = ("error of gradients", "the same again", "share of zeros")  # of several names in a row
    for step in gpu.PLAN:
        for figure, values in step.predictions.items():
            if step.name != "parity" and not figure.endswith(alike):
                assert [float(value) for value in told[step.name, figure]] == pytest.approx(values, rel=0.02), figure


def test_a_step_that_fails_or_hangs_or_has_no_time_left_does_not_end_the_others(tmp_path, monkeypatch):
    hang = "import subprocess; subprocess.run(['sleep', '600'])"
    plan = [
        gpu.Step("fails", 30, ["-c", "raise SystemExit(3)"], {"a figure": (1.0, 2.0)}),
        gpu.Step("hangs", 1, ["-c", hang]),
        gpu.Step("works", 30, ["-c", "print('said')"]),
    ]
    monkeypatch.setattr(gpu, "steps", lambda *_: plan)
    report = gpu.main([str(tmp_path)])
    assert [step["status"] for step in report["steps"].values()] == ["failed with 3", "out of time after 1 s", "done"]
    assert report["steps"]["fails"]["figures"] == {
        "a figure": {"predicted": {"H200": 1.0, "A100": 2.0}, "measured": None}
    }
    assert report["steps"]["works"]["output"] == "said\n"
    assert json.loads((tmp_path / "results.json").read_text()) == report
    monkeypatch.setattr(gpu, "SECONDS", 0)
    assert {step["status"] for step in gpu.main([str(tmp_path)])["steps"].values()} == {"no time left"}
