"""A folder that gets its name when all of it is on the disk."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

from amos_fairseq.checkpoints import storage


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, which gets that name at the end; after an error nothing of it is left.

    Raises ValueError if `out` exists, or has no folder to be in.
    """
    if os.path.lexists(out):
        raise ValueError(f"{out} exists: name another folder")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"{out.parent} is no folder to write {out.name} into")
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    except OSError as error:
        error.filename = str(out)  # not that of the temporary folder
        raise
    try:
        partial.chmod(0o755)
        yield partial
        sync(partial)
        os.rename(partial, out)
        storage.sync_folder(parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(folder: Path) -> None:
    """All of a folder is on the disk when this returns."""
    for path in (folder, *folder.rglob("*")):
        storage.sync_folder(path)  # files, too
