"""States of made-up trainings, small enough to be written hundreds of times, and what tells two of them apart."""

from argparse import Namespace

import torch
from fairseq.dataclass.configs import CheckpointConfig

from amos_fairseq import checkpoints
from amos_fairseq.checkpoints import store


def state(update: int, width: int = 4):
    """As fairseq's trainer has it, in small: a tied table, Adam's moments by number, half precision, plain values."""
    table = torch.full((width, 2), float(update))
    moments = {index: {"step": update, "exp_avg": torch.full((width,), update + index / 8)} for index in range(2)}
    return {
        "model": {"table": table, "head.table": table, "bias": torch.tensor(update / 3, dtype=torch.bfloat16)},
        "last_optimizer_state": {"state": moments, "param_groups": [{"betas": (0.9, 0.98), "params": [0, 1]}]},
        "cfg": {"model": Namespace(layers=2), "best": float("inf")},
        "update": update,
    }


def save(folder, update, score=None, purposes=("interval",), is_best=False, **options):
    options = CheckpointConfig(**options)
    return store.save(folder, f"checkpoint_1_{update}", state(update), score, purposes, is_best, options)


def update_of(path) -> int:
    """Of a checkpoint that `save` wrote, all of it compared with what was saved."""
    found = checkpoints.read(path)
    assert_equal(found, state(found["update"]))
    return found["update"]


def assert_equal(found, expected, path=""):
    assert type(found) is type(expected), path
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), path
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_equal(found[key], value, f"{path}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), path
        for index, value in enumerate(expected):
            assert_equal(found[index], value, f"{path}.{index}")
    else:
        assert found == expected, path


def names(folder):
    return sorted(path.name for path in folder.iterdir())
