"""Checkpoints that are complete or absent: what the training writes, reads again, keeps and refuses.

    SAVE_DIR/checkpoint_<epoch>_<updates>/   one checkpoint (see `storage`)
    SAVE_DIR/checkpoint_last, checkpoint_best   links to two of them
    SAVE_DIR/checkpoint_*.tmp   remains of a process that was killed; the next start removes them
"""

from amos_fairseq.checkpoints.storage import Damaged, read, verify  # noqa: F401
from amos_fairseq.checkpoints.store import find, newest_valid  # noqa: F401
