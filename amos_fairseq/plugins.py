"""Packages of others that register methods, see `amos_fairseq.methods.register`, found without being imported by name.

    pip             an entry point of the group `amos_fairseq.methods`, whose value is the module that registers
    a folder        `amos-fairseq --user-dir FOLDER`, or AMOS_FAIRSEQ_USER_DIR, of a package that registers
    fairseq's own   `fairseq-train --user-dir FOLDER` of a package that registers, and imports `amos_fairseq.tasks`
"""

import importlib
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

GROUP = "amos_fairseq.methods"
USER_DIR = "AMOS_FAIRSEQ_USER_DIR"  # in the environment, so that processes of this one find it, too


def load() -> None:
    """Import them, which does it once. Raises ValueError if the folder is none of a package."""
    for entry in entry_points(group=GROUP):
        entry.load()
    if os.environ.get(USER_DIR):
        folder = Path(os.environ[USER_DIR]).resolve()
        if not (folder / "__init__.py").is_file():
            raise ValueError(f"--user-dir {folder} is no package, it holds no __init__.py: name a folder that does")
        if str(folder.parent) not in sys.path:
            sys.path.append(str(folder.parent))
        importlib.import_module(folder.name)
