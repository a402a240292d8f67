"""The replication's smallest budget, from text to table."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples/replication"
REPLICATE = [sys.executable, str(FOLDER / "replicate.py"), "smoke"]
sys.path.insert(0, str(FOLDER))
from claims import CLAIMS  # noqa: E402
from variants import METHODS  # noqa: E402


def replicate(out, *options):
    return subprocess.run([*REPLICATE, "--out", str(out), *options], capture_output=True, text=True)


def test_a_stopped_replication_goes_on_and_ends_in_a_table(tmp_path):
    out, options = tmp_path / "out", ["--variants", "untrained; SCRIPT, no critic", "--jobs", "2"]
    process = subprocess.Popen([*REPLICATE, "--out", str(out), *options], stderr=subprocess.PIPE, text=True)
    while not list(out.glob("runs/*/1/measured.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()
    assert process.returncode == os.EX_TEMPFAIL and "The same command goes on" in told
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/measured.json")}
    assert 1 <= len(finished) < 4

    done = replicate(out, *options)
    assert done.returncode == 0, done.stderr
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert "| untrained | 1 | " in done.stdout and "| SCRIPT, no critic | " in done.stdout
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [len(seeds) for seeds in runs.values()] == [2, 2]
    assert (out / "results.png").stat().st_size > 10_000
    assert all(0.0 <= run["score"] <= 1.0 and run["seconds"] > 0 for seeds in runs.values() for run in seeds)


def test_what_cannot_be_replicated_is_told_in_one_line(tmp_path):
    done = replicate(tmp_path / "out", "--variants", "XLNet")
    assert done.returncode == 1 and done.stderr.startswith("replicate: error: --variants 'XLNet' is none of untrained;")
    (tmp_path / "budget.json").write_text("{}")
    done = replicate(tmp_path)
    assert done.returncode == 1 and "holds another budget" in done.stderr


@pytest.mark.soak
def test_all_variants_end_in_a_verdict_for_every_claim(tmp_path):
    done = replicate(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out/results.md").read_text()
    assert all(f"\n| {name} | " in table for name in METHODS)
    assert table.count("**") == 2 * len(CLAIMS)
