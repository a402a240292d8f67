"""`amos-fairseq` on a machine with little documentation: every eighth module of a folder.

What it forks from a process of its own, to have imported everything once, are forks of this one, which has.
"""

import multiprocessing

from amos_fairseq.cli.main import main as amos_fairseq
from amos_fairseq.demo import documentation


def main():
    all_below = documentation._sources_below
    documentation._sources_below = lambda root: [*all_below(root)][::8]
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork
    return amos_fairseq()
