"""A sweep as a user runs it on a separable task, stopped and continued; its words for fairseq-train; what it keeps."""
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from amos_fairseq.cli import finetune as cli_finetune
from amos_fairseq.cli import main, train
from amos_fairseq.finetune import labelled, results, sweep
from amos_fairseq.finetune.labelled import Examples, Problem
from amos_fairseq.finetune.model import load_finetuned
from amos_fairseq.finetune.presets import Setting
from amos_fairseq.finetune.results import Result
from tests.finetune import patient
from tests.runs import REPOSITORY

WORDS = "gamma delta epsilon zeta eta theta".split()
SETTING = Setting(2e-5, 3, 16, 0.1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Options that name files of texts with alpha or beta, which their label tells apart."""
    draw, folder, options = np.random.default_rng(1), tmp_path_factory.mktemp("files"), []
    for split, size in (("train", 48), ("valid", 12), ("test", 5)):
        lines = []
        for number in range(size):
            words = [("alpha", "beta")[number % 2], *draw.choice(WORDS, 3)]
            lines.append(f"{' '.join(words)}\t{'ab'[number % 2]}")
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *lines, ""]))
        options += [f"--{split}", str(folder / f"{split}.tsv")]
    return [*options, "--text", "text", "--label", "label", "--name", "toy"]


@pytest.fixture
def finetune(files, checkpoint, tmp_path, capsys):
    """finetune(*options): exit status and what was printed; --out is tmp_path/out."""
    model = checkpoint()

    def finetune(*options):
        words = ["--model", str(model), "--out", str(tmp_path / "out"), "--cpu", *files, *options]
        status = main.main(["finetune", "file", *words])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return finetune


def test_a_sweep_is_stopped_and_goes_on_and_keeps_the_best(finetune, files, tmp_path, monkeypatch, capsys):
    options = ["--lr", "0.01,1e-9", "--epochs", "8", "--batch-size", "4", "--seeds", "1,2", "--export-predictions"]
    out = tmp_path / "out"
    first = out / "runs/toy/lr0.01_epochs8_batch4_warmup0.1/seed1"

    def stop_after_a_checkpoint():
        deadline = time.monotonic() + 900
        while not (first / "checkpoint_last").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_after_a_checkpoint)
    thread.start()
    with monkeypatch.context() as patched:
        patched.syspath_prepend(REPOSITORY)  # of the process that imports it
        patched.setattr(train, "run", patient.run)
        status, printed = finetune(*options)
    thread.join()
    assert status == 75 and "The same command goes on" in printed
    assert not list(out.glob("runs/*/*/*/result.json")) and (first / "checkpoint_last").exists()
    assert "SIGTERM: the run saves and ends after this update" in (first / "train.log").read_text()

    status, printed = finetune(*options)
    assert status == 0 and "4 runs" in printed
    assert "Loaded checkpoint" in (first / "train.log").read_text()
    found = results.read_all(out)
    assert {(result.setting.lr, result.seed) for result in found.values()} == {
        (lr, seed) for lr in (0.01, 1e-9) for seed in (1, 2)
    }
    for result in found.values():
        assert result.updates == 96 and set(result.scores) == {"valid", "test"}
        assert (result.scores["valid"]["accuracy"] == 1.0) == (result.setting.lr == 0.01)
    row = "| toy | accuracy |  | 100.0/100.0 | 2 | 100.0 to 100.0 | 100.0 to 100.0 | lr0.01_epochs8_batch4"
    assert row in (out / "results.md").read_text() and "100.0/100.0" in printed

    kept = [path for path in out.glob("runs/*/*/*/checkpoint_*") if not path.is_symlink()]
    best = results.best_run(found)
    assert [path.parent for path in kept] == [best] and load_finetuned(best).problem.labels == ["a", "b"]
    assert (out / "predictions/toy.tsv").read_text() == "index\tprediction\n0\ta\n1\tb\n2\ta\n3\tb\n4\ta\n"

    texts = tmp_path / "texts"
    with open(files[files.index("--test") + 1], encoding="utf-8") as rows:
        texts.write_text("".join(row.split("\t")[0] + "\n" for row in list(rows)[1:]))
    assert main.main(["predict", str(best), str(texts), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["label"] for answer in told] == ["a", "b", "a", "b", "a"]
    assert main.main(["export", str(out), "--out", str(tmp_path / "exported")]) == 64
    line = f"{out} holds runs of fine-tuning, name one; those that kept a checkpoint are {best}\n"
    assert capsys.readouterr().err.endswith(line)

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*/*")}
    cli_finetune.export_predictions(out, {"failed": {1: out / "data/failed"}}, "cpu")  # has no run: nothing to do
    status, printed = finetune(*options)
    assert status == 0 and "4 runs, 4 of them done before" in printed
    assert "predictions/toy.tsv is there already, and stays as it is" in printed
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*/*")} == before


def test_a_run_that_was_stopped_after_its_last_update_is_still_measured(finetune, tmp_path):
    options = ["--lr", "0.003", "--epochs", "1", "--batch-size", "8", "--seeds", "1"]
    assert finetune(*options)[0] == 0
    (path,) = tmp_path.glob("out/runs/*/*/*/result.json")
    before = results.read(path.parent)
    path.unlink()
    assert finetune(*options)[0] == 0
    assert results.read(path.parent).scores == before.scores
    for split, scores in before.scores.items():
        predicted, targets = results.read_predictions(path.parent, split)
        assert len(targets) in (12, 5) and (predicted == targets).mean() == scores["accuracy"]


def test_a_run_that_fails_is_told_and_the_others_are_made(finetune, tmp_path):
    broken = tmp_path / "out/runs/toy/lr0.003_epochs1_batch8_warmup0.1/seed1"
    options = ["--lr", "0.003", "--epochs", "1", "--batch-size", "8"]
    assert finetune(*options, "--seeds", "2")[0] == 0
    broken.mkdir(parents=True)
    (broken / "checkpoint_last.pt").write_bytes(b"no checkpoint")
    status, printed = finetune(*options, "--seeds", "1,3", "--jobs", "2")
    assert status == 1
    assert "failed: toy lr0.003_epochs1_batch8_warmup0.1 seed 1: " in printed and str(broken / "train.log") in printed
    assert {result.seed for result in results.read_all(tmp_path / "out").values()} == {2, 3}


def test_no_run_goes_on_after_a_sweep_that_was_killed():
    reading, writing = os.pipe()  # which ends when the last process that holds it has
    killed = os.fork()
    if killed == 0:

        def work():
            threading.Thread(target=sweep.end_with_sweep, daemon=True).start()
            os.write(writing, b"begun")
            time.sleep(600)

        multiprocessing.get_context("fork").Process(target=work).start()
        signal.pause()
    os.close(writing)
    assert os.read(reading, 9) == b"begun"
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert select.select([reading], [], [], 60)[0] and os.read(reading, 9) == b""
    os.close(reading)


def test_what_runs_are_forked_from_has_asked_nothing_of_cuda():
    """After that, CUDA does not work in a fork; fairseq counts devices, which torch does without CUDA, by NVML."""
    code = (
        "import importlib, torch\n"
        "from amos_fairseq.cli.finetune import PRELOAD\n"
        "def refuse(*args): raise SystemExit('CUDA is asked')\n"
        "torch.cuda.is_available = torch.cuda._lazy_init = torch.cuda.current_device = refuse\n"
        "for name in PRELOAD: importlib.import_module(name)\n"
        "assert 'fairseq.trainer' in importlib.sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# Without a run


@pytest.fixture
def job(tmp_path):
    """A run on 20 examples."""
    examples = Examples(np.zeros(40, np.int32), np.full(20, 2), np.zeros(20, np.int64))
    problem = Problem("toy", "classification", ["matthews", "accuracy"], "", ["a", "b"])
    labelled.write(tmp_path / "data", problem, {"train": examples, "valid": examples, "valid1": examples})
    return sweep.plan(tmp_path, {1: tmp_path / "data"}, [SETTING], [1])[0]


def options_of(arguments):
    return {word: following for word, following in zip(arguments, [*arguments[1:], ""]) if word.startswith("--")}


def test_length_and_warm_up_follow_from_the_data(job):
    options = options_of(sweep.training_arguments(job, sweep.Model("model")))
    assert options["--max-update"] == options["--total-num-update"] == "6"  # 3 epochs of 16 and 4
    assert options["--warmup-updates"] == "1"
    assert options["--valid-subset"] == "valid,valid1" and options["--best-checkpoint-metric"] == "matthews"
    assert options["--save-dir"] == str(job.folder) and options["--adam-betas"] == "(0.9, 0.98)"
    assert not {"--cpu", "--bf16", "--fp16", "--from-scratch", "--validate-interval-updates"} & set(options)


def test_a_number_of_updates_is_validated_ten_times(job):
    job = job._replace(setting=SETTING._replace(updates=1000))
    options = options_of(sweep.training_arguments(job, sweep.Model("model", True, True, "fp16")))
    assert options["--max-update"] == "1000" and options["--warmup-updates"] == "100"
    assert options["--validate-interval-updates"] == options["--save-interval-updates"] == "100"
    assert {"--cpu", "--fp16", "--from-scratch"} <= set(options) and options["--fp16-init-scale"] == "4"


def test_every_setting_and_seed_has_a_folder_of_its_own(job, tmp_path):
    data = {1: job.data, 2: job.data}
    jobs = sweep.plan(tmp_path, data, [SETTING, SETTING._replace(lr=1e-5)], [1, 2])
    assert [str(job.folder.relative_to(tmp_path)) for job in jobs] == [
        f"runs/toy/lr{lr}_epochs3_batch16_warmup0.1/seed{seed}" for lr in ("2e-05", "1e-05") for seed in (1, 2)
    ]


def test_a_sweep_that_is_done_keeps_the_best_checkpoint_of_the_best_run_alone_whatever_a_kill_left(tmp_path):
    for seed, score in ((1, 0.5), (2, 0.7), (3, 0.7)):
        folder = tmp_path / f"runs/toy/x/seed{seed}"
        for name in ("checkpoint_1_5", "checkpoint_2_9"):
            (folder / name).mkdir(parents=True)
        (folder / "checkpoint_best").symlink_to("checkpoint_1_5")
        (folder / "checkpoint_last").symlink_to("checkpoint_2_9")
        scores = {"valid": {"accuracy": score}}
        results.write(folder, Result("toy", "classification", ["accuracy"], SETTING, seed, scores, 9, 1.0))
    unfinished = tmp_path / "runs/toy/x/seed4/checkpoint_1_5"
    unfinished.mkdir(parents=True)
    (tmp_path / "runs/toy/x/seed1/checkpoint_3_9.tmp").mkdir()  # half deleted when that was killed
    jobs = [sweep.Job("toy", tmp_path, SETTING, seed, tmp_path / f"runs/toy/x/seed{seed}") for seed in (1, 2, 3)]
    assert sweep.carry_out_all(jobs, sweep.Model(""), print) == ({}, False, False)  # all have a result already
    left = sorted(str(path.relative_to(tmp_path / "runs/toy/x")) for path in tmp_path.rglob("checkpoint_*"))
    assert left == ["seed2/checkpoint_1_5", "seed2/checkpoint_best", "seed4/checkpoint_1_5"]


def test_a_folder_is_held_by_one_sweep_of_one_model(tmp_path):
    out = tmp_path / "out"
    with sweep.claimed(out, {"model": "a"}):
        assert json.loads((out / "sweep.json").read_text()) == {"model": "a"}
        with pytest.raises(ValueError, match="another sweep is at work in .*out"):
            with sweep.claimed(out, {"model": "a"}):
                pass
    with pytest.raises(ValueError, match="was begun with model a, not b: choose another --out, or delete it"):
        with sweep.claimed(out, {"model": "b"}):
            pass
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(ValueError, match="used is in use by something else"):
        with sweep.claimed(tmp_path / "used", {"model": "a"}):
            pass
