"""`amos-fairseq` on a machine with little documentation: every eighth module of a folder."""

from amos_fairseq.cli.main import main as amos_fairseq
from amos_fairseq.demo import documentation


def main():
    all_below = documentation._sources_below
    documentation._sources_below = lambda root: [*all_below(root)][::8]
    return amos_fairseq()
