"""What the plan of `gpu.py` measures beside the benchmarks, each in a process of its own:

    python examples/benchmarks/measurements.py attention --out attention.json
    python examples/benchmarks/measurements.py training --data FOLDER --sequences 128 --compile-layers

Prints figures, a name and a number each, and writes them with details to --out. `--quick`: tiny shapes, on a CPU.
"""

import argparse
import contextlib
import functools
import json
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import ops as operations
import step as training_step

from timing import Meter, Settings, compare, describe, product_flops, save  # isort: skip (its environment first)
import peers
import torch
from networks import loss_of, make_batch, make_method
from torch.profiler import ProfilerActivity, profile

from amos_fairseq import ops
from amos_fairseq.flops import peak_flops
from amos_fairseq.methods import METHODS, size_options

METHOD = "amos_rtd"
VOCABULARY, LENGTH = 32768, 512
TOP_KERNELS = 15


class Result(NamedTuple):
    figures: Dict[str, float]  # what predictions are for
    details: Dict[str, Any] = {}  # for the JSON alone


class Training(NamedTuple):
    """How fairseq-train is run."""

    data: Optional[str]
    sequences: int
    compile_layers: bool


def milliseconds(settings: Settings, run: Callable[[], Any], calls: int = 1) -> float:
    """Of a call, the median of 20 trials after 5 that are not timed; a trial is so many calls, and waits for them."""
    meter, (warm_up, trials) = Meter(settings.device), ((1, 1) if settings.quick else (5, 20))

    def trial():
        for _ in range(calls):
            run()

    for _ in range(warm_up):
        trial()
    seconds = sorted(meter.seconds(trial) for _ in range(trials))
    return 1e3 * seconds[trials // 2] / calls


def profiler_of(settings: Settings) -> profile:
    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if settings.on_gpu else [])])


def failure(error: Exception) -> Dict[str, str]:
    return {"failed": f"{type(error).__name__}: {error}"[:2000]}


def kernels_of(settings: Settings, run: Callable[[], Any], calls: int = 10) -> Dict[str, Any]:
    """`top_kernels` of a call: what the device takes, however long the host takes to ask for it."""
    meter = Meter(settings.device)
    for _ in range(3):
        run()
    meter.synchronize()
    with profiler_of(settings) as profiler:
        for _ in range(calls):
            run()
        meter.synchronize()
    return top_kernels(settings, profiler, calls)


def top_kernels(settings: Settings, profiler: profile, calls: int) -> Dict[str, Any]:
    """The device's kernels, or a CPU's operations, that take longest: milliseconds and number in one of the calls."""
    events = profiler.key_averages()
    if settings.on_gpu:
        events = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    taken = "self_device_time_total" if settings.on_gpu else "self_cpu_time_total"
    rows = [
        {"name": event.key[:120], "milliseconds": getattr(event, taken) / 1e3 / calls, "number": event.count / calls}
        for event in events
    ]
    rows.sort(key=lambda row: -row["milliseconds"])
    sums = {key: sum(row[key] for row in rows) for key in ("milliseconds", "number")}
    return {"all": sums, "top": rows[:TOP_KERNELS]}


# ---- One measurement each -------------------------------------------------------------------------------------------


def attention(settings: Settings, _) -> Result:
    """Milliseconds of the kernels of one layer, forward and backward, by what computes it; gradients against float64,
    and whether they come out the same again. Of the other sides even if one fails.
    """
    shape = dict(B=2, H=2, T=16, D=16) if settings.quick else dict(B=32, H=12, T=512, D=64)
    inputs = operations.attention_inputs(settings, **shape, trial=0)
    sides = {  # the kernels last: after a fault on the device nothing else runs
        "no bias": lambda given: operations.unbiased_attention(*given),
        "bias as a matrix": operations.with_ops("pytorch", lambda given: operations.our_attention(*given)),
        "kernels": operations.with_ops("compiled", lambda given: operations.our_attention(*given)),
    }
    leaves = [inputs.packed, inputs.relative.weight, inputs.matrix]
    figures, details = {}, {}
    for name, side in sides.items():
        for dropout in (0.0, 0.1):
            def both():
                return torch.autograd.grad(side((inputs, dropout)), leaves, inputs.upstream, allow_unused=True)

            title = f"{name}, dropout {dropout}"
            try:
                forward = kernels_of(settings, lambda: side((inputs, dropout)))
                details[title] = of_both = kernels_of(settings, both)
                taken = forward["all"]["milliseconds"]
                figures[f"{title}: forward, ms"] = taken
                figures[f"{title}: backward, ms"] = of_both["all"]["milliseconds"] - taken
                if name != "no bias" and not dropout:
                    step = functools.partial(operations.attention_step, lambda *given: side(given), dropout)
                    errors = operations.attention_errors(settings, shape, step)
                    figures[f"{name}: error of gradients"] = max(errors.values())
                if name == "kernels":
                    pairs = zip(both(), both())
                    same = all(torch.equal(one, other) for one, other in pairs if one is not None)
                    figures[f"{title}: the same again"] = float(same)
            except Exception as error:  # of a compiler or a driver: the other sides are worth as much
                details[title] = failure(error)
    return Result(figures, details)


def ceilings(settings: Settings, _) -> Result:
    """What products and copies reach: all other predictions stand on these two."""
    scale = 64 if settings.quick else 1
    figures = {"square product, TFLOP/s": product_flops(settings) / 1e12}
    for m, k, n in ((16384, 768, 2304), (16384, 768, 3072), (16384, 3072, 768), (2046, 768, 32768)):
        a, b = (operations.normal(settings, *size, learns=False) for size in ((m // scale, k), (k, n // scale)))
        seconds = milliseconds(settings, lambda: a @ b, calls=1 if settings.quick else 50) / 1e3
        figures[f"product {m} x {k} x {n}, TFLOP/s"] = 2 * a.size(0) * k * b.size(1) / seconds / 1e12
    source = torch.zeros(2**30 // scale**2, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    seconds = milliseconds(settings, lambda: target.copy_(source)) / 1e3
    figures["copy, GB/s"] = 2e-9 * source.numel() / seconds
    return Result(figures)


def dropout(settings: Settings, _) -> Result:
    """The share of weights that are dropped: with keys of zero all weights are alike, and values of one tell them."""
    length, heads, batch, share = 64, 2 if settings.quick else 12, 2 if settings.quick else 64, 0.1
    packed = torch.zeros(batch, length, 3, heads, length, device=settings.device, dtype=settings.dtype)
    packed[:, :, 2] = torch.eye(length, device=settings.device)[:, None]
    zero = packed.new_zeros(1, heads, length, length)
    inputs = operations.attention_inputs(settings, B=batch, H=heads, T=length, D=length, trial=1)
    inputs = inputs._replace(packed=packed)
    sides = {
        "kernels": operations.with_ops("compiled", lambda _: operations.our_attention(inputs, share)),
        "bias as a matrix": lambda _: operations.fused_attention(packed, zero.expand(batch, -1, -1, -1), share),
        "no bias": lambda _: operations.fused_attention(packed, None, share),
    }
    figures, details = {}, {}
    for name, side in sides.items():
        try:
            with torch.no_grad():
                figures[f"{name}: share of zeros"] = (side(None) == 0).double().mean().item()
        except Exception as error:
            details[name] = failure(error)
    return Result(figures, details)


def parity(settings: Settings, _) -> Result:
    """Loss and gradients of each method on the GPU against the CPU's, in fp32 with the same noise; with the attention
    kernels, too, where the method has a relative bias.
    """
    figures, details = {}, {}
    relative = [name for name in METHODS if size_options(name, "tiny").get("rel_pos_buckets", 1)]
    cases = [(name, name, "auto") for name in METHODS]
    cases += [(f"{name}, attention kernels", name, "compiled") for name in relative if settings.on_gpu]
    for title, name, choice in cases:
        try:
            with ops.use(choice):
                details[title] = differences(name, settings.device)
            figures[title] = details[title]["gradient_relative_difference"]
        except Exception as error:
            details[title] = failure(error)
    return Result(figures, details)


def differences(name: str, device: torch.device) -> Dict[str, float]:
    """Relative, of this device from the CPU, of tiny networks without dropout."""
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


def steps(settings: Settings, _) -> Result:
    """Forward and backward of each method at size base, 32 x 512 tokens."""
    shape = next(iter(training_step.shapes(settings)))
    peak, products = peak_flops(settings.device), product_flops(settings)
    figures, details = {}, {}
    for name in METHODS:
        method = training_step.maker(name, settings, shape)()
        batch = training_step.batch_of(settings, shape)

        def step():
            method.zero_grad(set_to_none=True)
            loss_of(method, batch).backward()

        figures[f"{name}, ms"] = taken = milliseconds(settings, step)
        rate = method.training_flops(batch) / (taken / 1e3)
        details[name] = {
            "sequences_per_second": 1e3 * shape["B"] / taken, "mfu": rate / peak, "share_of_products": rate / products,
            "mib": Meter(settings.device).extra_bytes(step) / 2**20,
        }
    return Result(figures, details)


def public(settings: Settings, _) -> Result:
    """A step of AMOS with its optimizer beside a transcription of the public code."""
    shape = next(iter(training_step.shapes(settings)))
    make = training_step.maker(METHOD, settings, shape)
    sides = {
        "ours": training_step.Training(make, loss_of),
        "public code": training_step.Training(lambda: peers.PublicAmos(make()), training_step.forward),
    }
    comparison = training_step.comparison(settings, shape, sides, dict.fromkeys(sides, make()))
    found = compare(comparison, Meter(settings.device), seconds=10, trials=10)
    reasons = [found[name]["unavailable"] for name in sides if "unavailable" in found[name]]
    if reasons:
        raise RuntimeError("; ".join(reasons))
    return Result({
        "ours, ms": found["ours"]["milliseconds"]["median"],
        "public code, times ours": found["public code"]["times_ours"]["median"],
        "ours, MiB": found["ours"]["extra_mib"], "public code, MiB": found["public code"]["extra_mib"],
    }, found)


def training(settings: Settings, options: Training) -> Result:
    """AMOS base through fairseq-train: updates per second, and the kernels of three profiled ones after these."""
    import fairseq_cli.train
    from fairseq.trainer import Trainer
    from trainer import corpus

    from amos_fairseq.analysis.flops import Geometry, update_flops, without_memory

    sequences, length = (2, 32) if settings.quick else (options.sequences, LENGTH)
    warm_up, timed, profiled = (1, 2, 1) if settings.quick else (12, 25, 3)
    meter, profiler, reached = Meter(settings.device), profiler_of(settings), []
    train_step = Trainer.train_step

    @functools.wraps(train_step)
    def watched(trainer, samples, *rest, **named):
        update = len(reached)
        if update in (warm_up, warm_up + timed):
            meter.synchronize()
        reached.append(time.perf_counter())
        if update == warm_up + timed:
            profiler.start()
        result = train_step(trainer, samples, *rest, **named)
        if update + 1 == warm_up + timed + profiled:
            meter.synchronize()
            profiler.stop()
        return result

    with tempfile.TemporaryDirectory() as folder:
        data = options.data or corpus(Path(folder))
        words = f"""
            {data} --task {METHOD} --arch {METHOD}_{'tiny' if settings.quick else 'base'} --criterion {METHOD}
            --tokens-per-sample {length} --max-positions {length} --batch-size {sequences} --update-freq 1
            --optimizer fused_adamw --adam-betas (0.9,0.98) --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 2.0
            --lr 1e-4 --lr-scheduler fixed --bf16 --num-workers 2 --max-update {warm_up + timed + profiled}
            --distributed-world-size 1 --disable-validation --no-save --save-dir {folder}/checkpoints
            --log-format json --log-interval 10
        """.split()
        words += ["--compile-layers"] * options.compile_layers + ["--cpu"] * (not settings.on_gpu)
        sys.argv = ["fairseq-train", *words]
        Trainer.train_step = watched
        fairseq_cli.train.cli_main()
    seconds = (reached[warm_up + timed] - reached[warm_up]) / timed
    size = "tiny" if settings.quick else "base"
    geometry = Geometry(sequences, length, 1)
    rate = update_flops(without_memory(METHOD, size, VOCABULARY, geometry), geometry)[1] / seconds
    kernels = top_kernels(settings, profiler, profiled)
    figures = {
        "sequences per second": sequences / seconds,
        "MFU": rate / peak_flops(settings.device),
        "share of products": rate / product_flops(settings),
        "share of an update without a kernel": 1 - kernels["all"]["milliseconds"] / (1e3 * seconds),
        "kernels of an update": kernels["all"]["number"],
    }
    if settings.on_gpu:
        figures["GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return Result(figures, kernels)


MEASUREMENTS = {
    function.__name__: function
    for function in (attention, ceilings, dropout, parity, steps, public, training)
}


def main(arguments: Optional[List[str]] = None) -> dict:
    parser = argparse.ArgumentParser(description="One measurement of the plan for a GPU.")
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--quick", action="store_true", help="tiny shapes on a CPU: does it run?")
    parser.add_argument("--data", help="prepared with 32,768 words in blocks of 512, for `training`")
    parser.add_argument("--sequences", type=int, default=32, help="of an update in `training`")
    parser.add_argument("--compile-layers", action="store_true", help="in `training`")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args(arguments)
    if not options.quick and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: --quick tries everything on a CPU")
    place = ("cpu", torch.float32) if options.quick else ("cuda", torch.bfloat16)
    settings = Settings(torch.device(place[0]), place[1], options.quick)
    torch.manual_seed(0)
    training_options = Training(options.data, options.sequences, options.compile_layers)
    figures, details = MEASUREMENTS[options.measurement](settings, training_options)
    report = {**describe(settings), "figures": figures, "details": details}
    print(json.dumps(figures, indent=1))
    if options.out:
        save(report, options.out)
    return report


if __name__ == "__main__":
    main()
