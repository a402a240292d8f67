import json

import pytest

from amos_fairseq.cli import main

ROW = {"epoch": 1, "loss": "9", "mlm": "7.5", "rtd": "0.4", "num_updates": "10"}


def test_report_prints_the_table_and_the_figures(tmp_path, capsys):
    (tmp_path / "train.log").write_text(json.dumps(ROW) + "\n")
    assert main.main(["report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "masked LM loss (nats)      7.500" in out
    assert f"figure  {tmp_path / 'figures' / 'loss_terms.png'}" in out
    assert (tmp_path / "figures" / "loss_terms.png").exists()


@pytest.mark.parametrize("text, message", [(None, "No such file"), ("nothing\n", "holds no training line yet")])
def test_run_without_numbers_is_refused(tmp_path, capsys, text, message):
    if text:
        (tmp_path / "train.log").write_text(text)
    assert main.main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
