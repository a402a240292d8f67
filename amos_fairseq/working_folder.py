"""A folder that one process at a time works in, with the settings that it was begun with."""

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any, Iterator, Mapping

from amos_fairseq.data.manifest import durably_written


@contextlib.contextmanager
def claimed(path: Path, settings: Mapping[str, Any], at_work: str, begun_with: str) -> Iterator[int]:
    """Hold the folder of `path`, a file that keeps its settings: a new folder, or one of the same settings.

    Yields the lock's file descriptor: a process that inherits it holds the folder, too. Raises ValueError.
    at_work, begun_with: how messages say that another process holds it, and that its settings are others
    """
    out = path.parent
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"--out {out} is in use by something else: choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        with durably_written(os.fspath(path)) as stream:
            stream.write(f"{json.dumps(settings, indent=1)}\n".encode())
    with open(path, encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{at_work} in {out}: wait for it, or choose another --out") from None
        kept = json.load(stream)
        changes = [f"{name} {kept.get(name)}, not {new}" for name, new in settings.items() if kept.get(name) != new]
        if changes:
            raise ValueError(f"{out} {begun_with} {'; '.join(changes)}: choose another --out, or delete it")
        yield stream.fileno()
