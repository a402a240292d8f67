"""What a resumed run would do otherwise than the run that wrote the checkpoint."""

import json
from typing import Any, Collection, Dict, List, Mapping, NamedTuple

from amos_fairseq import terminal
from amos_fairseq.options import options_of

# Options of fairseq's, as a task or model has them, too: places, the run's length, and what is compared by itself.
FREE = {"_name", "arch", "data", "seed", "save_dir", "restore_file", "max_update", "max_tokens"}
PRECISIONS = ("fp16", "bf16", "amp")
PRECISION_OPTIONS = ("memory_efficient_fp16", "memory_efficient_bf16", "fp16_no_flatten_grads")
NO_SCHEDULE = {"_name", "update_freq"}  # compared as the optimizer's name and the batch
DIGITS = 12  # of a SHA-256


class Difference(NamedTuple):
    option: str
    then: Any
    now: Any


def characteristics(
    cfg: Mapping[str, Any], task_state: Mapping[str, Any], free: Collection[str] = ()
) -> Dict[str, Any]:
    """By name, what a run must have in common with the one that it continues.

    cfg: fairseq's whole configuration as plain dicts; task_state: of its task, with the SHA-256 of vocabulary and data
    free: options of the task and the model, besides FREE, that may change
    """
    common, dataset, optimization = cfg["common"], cfg["dataset"], cfg["optimization"]
    processes = cfg["distributed_training"]["distributed_world_size"]
    limits = {"sequences": dataset["batch_size"], "tokens": dataset["max_tokens"]}
    batch = ", ".join(f"{number} {unit}" for unit, number in limits.items() if number)
    micro_batches = [processes * frequency for frequency in optimization["update_freq"]]
    precision = [name for name in PRECISIONS if common.get(name)] or ["fp32"]
    return {
        "method": cfg["task"]["_name"], "seed": common["seed"],
        "precision": " ".join(precision + [name for name in PRECISION_OPTIONS if common.get(name)]),
        "optimizer": options_of(cfg["optimizer"])["_name"], "batch": f"{batch} x {'/'.join(map(str, micro_batches))}",
        "vocabulary": task_state.get("dictionary_sha256", "")[:DIGITS],
        "data": task_state.get("data_sha256", "")[:DIGITS], **options(cfg["task"], free), **options(cfg["model"], free),
        "generator": generator_of(cfg["model"]),
    }


def generator_of(model: Any) -> str:
    """Trained or frozen, whichever checkpoint it is of; nothing of a method that cannot freeze it."""
    name = "generator_checkpoint"
    return "" if name not in options(model, ()) else "frozen" if model[name] else "trained"


def schedule(cfg: Mapping[str, Any]) -> Dict[str, Any]:
    """By name, what a resumed run does otherwise from there on if it is changed: rates, their schedule, the length."""
    groups = [cfg[group] for group in ("optimization", "optimizer", "lr_scheduler")]
    own = {key: value for group in groups if isinstance(group, Mapping) for key, value in group.items()}
    told = {key: value for key, value in own.items() if key not in NO_SCHEDULE}
    return {"lr_scheduler": options_of(cfg["lr_scheduler"])["_name"], **told}


def options(group: Any, free: Collection[str]) -> Dict[str, Any]:
    """Those of a task or model; an old architecture without dataclass has none of its own."""
    if not isinstance(group, Mapping):
        return {}
    return {key: value for key, value in group.items() if key not in FREE and key not in free}


def differences(then: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]) -> List[Difference]:
    """Of two runs' `characteristics`; what one of them does not know, or has no value for, is not compared."""
    return [
        Difference(name, then[name], now[name]) for name in now
        if name in then and name not in allowed and "" not in (then[name], now[name])
        and plain(then[name]) != plain(now[name])
    ]


def plain(value: Any) -> str:
    """Equal for lists and tuples, numbers and their text in a checkpoint."""
    return json.dumps(value, default=str, sort_keys=True)


def table(found: List[Difference]) -> str:
    return terminal.table([Difference._fields, *found], left=3)
