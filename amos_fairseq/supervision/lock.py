"""One run at a time in a folder."""

import fcntl
import logging
import os
import socket
from pathlib import Path

from amos_fairseq.files import open_own

logger = logging.getLogger(__name__)

NAME = "run.lock"


class Locked(Exception):
    """Another process holds the lock; the message is one line with the remedy."""


def lock(folder: Path):
    """Lock the folder until this process ends, however it ends; returns the open file, which is the lock.

    Raises Locked. It is a record lock (fcntl.lockf): it belongs to this process, not to the children that it forks, and
    the kernel drops it with the process, so what a dead one left is no obstacle. Between hosts it holds on NFS version
    4, and on version 3 with its lock service; not on mounts with `nolock` or `local_lock`, nor on Lustre mounted
    without `flock`. A file system that refuses to lock is no reason to refuse to train: that is logged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(open_own(folder / NAME), "a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise Locked(f"{folder} is in use by {owner}: wait until it ends, or give another --save-dir") from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no second run in it", folder, error.strerror)
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
