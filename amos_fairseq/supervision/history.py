"""What a run writes down of itself, whatever it prints: `metrics.jsonl`, whose lines `amos_fairseq.run_log` reads."""

import json
import logging
import math
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Mapping

import fairseq
import numpy as np
import torch
from omegaconf import OmegaConf

from amos_fairseq import __version__, run_log
from amos_fairseq.files import open_own

logger = logging.getLogger(__name__)

KINDS = {"train_inner": run_log.TRAIN, "train": run_log.EPOCH}  # by fairseq's tag; others are validation subsets


class History:
    """Appends lines, each at once; what a kill left of one goes first. A disk that takes none does not end the run."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open_own(folder / run_log.FILE_NAME)
        with open(self._file, "rb", closefd=False) as stream:
            whole = stream.read().rfind(b"\n") + 1
        os.ftruncate(self._file, whole)

    def start(self, num_updates: int, cfg) -> None:
        groups = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        options = {group: values for group, values in groups.items() if isinstance(values, Mapping)}
        self._write(run_log.START, num_updates=num_updates, options=options, versions=versions())

    def note(self, stats: Mapping[str, Any], tag: str, num_updates: int, epochs_read: float) -> None:
        """What fairseq shows under that tag."""
        kind = KINDS.get(tag, run_log.VALIDATION)
        subset = {"subset": tag} if kind == run_log.VALIDATION else {}
        values = {name: plain(value) for name, value in stats.items() if value is not None}
        row = {"num_updates": num_updates, "update": round(epochs_read, 5), **values}
        self._write(kind, **subset, **row)

    def _write(self, kind: str, **row: Any) -> None:
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = f"{json.dumps({'kind': kind, 'time': time, **row}, default=str)}\n".encode()
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError("the disk is full")
        except OSError as error:
            os.ftruncate(self._file, size)
            logger.warning("%s cannot be written: %s", run_log.FILE_NAME, error)


def plain(value: Any) -> Any:
    """A number as JSON has it, which has no nan and no infinity."""
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    return int(number) if isinstance(value, int) else number


def versions() -> dict:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "amos_fairseq": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "fairseq": fairseq.__version__, "numpy": np.__version__, "device": device,
    }
