"""What a node with several GPUs must show: scaling, the losses of one GPU on any number, a killed run that goes on.

    python3 examples/gpu/node.py FOLDER --data PREPARED                    on 1, 2, 4 and 8 GPUs, as far as there are
    python3 examples/gpu/node.py FOLDER --data PREPARED --cpu --gpus 1,2   tiny, by gloo: does everything run?

PREPARED is a corpus in blocks of 512 tokens. Each step is a torchrun of its own with a limit of its own, and one that
fails does not end the others. FOLDER/results.json, written after each, has for each number of GPUs

    scaling   sequences per second in bf16, and the share of as many times one GPU's
    losses    in fp32 without dropout, 64 sequences an update: the largest relative difference from one GPU's
    killed    the same run, all of whose processes are killed in the middle, started again by the same command: the
              largest relative difference from the run that was not killed; 0 is the same bits
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Dict, List

from amos_fairseq import run_log

METHOD = "amos_rtd"
SEQUENCES = 64  # of an update whose losses are compared
UPDATES, SAVED, KILLED = 16, 5, 8  # in all; between checkpoints; killed when so many are logged
SCALED, WARM_UP = 60, 20  # updates that are timed, and before them
SAME = 1e-4  # relative: sums in another order
SECONDS = 300
TINY = """
    --encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2
    --generator-depths 1,2 --cpu
""".split()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one, for results.json, logs and checkpoints")
    parser.add_argument("--data", type=Path, required=True, metavar="PREPARED", help="by amos-fairseq prepare")
    parser.add_argument("--gpus", default="", metavar="1,2,..", help="default: 1, 2, 4 and 8, as far as there are")
    parser.add_argument("--sequences", type=int, default=32, help="on each GPU where scaling is measured (default: 32)")
    parser.add_argument("--cpu", action="store_true", help="processes of a tiny model instead of GPUs")
    options = parser.parse_args(arguments)
    numbers = [int(number) for number in options.gpus.split(",")] if options.gpus else [
        number for number in (1, 2, 4, 8) if number <= visible_gpus()
    ]
    if not numbers:
        parser.error("there is no GPU: --cpu --gpus 1,2 tries everything without")
    if options.folder.exists():
        parser.error(f"{options.folder} exists: name a new folder")
    options.folder.mkdir(parents=True)
    report: Dict[str, dict] = {}
    for number in numbers:
        for step in (scaling, losses, killed):
            start = time.monotonic()
            try:
                told = {"status": "done", **step(options, number, report)}
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                told = {"status": str(error)}
            told["seconds"] = round(time.monotonic() - start, 1)
            report[f"{step.__name__}, {number}"] = told
            (options.folder / "results.json").write_text(json.dumps(report, indent=1) + "\n")
            print(f"{step.__name__}, {number}: {json.dumps({**told, 'rows': None})}", flush=True)
    return int(not all(told["status"] == "done" and told.get("same", True) for told in report.values()))


def scaling(options: argparse.Namespace, number: int, report: Dict[str, dict]) -> dict:
    updates, warm_up = (6, 2) if options.cpu else (SCALED, WARM_UP)
    words = ["--batch-size", str(2 if options.cpu else options.sequences), "--bf16", "--no-save", "--log-interval", "2"]
    rows = train(options, f"scaling-{number}", number, [*words, "--max-update", str(updates)])
    rate = median(row["bsz"] * row["ups"] for row in rows if row["num_updates"] > warm_up)
    alone = report.get("scaling, 1", {}).get("sequences per second")
    share = rate / (number * alone) if alone else None
    return {"sequences per second": round(rate, 1), "share of one GPU's": share and round(share, 3)}


def losses(options: argparse.Namespace, number: int, report: Dict[str, dict]) -> dict:
    rows = train(options, f"losses-{number}", number, [*compared(options, number), "--no-save"])
    return {"rows": rows, **difference(rows, report.get("losses, 1", {}).get("rows"))}


def killed(options: argparse.Namespace, number: int, report: Dict[str, dict]) -> dict:
    name, folder = f"killed-{number}", options.folder / f"killed-{number}"
    words = [*compared(options, number), "--save-dir", str(folder), "--save-interval-updates", str(SAVED)]
    train(options, name, number, words, kill_at=KILLED)
    rows = train(options, name, number, words)
    if rows[0]["num_updates"] == 1:
        raise RuntimeError("the killed run began anew")
    return {"goes on at": rows[0]["num_updates"], **difference(rows, report[f"losses, {number}"].get("rows"))}


def compared(options: argparse.Namespace, number: int) -> List[str]:
    """Of a run whose losses are compared with another's."""
    batch = (16 if options.cpu else SEQUENCES) // number
    dropouts = ["--dropout", "0", "--attention-dropout", "0", "--activation-dropout", "0"]
    return [*dropouts, "--batch-size", str(batch), "--log-interval", "1", "--max-update", str(UPDATES)]


def difference(rows: List[dict], expected) -> dict:
    if expected is None:
        return {}
    losses = {row["num_updates"]: row["loss"] for row in expected}
    largest = max(abs(row["loss"] / losses[row["num_updates"]] - 1) for row in rows)
    return {"difference": largest, "same": largest <= SAME}


def command(options: argparse.Namespace, number: int, words: List[str]) -> List[str]:
    """What a user types."""
    size, length = ("tiny", 32) if options.cpu else ("base", 512)
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost",
        "--nproc-per-node", str(number), "-m", "amos_fairseq.cli.main", "train", str(options.data),
        "--task", METHOD, "--arch", f"{METHOD}_{size}", "--criterion", METHOD, *TINY * options.cpu,
        "--tokens-per-sample", str(length), "--max-positions", str(length),
        "--optimizer", "fused_adamw", "--lr", "0.0005", "--lr-scheduler", "polynomial_decay", "--warmup-updates", "5",
        "--total-num-update", "1000", "--clip-norm", "2.0", "--seed", "1", "--log-format", "json",
        "--disable-validation", "--no-epoch-checkpoints", "--num-workers", "2", *words,
    ]


def train(options: argparse.Namespace, name: str, number: int, words: List[str], kill_at: int = 0) -> List[dict]:
    """What the run logged; with `kill_at`, until it was killed, having made as many updates."""
    path = options.folder / f"{name}.log"
    begun = path.stat().st_size if path.exists() else 0
    with path.open("ab") as log:
        agent = subprocess.Popen(command(options, number, words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    deadline = time.monotonic() + SECONDS
    try:
        while agent.poll() is None:
            if kill_at and any(row["num_updates"] >= kill_at for row in rows_of(path, begun)):
                for child in descendants(agent.pid):
                    os.kill(child, signal.SIGKILL)
                agent.wait(60)
                return rows_of(path, begun)
            if time.monotonic() > deadline:
                raise RuntimeError(f"out of time after {SECONDS} s")
            time.sleep(0.05)
    finally:
        for process in [*descendants(agent.pid), agent.pid] * (agent.poll() is None):
            os.kill(process, signal.SIGKILL)
        agent.wait()
    if agent.returncode or kill_at:
        raise RuntimeError(f"status {agent.returncode}: {path.read_text(errors='replace')[-500:]}")
    return rows_of(path, begun)


def rows_of(path: Path, begun: int) -> List[dict]:
    """Of a log from a byte on."""
    with path.open("rb") as log:
        log.seek(begun)
        return run_log.parse(log.read().decode(errors="replace").splitlines()).train


def descendants(process: int) -> List[int]:
    """Its children, theirs, and so on: torchrun's lead groups of their own."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return []
    children = [int(word) for text in lists for word in text.split()]
    return [*children, *(pid for child in children for pid in descendants(child))]


def visible_gpus() -> int:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([word for word in named.split(",") if word])
    if not shutil.which("nvidia-smi"):
        return 0
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.count("GPU ")


if __name__ == "__main__":
    sys.exit(main())
