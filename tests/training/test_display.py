"""What a person sees of a training."""

import io
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from amos_fairseq.supervision import display

NAME = "amos_rtd"
TRAIN = "fairseq_cli.train:cli_main"


@pytest.fixture
def shown(launch, arguments, tmp_path):
    """shown(max_update, **options): the lines of a run in tmp_path / run, through a pipe."""

    def shown(max_update, **options):
        options = dict(log_format=None, log_interval=2, save_dir=tmp_path / "run", max_update=max_update, **options)
        outcome = launch(TRAIN, arguments(NAME, **options))
        assert outcome.err[0] == ""
        return outcome.out[0].splitlines()

    return shown


def test_a_run_shows_a_row_for_each_interval_and_its_log_is_in_its_folder(shown, tmp_path):
    folder = tmp_path / "run"
    first, second = shown(4), shown(6)
    told = " ".join(first)
    assert f"{NAME}_tiny: " in told and " parameters on 1 x CPU, updates 0 to 4 " in told
    assert f"{folder}: all numbers in metrics.jsonl, configuration and modules in fairseq.log" in told
    heading, = [number for number, line in enumerate(first) if line.startswith("   update")]
    assert heading < 12 and first[heading].split() == ["update", "loss", "mlm", "rtd", "tokens/s", "MFU", "left"]
    table = [line.split() for line in first[heading + 1 :]]
    assert [row[0] for row in table if row[0].isdecimal()] == ["2", "4", "4"] and table[1][-2:] == ["0", "s"]
    assert [row[-1] for row in table if row[-1] == "valid"] == ["valid"]
    rows = {(row["kind"], row["num_updates"]): row for row in map(json.loads, open(folder / "metrics.jsonl"))}
    assert table[1][1:4] == [f"{rows['train', 4][name]:#.4g}" for name in ("loss", "mlm", "rtd")]
    assert max(len(line) for line in first if str(folder) not in line) <= 80
    assert any("updates 4 to 6" in line for line in second) and not any("Loaded checkpoint" in line for line in second)
    log = (folder / "fairseq.log").read_text()
    assert log.count("{'_name': None, 'common': {") == log.count("(rtd_head): DetectionHead(") == 2
    assert log.count("| INFO | fairseq.trainer | Loaded checkpoint") == 1


def test_what_saves_nothing_shows_its_rows_and_keeps_no_log(shown, tmp_path):
    lines = shown(2, no_save=True)
    assert not (tmp_path / "run").exists() and any(line.split()[:1] == ["2"] for line in lines)


def test_fairseqs_own_log_writes_control_characters_out(launch, arguments, tmp_path):
    options = dict(save_dir=tmp_path / "run\x1b]0;title\x07", max_update=2, log_format="json")
    out = launch(TRAIN, arguments(NAME, **options)).out[0]
    assert "run\\x1b]0;title\\x07/checkpoint_1_2 (epoch 1 @ 2 updates" in out
    assert not set(map(ord, out)) & {*range(9), *range(11, 32), 127}


def test_hydra_shows_the_same(launch, yaml_config, tmp_path):
    config = yaml_config(NAME)
    config["common"].update(log_format=None, log_interval=2)
    config["optimization"]["max_update"] = 2
    config["checkpoint"] = {"save_dir": str(tmp_path / "run")}
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    command = ["--config-dir", tmp_path, "--config-name", "tiny", f"hydra.run.dir={tmp_path}/hydra"]
    outcome = launch("amos_fairseq.cli.main:main", ["train", *command])
    assert "\n   update    loss " in outcome.out[0] and outcome.err[0] == ""
    assert "(rtd_head)" in (tmp_path / "run/fairseq.log").read_text()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def watch(monkeypatch):
    """watch(): a display of a run from update 10 to 100,000 on a terminal without colour, and what that gets."""
    opened = []

    def watch():  # within a test, for which pytest, too, replaces the streams
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, Terminal())
        monkeypatch.setenv("NO_COLOR", "1")
        cfg = OmegaConf.create({
            "common": {"no_progress_bar": False}, "checkpoint": {"no_save": True}, "model": {"_name": "coco_lm_base"},
            "optimization": {"max_update": 100_000},
        })
        opened.append(display.Display(cfg))
        trainer = SimpleNamespace(
            cfg=cfg, get_num_updates=lambda: 10, get_model=lambda: torch.nn.Linear(1000, 2), data_parallel_world_size=8,
            device=torch.device("cpu"), task=SimpleNamespace(loss_names=["mlm", "rtd", "clm", "scl", "more"]),
        )
        opened[0].start(trainer, None)
        return opened[0], sys.stdout, sys.stderr

    yield watch
    opened[0].close()


def test_a_terminal_has_a_bar_of_the_runs_updates_and_a_table_of_80_columns(watch, monkeypatch):
    opened, out, err = watch()
    assert out.getvalue() == "coco_lm_base: 2,002 parameters on 8 x CPU, updates 10 to 100,000\n"
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    opened.updated(11)
    monkeypatch.setattr("time.monotonic", lambda: 1002.0)
    opened.updated(15)
    values = dict(loss=38.12345, mlm=7.5, rtd=0.31, clm=8.25, scl=1e-5, more=1.0, gnorm=2.0)
    opened.note({**values, "wps": 1234567.8, "mfu": 0.4567}, "train_inner", 15)
    opened.note({"loss": float("nan"), "mlm": 7.4}, "valid", 15)
    opened.note(values, "train", 15)
    assert out.getvalue().splitlines()[1:] == [
        "   update    loss     mlm     rtd     clm     scl   tokens/s    MFU      left",
        "       15   38.12   7.500  0.3100   8.250 1.000e-05  1,234,568  45.7%    13.9 h",
        "       15     nan   7.400  valid",
    ]
    opened.bar.refresh()
    assert " 15/100000 updates, " in err.getvalue()


def test_warnings_and_this_packages_lines_are_shown_without_control_characters(watch, caplog):
    caplog.set_level(logging.INFO)
    _, out, _ = watch()
    logging.getLogger("fairseq.trainer").warning("bad \x1b name")
    logging.getLogger("fairseq.trainer").info("no one needs this")
    logging.getLogger("amos_fairseq.tasks").info("ours")
    assert out.getvalue().splitlines()[1:] == ["warning: bad \\x1b name", "ours"]


def test_a_full_disk_ends_the_log_and_not_the_run(caplog):
    log, root = display.File(Path("/dev/full")), logging.getLogger()
    root.addHandler(log)
    logging.getLogger("fairseq").warning("more")
    assert log not in root.handlers and caplog.messages[1].startswith("fairseq.log cannot be written: [Errno 28]")
    log.close()
