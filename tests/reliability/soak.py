"""A training of many updates, validations and saves, and what its processes hold meanwhile: nothing may grow.

    python3 -m tests.reliability.soak FOLDER         20,000 updates, 400 validations and saves
    python3 -m tests.reliability.soak FOLDER --updates 2000 --validations 40

Two processes over gloo with two loader workers each train a tiny model. FOLDER/soak.json has a sample of each process a
second; the second quarter of the run is compared with the last, and what grew ends this with status 1.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

GROWTH = {  # of a quarter's median, or greatest number of threads and children, that is none
    "memory, MB": 5.0, "descriptors": 10, "threads": 0, "children": 0, "shared memory, MB": 1.0, "disk, MB": 0.5,
}
OPTIONS = """
    --task bert_mlm --arch bert_mlm_tiny --criterion bert_mlm --cpu --seed 1 --log-format json --log-interval 1000
    --tokens-per-sample 32 --max-positions 32 --encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32
    --encoder-attention-heads 2 --batch-size 8 --optimizer adam --lr 0.001 --lr-scheduler polynomial_decay
    --no-epoch-checkpoints --keep-interval-updates 2
""".split()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--updates", type=int, default=20000)
    parser.add_argument("--validations", type=int, default=400)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args(arguments)
    asked.folder.mkdir(parents=True)
    data = corpus(asked.folder)
    start, samples = time.monotonic(), []
    processes = [train(asked, data, rank, port) for port in [free_port()] for rank in range(asked.processes)]
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(1)
            samples.append([held(process.pid, asked.folder) for process in processes])
    finally:
        for process in processes:
            process.kill()
    codes = [process.wait() for process in processes]
    found = {f"process {rank}": compared([sample[rank] for sample in samples]) for rank in range(asked.processes)}
    report = {"seconds": round(time.monotonic() - start), "codes": codes, "quarters": found, "samples": samples}
    (asked.folder / "soak.json").write_text(json.dumps(report, indent=1))
    print(f"{asked.updates} updates, {asked.validations} validations and saves, {report['seconds']} s, codes {codes}")
    grew = False
    for name, quarters in found.items():
        for what, (second, last) in quarters.items():
            more = last - second > GROWTH[what]
            grew |= more
            print(f"{name}: {what:18} {second:9.1f} {last:9.1f}{'   grew' if more else ''}")
    return int(grew or any(codes))


def corpus(folder: Path) -> str:
    from amos_fairseq.data.preparation import prepare

    draw = random.Random(1)
    words = ["".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(3)) for _ in range(300)]
    documents = (" ".join(draw.choices(words, k=40)) for _ in range(2000))
    (folder / "text.txt").write_text("\n\n".join(documents))
    sizes = dict(vocab_size=300, tokens_per_sample=32, valid_fraction=0.05)
    prepare([str(folder / "text.txt")], str(folder / "data"), workers=1, **sizes)
    return str(folder / "data")


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def train(asked: argparse.Namespace, data: str, rank: int, port: int) -> subprocess.Popen:
    interval = asked.updates // asked.validations
    numbers = {
        "max-update": asked.updates, "total-num-update": asked.updates, "save-interval-updates": interval,
        "num-workers": asked.workers, "save-dir": asked.folder / "run",
    }
    options = [f"--{name}={value}" for name, value in numbers.items()]
    world = {"WORLD_SIZE": asked.processes, "RANK": rank, "LOCAL_RANK": rank}
    world |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    environment = {**os.environ, **{name: str(value) for name, value in world.items()}}
    with open(asked.folder / f"{rank}.log", "wb") as log:
        command = [sys.executable, "-m", "amos_fairseq.cli.main", "train", data, *OPTIONS, *options]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def held(process: int, folder: Path) -> Dict[str, float]:
    """By a process; empty where it has ended."""
    proc = Path(f"/proc/{process}")
    try:
        pages = int((proc / "statm").read_text().split()[1])
        children = [(task / "children").read_text().split() for task in (proc / "task").iterdir()]
        held = {
            "memory, MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "descriptors": sum(not of_a_batch(link) for link in (proc / "fd").iterdir()),
            "threads": len(children),
            "children": sum(map(len, children)),
        }
    except OSError:
        return {}
    shared = os.statvfs("/dev/shm")
    held["shared memory, MB"] = (shared.f_blocks - shared.f_bfree) * shared.f_frsize / 1e6
    files = (Path(root, name) for root, _, names in os.walk(folder / "run") for name in names)
    held["disk, MB"] = sum(map(size, files)) / 1e6
    return held


def of_a_batch(link: Path) -> bool:
    """Of batches that wait to be drawn, or of what is closed meanwhile: as many as happen to wait."""
    try:
        return os.readlink(link).startswith("/dev/shm/")
    except OSError:
        return True


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # deleted meanwhile
        return 0


def compared(samples: List[Dict[str, float]]) -> Dict[str, List[float]]:
    """Of the second quarter and the last."""
    samples = [sample for sample in samples if sample]
    quarter = len(samples) // 4
    quarters = samples[quarter : 2 * quarter], samples[-quarter:]
    greatest = ("threads", "children")
    return {
        what: [(max if what in greatest else statistics.median)(sample[what] for sample in part) for part in quarters]
        for what in GROWTH
    }


if __name__ == "__main__":
    sys.exit(main())
