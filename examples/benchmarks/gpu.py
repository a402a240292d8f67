"""What one GPU must show, what decides first: a table of steps, each a process of its own with a limit of its own.

    python3 examples/benchmarks/gpu.py FOLDER [--data PREPARED]     nine minutes at most, without a network
    python3 examples/benchmarks/gpu.py FOLDER --quick               a dry run on a CPU

A step that fails or runs out of time does not end the others. FOLDER/results.json, written after each of them, has
command, device, versions, and every figure beside what was predicted for it; a table of these is printed. PREPARED is a
corpus of 32,768 words in blocks of 512; without it one is made first, of this machine's documentation.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

SECONDS = 540
HERE = Path(__file__).resolve().parent
SEQUENCES = 32

# Predictions stand on what products (TFLOP/s), memory (GB/s) and the milliseconds of attention reach, and on a count of
# a step at size base, 32 x 512 tokens: milliseconds on an H200 of products, attention with today's kernels of PyTorch,
# elementwise operations at 85 % of memory's rate, and rows of logits.
PRODUCTS, COPY, ATTENTION = (620, 240), (4300, 1650), (1.0, 2.1)  # H200, A100
CHIPS = ("H200", "A100")
COUNTS = {
    "amos_rtd": (23.3, 18.6, 9.4, 0.9), "coco_lm": (32.1, 24.7, 14.3, 0.5), "teams_mws": (23.4, 6.4, 9.4, 0.5),
    "peer_tqr": (22.2, 6.1, 8.2, 0.5), "script_selfcritic": (32.4, 7.7, 11.2, 0.9),
    "electra_rtd": (15.5, 15.3, 7.7, 0.5), "bert_mlm": (13.3, 10.8, 5.7, 0.25),
}
KERNELS = 10.5 / 18.6  # of attention's time with the Triton kernels
FUSED = 0.6  # of elementwise time in compiled layers
OPTIMIZER, HOST = 2.2, 5.0  # milliseconds of an update: AdamW and the casts; what the device waits for

Pair = Tuple[float, ...]  # a prediction for each of CHIPS


def step_milliseconds(method: str, chip: int, attention: float = 1.0, elementwise: float = 1.0) -> float:
    products, attended, passes, rows = COUNTS[method]
    of_memory = (elementwise * passes / 0.85 + rows) * COPY[0] / COPY[chip]
    return products * PRODUCTS[0] / PRODUCTS[chip] + attention * attended * ATTENTION[chip] + of_memory


def sequences_per_second(sequences: int, **changes) -> Pair:
    """Of AMOS through the trainer."""
    rates = []
    for chip in range(len(CHIPS)):
        of_update = OPTIMIZER * COPY[0] / COPY[chip] + HOST
        step = step_milliseconds("amos_rtd", chip, **changes) * sequences / SEQUENCES
        rates.append(1e3 * sequences / (step + of_update))
    return tuple(rates)


class Step(NamedTuple):
    name: str
    seconds: int  # its limit
    command: List[str]  # of python3, in the repository
    predictions: Dict[str, Pair] = {}
    environment: Dict[str, str] = {}


def measurement(name: str, *options: str) -> List[str]:
    return [str(HERE / "measurements.py"), name, *options]


def training(name: str, seconds: int, sequences: int, gib: float, *options: str, kernels=False, **changes) -> Step:
    predictions = {"sequences per second": sequences_per_second(sequences, **changes), "GiB": (gib, gib)}
    command = measurement("training", "--sequences", str(sequences), *options)
    return Step(name, seconds, command, predictions, {"AMOS_FAIRSEQ_OPS": "compiled"} if kernels else {})


PLAN = [
    Step("attention", 60, measurement("attention"), {  # of one layer, 32 x 12 heads x 512 x 64
        "kernels, dropout 0.0: forward, ms": (0.12, 0.25), "kernels, dropout 0.0: backward, ms": (0.41, 0.85),
        "kernels, dropout 0.1: forward, ms": (0.16, 0.32), "kernels, dropout 0.1: backward, ms": (0.50, 0.98),
        "bias as a matrix, dropout 0.0: forward, ms": (0.21, 0.44),
        "bias as a matrix, dropout 0.0: backward, ms": (0.76, 1.6),
        "no bias, dropout 0.0: forward, ms": (0.07, 0.15), "no bias, dropout 0.0: backward, ms": (0.26, 0.50),
        "kernels: error of gradients": (5e-3, 5e-3), "bias as a matrix: error of gradients": (5e-3, 5e-3),
        "kernels, dropout 0.0: the same again": (1, 1), "kernels, dropout 0.1: the same again": (1, 1),
    }),
    Step("ceilings", 25, measurement("ceilings"), {
        "copy, GB/s": COPY, "product 16384 x 768 x 2304, TFLOP/s": PRODUCTS,
        "product 16384 x 768 x 3072, TFLOP/s": PRODUCTS, "square product, TFLOP/s": (790, 260),
    }),
    Step("dropout", 25, measurement("dropout"), dict.fromkeys(
        ("kernels: share of zeros", "bias as a matrix: share of zeros", "no bias: share of zeros"), (0.1, 0.1)
    )),
    Step("parity", 55, measurement("parity"), dict.fromkeys(COUNTS, (4e-7, 4e-7))),
    Step("steps", 45, measurement("steps"), {
        f"{method}, ms": tuple(step_milliseconds(method, chip) for chip in range(len(CHIPS))) for method in COUNTS
    }),
    training("training, 32", 45, 32, 12),
    training("training, 128", 55, 128, 36),
    training("training, 128, compiled layers", 110, 128, 30, "--compile-layers", elementwise=FUSED),
    training(
        "training, 128, compiled layers, attention kernels", 110, 128, 30, "--compile-layers", kernels=True,
        elementwise=FUSED, attention=KERNELS,
    ),
    Step("public code", 45, measurement("public"), {"public code, times ours": (1.4, 1.4)}),
]
COMMAND = ["-m", "amos_fairseq.cli.main"]


def steps(folder: Path, quick: bool, data: str) -> List[Step]:
    first = [Step("doctor", 45, [*COMMAND, "doctor"])]
    if not quick:
        first.insert(0, Step("build", 60, ["-m", "amos_fairseq.csrc.build", "cuda"]))
        if not data:
            text, data = str(folder / "text.txt"), str(folder / "data")
            sizes = ["--vocab-size", "32768", "--tokens-per-sample", "512"]
            if not os.path.exists(text):  # else it is whole, and its time is what `prepare` goes on by
                first.append(Step("text", 30, [*COMMAND, "corpus", "--out", text, "--megabytes", "13"]))
            first.append(Step("data", 90, [*COMMAND, "prepare", text, "--out", data, *sizes]))
    plan = []
    for step in PLAN:
        options = ["--out", str(folder / "step.json"), *(["--quick"] if quick else ["--data", data])]
        environment = {} if quick else step.environment  # kernels that are demanded would be refused on a CPU
        plan.append(step._replace(command=step.command + options, environment=environment))
    # A dry run may be on a slow or busy machine: only the whole has a limit.
    return [step._replace(seconds=SECONDS) for step in first + plan] if quick else first + plan


def run(step: Step, seconds: float, log: Path) -> str:
    """Its status: done, failed, or out of time. All processes that it started end with it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *step.command], env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
            return "done" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            return f"out of time after {seconds:.0f} s"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


def outcome(step: Step, status: str, result: dict, tail: str) -> dict:
    measured = result.get("figures", {})
    figures = {
        name: {"predicted": dict(zip(CHIPS, step.predictions.get(name, ()))), "measured": measured.get(name)}
        for name in [*step.predictions, *(name for name in measured if name not in step.predictions)]
    }
    command = " ".join(["python3", *step.command])
    return {"status": status, "command": command, "figures": figures, "details": result.get("details"), "output": tail}


def number(value) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def main(arguments=None) -> dict:
    parser = argparse.ArgumentParser(description="The plan for one GPU: nine minutes at most.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("gpu-benchmarks"),
        help="for results.json and the steps' output (default: %(default)s)",
    )
    parser.add_argument("--data", default="", help="prepared with 32,768 words in blocks of 512")
    parser.add_argument("--quick", action="store_true", help="tiny shapes on a CPU: does everything run?")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    report = {"command": " ".join(["gpu.py", *(sys.argv[1:] if arguments is None else arguments)]), "steps": {}}
    deadline = time.monotonic() + SECONDS
    result_file = options.folder / "step.json"
    for step in steps(options.folder.resolve(), options.quick, options.data and str(Path(options.data).resolve())):
        start = time.monotonic()
        seconds = min(step.seconds, deadline - start)
        status, log = "no time left", options.folder / (step.name.replace(", ", "-").replace(" ", "_") + ".txt")
        result_file.unlink(missing_ok=True)
        if seconds > 0:
            status = run(step, seconds, log)
        result = json.loads(result_file.read_text()) if result_file.exists() else {}
        tail = log.read_text(errors="replace")[-2000:] if seconds > 0 else ""
        report.update({key: result[key] for key in ("device", "versions", "dtype") if key in result})
        report["steps"][step.name] = {**outcome(step, status, result, tail), "seconds": time.monotonic() - start}
        unfinished = options.folder / "results.json.unfinished"
        unfinished.write_text(json.dumps(report, indent=1) + "\n")
        unfinished.replace(options.folder / "results.json")
        print(f"{step.name}: {status}, {time.monotonic() - start:.0f} s", flush=True)
        for name, figure in report["steps"][step.name]["figures"].items():
            predicted = ", ".join(f"{chip} {number(value)}" for chip, value in figure["predicted"].items())
            print(f"  {name:48} {number(figure['measured']):>12}   predicted: {predicted or 'nothing'}", flush=True)
    result_file.unlink(missing_ok=True)
    return report


if __name__ == "__main__":
    main()
