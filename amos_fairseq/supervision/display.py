"""What a person sees of a training: a row of numbers for each --log-interval, and a bar of the run's updates.

It is there unless --log-format or --log-file asks for what fairseq prints. fairseq's own log goes to FILE_NAME beside
the checkpoints: configuration, modules, and every line that is not shown. Elsewhere than on a terminal there are the
same rows without bar and colour.
"""

import contextlib
import logging
import logging.handlers
import sys
import time
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from amos_fairseq import run_log
from amos_fairseq.supervision.history import KINDS
from amos_fairseq.terminal import BOLD, coloured, duration, filled, show_controls, visible

FILE_NAME = "fairseq.log"
FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"  # fairseq's
TRAINER = "fairseq_cli.train"
# Of fairseq's log, what says why a run ends; warnings and this package's own lines are shown, too.
SHOWN = ("early stop", "stopping training", "Stopping training", "done training")
TITLES = {"wps": "tokens/s", "mfu": "MFU"}
MOST_TERMS = 4  # of a loss, which fit into 80 columns
ROWS = 20  # under one heading

_current: Optional["Display"] = None


def current() -> Optional["Display"]:
    return _current


def install() -> None:
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            show_controls(handler)
    logging.getLogger(TRAINER).addFilter(_begin_with_configuration)


def _begin_with_configuration(record: logging.LogRecord) -> bool:
    """fairseq's trainer first of all logs its whole configuration, on the first process alone."""
    cfg = record.msg
    if isinstance(cfg, DictConfig) and "common" in cfg and hasattr(cfg.task, "update_timeout"):
        global _current
        if cfg.common.log_format is None and cfg.common.log_file is None:
            _current = Display(cfg)
    return True


def end() -> None:
    global _current
    if _current is not None:
        _current.close()
        _current = None


class Display(logging.Handler):
    """In the place of the log's handlers for the terminal, those of `logging.basicConfig` or hydra, until it closes."""

    def __init__(self, cfg: DictConfig):
        super().__init__()
        self.hidden = cfg.common.no_progress_bar or not (sys.stdout.isatty() and sys.stderr.isatty())  # the bar is
        self.bar = tqdm(disable=True)
        self.terms: List[str] = []  # that are logged, of those that the task names
        self.rows = 0  # under the last heading
        self.began: Optional[Tuple[float, int]] = None  # time and updates, once the first of this process is made
        root = logging.getLogger()
        self.replaced = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
        self.log: logging.Handler = logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1)
        for handler in self.replaced:
            root.removeHandler(handler)
        root.addHandler(self)
        if not cfg.checkpoint.no_save:
            root.addHandler(self.log)

    def start(self, trainer, folder: Optional[Path]) -> None:
        """Training begins or goes on; folder: for the log, which has begun before there was one; None: for none."""
        if folder is not None:
            root, begun, self.log = logging.getLogger(), self.log, File(folder / FILE_NAME)
            begun.setTarget(self.log)
            begun.close()
            root.removeHandler(begun)
            root.addHandler(self.log)
        cfg, begin = trainer.cfg, trainer.get_num_updates()
        self.total, self.names = cfg.optimization.max_update or None, trainer.task.loss_names
        parameters = sum(parameter.numel() for parameter in trainer.get_model().parameters())
        device = torch.cuda.get_device_name() if trainer.device.type == "cuda" else "CPU"
        devices = f"{trainer.data_parallel_world_size} x {device}"
        end = f"{self.total:,}" if self.total else "the last epoch's end"
        self.tell(f"{cfg.model._name}: {parameters:,} parameters on {devices}, updates {begin:,} to {end}")
        if folder is not None:
            self.tell(f"{folder}: all numbers in {run_log.FILE_NAME}, configuration and modules in {FILE_NAME}")
        style = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} updates, {elapsed}" if self.total else None
        options = dict(unit="update", dynamic_ncols=True, leave=False, bar_format=style, disable=self.hidden)
        self.bar = tqdm(total=self.total, initial=begin, **options)

    def updated(self, num_updates: int) -> None:
        if self.began is None:
            self.began = time.monotonic(), num_updates
        self.bar.update(num_updates - self.bar.n)

    def note(self, stats: Mapping[str, Any], tag: str, num_updates: int) -> None:
        """What fairseq would show under that tag: a row of training or validation; an epoch's means are for no one."""
        kind = KINDS.get(tag, run_log.VALIDATION)
        if kind == run_log.EPOCH:
            return
        terms = [name for name in self.names if name in stats][:MOST_TERMS]
        if self.rows % ROWS == 0 or (kind == run_log.TRAIN and terms != self.terms):
            self.terms, self.rows = terms, 0
            self.say(coloured(row(["update", "loss", *terms, *TITLES.values(), "left"]), sys.stdout, BOLD))
        self.rows += 1
        cells = [f"{num_updates:,}", *(number(stats.get(name)) for name in ("loss", *self.terms))]
        if kind == run_log.TRAIN:
            tokens, share = (stats.get(name) or 0 for name in TITLES)  # 0: fairseq's clock has only been set
            speeds = [f"{tokens:,.0f}" if tokens else "", f"{100 * share:.1f}%" if share else ""]
            self.say(row([*cells, *speeds, self.left(num_updates)]))
        else:
            self.say(f"{row([*cells, '', '', ''])}  {visible(tag)}")

    def left(self, num_updates: int) -> str:
        """Time until the whole run's end, at the mean speed of this process, validation and saving included."""
        if self.began is None or self.total is None or num_updates <= self.began[1]:
            return ""
        per_update = (time.monotonic() - self.began[0]) / (num_updates - self.began[1])
        return duration((self.total - num_updates) * per_update)

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        if warning or record.name.startswith("amos_fairseq.") or str(record.msg).startswith(SHOWN):
            self.tell(f"{record.levelname.lower()}: " * warning + self.format(record))

    def tell(self, text: str) -> None:
        self.say(filled(text))

    def say(self, line: str) -> None:
        """Above the bar, if any. Who takes no more, a full disk or a reader that is gone, does not end the run."""
        with contextlib.suppress(OSError):
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()
        root = logging.getLogger()
        for handler in (self, self.log):
            root.removeHandler(handler)
        self.log.close()
        super().close()
        while self.replaced:
            root.addHandler(self.replaced.pop())


class File(logging.FileHandler):
    """Appended to by each start of the run. A disk that takes no more does not end the run."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter(FORMAT))

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        logging.getLogger(__name__).warning("%s cannot be written: %s", FILE_NAME, sys.exc_info()[1])

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what was not written
            super().close()


def row(cells: Sequence[str]) -> str:
    """Of a table of at most 80 columns: update, loss, its terms, tokens/s, MFU and the time that is left."""
    widths = [9, *[7] * (len(cells) - 4), 10, 6, 9]
    return " ".join(map(str.rjust, cells, widths)).rstrip()


def number(value: Any) -> str:
    return "" if value is None else f"{float(value):#.4g}"
