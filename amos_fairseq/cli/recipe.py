"""What lets a tiny network learn within minutes, with any method: so the quick start trains, and the replication.

The encoder starts from a generator that has learned alone, relative position biases learn faster than the rest, and
detection looks at words only. How it was found, and what each part is worth, is in examples/replication.
"""

import statistics
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping

from amos_fairseq.analysis.flops import Geometry, updates_within, without_memory
from amos_fairseq.demo.documentation_tasks import COLUMNS
from amos_fairseq.finetune import results
from amos_fairseq.methods import METHODS
from amos_fairseq.options import declared

MODEL: Dict[str, Any] = dict(
    rel_pos_buckets=32, dropout=0.0, attention_dropout=0.0, generator_dropout=0.0, generator_embed_dim=0,
    generator_layers=2, rel_pos_lr_factor=100.0, detection_on_words=True, detection_bias_init="prior",
    output_bias_init="log_frequency",
)
GENERATOR_ALONE = 0.68  # share of the updates
MASKING: Dict[str, Any] = dict(mask_prob=0.3)
VOCAB_SIZE, TOKENS_PER_SAMPLE, BATCH_SIZE = 1024, 16, 64
VALIDATIONS = 4
FINETUNED = {"CoLA": "glue/CoLA/dev.tsv", "cloze": "cloze/test.tsv"}  # of `corpus --tasks`, and what each is tested on
EXAMPLES = 8000  # of a task at most: there are 7,863 and 5,968


def model_options(method: str, updates: int, **changes: Any) -> Dict[str, Any]:
    """Of the recipe, with `changes`, what the method has."""
    wanted = {**MODEL, "generator_warmup_updates": int(GENERATOR_ALONE * updates), **changes}
    names = {option.name for option in declared(METHODS[method].config_class)}
    return {name: value for name, value in wanted.items() if name in names}


def updates_for(
    flops: float, method: str, options: Mapping[str, Any], alone: float = GENERATOR_ALONE, size: str = "tiny",
    vocab_size: int = VOCAB_SIZE, length: int = TOKENS_PER_SAMPLE, batch_size: int = BATCH_SIZE,
    mask_prob: float = MASKING["mask_prob"],
) -> int:
    """The length of a run of so many FLOPs, in a share `alone` of which only the generator learns, which costs less.

    options: of the model, for any length
    """
    most = 10**6
    geometry = Geometry(batch_size, length, most, mask_prob)
    network = without_memory(method, size, vocab_size, geometry, options)
    return max(4, updates_within(network, geometry, flops, alone if network.generator_warmup else 0.0))


def training(
    data: Path, run: Path, method: str, options: Mapping[str, Any], updates: int, size: str = "tiny",
    tokens_per_sample: int = TOKENS_PER_SAMPLE, batch_size: int = BATCH_SIZE, seed: int = 1, logs: int = 160,
    gpu: bool = False, lr: float = 1e-3,
) -> List[Any]:
    """Arguments of `amos-fairseq`. `options`: of the model and of masking"""
    interval = -(-updates // VALIDATIONS)  # rounded up: the last is at the end
    return [
        "train", data.resolve(), "--task", method, "--arch", f"{method}_{size}", "--criterion", method,
        "--bf16" if gpu else "--cpu", *(word for option in options.items() for word in argument(*option)),
        "--tokens-per-sample", tokens_per_sample, "--batch-size", batch_size, "--optimizer", "fused_adamw",
        "--adam-betas", "(0.9, 0.999)", "--adam-eps", 1e-6, "--weight-decay", 0.01, "--clip-norm", 2.0, "--lr", lr,
        "--lr-scheduler", "polynomial_decay", "--warmup-updates", max(1, updates // 10), "--total-num-update", updates,
        "--max-update", updates, "--save-dir", run, "--no-epoch-checkpoints", "--save-interval-updates", interval,
        "--keep-interval-updates", 1, "--validate-interval-updates", interval, "--log-format", "json",
        "--log-interval", max(1, updates // logs), "--num-workers", 0, "--seed", seed,
    ]


def finetuning(
    tasks: Path, task: str, run: Path, out: Path, seeds: Iterable[int], from_scratch: bool = False, epochs: int = 2,
    lr: float = 1e-3,
) -> List[Any]:
    """Arguments of `amos-fairseq`: a run on one of FINETUNED, or its network with new weights."""
    if task in COLUMNS:
        valid = tasks / FINETUNED[task]
        data = ["file", "--train", valid.with_name("train.tsv"), "--valid", valid, *COLUMNS[task]]
    else:
        data = ["glue", "--glue", tasks / "glue", "--tasks", task]
    return [
        "finetune", *data, "--model", run, "--out", out, "--epochs", epochs, "--seeds", ",".join(map(str, seeds)),
        "--lr", lr, "--batch-size", 32, "--max-length", 64, *(["--from-scratch"] if from_scratch else []),
    ]


def accuracy(finetuned: Path) -> float:
    """On what the task is tested on, the mean over the seeds in a folder that `finetuning` filled."""
    return statistics.mean(result.scores["valid"]["accuracy"] for result in results.read_all(finetuned).values())


def items(tasks: Path, task: str) -> int:
    """That the task is tested on; CoLA's layout has no header."""
    lines = (tasks / FINETUNED[task]).read_text(encoding="utf-8").splitlines()
    return len(lines) - (task in COLUMNS)


def argument(name: str, value: Any) -> List[str]:
    """An option as fairseq-train reads it; one that is False is left out."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    return [flag, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)]
