"""fairseq-train with a disk that is full after so many files of checkpoints.

Arguments: the number of files, then fairseq-train's.
"""

import errno
import os
import sys

import fairseq_cli.train

import amos_fairseq.models.pretraining  # noqa: F401 (fairseq does not, the package being imported already)
import amos_fairseq.tasks  # noqa: F401
from amos_fairseq.checkpoints import storage, store


def main():
    files, *arguments = sys.argv[1:]
    sys.argv = ["fairseq-train", *arguments]
    remaining, write_durably = [int(files)], storage.write_durably

    def limited(path, chunks):
        remaining[0] -= 1
        if remaining[0] < 0:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_durably(path, chunks)

    storage.write_durably, store.SECONDS_BETWEEN_ATTEMPTS = limited, (0, 0)
    fairseq_cli.train.cli_main()
