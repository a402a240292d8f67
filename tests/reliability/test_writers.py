"""Commands that write, stopped or killed before each change that they make to the disk, and disks that take no more."""

import errno
import itertools
import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from amos_fairseq import files
from amos_fairseq.analysis import figures, held_out_figures, report
from amos_fairseq.cli import main
from amos_fairseq.demo import documentation, documentation_tasks
from amos_fairseq.user_errors import one_line

pytest.importorskip("fairseq")
from amos_fairseq.checkpoints.training import decided_by_first  # noqa: E402
from amos_fairseq.cli.train import mistakes_in_configurations_told  # noqa: E402

ROWS = [{"loss": "3.5", "num_updates": str(update), "mlm": "3.1"} for update in range(1, 9)]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Words by name, less the path that they write to; what is slow about them is left out."""
    (tmp_path / "train.log").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    images = dict.fromkeys(["loss", "accuracy"], b"png")
    monkeypatch.setattr(figures, "CURVES", images)
    monkeypatch.setattr(figures, "COURSE", {})
    monkeypatch.setattr(figures, "papers", dict)
    monkeypatch.setattr(held_out_figures, "FIGURES", {})
    monkeypatch.setattr(report, "sections", lambda *_: None)
    monkeypatch.setattr(report, "render", lambda *_: (report.MARK, images))
    monkeypatch.setattr(documentation, "_documents", lambda: iter(["one", "two"]))
    tasks = {"cola": lambda folder, split, *_: write_lines(folder / "CoLA" / f"{split}.tsv", "line")}
    monkeypatch.setattr(documentation_tasks, "TASKS", tasks)
    empty = documentation_tasks.HeldOut(*[[]] * len(documentation_tasks.HeldOut._fields))
    monkeypatch.setattr(documentation_tasks, "read_held_out", lambda: dict.fromkeys(documentation_tasks.SPLITS, empty))
    return {
        "report": ["report", str(tmp_path / "train.log"), "--logs-only", "--out"],
        "corpus": ["corpus", "--megabytes", "0.01", "--out"],
        "tasks": ["corpus", "--tasks"],
    }


def write_lines(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return 1


def changes(event, arguments, folder):
    """Whether an audited event is about to change something in the folder."""
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(folder) and flags & 3
    return event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") and os.fsdecode(arguments[0]).startswith(folder)


def run(words, folder, number=sys.maxsize, sent=0):
    """The status of a command in a fork of this process, which sends itself a signal before its change `number`."""
    child = os.fork()
    if child == 0:
        status, counted = 1, itertools.count()

        def watch(event, arguments):
            if changes(event, arguments, str(folder)) and next(counted) == number:
                os.kill(os.getpid(), sent)

        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.addaudithook(watch)
            status = main.main(words)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["report", "corpus", "tasks"])
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_stopped_leaves_all_or_nothing_and_the_next_one_clears_what_a_kill_left(
    commands, tmp_path, name, sent
):
    through = tmp_path / "through"
    through.mkdir()
    assert main.main([*commands[name], str(through / "out")]) == 0  # here, so that no fork has to import anything
    for number in itertools.count():
        folder = tmp_path / str(number)
        folder.mkdir()
        words = [*commands[name], str(folder / "out")]
        status = run(words, folder, number, sent)
        if status == 0:  # it makes fewer changes
            assert number > 1
            break
        if sent == signal.SIGTERM:
            assert status == 128 + sent and tree(folder) in ([], tree(through))
        else:
            assert status == -sent
        assert run(words, folder) == 0 and tree(folder) == tree(through)


def test_folders_and_files_of_processes_that_are_gone_are_removed_and_others_kept(tmp_path, monkeypatch):
    gone = os.fork() or os._exit(0)
    os.waitpid(gone, 0)
    host = files.socket.gethostname()
    kept = [f"a.{host}.{os.getppid()}.tmp", f"a.elsewhere.{gone}.tmp", f"b.{host}.{gone}.tmp", "a.tmp"]
    for name in [*kept, f"a.{host}.{gone}.tmp", f"a.{host}.{os.getpid()}.tmp"]:
        (tmp_path / name).write_text("half")
    files.remove_leftovers(tmp_path, "a")
    assert tree(tmp_path) == sorted(kept)
    (tmp_path / f".out.{host}.{gone}.tmp").mkdir()
    with files.new_folder(tmp_path / "out") as partial:
        (partial / "whole").touch()
    assert tree(tmp_path) == sorted([*kept, "out", "out/whole"])


def test_what_was_killed_at_its_first_write_goes_on(tmp_path):
    (tmp_path / f"sweep.json.elsewhere.{os.getpid()}.tmp").touch()
    with files.claimed(tmp_path / "sweep.json", {"model": 1}, "at work", "begun with"):
        assert json.loads((tmp_path / "sweep.json").read_text()) == {"model": 1}


LINES = {
    errno.ENOSPC: "{out}: the disk of {folder} is full: make room there, then give the same command again",
    errno.EROFS: "{out}: the disk of {folder} is read-only: name another folder, or have it mounted to be written to, "
                 "then give the same command again",
}


@pytest.mark.parametrize("number", LINES)
def test_a_disk_that_takes_no_more_is_told_also_where_hydra_or_the_lock_writes_first(number, tmp_path, capsys):
    out = tmp_path / "run" / ".hydra"

    def write():
        raise OSError(number, os.strerror(number), str(out))

    with pytest.raises(SystemExit) as ended, mistakes_in_configurations_told([]):
        write()
    assert ended.value.code == 74
    line = f"amos_fairseq: error: {LINES[number].format(out=out, folder=tmp_path)}\n"
    assert capsys.readouterr().err == line
    alone = SimpleNamespace(is_data_parallel_master=True, data_parallel_world_size=1)
    with pytest.raises(SystemExit) as ended:
        decided_by_first(alone, write, {OSError: (one_line, 64)})
    assert ended.value.code == 74 and capsys.readouterr().err == line


def test_a_disk_without_room_for_a_file_is_no_full_one(tmp_path, monkeypatch):
    of_disk = SimpleNamespace(f_files=9, f_favail=0, f_bavail=9)
    monkeypatch.setattr(os, "statvfs", lambda path: of_disk)
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "a"))
    told = "can hold no more files, whatever their size: delete some there, then give the same command again"
    assert one_line(error) == f"{tmp_path / 'a'}: the disk of {tmp_path} {told}"
    of_disk.f_files = 0  # of a file system without inodes
    assert "is full" in one_line(error)


def test_a_full_disk_under_standard_output_is_74_in_one_line(monkeypatch, capfd):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main.main(["options", "bert_mlm"]) == 74
    assert capfd.readouterr().err == (
        "amos-fairseq options: error: the disk is full: make room there, then give the same command again\n"
    )
