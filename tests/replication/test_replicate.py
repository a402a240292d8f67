"""The replication's smallest budget, from text to table."""
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from amos_fairseq import run_log
from amos_fairseq.analysis import sentence_probes
from amos_fairseq.data.manifest import read_manifest

FOLDER = Path(__file__).parents[2] / "examples/replication"
sys.path.insert(0, str(FOLDER))
from claims import CLAIMS  # noqa: E402
from replicate import BUDGETS, Replication, main, on_data  # noqa: E402
from variants import METHODS, PLAIN  # noqa: E402


@pytest.fixture
def forked(started, monkeypatch):
    """What a replication starts runs in forks, on little documentation."""
    forked = functools.partial(started, function="tests.demo.little:main")
    monkeypatch.setitem(main.__globals__, "started", forked)
    return forked


@pytest.fixture
def replicate(forked, monkeypatch, capsys):
    """replicate(out, *options, stopped=False): (status, what it printed) of a run of the budget `smoke`;
    stopped: by SIGTERM, as its second training starts.
    """
    def replicate(out, *options, stopped=False):
        terminated = threading.Event()

        @contextlib.contextmanager
        def stoppable(arguments, log, jobs):
            if stopped and arguments[0] == "train" and list(out.glob("runs/*/1/measured.json")):
                os.kill(os.getpid(), signal.SIGTERM)
                assert terminated.wait(60)
                yield SimpleNamespace(returncode=os.EX_TEMPFAIL, wait=int, poll=int, terminate=int)
            else:
                with forked(arguments, log) as process:
                    yield process

        monkeypatch.setattr(Replication, "stop", lambda self: terminated.set() or stop(self))
        monkeypatch.setitem(main.__globals__, "started", stoppable)
        monkeypatch.setattr(sentence_probes, "ITEMS", sentence_probes.FEWEST_ITEMS)
        monkeypatch.setattr(sys, "argv", ["replicate", "smoke", "--out", str(out), *options])
        try:
            main()
            return 0, capsys.readouterr().out
        except SystemExit as ended:
            return ended.code, capsys.readouterr().err

    stop = Replication.stop
    return replicate


def test_a_stopped_replication_goes_on_and_ends_in_a_table(tmp_path, replicate):
    out, options = tmp_path / "out", ["--variants", "untrained; SCRIPT, no critic", "--jobs", "1", "--seeds", "1"]
    status, told = replicate(out, *options, stopped=True)
    assert status == os.EX_TEMPFAIL and "The same command goes on" in told
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/measured.json")}
    assert len(finished) == 1

    status, table = replicate(out, *options)
    assert status == 0
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert "| untrained | 1 | " in table and "| SCRIPT, no critic | " in table
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [list(seeds) for seeds in runs.values()] == [["1"], ["1"]]
    assert (out / "results.png").stat().st_size > 10_000
    assert all(0.0 <= run["score"] <= 1.0 and run["seconds"] > 0 for seeds in runs.values() for run in seeds.values())


def test_what_cannot_be_replicated_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "budget.json").write_text("{}")
    for options, told in [
        (["smoke", "--variants", "XLNet"], "replicate: error: --variants 'XLNet' is none of untrained;"),
        (["smoke", "--seeds", "1-3"], "replicate: error: --seeds '1-3' are not whole numbers"),
        (["smoke", "--level", "5"], "replicate: error: --level 5.0 is not between 0 and 1"),
        (["smoke"], f"replicate: error: --out {tmp_path} holds another budget"),
        (["node"], "replicate: error: node is for data of your own: name them, --data FOLDER"),
        (["node", "--data", str(tmp_path)], f"replicate: error: {tmp_path} holds no manifest.json"),
    ]:
        monkeypatch.setattr(sys, "argv", ["replicate", *options, "--out", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code.startswith(told)


def test_the_budget_of_a_node_trains_by_the_papers_settings_on_data_of_ones_own(forked, tmp_path, corpus):
    budget = replace(BUDGETS["node"], size="tiny", flops=1e8, batch_size=4)
    on = on_data(budget, Path(corpus))
    manifest = read_manifest(corpus)
    assert (on.vocab_size, on.tokens_per_sample) == (manifest.vocabulary_size, manifest.tokens_per_sample)
    assert on.batch_size == 4 * 128 // manifest.tokens_per_sample  # as many tokens
    replication = Replication(on, PLAIN, tmp_path, 1, Path(corpus))
    run = tmp_path / "run"
    replication.pretrain(PLAIN["TEAMS"], 31, run)
    options = run_log.open_run(run).options
    assert options["mask_token_prob"] == 0.8 and options["mask_prob"] == 0.15  # TEAMS, App. B
    assert options["dropout"] == 0.1 and options["rel_pos_lr_factor"] == 1.0
    assert options["lr"] == [5e-4] and options["max_update"] == 4
    replication.prepare()
    assert {path.name for path in tmp_path.iterdir()} >= {"tasks"} and not (tmp_path / "corpus.txt").exists()
    assert list(PLAIN) == ["untrained", "BERT", "ELECTRA", "AMOS", "COCO-LM", "TEAMS", "PEER", "SCRIPT"]


def test_what_a_budget_costs_is_told_and_nothing_written(tmp_path, corpus, capsys, monkeypatch):
    def told(*arguments):
        command = ["replicate", *map(str, arguments), "--out", str(tmp_path / "out"), "--dry-run"]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return capsys.readouterr().out

    assert "3 seeds: 2.9e+19 FLOPs" in told("node", "--data", corpus)  # 7 methods x 3 seeds x 1.4e18
    cpu = told("cpu", "--seeds", "21,22")
    assert "AMOS, random layer" in cpu and "2 seeds: 1.0e+14 FLOPs" in cpu and "of this CPU" in cpu
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_all_variants_end_in_a_verdict_for_every_claim_by_programs_of_which_the_first_is_stopped(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(FOLDER / "replicate.py"), "smoke", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("runs/*/1/measured.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate()
    assert process.returncode == os.EX_TEMPFAIL and "The same command goes on" in told

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (out / "results.md").read_text()
    assert all(f"\n| {name} | " in table for name in METHODS)
    assert table.count("**") == 2 * (len(CLAIMS) - 1)  # but for one depth against several, of which ELECTRA is the one
