"""What happens to commands: they are stopped or killed, their disk takes no more, what they are to read is no file.

Each command is run through first; then it is attacked at points of its own, POINTS of the changes that it makes to the
disk, of the pages and of the files that it needs. How many held is told at the end. Disks are tmpfs, which root mounts.
"""

import contextlib
import functools
import hashlib
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import pytest
import yaml

from amos_fairseq.cli import main
from amos_fairseq.files import is_temporary
from tests.reliability.test_writers import changes

pytest.importorskip("fairseq")
pytestmark = pytest.mark.soak

POINTS, PAGE = 4, 4096
TIMED = ("train.log", "metrics.jsonl", "result.json")  # files that tell how long something took, in tenths of seconds
TOLD = -1  # in place of a change: what was imported is told, so that later forks have to import nothing
SECONDS, MOST_MEMORY = 300, 6 << 30  # of a command
TUNED = "tuned/runs/labelled/lr0.001_epochs1_batch32_warmup0.1/seed1"
FILE = "finetune file --train labelled.tsv --valid labelled.tsv --text text --label label --cpu --max-length 32"
TUNE = f"{FILE} --model run --seeds 1 --epochs 1 --lr 0.001"
WRITE = {  # what: words, of which OUT is what is written
    "report": "report run --logs-only --out OUT",
    "corpus": "corpus --megabytes 0.05 --out OUT",
    "tasks": "corpus --tasks OUT --examples 16",
    "export": "export run --out OUT",
    "export of a tuned run": f"export {TUNED} --out OUT",
    "convert": "convert released --to huggingface --out OUT",
    "average": "average run twin --out OUT",
    "embed": "embed run lines.txt --out OUT.npy",
    "inspect": "inspect run --text ba --html OUT.html --data DATA",
    "recipes": "recipes copy OUT",
    "minimal-pairs": "minimal-pairs run --pairs pairs.tsv --out OUT.jsonl --data DATA",
    "probe": "probe run --train words.tsv --test words.tsv --png OUT.png",
    "finetune": f"{TUNE},0.002 --test labelled.tsv --export-predictions --out OUT",
}
KILLED_ELSEWHERE = {  # by the tests of resuming and of preparation
    "prepare": "prepare lines.txt --documents line --vocab-size 100 --tokens-per-sample 32 --workers 1 --out OUT",
    "train": "train TRAINING --save-interval-updates 2 --save-dir OUT",
    "train by hydra": "train --config-dir . --config-name tiny hydra.run.dir=OUT checkpoint.save_dir=OUT/run",
}
GOES_ON = ("report", "finetune", "prepare", "train", "train by hydra")  # from whole files, the others from nothing
READ = {  # what: words, of which PATH is read
    "score": "score run PATH", "detect": "detect run --file PATH", "embed": "embed run PATH --out x.npy",
    "predict": f"predict {TUNED} PATH", "similarity": "similarity run --tasks PATH",
    "inspect": "inspect run --file PATH",
    "minimal-pairs": "minimal-pairs run --pairs PATH", "probe": "probe run --train PATH --test words.tsv",
    "finetune": "finetune file --train PATH --valid PATH --text text --label label --model run --out x --cpu",
    "finetune squad": "finetune squad --train PATH --valid PATH --model run --out x --cpu",
    "finetune a model": f"{FILE} --model PATH --out x", "results": "finetune results PATH",
    "prepare": "prepare PATH --out x",
    "vocabulary": "prepare lines.txt --vocabulary PATH --out x", "report": "report PATH --out x",
    "export": "export PATH --out x", "convert": "convert PATH --to fairseq --out x",
    "average": "average PATH run --out x", "a run": "score PATH lines.txt", "data": "inspect run --data PATH",
}
PRINT = {
    "score": "score run lines.txt", "detect": "detect run --file lines.txt", "predict": f"predict {TUNED} lines.txt",
    "options": "options amos_rtd", "where": "where", "recipes": "recipes", "flops": "flops amos_rtd",
    "help": "score --help", "inspect": "inspect run --text ba", "results": "finetune results tuned",
    "fill-mask": "fill-mask run <mask>",
    "minimal-pairs": "minimal-pairs run --pairs pairs.tsv", "dry run": "train --dry-run TRAINING --save-dir x",
}
NO_FILES = {"a device": "/dev/zero", "a folder": "empty", "nothing": "gone.tsv", "an empty file": "/dev/null"}


class Attempt(NamedTuple):
    status: int
    told: str  # on standard error
    changes: int

    @property
    def in_one_line(self) -> bool:
        return self.told.count("error: ") == 1 and "Traceback" not in self.told


class Through(NamedTuple):
    """What a command makes if nothing happens to it."""

    changes: int
    pages: int
    files: int
    made: Dict[str, Optional[str]]  # by path the SHA-256, None of what is never the same twice


def attempt(words, folder, changed="/", number=sys.maxsize, sent=0, out=os.devnull) -> Attempt:
    """A command in a fork of this process, which gets a signal before that change which it makes below `changed`.

    Its own processes are forks, too. SIGKILL hits all of them.
    """
    told, counted = folder / "told", multiprocessing.Value("i", 0)
    child = os.fork()
    if child == 0:
        status, first, fork = 1, os.getpid(), multiprocessing.get_context("fork")

        def watch(event, arguments):
            if not changes(event, arguments, str(changed)):
                return
            with counted.get_lock():
                counted.value += 1
                now = counted.value == number + 1
            if now:
                os.kill(first, sent)
                if sent == signal.SIGKILL:
                    os.kill(os.getpid(), sent)

        try:
            for descriptor, path in enumerate((os.devnull, out, told)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC * (path is told), 0o600), descriptor)
            sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
            os.chdir(folder)
            sys.argv, multiprocessing.get_context = ["amos-fairseq", *words], lambda method=None: fork
            resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
            signal.alarm(SECONDS)
            sys.addaudithook(watch)
            status = main.main(words)
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            if number == TOLD:
                (folder / "modules").write_text("\n".join(sys.modules))
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Attempt(status, told.read_text(errors="replace"), counted.value)


def content(folder: Path) -> Dict[str, Optional[str]]:
    """SHA-256 by path; None of a folder and of TIMED."""
    return {
        str(path.relative_to(folder)):
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and path.name not in TIMED else None
        for path in folder.rglob("*")
    }


def differing(folder: Path, through: Through) -> List[str]:
    """What is in the folder that should not, or is not as it should be; empty if the command is through."""
    found = content(folder)
    changed = [name for name, sha in through.made.items() if sha not in (None, found.get(name))]
    return sorted({*changed, *(found.keys() ^ through.made.keys())})


def spread(total: int, ends=(0, 1)):
    """Of 0 .. total - 1 the ends, and some between."""
    between = {round(place * (total - 1) / (POINTS - 1)) for place in range(POINTS)}
    return sorted({*ends, *between, total - 2} & set(range(total)))


class Disk:
    """A tmpfs with a folder."""

    def __init__(self, place: Path):
        self.place, self.folder = place, place / "folder"
        place.mkdir()
        self.mount("-t", "tmpfs", "-o", "size=64m,nr_inodes=100000", "tmpfs")
        self.folder.mkdir()
        (place / "page").write_text("for a limit of 0 pages is none")

    def mount(self, *options):
        subprocess.run(["mount", *options, str(self.place)], check=True)

    def leave(self, what: str, left: int = 0):
        of_disk = os.statvfs(self.place)
        pages, files = of_disk.f_blocks - of_disk.f_bfree + left, of_disk.f_files - of_disk.f_ffree + left
        limits = {"pages": f"size={pages * PAGE}", "files": f"nr_inodes={files}", "nothing": "ro"}
        self.mount("-o", f"remount,{limits[what]}")

    def leave_all(self):
        self.mount("-o", "remount,rw,size=64m,nr_inodes=100000")


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root mounts a tmpfs")
    try:
        disk = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.place)], check=True)


@pytest.fixture(scope="module")
def base(arguments, yaml_config, text, tmp_path_factory):
    """A folder with runs and what else the commands name."""
    for module in ("fairseq_cli.train", "fairseq_cli.hydra_train", "amos_fairseq.tasks", "torch._dynamo"):
        importlib.import_module(module)
    folder = tmp_path_factory.mktemp("base")
    lines = [line for line in text.read_text().split("\n") if line][:32]
    tables = {
        "lines.txt": lines,
        "labelled.tsv": ["text\tlabel", *(f"{line}\t{'ab'[number % 2]}" for number, line in enumerate(lines))],
        "words.tsv": [f"{word}\tN" if word else "" for line in lines for word in (*line.split(), "")],
        "pairs.tsv": ["good\tbad", *map("\t".join, zip(lines, lines[1:]))],
    }
    tables["words.tsv"][::7] = [row.replace("\tN", "\tV") for row in tables["words.tsv"][::7]]
    for name, rows in tables.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    (folder / "empty").mkdir()
    tiny = {**yaml_config("bert_mlm"), "checkpoint": {"save_interval_updates": 4}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    relative = dict(rel_pos_buckets=32, rel_pos_max_distance=128, encoder_layers=2, max_update=4, user_dir=None)
    for name, options in {"run": {}, "twin": dict(seed=4), "released": dict(rel_pos_bucketing="released")}.items():
        done = attempt(["train", *arguments("amos_rtd", save_dir=folder / name, **relative, **options)], folder)
        assert done.status == 0, done.told
    assert attempt(f"{TUNE} --out tuned".split(), folder).status == 0
    return folder


@pytest.fixture(scope="module")
def words_of(arguments, corpus):
    def words_of(line, **replaced):
        training = arguments("bert_mlm", user_dir=None, max_update=4)
        words = [word for part in line.split() for word in (training if part == "TRAINING" else [part])]
        for name, value in {"DATA": corpus, **replaced}.items():
            words = [word.replace(name, str(value)) for word in words]
        return words

    return words_of


@pytest.fixture(scope="module")
def through(base, words_of, tmp_path_factory):
    @functools.cache
    def through(name):
        made = []
        for number in (TOLD, sys.maxsize):  # twice, since some files tell when they were made
            folder = tmp_path_factory.mktemp("through")
            done = attempt(words_of({**WRITE, **KILLED_ELSEWHERE}[name], OUT=folder / "out"), base, folder, number)
            assert done.status == 0, done.told
            made.append(content(folder))
            for module in (base / "modules").read_text().split("\n"):
                with contextlib.suppress(BaseException):
                    importlib.import_module(module)
        same = {path: sha if made[1].get(path) == sha else None for path, sha in made[0].items()}
        pages = sum(-(-path.stat().st_size // PAGE) for path in folder.rglob("*") if path.is_file())
        return Through(done.changes, pages, len(same), same)

    return through


@pytest.fixture(scope="module")
def held(request):
    """held(what, told, *conditions): [], or what was told where one does not hold; counts both."""
    tried, right = Counter(), Counter()

    def held(what, told, *conditions):
        tried[what] += 1
        right[what] += all(conditions)
        return [] if all(conditions) else [(told, conditions)]

    yield held
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        for what in tried:
            print(f"\n{what}: {right[what]} of {tried[what]} held", end="")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("name", WRITE)
def test_a_command_leaves_all_or_nothing_and_the_next_one_goes_on_to_the_same_bits(
    base, words_of, through, held, tmp_path, name, sent
):
    whole, wrong = through(name), []
    for number in spread(whole.changes):
        folder = tmp_path / str(number)
        folder.mkdir()
        words = words_of(WRITE[name], OUT=folder / "out")
        first = attempt(words, base, folder, number, sent)
        was_whole, left = not differing(folder, whole), list(folder.rglob("*"))
        if sent == signal.SIGTERM:
            clean = not any(map(is_temporary, left)) if name in GOES_ON else not left
            ended = (was_whole or clean) and first.status in (128 + sent, os.EX_TEMPFAIL, 0)
        else:
            ended = first.status == -sent
        again = attempt(words, base, folder)
        so = again.status == 0 or (was_whole and again.status == os.EX_USAGE)
        differs = differing(folder, whole)
        told = (number, first, left, again, differs)
        wrong += held(sent.name, told, ended, "Traceback" not in first.told, so, not differs)
    assert not wrong


@pytest.mark.parametrize("what", ["pages", "files", "nothing"])
@pytest.mark.parametrize("name", [*WRITE, *KILLED_ELSEWHERE])
def test_a_disk_that_takes_no_more_is_74_in_one_line_and_once_there_is_room_the_command_goes_on(
    base, words_of, through, held, disk, name, what
):
    words, wrong = words_of({**WRITE, **KILLED_ELSEWHERE}[name], OUT=disk.folder / "out"), []
    whole = through(name)
    for left in [0] if what == "nothing" else spread(getattr(whole, what)):
        disk.leave(what, left)
        first = attempt(words, base, disk.folder)
        was_whole = not differing(disk.folder, whole)
        disk.leave_all()
        again = Attempt(0, "", 0) if was_whole else attempt(words, base, disk.folder)
        ended = first.status == os.EX_IOERR and first.in_one_line or first.status == 0 and was_whole
        differs = differing(disk.folder, whole)
        wrong += held(f"full: {what}", (left, first, again, differs), ended, again.status == 0, not differs)
        subprocess.run(["find", str(disk.folder), "-mindepth", "1", "-delete"], check=True)
    assert not wrong


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", READ)
def test_what_is_no_file_is_refused_in_one_line(base, words_of, held, name, kind):
    done = attempt(words_of(READ[name], PATH=NO_FILES[kind]), base)
    assert not held("no file", done, done.status in (os.EX_USAGE, os.EX_DATAERR), done.in_one_line)


@pytest.mark.parametrize("name", PRINT)
def test_a_full_disk_under_what_is_printed_is_74_in_one_line(base, words_of, held, name):
    done = attempt(words_of(PRINT[name]), base, out="/dev/full")
    assert not held("printed", done, done.status == os.EX_IOERR, done.in_one_line)
