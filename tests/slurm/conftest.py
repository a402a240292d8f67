"""A Slurm of two programs, and an `amos-fairseq` that notes how it was called instead of training."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

SCONTROL = """
import os, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print(*sys.argv[3].split("+"), sep="\\n")
elif sys.argv[1] == "requeue":
    open(os.environ["FAKE"] + "/requeued", "a").write(sys.argv[2] + "\\n")
"""

# Starts the tasks of all nodes here, passes signals on, ends with the highest status.
SRUN = """
import os, signal, subprocess, sys
options, command = sys.argv[1:sys.argv.index("bash")], sys.argv[sys.argv.index("bash"):]
tasks, per_node = (int(options[options.index(name) + 1]) for name in ("--ntasks", "--ntasks-per-node"))
started = []
def pass_on(number, frame):
    for task in started:
        task.send_signal(number)
signal.signal(signal.SIGUSR2, pass_on)
for rank in range(tasks):
    own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % per_node)}
    started.append(subprocess.Popen(command, env={**os.environ, **own}))
codes = [task.wait() for task in started]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""

# Does what the file `behaviour` of FAKE says: `exit N`; `train N`: wait for SIGUSR2, save update N, exit with 75;
# `lose N`: save an update more than the attempt before, exit with N; `taken N`: fail N times as where a port is taken.
COMMAND = """
import json, os, pathlib, signal, sys, time
fake = pathlib.Path(os.environ["FAKE"])
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
rank = os.environ.get("RANK", "0")
verb, number = (fake / "behaviour").read_text().split()
attempt = len(list(fake.glob(f"call-*-{rank}")))
def save(updates):
    path = pathlib.Path(next(a.partition("=")[2] for a in sys.argv if a.startswith("checkpoint.save_dir=")))
    (path / f"checkpoint_1_{updates}").mkdir(parents=True, exist_ok=True)
    (path / f"checkpoint_9_{updates}999.tmp").mkdir(exist_ok=True)
def stop(*_):
    for other in stops:  # one more, as Python ends, would be its death
        signal.signal(other, signal.SIG_IGN)
    save(number)
    sys.exit(75)
stops = (signal.SIGUSR2, signal.SIGHUP)
for each in stops:
    signal.signal(each, stop)
note = {"arguments": sys.argv[1:], **{name: os.environ.get(name) for name in names}}
(fake / "note").mkdir(exist_ok=True)
partial = fake / f"partial-{os.getpid()}"
partial.write_text(json.dumps(note))
partial.rename(fake / f"call-{attempt}-{rank}")
if verb == "lose":
    save(attempt + 1)
if verb in ("exit", "lose"):
    sys.exit(f"ValueError: error of rank {rank}" if number == "1" else int(number))
if verb == "taken":
    sys.exit("DistNetworkError: name: EADDRINUSE" if attempt < int(number) else 0)
time.sleep(900)
"""


def heeding() -> None:
    """What nohup, or a shell in the background, has the tests ignore, the script under test does not."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Cluster:
    def __init__(self, folder: Path):
        self.folder, self.fake = folder / "submitted from", folder / "fake"
        programs = folder / "bin"
        for path in (self.folder / "data", self.fake, programs):
            path.mkdir(parents=True)
        (self.folder / "data" / "manifest.json").write_text("{}")
        shutil.copytree(REPOSITORY / "slurm", self.folder / "slurm")
        (self.folder / "examples").symlink_to(REPOSITORY / "examples")
        for name, source in (("scontrol", SCONTROL), ("srun", SRUN), ("amos-fairseq", COMMAND)):
            (programs / name).write_text(f"#!{sys.executable} -S\n{source}")
            (programs / name).chmod(stat.S_IRWXU)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CUDA"))}
        path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
        self.environment = {**kept, "FAKE": str(self.fake), "PATH": path}
        self.behaves("exit 0")

    def behaves(self, words: str) -> None:
        (self.fake / "behaviour").write_text(words)

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Run a script of slurm/ where Slurm does: from a copy of it, in the folder that it was submitted from."""
        if "SLURM_JOB_ID" in environment:
            path = self.fake / "slurm_script"
            shutil.copy(self.folder / "slurm" / script, path)
        else:
            path = self.folder / "slurm" / script
        return subprocess.Popen(
            ["bash", path, *arguments], cwd=self.folder, env={**self.environment, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeding,
        )

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=900)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def stop(self, process: subprocess.Popen, calls: int, number: int = signal.SIGUSR2) -> tuple[int, str]:
        """Send a signal to the batch shell alone, once so many processes are at work; its status and errors."""
        deadline = time.monotonic() + 900
        while len(self.calls()) < calls:
            assert time.monotonic() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        err = process.communicate(timeout=900)[1]
        return process.returncode, err

    def calls(self) -> list[dict]:
        """What the processes noted, in order of attempts and ranks."""
        return [json.loads(path.read_text()) for path in sorted(self.fake.glob("call-*"))]

    @property
    def requeued(self) -> list[str]:
        path = self.fake / "requeued"
        return path.read_text().split() if path.exists() else []

    @staticmethod
    def job(nodes: int = 1, gpus: int = 8, number: int = 123456) -> dict[str, str]:
        """The environment of a job."""
        return {
            "SLURM_JOB_ID": str(number),
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": "+".join(f"node{1 + node}" for node in range(nodes)),
            "SLURM_NTASKS_PER_NODE": str(gpus),
            "SLURM_GPUS_ON_NODE": str(gpus),
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_SUBMIT_DIR": ".",
        }


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)
