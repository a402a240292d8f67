"""Every section at a tiny size: it runs, says why a peer is missing, and the sides agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for folder in ("examples/benchmarks", "tests/references"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))
import ops as ops_benchmark  # noqa: E402
import step as step_benchmark  # noqa: E402
from huggingface import hide_torchaudio  # noqa: E402
from timing import main  # noqa: E402

MISSING = ("ModuleNotFoundError: ", "AttributeError: module 'torch.nn")  # a package, F.linear_cross_entropy
SECTIONS = [
    *[(ops_benchmark, name) for name in ops_benchmark.SECTIONS],
    *[(step_benchmark, name) for name in step_benchmark.SECTIONS],
]


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Without torch.compile, which takes seconds for each function, and as before afterwards."""
    monkeypatch.setattr(ops_benchmark, "compiled", lambda function: function)
    monkeypatch.setattr(step_benchmark, "with_compiled_layers", lambda method: method)
    hide_torchaudio(monkeypatch)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("script,section", SECTIONS, ids=[name for _, name in SECTIONS])
def test_section_measures_its_sides(script, section, tmp_path, capsys):
    out = tmp_path / "results.json"
    arguments = ["--quick", "--device", "cpu", "--threads", "1", "--seconds", "0"]
    main(script.SECTIONS, [*arguments, "--only", section, "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["matmul_tflops"] > 0
    measured = [row for row in report["rows"] if "unavailable" not in row]
    missing = [row for row in report["rows"] if "unavailable" in row]
    assert len(measured) >= 2 and measured[0]["times_ours"]["median"] == 1.0
    for row in missing:
        assert row["unavailable"].startswith(MISSING), row
    for row in measured:
        assert row["section"] == section and row["trials"] == 5
        assert row["milliseconds"]["median"] > 0 and row["extra_mib"] > 0
        assert max(row.get("errors", {}).values(), default=0.0) < 2e-4
        if script is step_benchmark:
            assert row["tokens_per_second"] > 0 and row["mfu"] > 0
    printed = capsys.readouterr().out
    assert all(row["side"] in printed for row in report["rows"])


def test_exactness_tells_a_wrong_gradient():
    settings = ops_benchmark.Settings(torch.device("cpu"), torch.float32, quick=True)
    (comparison,) = ops_benchmark.vocabulary(settings)

    def without_reversal(inputs):
        found = comparison.sides["public code"](inputs)
        return {**found, "scores": -found["scores"]}

    errors = comparison.errors(without_reversal)
    assert errors.pop("scores") == pytest.approx(2.0, rel=1e-4) and max(errors.values()) < 1e-5


def test_the_trainer_s_part_of_an_update_is_few_operations(tmp_path):
    """Two for each list of tensors rather than a few for each tensor; the rest is the logs' and the criterion's."""
    script = Path(__file__).parents[2] / "examples/benchmarks/trainer.py"
    out = tmp_path / "trainer.json"
    command = [sys.executable, str(script), "--only", "bert_mlm", "--updates", "6", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads(out.read_text())["methods"]["bert_mlm"]
    assert rows["zero gradients"]["operations"] == rows["seed"]["operations"] == 0
    assert 0 < rows["norm and clipping"]["operations"] < 30
    assert rows["optimizer step"]["operations"] - rows["AdamW in it"]["operations"] < 10
    assert rows["trainer"]["operations"] < 100 and rows["trainer"]["milliseconds"] > 0
