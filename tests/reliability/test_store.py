"""Whatever happens while a checkpoint is saved, the run has a newest valid one; what is kept is what was asked for."""

import builtins
import errno
import os
import signal

import pytest

from amos_fairseq import checkpoints
from amos_fairseq.checkpoints import storage, store
from tests.reliability.states import names, save, update_of

CALLS = ("open", "fsync", "rename", "replace", "symlink", "mkdir", "unlink", "rmdir")


def killed_at(call: int, action) -> bool:
    """Run `action` in a process that is killed instead of its `call`th change of files; whether there was as many."""
    child = os.fork()
    if child == 0:
        remaining = [call]

        def counted(function):
            def call(*arguments, **options):
                remaining[0] -= 1
                if remaining[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)
            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        builtins.open = counted(builtins.open)
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_kill_anywhere_in_saving_and_deleting_leaves_a_newest_checkpoint(tmp_path):
    """Before each of all changes of files that the third save of a run makes, which deletes the first."""
    call = 0
    while True:
        folder = tmp_path / str(call)
        folder.mkdir()
        save(folder, 1), save(folder, 2, is_best=True, score=1.0)
        killed = killed_at(call, lambda: save(folder, 3, keep_interval_updates=1))
        newest = checkpoints.newest_valid(folder)
        assert update_of(newest) in ((2, 3) if killed else (3,))
        assert update_of(folder / store.LAST) in (2, 3) and update_of(folder / store.BEST) == 2
        store.remove_remains(folder)
        assert not list(folder.glob("*.tmp"))
        assert update_of(save(folder, 4, keep_interval_updates=1)) == 4
        assert names(folder) == ["checkpoint_1_2", "checkpoint_1_4", store.BEST, store.LAST]
        if not killed:
            break
        call += 1
    assert call > 20


class Disk:
    """Its writes fail with `number` after so many bytes; the first `times` attempts only."""

    def __init__(self, monkeypatch, number, times=99, room=300):
        self.number, self.times, self.room, self.attempts, self.slept = number, times, room, 0, []
        original, disk = storage.write_durably, self

        def write_durably(path, chunks):
            def limited():
                written = 0
                for chunk in chunks:
                    written += len(chunk)
                    if written > disk.room and disk.attempts < disk.times:
                        yield bytes(chunk)[: disk.room]
                        disk.attempts += 1
                        raise OSError(disk.number, os.strerror(disk.number))
                    yield chunk
            return original(path, limited())

        monkeypatch.setattr(storage, "write_durably", write_durably)
        monkeypatch.setattr(store.time, "sleep", self.slept.append)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_takes_no_more_keeps_the_checkpoints_that_there_are(tmp_path, monkeypatch, number):
    save(tmp_path, 1), save(tmp_path, 2)
    before = names(tmp_path)
    disk = Disk(monkeypatch, number)
    with pytest.raises(OSError) as error:
        save(tmp_path, 3, keep_interval_updates=1)
    assert error.value.errno == number and disk.slept == list(store.SECONDS_BETWEEN_ATTEMPTS)
    assert names(tmp_path) == before
    assert update_of(checkpoints.newest_valid(tmp_path)) == update_of(tmp_path / store.LAST) == 2
    assert update_of(tmp_path / "checkpoint_1_1") == 1


def test_an_error_that_passes_costs_one_attempt(tmp_path, monkeypatch, caplog):
    disk = Disk(monkeypatch, errno.EIO, times=1)
    assert update_of(save(tmp_path, 1)) == 1
    assert disk.slept == [1] and "writing" in caplog.text and "Input/output error" in caplog.text


# What is kept

def updates(folder):
    return sorted(int(path.name.split("_")[2]) for path in folder.glob("checkpoint_1_*"))


@pytest.mark.parametrize(
    "retention, kept",
    [
        (dict(), [10, 20, 25, 30, 40, 50]),
        (dict(keep_interval_updates=1, keep_last_epochs=1), [30, 40, 50]),
        (dict(keep_interval_updates=2, keep_last_epochs=1), [25, 30, 40, 50]),
        (dict(keep_interval_updates=1, keep_interval_updates_pattern=20, keep_last_epochs=1), [20, 25, 30, 40, 50]),
        (dict(keep_interval_updates=1, keep_last_epochs=1, keep_best_checkpoints=2), [10, 20, 30, 40, 50]),
        (
            dict(keep_interval_updates=1, keep_last_epochs=1, keep_best_checkpoints=2,
                 maximize_best_checkpoint_metric=True),
            [25, 30, 40, 50],
        ),
    ],
)
def test_retention_keeps_what_the_options_of_fairseq_say(tmp_path, retention, kept):
    """Interval checkpoints but for an epoch's end at 30, all kept until the last is saved, with a score of 3."""
    for update, score in (10, 1.0), (20, 2.0), (25, 6.0), (30, 4.0), (40, 5.0):
        save(tmp_path, update, score, ["epoch" if update == 30 else "interval"])
    save(tmp_path, 50, 3.0, [], **retention)
    assert updates(tmp_path) == kept


def test_a_checkpoint_without_purpose_is_kept_while_it_is_the_newest(tmp_path):
    for update in 1, 2, 3:
        save(tmp_path, update, purposes=[])
        assert updates(tmp_path) == [update]


def test_the_best_and_the_last_valid_are_never_deleted(tmp_path):
    save(tmp_path, 1, 0.5, [], is_best=True)
    (save(tmp_path, 2) / storage.MODEL).unlink()
    (save(tmp_path, 9) / storage.MANIFEST).write_text("")
    save(tmp_path, 3, 0.9, keep_interval_updates=1, keep_best_checkpoints=1)
    assert updates(tmp_path) == [1, 3, 9]  # 9 is evidence
    assert update_of(checkpoints.newest_valid(tmp_path)) == 3 and update_of(tmp_path / store.BEST) == 1


def test_a_run_that_went_back_goes_on_from_what_it_wrote_last(tmp_path):
    """Not from the highest update; and the checkpoint of the same name stays what it was."""
    for update in 10, 20, 30, 20:
        path = save(tmp_path, update, keep_interval_updates=2)
    assert path.name == "checkpoint_1_20-2" and checkpoints.newest_valid(tmp_path) == path
    assert names(tmp_path) == ["checkpoint_1_20-2", "checkpoint_1_30", store.LAST]


# Which one is meant

def test_a_checkpoint_is_found_by_folder_link_manifest_run_and_old_file(tmp_path):
    old = tmp_path / "checkpoint_last.pt"
    old.touch()
    assert checkpoints.find(tmp_path) == checkpoints.find(old) == old
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    assert checkpoints.find(first) == checkpoints.find(first / storage.MANIFEST) == first
    assert checkpoints.find(tmp_path / store.LAST).samefile(second) and checkpoints.find(tmp_path) == second
    for path, told in (tmp_path / "gone", "does not exist"), (tmp_path.parent, "holds no checkpoint"):
        with pytest.raises(ValueError, match=f"{path} {told}"):
            checkpoints.find(path)
