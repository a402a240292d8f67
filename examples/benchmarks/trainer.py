"""What an update costs the host in fairseq's trainer: seconds of its thread and operations, by part, for each method
and for fine-tuning.

    python examples/benchmarks/trainer.py --out trainer.json      two minutes on one core
    python examples/benchmarks/trainer.py --only finetuning
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
import numpy as np
import torch
from fairseq import utils
from fairseq.optim import FP16Optimizer
from fairseq.trainer import Trainer
from timing import Settings, describe, save
from torch.utils._python_dispatch import TorchDispatchMode

from amos_fairseq.criterions.finetuning import FinetuningCriterion
from amos_fairseq.criterions.pretraining import PretrainingCriterion
from amos_fairseq.data.preparation import prepare
from amos_fairseq.finetune import labelled, sweep
from amos_fairseq.finetune.model import load_start
from amos_fairseq.finetune.presets import Setting
from amos_fairseq.methods import METHODS
from amos_fairseq.models.base import Model
from amos_fairseq.optim.fused_adamw import AdamW
from amos_fairseq.tasks.finetuning import FinetuningTask
from amos_fairseq.tasks.pretraining import PretrainingTask

PARTS = {  # name: (method, classes)
    "update": ("train_step", Trainer),
    "forward": ("forward", PretrainingCriterion, FinetuningCriterion),
    "backward": ("backward", FP16Optimizer),
    "seed": ("_set_seed", Trainer),
    "training mode": ("train", Model),
    "zero gradients": ("zero_grad", Trainer),
    "norm and clipping": ("clip_grad_norm", Trainer),
    "optimizer step": ("optimizer_step", PretrainingTask, FinetuningTask),
    "AdamW in it": ("step", AdamW),
    "logs": ("_reduce_and_log_stats", Trainer),
}
FINETUNING = "finetuning"  # of BERT, whose network is every method's encoder
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
        for part, (name, *owners) in PARTS.items():
            for owner in owners:
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


def pretraining(method: str, data: str, updates: int) -> List[str]:
    words = f"""
        {data} --task {method} --arch {method}_base --criterion {method}
        --encoder-embed-dim 24 --encoder-ffn-embed-dim 24 --max-positions 32 --tokens-per-sample 32 --batch-size 2
        --optimizer fused_adamw --lr 1e-4 --lr-scheduler fixed --clip-norm 2.0 --bf16 --cpu --num-workers 0
        --max-update {updates} --disable-validation --log-interval 1000
    """.split()
    if "generator_embed_dim" in METHODS[method].config_class.__dataclass_fields__:
        words += ["--generator-embed-dim", "24"]
    return words


def finetuning(data: str, updates: int) -> List[str]:
    """As `amos-fairseq finetune` runs it, of a pre-trained checkpoint and labelled sentences that are made first."""
    folder = Path(data).parent
    start = str(folder / "pretrained")
    train([*pretraining("bert_mlm", data, 1), "--save-dir", start])
    lengths, draw = np.array([20, 32] * updates), np.random.default_rng(1)
    tokens, targets = draw.integers(4, 100, lengths.sum(), dtype=np.int32), np.arange(len(lengths)) % 2
    examples, vocabulary = labelled.Examples(tokens, lengths, targets), load_start(start).tokenizer.sha256
    problem = labelled.Problem("random", "classification", ["accuracy"], vocabulary, ["one", "other"])
    labelled.write(folder / "labelled", problem, {"train": examples, "valid": examples})
    setting = Setting(lr=1e-4, epochs=1, batch_size=2, warmup=0)
    job = sweep.Job("random", folder / "labelled", setting, 1, folder / "finetuned")
    return [*sweep.training_arguments(job, sweep.Model(start, cpu=True, precision="bf16")), "--disable-validation"]


def train(words: List[str]) -> Parts:
    """In this process, on the CPU, in bf16."""
    sys.argv = ["fairseq-train", *words]
    with measured() as parts:
        fairseq_cli.train.cli_main()
    return parts


def main(arguments=None) -> dict:
    parser = argparse.ArgumentParser(description="The host's time and operations of an update, by part of the trainer.")
    parser.add_argument("--only", choices=[*METHODS, FINETUNING], action="append", help="may be repeated; default: all")
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
        for method in options.only or [*METHODS, FINETUNING]:
            if method == FINETUNING:
                words = finetuning(data, options.updates)
            else:
                words = pretraining(method, data, options.updates)
            report["methods"][method] = rows = train([*words, "--no-save"]).report()
            print(method)
            for part, row in rows.items():
                print(f"  {part:20} {row['milliseconds']:8.2f} ms {row['operations']:6} operations", flush=True)
            if options.out:
                save(report, options.out)
    return report


if __name__ == "__main__":
    main()
