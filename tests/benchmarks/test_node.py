"""The script for a node with several GPUs: on processes of a CPU, and what it says of trainings that go wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "examples/gpu"))
import node  # noqa: E402

# An agent whose child logs 16 updates, with checkpoints at 5 and 10 that it goes on from: two GPUs do so a bit off.
TRAINING = """
import json, pathlib, subprocess, sys, time
if sys.argv[1] == "agent":
    sys.exit(subprocess.call([sys.executable, "-S", __file__, "process", *sys.argv[2:]]))
number, words = int(sys.argv[2]), sys.argv[3:]
saved = pathlib.Path(words[words.index("--save-dir") + 1]) if "--save-dir" in words else None
begun = int(saved.read_text()) if saved and saved.exists() else 0
for update in range(begun + 1, 17):
    loss = 4 / update + 0.01 * (begun > 0 and number == 2)
    print(json.dumps({"num_updates": update, "loss": loss, "bsz": 8, "ups": number}), flush=True)
    if saved and update in (5, 10):
        saved.write_text(str(update))
    if saved and not begun and update == 8:
        time.sleep(900)
if number == 4:
    sys.exit("no memory")
"""


def test_what_it_tells_of_each_number_of_gpus(tmp_path, monkeypatch):
    (tmp_path / "training.py").write_text(TRAINING)

    def command(options, number, words):
        return [sys.executable, "-S", str(tmp_path / "training.py"), "agent", str(number), *words]

    monkeypatch.setattr(node, "command", command)
    assert node.main([str(tmp_path / "node"), "--data", "data", "--gpus", "1,2,4", "--cpu"]) == 1
    report = json.loads((tmp_path / "node" / "results.json").read_text())
    assert [report[f"scaling, {number}"]["sequences per second"] for number in (1, 2)] == [8, 16]
    assert report["scaling, 2"]["share of one GPU's"] == 1.0
    assert report["losses, 2"]["difference"] == 0.0 and report["losses, 2"]["same"]
    alone, two = (report[f"killed, {number}"] for number in (1, 2))
    assert (alone["status"], alone["goes on at"], alone["same"], alone["difference"]) == ("done", 6, True, 0.0)
    assert (two["status"], two["same"], two["difference"]) == ("done", False, pytest.approx(0.01 / (4 / 16)))
    assert report["losses, 4"]["status"].startswith("status 1: ") and "no memory" in report["losses, 4"]["status"]


@pytest.mark.soak
def test_on_one_and_two_processes_of_a_cpu_losses_are_the_same_and_a_killed_run_goes_on_to_the_same_bits(
    corpus, tmp_path
):
    pytest.importorskip("fairseq")
    command = [sys.executable, "examples/gpu/node.py", tmp_path / "node", "--data", corpus, "--gpus", "1,2", "--cpu"]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    report = json.loads((tmp_path / "node" / "results.json").read_text())
    assert done.returncode == 0, report
    assert report["losses, 2"]["difference"] < 1e-5
    assert [report[f"killed, {number}"]["difference"] for number in (1, 2)] == [0, 0]
