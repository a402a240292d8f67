"""fairseq-train in a process that kills itself, with its group, at a given point of a given save.

Arguments: the function of `os` before whose call it is killed and the number of that call, then fairseq-train's, or
with --config-name those of fairseq-hydra-train.
"""

import os
import signal
import sys

import fairseq_cli.hydra_train
import fairseq_cli.train


def main():
    name, number, *arguments = sys.argv[1:]
    sys.argv = ["fairseq-train", *arguments]
    remaining, function = [int(number)], getattr(os, name)

    def counted(*arguments, **options):
        remaining[0] -= 1
        if remaining[0] < 0:
            os.killpg(0, signal.SIGKILL)
        return function(*arguments, **options)

    setattr(os, name, counted)
    program = fairseq_cli.hydra_train if "--config-name" in arguments else fairseq_cli.train
    program.cli_main()
