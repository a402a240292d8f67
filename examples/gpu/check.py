"""What a GPU must show before a long run, in about four minutes and without a network:

    python examples/gpu/check.py results.json

1. parity: each method's loss and gradients on the GPU are those of the CPU, in fp32, with the same noise;
2. steps: time, throughput and memory of a base-size step in bf16, 32 x 512 tokens, vocabulary 32,768;
3. training: amos_rtd_small through fairseq-train in bf16, in fp16 with its default settings, and in fp32.

Everything is written to the JSON file, with device and versions; h200.json beside this file is such a result.
"""

import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import torch

from amos_fairseq import ops
from amos_fairseq.flops import peak_flops
from amos_fairseq.methods import METHODS, size_options
from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary

CROP = 0.9
TRAINING = {"bf16": ["--bf16"], "fp16": ["--fp16"], "fp32": []}
UPDATES = 200


def make_batch(device, sequences, length, masked, vocabulary_size, seed=0) -> PretrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    original = torch.randint(4, vocabulary_size - 1, (sequences, length), generator=generator)
    positions = torch.zeros(sequences, length, dtype=torch.bool)
    for row in positions:
        row[1 + torch.randperm(length - 2, generator=generator)[:masked]] = True
    tensors = dict(
        original_tokens=original,
        masked_tokens=original.masked_fill(positions, vocabulary_size - 1),
        masked_positions=positions,
        masked_index=positions.flatten().nonzero().squeeze(-1),
        cropped_tokens=original[:, : int(CROP * length)],
        sample_ids=torch.arange(sequences),
    )
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return PretrainingBatch(num_masked=[masked] * sequences, **tensors)


def make_method(name, size, vocabulary_size, device, dtype, **options) -> PretrainingMethod:
    torch.manual_seed(0)
    method = METHODS[name]
    config = method.config_class(**{**size_options(name, size), **options})
    vocabulary = Vocabulary(vocabulary_size, padding=1, excluded=[0, 1, 2, 3, vocabulary_size - 1])
    return method(config, vocabulary).to(device, dtype).train()


def loss_of(method, batch) -> torch.Tensor:
    terms = method.losses(method(batch), batch)
    return sum(term.weight * term.mean for term in terms.values())


def parity(name, device="cuda") -> dict:
    results = []
    no_dropout = {field.name: 0.0 for field in fields(METHODS[name].config_class) if field.name.endswith("dropout")}
    for place in ("cpu", device):
        method = make_method(name, "tiny", 1000, place, torch.float32, **no_dropout)
        with ops.use("auto") if place == "cpu" else contextlib.nullcontext():
            loss = loss_of(method, make_batch(place, 4, 64, 9, 1000))
            loss.backward()
        gradients = [parameter.grad.flatten().cpu() for parameter in method.parameters()]
        results.append((loss.item(), torch.cat(gradients)))
    (loss, gradient), (loss_gpu, gradient_gpu) = results
    return {
        "loss_relative_difference": abs(loss - loss_gpu) / abs(loss),
        "gradient_relative_difference": ((gradient - gradient_gpu).norm() / gradient.norm()).item(),
    }


def step(name, sequences=32, length=512, masked=77, vocabulary_size=32768, trials=20) -> dict:
    method = make_method(name, "base", vocabulary_size, "cuda", torch.bfloat16)
    batch = make_batch("cuda", sequences, length, masked, vocabulary_size)
    for trial in range(trials + 5):
        if trial == 5:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
        method.set_num_updates(trial)
        method.zero_grad(set_to_none=True)
        loss_of(method, batch).backward()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / trials
    return {
        "milliseconds": 1e3 * seconds,
        "tokens_per_second": sequences * length / seconds,
        "model_tflops": method.training_flops(batch) / seconds / 1e12,
        "mfu": method.training_flops(batch) / seconds / peak_flops(batch.original_tokens.device),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "finite": bool(loss_of(method, batch).isfinite()),
    }


def training(folder: Path, name: str, flags: list) -> dict:
    command = [
        sys.executable, "-m", "amos_fairseq.cli.main", "train", str(folder / "data"), "--task", "amos_rtd",
        "--arch", "amos_rtd_small", "--criterion", "amos_rtd", "--tokens-per-sample", "128", "--batch-size", "128",
        "--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--adam-eps", "1e-6", "--clip-norm", "2.0",
        "--lr", "5e-4", "--lr-scheduler", "polynomial_decay", "--warmup-updates", "50", "--num-workers", "2",
        "--total-num-update", str(UPDATES), "--max-update", str(UPDATES), "--log-format", "json",
        "--log-interval", "50", "--no-epoch-checkpoints", "--save-dir", str(folder / name), *flags,
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    rows = [line for line in run.stdout.splitlines() + run.stderr.splitlines() if "| train_inner |" in line]
    if run.returncode or not rows:
        return {"status": run.returncode, "output": run.stderr[-2000:]}
    rows = [json.loads(row[row.index("{") :]) for row in rows]
    kept = ("num_updates", "loss", "mlm_8", "rtd", "wps", "mfu", "loss_scale", "gnorm")
    return {"status": 0, "log": [{key: float(row[key]) for key in kept if key in row} for row in rows]}


def save(results: dict, out: str) -> None:
    Path(out).write_text(json.dumps(results, indent=1) + "\n")


def main(out: str = "gpu.json") -> None:
    if not torch.cuda.is_available():
        raise SystemExit("examples/gpu/check.py needs a GPU, and torch sees none")
    results = {
        "command": "python examples/gpu/check.py",
        "device": torch.cuda.get_device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
    }
    results["parity"] = {name: parity(name) for name in METHODS}
    results["steps"] = {name: step(name) for name in METHODS}
    save(results, out)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        program = [sys.executable, "-m", "amos_fairseq.cli.main"]
        corpus, data = str(folder / "corpus.txt"), str(folder / "data")
        sizes = ["--vocab-size", "4096", "--tokens-per-sample", "128"]
        subprocess.run([*program, "corpus", "--out", corpus, "--megabytes", "6"], check=True)
        subprocess.run([*program, "prepare", corpus, "--out", data, *sizes], check=True)
        results["training"] = {}
        for name, flags in TRAINING.items():
            results["training"][name] = training(folder, name, flags)
            save(results, out)
    print(json.dumps({name: results[name] for name in ("parity", "steps")}, indent=1))
    print({name: result.get("log", [result])[-1] for name, result in results["training"].items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
