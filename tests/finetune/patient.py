"""`amos-fairseq train` that, once it has saved for the first time, trains on when it has been asked to stop."""

import time

from amos_fairseq import supervision
from amos_fairseq.checkpoints import store
from amos_fairseq.cli import train


def run(arguments):
    save = store.save

    def save_and_wait(*arguments, **options):
        path = save(*arguments, **options)
        while not supervision.current().watch.requested:
            time.sleep(0.01)
        return path

    store.save = save_and_wait
    return train.run(arguments)
