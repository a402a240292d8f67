import sys

import pytest

from amos_fairseq import fairseq_repairs
from amos_fairseq.cli import doctor, main
from amos_fairseq.ops import compiled


@pytest.fixture(autouse=True)
def companion(monkeypatch, tmp_path):
    """companion(CODE): torch's only companion is a module `its_companion` of this code; else there is none."""
    def companion(code):
        (tmp_path / "its_companion.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(doctor, "COMPANIONS", ("its_companion",))

    monkeypatch.setattr(doctor, "COMPANIONS", ())
    return companion


@pytest.fixture
def built(monkeypatch):
    """built("cpu"): the kinds of device whose ops were compiled."""
    return lambda *kinds: monkeypatch.setattr(compiled, "available", lambda kind: kind in kinds)


def findings(capsys):
    assert main.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:12].strip(): line[12:].split(maxsplit=1) for line in lines}


def test_versions_and_repairs_are_told(capsys):
    found = findings(capsys)
    assert found["fairseq"] == ["ok", f"fairseq-fixed 0.12.3.1, {len(fairseq_repairs.REPAIRS)} repairs fit"]
    assert found["python"][0] == found["torch"][0] == "ok"


def test_missing_ops_are_told_with_the_command_that_builds_them(capsys, built):
    built()
    text = "PyTorch; compile them: python -m amos_fairseq.csrc.build cpu"
    assert findings(capsys)["ops on cpu"] == ["optional", text]


def test_compiled_ops_that_agree_with_pytorch_are_told(capsys):
    if not compiled.available("cpu"):
        pytest.skip("the ops are not compiled for the CPU")
    state, text = findings(capsys)["ops on cpu"]
    assert state == "ok" and text.startswith("compiled: ") and text.endswith("libamos_cpu.so")


def test_compiled_ops_that_differ_are_broken(capsys, built, monkeypatch):
    built("cpu")
    monkeypatch.setattr(doctor, "agrees", lambda device: False)
    assert main.main(["doctor"]) == 1
    assert "compiled ops differ from PyTorch's; build anew: python -m" in capsys.readouterr().out


def test_a_fairseq_that_no_repair_fits_is_broken(capsys, monkeypatch):
    monkeypatch.setitem(fairseq_repairs.REPAIRS, "fairseq.trainer:Trainer.absent", ("0", lambda original: original))
    assert main.main(["doctor"]) == 1
    assert "is not the function that amos_fairseq knows how to repair" in capsys.readouterr().out


def test_a_companion_of_another_torch_is_broken_and_told_with_the_remedy(capsys, companion):
    companion("raise OSError('libcudart.so.13: cannot open shared object file')")
    assert main.main(["doctor"]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("its_companion")]
    assert "broken" in line and line.endswith(f"{sys.executable} -m pip uninstall -y its_companion")
