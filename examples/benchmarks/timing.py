"""Ways to compute the same thing, side by side in one process: time, memory, exactness; a table and a JSON file."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silence: the profiler, which meters memory, tells of each start

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from amos_fairseq.flops import measured_flops, peak_flops  # noqa: E402

TRIALS = 20
LEAST_TRIALS = 5  # even if the time is over
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Side = Callable[[Any], Any]  # one of the ways: works on the inputs it is given


class Settings(NamedTuple):
    device: torch.device
    dtype: torch.dtype
    quick: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


class Comparison(NamedTuple):
    """What is measured together. The first side is ours: the others' times are given as multiples of its time."""

    shape: Dict[str, Any]
    sides: Dict[str, Side]
    inputs: Callable[[int], Any]  # of a trial, alike for all sides
    errors: Optional[Callable[[Side], Dict[str, float]]] = None  # of one side, by quantity
    tokens: int = 0  # of one step
    flops: Dict[str, int] = {}  # that one step of a side needs


class Meter:
    """Seconds and bytes of a call on a device."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter):
        self.device, self.clock = device, clock

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any]) -> float:
        self.synchronize()
        start = self.clock()
        run()
        self.synchronize()
        return self.clock() - start

    def extra_bytes(self, run: Callable[[], Any]) -> int:
        """The most bytes of tensors alive at a time during the call, beyond those alive before it."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            self.synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            run()
            self.synchronize()
            return torch.cuda.max_memory_allocated(self.device) - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        # What the allocator gave and took back, in order: this also sees compiled code and operators' own temporaries.
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        alive = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            alive += event.nbytes()
            peak = max(peak, alive)
        return peak


def quartiles(values: List[float]) -> Dict[str, float]:
    """Median, first and third quartile."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "first_quartile": first, "third_quartile": third}


def half_spread(quartiles: Dict[str, float]) -> float:
    """Half of what lies between the quartiles."""
    return (quartiles["third_quartile"] - quartiles["first_quartile"]) / 2


def relative_errors(found: Dict[str, Tensor], expected: Dict[str, Tensor]) -> Dict[str, float]:
    """||found - expected|| / ||expected|| of each expected tensor, in float64."""
    return {
        name: ((found[name].double() - tensor.double()).norm() / tensor.double().norm()).item()
        for name, tensor in expected.items()
    }


def compare(comparison: Comparison, meter: Meter, seconds: float = 60.0, trials: int = TRIALS) -> Dict[str, dict]:
    """Each side's results by its name, or why it has none: {"unavailable": reason}.

    A trial makes new inputs and times every side on them, in turns A B, B A, A B ..., so that a drift of the machine
    and a warm cache favour nobody. `times_ours` is made of the ratios within trials. After `seconds` of trials no other
    starts, but LEAST_TRIALS are made.
    """
    results, times = {}, {}
    for name, side in comparison.sides.items():
        try:
            inputs = comparison.inputs(0)
            side(inputs)  # compiles, loads kernels
            results[name] = {"extra_mib": meter.extra_bytes(lambda: side(inputs)) / 2**20}
            if comparison.errors:
                results[name]["errors"] = comparison.errors(side)
            times[name] = []
        except Exception as error:  # what another package raises is not ours to foresee
            message = str(error).strip().splitlines() or [""]
            results[name] = {"unavailable": f"{type(error).__name__}: {message[0]}"[:200]}
    deadline = meter.clock() + seconds
    for trial in range(trials if times else 0):
        if trial >= LEAST_TRIALS and meter.clock() > deadline:
            break
        inputs = comparison.inputs(trial)
        for name in list(times)[:: 1 if trial % 2 == 0 else -1]:
            times[name].append(meter.seconds(lambda: comparison.sides[name](inputs)))
    ours = times.get(next(iter(comparison.sides)))
    for name, measured in times.items():
        result = results[name]
        result["milliseconds"] = quartiles([1e3 * value for value in measured])
        result["trials"] = len(measured)
        if ours:
            result["times_ours"] = quartiles([value / base for value, base in zip(measured, ours)])
        if comparison.tokens:
            result["tokens_per_second"] = comparison.tokens / statistics.median(measured)
        if name in comparison.flops:
            result["flops_per_second"] = comparison.flops[name] / statistics.median(measured)
    return results


def product_flops(settings: Settings) -> float:
    """FLOP/s of a large square product in the type of the benchmark, the best of ten or more."""
    return measured_flops(settings.device, settings.dtype, size=8192 if settings.on_gpu else 1024, trials=10)


def describe(settings: Settings) -> Dict[str, Any]:
    if settings.on_gpu:
        device = torch.cuda.get_device_name(settings.device)
    else:
        device = f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": device,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "threads": torch.get_num_threads(),
        "dtype": str(settings.dtype).removeprefix("torch."),
    }


def save(report: dict, out: Path) -> None:
    """In one step: whoever interrupts the run keeps what was written before."""
    unfinished = out.with_name(out.name + ".unfinished")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(out)


def row_line(side: str, result: dict, colour: bool) -> str:
    """One line of the table; on a terminal green where ours is faster by 5 % or more, red where it is slower."""
    if "unavailable" in result:
        return f"  {side:34} {result['unavailable']}"
    ratio = "without ours"
    if "times_ours" in result:
        value = result["times_ours"]["median"]
        ratio = f"{value:6.2f} ±{half_spread(result['times_ours']):5.2f} x"
        if colour and not 0.95 < value < 1.05:
            ratio = f"\033[{32 if value > 1 else 31}m{ratio}\033[0m"
    time_ = result["milliseconds"]
    line = f"  {side:34} {time_['median']:9.3f} ±{half_spread(time_):7.3f} ms {ratio} {result['extra_mib']:9.1f} MiB"
    if "tokens_per_second" in result:
        line += f" {result['tokens_per_second']:11,.0f} tokens/s"
    if "mfu" in result:
        line += f" {100 * result['mfu']:5.1f} % MFU, {100 * result['share_of_products']:5.1f} % of products"
    if result.get("errors"):
        worst = max(result["errors"], key=result["errors"].get)
        line += f"  error {result['errors'][worst]:.1e} ({worst})"
    return line


def main(sections: Dict[str, Callable[[Settings], Iterator[Comparison]]], arguments: Optional[List[str]] = None):
    """Runs the sections and returns what it writes to --out, which is written anew after every comparison."""
    parser = argparse.ArgumentParser(description="Compare this package with others on the same inputs.")
    parser.add_argument("--only", choices=sections, action="append", help="a section, may be repeated; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU's products; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does everything run?")
    parser.add_argument("--seconds", type=float, default=60.0, help="of one comparison's trials; default: %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {device}: torch sees no GPU here, take --device cpu")
    dtype = DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    settings, meter = Settings(device, dtype, options.quick), Meter(device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    report = {
        "command": " ".join([Path(sys.argv[0]).name, *(sys.argv[1:] if arguments is None else arguments)]),
        **describe(settings),
        "peak_tflops": peak_flops(device) / 1e12,
        "matmul_tflops": 0.0,
        "rows": [],
    }
    for name in options.only or sections:
        for comparison in sections[name](settings):
            title = ", ".join(f"{key} {value}" for key, value in comparison.shape.items())
            print(f"{name}: {title}", flush=True)
            # The best so far: another process may take the device for a while.
            report["matmul_tflops"] = max(report["matmul_tflops"], product_flops(settings) / 1e12)
            for side, result in compare(comparison, meter, options.seconds).items():
                if "flops_per_second" in result:
                    result["mfu"] = result["flops_per_second"] / (1e12 * report["peak_tflops"])
                    result["share_of_products"] = result["flops_per_second"] / (1e12 * report["matmul_tflops"])
                report["rows"].append({"section": name, "shape": comparison.shape, "side": side, **result})
                print(row_line(side, result, sys.stdout.isatty()), flush=True)
            if options.out:
                save(report, options.out)
    return report
