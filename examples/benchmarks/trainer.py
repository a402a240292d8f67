"""What an update costs the host in fairseq's trainer: seconds of its thread and operations, by part, for each method.

    python examples/benchmarks/trainer.py --out trainer.json      two minutes on one core
    python examples/benchmarks/trainer.py --as-fairseq            without what this package repairs of it

Networks of size base in depth, so with as many tensors, but so narrow that their arithmetic takes no time. Operations
are those that would launch a kernel on a GPU: all but views and allocations; one over a list of tensors is a few
launches there. AdamW itself, one kernel there and a loop here, and this package's compiled kernels do not count.
"""

import argparse
import contextlib
import functools
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List

import fairseq_cli.train
import torch
from fairseq import utils
from fairseq.optim import FP16Optimizer
from fairseq.trainer import Trainer
from timing import Settings, describe, save
from torch.utils._python_dispatch import TorchDispatchMode

from amos_fairseq.criterions.pretraining import PretrainingCriterion
from amos_fairseq.data.preparation import prepare
from amos_fairseq.methods import METHODS
from amos_fairseq.models.base import Model
from amos_fairseq.models.pretraining import PretrainingModel
from amos_fairseq.optim.fused_adamw import AdamW
from amos_fairseq.tasks.pretraining import PretrainingTask

PARTS = {
    "update": (Trainer, "train_step"),
    "forward": (PretrainingCriterion, "forward"),
    "backward": (FP16Optimizer, "backward"),
    "seed": (Trainer, "_set_seed"),
    "training mode": (PretrainingModel, "train"),
    "zero gradients": (Trainer, "zero_grad"),
    "norm and clipping": (Trainer, "clip_grad_norm"),
    "optimizer step": (PretrainingTask, "optimizer_step"),
    "AdamW in it": (AdamW, "step"),
    "logs": (Trainer, "_reduce_and_log_stats"),
}
REPAIRED = [  # of these parts, what costs fairseq more
    (Trainer, "_set_seed"), (utils, "clip_grad_norm_"), (FP16Optimizer, "zero_grad"),
    (FP16Optimizer, "_sync_fp16_grads_to_fp32"), (FP16Optimizer, "_sync_fp32_params_to_fp16"),
]
WARM_UP = 3  # updates, not timed; the one after them is counted, which takes time, so all others are timed


class Parts(TorchDispatchMode):
    """Milliseconds of this thread and operations inside of each part, those of parts within it included."""

    def __init__(self):
        super().__init__()
        self.updates, self.seconds, self.operations = 0, Counter(), Counter()
        self._entered: List[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(value.alias_info and not value.alias_info.is_write for value in function._schema.returns)
        if not (is_view or function.overloadpacket.__name__.startswith("empty")):
            self.operations.update(self._entered)
        return function(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def inside(self, part: str) -> Iterator[None]:
        self.updates += part == "update"
        self._entered.append(part)
        start = time.thread_time()
        with self if part == "update" and self.updates == WARM_UP + 1 else contextlib.nullcontext():
            yield
        if self.updates > WARM_UP + 1:
            self.seconds[part] += time.thread_time() - start
        self._entered.pop()

    def report(self) -> Dict[str, Dict[str, float]]:
        timed = self.updates - WARM_UP - 1
        rows = {
            part: {"milliseconds": 1e3 * self.seconds[part] / timed, "operations": self.operations[part]}
            for part in PARTS
        }
        model = ("forward", "backward", "AdamW in it")
        own = {key: value - sum(rows[part][key] for part in model) for key, value in rows["update"].items()}
        return {**rows, "trainer": own}


@contextlib.contextmanager
def measured() -> Iterator[Parts]:
    parts = Parts()

    def within(part, function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            with parts.inside(part):
                return function(*args, **kwargs)
        return run

    with contextlib.ExitStack() as afterwards:
        for part, (owner, name) in PARTS.items():
            function = getattr(owner, name)
            afterwards.callback(setattr, owner, name, function)
            setattr(owner, name, within(part, function))
        yield parts


def corpus(folder: Path) -> str:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghij", k=4)) for _ in range(300)]
    text = "\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(400))
    (folder / "text.txt").write_text(text)
    prepare([str(folder / "text.txt")], str(folder / "data"), vocab_size=200, tokens_per_sample=32, workers=1)
    return str(folder / "data")


def train(method: str, data: str, updates: int) -> Parts:
    """In this process, on the CPU, in bf16."""
    options = f"""
        {data} --task {method} --arch {method}_base --criterion {method}
        --encoder-embed-dim 24 --encoder-ffn-embed-dim 24 --max-positions 32 --tokens-per-sample 32 --batch-size 2
        --optimizer fused_adamw --lr 1e-4 --lr-scheduler fixed --clip-norm 2.0 --bf16 --cpu --num-workers 0
        --max-update {updates} --disable-validation --no-save --log-interval 1000
    """.split()
    if "generator_embed_dim" in METHODS[method].config_class.__dataclass_fields__:
        options += ["--generator-embed-dim", "24"]
    sys.argv = ["fairseq-train", *options]
    with measured() as parts:
        fairseq_cli.train.cli_main()
    return parts


def main(arguments=None) -> dict:
    parser = argparse.ArgumentParser(description="The host's time and operations of an update, by part of the trainer.")
    parser.add_argument("--only", choices=METHODS, action="append", help="a method, may be repeated; default: all")
    parser.add_argument("--updates", type=int, default=24, help="of which the first four are not timed")
    parser.add_argument("--as-fairseq", action="store_true", help="with fairseq's own functions, for comparison")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.as_fairseq:
        Model.train = torch.nn.Module.train
        for owner, name in REPAIRED:
            setattr(owner, name, getattr(owner, name).__wrapped__)
    report = {**describe(Settings(torch.device("cpu"), torch.bfloat16, quick=False)), "methods": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = corpus(Path(folder))
        for method in options.only or METHODS:
            report["methods"][method] = rows = train(method, data, options.updates).report()
            print(method)
            for part, row in rows.items():
                print(f"  {part:20} {row['milliseconds']:8.2f} ms {row['operations']:6} operations", flush=True)
            if options.out:
                save(report, options.out)
    return report


if __name__ == "__main__":
    main()
