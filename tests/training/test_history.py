"""metrics.jsonl, as training writes it."""

import json

import pytest

from amos_fairseq import run_log
from amos_fairseq.supervision.history import History

NAME = "bert_mlm"


def test_every_run_has_its_history_whatever_it_prints(launch, arguments, tmp_path):
    """Of two processes one writes; a second start goes on after a line that a kill has cut."""
    path = tmp_path / "run" / "metrics.jsonl"

    def train(updates):
        options = dict(max_update=updates, save_dir=path.parent, log_format="none", batch_size=4)
        launch("fairseq_cli.train:cli_main", arguments(NAME, **options), processes=2)

    train(2)
    with open(path, "a") as stream:
        stream.write('{"kind": "train", "num_upd')
    train(4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["kind"], row["num_updates"]) for row in rows if row["kind"] != "epoch"] == [
        ("start", 0), ("train", 1), ("train", 2), ("validation", 2),
        ("start", 2), ("train", 3), ("train", 4), ("validation", 4),
    ]
    assert rows[0]["options"]["task"]["_name"] == NAME and {"torch", "fairseq"} <= rows[0]["versions"].keys()
    assert rows[0]["options"]["optimization"]["max_update"] == 2
    assert {"time", "update", "loss", "mlm", "gnorm", "lr", "wps", "wall"} <= rows[1].keys()
    read = run_log.open_run(path.parent)
    assert [row["num_updates"] for row in read.log.train] == [1, 2, 3, 4] and read.options["max_update"] == 4


def test_run_that_saves_nothing_writes_nothing(launch, arguments, tmp_path):
    launch("fairseq_cli.train:cli_main", arguments(NAME, max_update=1, save_dir=tmp_path / "run", no_save=True))
    assert not (tmp_path / "run").exists()


def test_what_is_infinite_is_still_json(tmp_path):
    History(tmp_path).note({"loss": float("inf"), "mlm": None}, "valid", 3, 0.25)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert (row["loss"], row["subset"], row["update"], "mlm" in row) == ("inf", "valid", 0.25, False)


def test_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    history = History(tmp_path)
    history.note({"loss": 1}, "valid", 3, 0.25)
    write = __import__("os").write
    monkeypatch.setattr("os.write", lambda file, line: write(file, line[:5]))
    history.note({"loss": 2}, "valid", 4, 0.5)
    monkeypatch.undo()
    history.note({"loss": 3}, "valid", 5, 0.75)
    assert [row["num_updates"] for row in run_log.read(tmp_path).validation] == [3, 5]


def test_tensorboard_and_wandb_are_given_the_same_values(launch, arguments, tmp_path):
    options = dict(tensorboard_logdir="curves", wandb_project="project", max_update=2, save_dir=tmp_path / "run")
    lines = launch("tests.training.recorders:main", arguments(NAME, **options)).out[0].splitlines()
    recorded = [json.loads(line.removeprefix("recorded ")) for line in lines if line.startswith("recorded ")]
    curves = {(where, name, step): value for where, name, value, step in recorded}
    rows = run_log.open_run(tmp_path / "run").log
    for part, logged in (("train_inner", rows.train), ("valid", rows.validation)):
        for row in logged:
            for name in ("loss", "mlm"):
                value = curves[f"curves/{part}", name, row["num_updates"]]
                assert value == curves["project", f"{part}/{name}", row["num_updates"]]
                assert value == pytest.approx(row[name], rel=1e-3)
    assert [row["num_updates"] for row in rows.train] == [1, 2] and rows.validation
