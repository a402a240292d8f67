"""The checkpoints of one run: which there are, which is the newest that is not damaged, which are kept."""

import contextlib
import logging
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence

from amos_fairseq.checkpoints import storage
from amos_fairseq.checkpoints.storage import Damaged

logger = logging.getLogger(__name__)

LAST, BEST, TEMPORARY = "checkpoint_last", "checkpoint_best", "checkpoint_*.tmp"
NAME = re.compile(r"checkpoint_\d+_(?P<updates>\d+)(-\d+)*")  # the last parts tell those of the same update apart
SECONDS_BETWEEN_ATTEMPTS = (1, 5)


class Checkpoint(NamedTuple):
    """number: in the order of writing, which is not that of updates where a run went back; inf if it is unreadable"""

    path: Path
    updates: int
    number: float = math.inf
    score: Optional[float] = None
    purposes: Sequence[str] = ()  # of "interval" and "epoch"


def listed(save_dir: Path) -> List[Checkpoint]:
    """Newest first, and before these the ones whose manifest cannot be read."""
    found = []
    for path in Path(save_dir).glob("checkpoint_*"):
        match = NAME.fullmatch(path.name)
        if match is None:
            continue
        about = ()
        with contextlib.suppress(Damaged, KeyError):
            manifest = storage.read_manifest(path)
            about = manifest["number"], manifest["score"], manifest["purposes"]
        found.append(Checkpoint(path, int(match["updates"]), *about))
    return sorted(found, key=lambda checkpoint: checkpoint.number, reverse=True)


def newest_valid(save_dir: Path) -> Optional[Path]:
    """The newest checkpoint whose files are what was written; logs each newer one that is not. None without any.

    Raises Damaged if there are checkpoints and none is valid.
    """
    checkpoints = listed(save_dir)
    for checkpoint in checkpoints:
        try:
            storage.verify(checkpoint.path)
            return checkpoint.path
        except Damaged as error:
            logger.warning("not used: %s", error)
            reason = error
    if checkpoints:
        raise Damaged(f"none of the {len(checkpoints)} checkpoints in {save_dir} is valid; the last tried: {reason}")
    return None


def find(path: Path, verify: bool = False) -> Path:
    """The checkpoint that `path` means: its folder, a link to it, or its manifest; of a run's folder the newest valid.

    A file that fairseq wrote (.pt) stands for itself, and its checkpoint_last.pt for a run's folder that has no others.
    verify: let the files of a folder that is named itself be compared with its manifest, as those of the newest are.
    Raises ValueError if there is none, Damaged if its files are not what was written.
    """
    path = Path(path)
    if path.name == storage.MANIFEST:
        path = path.parent
    if path.is_file() or (path / storage.STATE).exists():
        if verify and path.is_dir():
            storage.verify(path)
        return path
    found = newest_valid(path)
    if found is None and (path / f"{LAST}.pt").is_file():
        return path / f"{LAST}.pt"
    if found is None:
        raise ValueError(f"{path} holds no checkpoint" if path.is_dir() else f"{path} does not exist")
    return found


def save(
    save_dir: Path, name: str, state: Mapping[str, Any], score: Optional[float], purposes: Sequence[str], is_best: bool,
    options,
) -> Path:
    """Write a checkpoint, let checkpoint_last (and checkpoint_best) link to it, then delete what need not be kept.

    options: fairseq's of checkpoints, of which --keep-* say what is kept; a number below 1 keeps all of a kind

    What fails for a reason that may pass is tried three times; then raises OSError, all earlier checkpoints in place.
    """
    earlier = listed(save_dir)
    number = 1 + max((checkpoint.number for checkpoint in earlier if checkpoint.number < math.inf), default=0)
    path, copies = save_dir / name, 1
    while path.exists():  # of a run that went back to an earlier update; never touched, so never half replaced
        copies += 1
        path = save_dir / f"{name}-{copies}"
    about = dict(number=number, score=score, purposes=list(purposes))
    for seconds in (*SECONDS_BETWEEN_ATTEMPTS, None):
        try:
            storage.write(path, state, about)
            break
        except OSError as error:
            if seconds is None:
                raise
            logger.warning("writing %s failed, next attempt in %d s: %s", path, seconds, error)
            time.sleep(seconds)
    link(save_dir / LAST, path)
    if is_best:
        link(save_dir / BEST, path)
    prune(save_dir, options)
    return path


def link(pointer: Path, path: Path) -> None:
    """Let `pointer` be a link to its neighbour `path`; at no time is it neither the old nor the new one."""
    temporary = pointer.with_name(f"{pointer.name}.tmp")
    temporary.unlink(missing_ok=True)
    os.symlink(path.name, temporary)
    os.replace(temporary, pointer)
    storage.sync_folder(pointer.parent)


def prune(save_dir: Path, options) -> None:
    """Delete the checkpoints that nothing keeps. The newest and the best are always kept, the unreadable left alone."""
    checkpoints = [checkpoint for checkpoint in listed(save_dir) if checkpoint.number < math.inf]
    kept = {checkpoint.path.name for checkpoint in kept_of(checkpoints, options)}
    kept |= {os.readlink(save_dir / pointer) for pointer in (LAST, BEST) if (save_dir / pointer).is_symlink()}
    for checkpoint in checkpoints:
        if checkpoint.path.name not in kept:
            remove(checkpoint.path)


def kept_of(checkpoints: Sequence[Checkpoint], options) -> List[Checkpoint]:
    """Of `checkpoints`, newest first, those that `options` keep, and the newest."""
    scored = [checkpoint for checkpoint in checkpoints if checkpoint.score is not None]
    scored.sort(key=lambda checkpoint: checkpoint.score, reverse=options.maximize_best_checkpoint_metric)
    intervals = [checkpoint for checkpoint in checkpoints if "interval" in checkpoint.purposes]
    multiple = options.keep_interval_updates_pattern
    every = [checkpoint for checkpoint in intervals if multiple > 0 and checkpoint.updates % multiple == 0]
    epochs = [checkpoint for checkpoint in checkpoints if "epoch" in checkpoint.purposes]
    return [
        *checkpoints[:1], *scored[: max(0, options.keep_best_checkpoints)], *every,
        *[checkpoint for checkpoint in intervals if checkpoint not in every][: limit(options.keep_interval_updates)],
        *epochs[: limit(options.keep_last_epochs)],
    ]


def limit(count: int) -> Optional[int]:
    return count if count > 0 else None


def remove(path: Path) -> None:
    """Out of sight first, so that a kill in the middle leaves no half of a checkpoint."""
    try:
        temporary = path.with_name(f"{path.name}.tmp")
        os.rename(path, temporary)
        shutil.rmtree(temporary)
    except OSError as error:
        logger.warning("%s cannot be deleted: %s", path, error)


def remove_remains(save_dir: Path) -> None:
    """Delete what a process left that was killed while it wrote or deleted a checkpoint."""
    for path in Path(save_dir).glob(TEMPORARY):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
