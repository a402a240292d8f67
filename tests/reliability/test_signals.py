"""A run that is asked to stop saves, ends with status 75, and goes on as if it had not been."""

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from amos_fairseq import run_log
from amos_fairseq.checkpoints import storage, store
from amos_fairseq.supervision import lock, watch
from tests.reliability.states import assert_equal
from tests.reliability.test_resuming import TRAINED, error_of, last

NAME = "bert_mlm"
OPTIONS = dict(num_workers=1, max_update=8)  # those of `disturbed`
soak = functools.partial(pytest.param, marks=pytest.mark.soak)


@pytest.fixture
def unused_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def through(launch, arguments, tmp_path_factory):
    @functools.cache
    def through(processes):
        folder = tmp_path_factory.mktemp("through")
        options = {**OPTIONS, "save_dir": folder, "batch_size": 8 // processes}
        launch("fairseq_cli.train:cli_main", arguments(NAME, **options), processes)
        return folder

    return through


def updates(outcome):
    """Of each process, the number of updates after the last."""
    lines = [[line for line in out.splitlines() if line.startswith("parameters ")] for out in outcome.out]
    return [int(of_process[-1].split()[1]) for of_process in lines]


TIMES = [(1, None, "SIGTERM"), (2, 1, "SIGTERM"), (2, None, "SIGUSR1"), (2, 0, "SIGUSR2"), (2, None, "SIGTERM to all")]
PLACES = [("startup", 0), ("update", 0), ("update", 2), ("update", 4), ("validation", 1), ("save", 0)]
SOAK = [soak(*who, *where) for who in TIMES for where in PLACES if where[0] != "save" or who[1] != 1]


@pytest.mark.parametrize("processes, rank, what, place, number", [
    (2, 1, "SIGTERM to all", "update", 2), (1, 0, "SIGHUP", "validation", 1), (2, 1, "SIGKILL", "loader", 15),
    soak(1, 0, "SIGKILL", "loader", 30), soak(1, 0, "SIGUSR2", "validation", 1), soak(1, 0, "SIGINT", "save", 0), *SOAK,
])
def test_a_signal_stops_all_processes_after_the_same_update_and_the_run_goes_on_to_the_same_bits(
    disturbed, through, tmp_path, processes, rank, what, place, number
):
    """Signals that come while it saves and leaves change nothing. A loader's worker that is killed stops it, too."""
    events = [(rank, place, number, what), (None, "leaving", 0, "every signal")]
    stopped = disturbed(processes, events, True, save_interval_updates=3)
    assert stopped.codes == [75] * processes, stopped.err
    done = updates(stopped)
    assert done == [done[0]] * processes and done[0] < 8
    if place == "update":
        assert done[0] - number in (1, 2)  # the one that the signal fell into, and the one where all learn of it
    assert last(tmp_path / "run")["optimizer_history"][-1]["num_updates"] == done[0]
    assert "the same command goes on" in stopped.out[0]
    disturbed(processes)
    found, expected = last(tmp_path / "run"), last(through(processes))
    for part in TRAINED:  # not the learning rate's best score: the stopped run has validated more often
        assert_equal(found[part], expected[part], part)
    assert found["extra_state"]["train_iterator"] == expected["extra_state"]["train_iterator"]
    assert found["optimizer_history"][-1]["num_updates"] == expected["optimizer_history"][-1]["num_updates"] == 8


def validated(folder):
    """What the run's validations left: their rows, and the checkpoints with what they are kept for and their scores."""
    rows = [(row["num_updates"], row["loss"]) for row in run_log.read(folder).validation]
    kept = [(c.path.name, c.updates, c.score, tuple(c.purposes)) for c in store.listed(folder)]
    best = storage.read(folder / "checkpoint_best")
    return rows, kept, best["optimizer_history"][-1]["num_updates"], best["extra_state"]["best"]


@pytest.mark.parametrize("processes, place, number, update", [
    (1, "validation", 4, 5), (2, "validation", 8, 8), soak(1, "validation", 2, 4), soak(1, "update", 3, 4),
    soak(2, "validation", 4, 5), soak(2, "validation", 7, 6), soak(1, "validation", 8, 8), soak(1, "update", 4, 5),
])
def test_a_validation_that_a_stop_cut_short_is_made_when_the_run_goes_on(
    disturbed, tmp_path, processes, place, number, update
):
    """There are two batches of validation after updates 2, 4, 5, with which an epoch ends, 6, and 8, the last."""
    options = dict(save_interval_updates=2, keep_interval_updates=2)
    disturbed(processes, save_dir=tmp_path / "through", **options)
    stopped = disturbed(processes, [(0, place, number, "SIGTERM, heard")], True, **options)
    assert stopped.codes == [75] * processes and updates(stopped) == [update] * processes
    assert [row[0] for row in validated(tmp_path / "run")[0]] == [u for u in (2, 4, 5, 6) if u < update]
    disturbed(processes, **options)
    assert validated(tmp_path / "run") == validated(tmp_path / "through")


def test_a_stop_does_not_lengthen_patience_and_where_that_has_ended_the_run_it_stays_ended(disturbed, tmp_path):
    options = dict(max_update=100, patience=3, validate_interval_updates=1, save_interval_updates=1)
    options["maximize_best_checkpoint_metric"] = True  # of the loss, which falls
    assert updates(disturbed(1, [(0, "validation", 5, "SIGTERM, heard")], True, **options)) == [3]
    assert "early stop" in disturbed(1, **options).out[0]
    assert "done training: nothing follows update 4" in disturbed(1, **options).out[0]
    assert [update for update, _ in validated(tmp_path / "run")[0]] == [1, 2, 3, 4]


def test_a_second_interrupt_ends_the_run_at_once(disturbed, tmp_path):
    assert disturbed(1, [(0, "update", 2, "interrupts")], True).codes == [130]
    assert not (tmp_path / "run" / "checkpoint_last").exists()


def test_a_second_interrupt_while_the_run_saves_is_not_its_end(monkeypatch):
    ended = []
    monkeypatch.setattr(watch, "end_at_once", ended.append)
    monkeypatch.setattr(watch, "SAME_REQUEST", -1.0)
    watching = watch.Watch({"startup": ("", 0), "save": ("", 0)}, 0)
    for phase, statuses in ("startup", []), ("save", []), ("startup", [130]):
        watching.enter(phase, 0)
        watching._hear(signal.SIGINT)
        assert ended == statuses and watching.requested == "SIGINT"
    watching.close()


def test_a_run_under_nohup_does_not_hear_of_the_end_of_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    watching = watch.Watch({"startup": ("", 0)}, 0)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.SIGTERM in watching._handlers
    watching.close()
    signal.signal(signal.SIGHUP, before)


def test_interrupts_within_a_second_are_one_key_press_passed_on_twice(disturbed, tmp_path):
    assert disturbed(1, [(0, "update", 2, "SIGINT"), (0, "update", 3, "SIGINT")], True).codes == [75]


@pytest.mark.parametrize("processes", [1, soak(2)])
def test_a_time_limit_stops_like_a_signal(disturbed, tmp_path, processes):
    options = dict(max_update=100000, stop_after_minutes=0.02, disable_validation=True)
    stopped = disturbed(processes, [(None, "update", 0, "clock")], True, **options)
    assert stopped.codes == [75] * processes and "--stop-after-minutes" in stopped.err[0]
    assert updates(stopped) == [last(tmp_path / "run")["optimizer_history"][-1]["num_updates"]] * processes


def test_a_signal_before_the_last_update_of_a_run_lets_it_end_with_success(disturbed):
    assert updates(disturbed(1, [(0, "update", 7, "SIGTERM")], disable_validation=True)) == [8]


@pytest.mark.parametrize("processes", [2, soak(1)])
def test_a_signal_stops_a_task_that_sums_no_votes(disturbed, processes):
    forgotten = [(None, "update", number, "votes forgotten") for number in range(8)]
    stopped = disturbed(processes, [*forgotten, (processes - 1, "optimizer", 3, "SIGTERM")], True, num_workers=0)
    assert stopped.codes == [75] * processes
    assert set(updates(stopped)) in ({5}, {6})


# The launcher of one process per GPU

@pytest.mark.parametrize("code, status", [(75, 75), (70, 70), (3, 1)])
def test_processes_get_the_launchers_signals_and_give_it_their_status(launch, code, status):
    assert launch("tests.reliability.disturbed:spawner", [code], fails=True).codes == [status]


@pytest.mark.soak
def test_fairseqs_own_launcher_of_processes_ends_with_their_status(arguments, tmp_path, unused_port):
    """On a CPU, where it counts the GPUs to know how many to start."""
    command = [sys.executable, Path(__file__).with_name("two_gpus.py"), *arguments(NAME, **{
        **OPTIONS, "save_dir": tmp_path, "max_update": 100000, "disable_validation": True,
        "distributed_world_size": 2, "distributed_backend": "gloo",
        "distributed_init_method": f"tcp://localhost:{unused_port}",
    })]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True)
    stopped = None
    for line in process.stdout:
        if '"num_updates": "5"' in line:
            process.send_signal(signal.SIGTERM)
        stopped = re.search(r"stopped by SIGTERM after update (\d+)", line) or stopped
    assert process.wait(timeout=900) == 75
    assert 5 <= last(tmp_path)["optimizer_history"][-1]["num_updates"] == int(stopped[1]) < 100000


# The lock

TESTS = multiprocessing.Pipe(duplex=False)  # nothing is written: reading ends when this process does


def hold(folder, forks, ready):
    TESTS[1].close()
    held = lock.lock(folder)  # noqa: F841
    if not forks or os.fork():  # as the workers of a DataLoader do, which outlive a killed process for a while
        ready.set()
    TESTS[0].poll(None)
    os._exit(0)


@contextlib.contextmanager
def holder(folder, forks=False):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(folder, forks, ready))
    process.start()
    assert ready.wait(900)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path):
    with holder(tmp_path) as process, pytest.raises(lock.Locked, match=f"process {process.pid} on .*--save-dir"):
        lock.lock(tmp_path)


@pytest.mark.parametrize("forks", [False, True])
def test_a_killed_process_leaves_no_lock_even_if_processes_that_it_forked_live_on(tmp_path, forks):
    with holder(tmp_path, forks):
        pass
    assert (tmp_path / lock.NAME).read_text().startswith("process ")
    with lock.lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / lock.NAME).read_text()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, caplog):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    lock.lock(tmp_path).close()
    assert "start no second run" in caplog.text


@pytest.mark.parametrize("processes", [2, soak(1)])
def test_a_run_in_a_folder_that_another_uses_is_refused_by_all_processes_in_one_line(disturbed, tmp_path, processes):
    with holder(tmp_path / "run"):
        refused = disturbed(processes, fails=True)
    assert refused.codes == [64] * processes and "is in use by process" in error_of(refused)


@pytest.mark.parametrize("name, value, no_save, words", [
    ("loss_spike_factor", 0.5, False, "loss_spike_factor 0.5 takes usual losses for spikes"),
    ("loss_spike_factor", 2.0, True, "loss_spike_factor 2.0 needs checkpoints"),
])
def test_options_that_cannot_be_combined_are_refused_in_one_line(name, value, no_save, words):
    options = pytest.importorskip("amos_fairseq.supervision.options")
    values = options.SupervisionConfig()
    options.check(values, no_save)
    setattr(values, name, value)
    with pytest.raises(ValueError) as refusal:
        options.check(values, no_save)
    assert str(refusal.value).startswith(words) and "\n" not in str(refusal.value)
