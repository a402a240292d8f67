"""`amos-fairseq train`: fairseq's own trainer, which finds this package and its repairs without being told."""
import importlib
import sys
from pathlib import Path
from typing import List

import amos_fairseq

HELP = "fairseq-train with --user-dir filled in; with --config-name or --config-dir, fairseq-hydra-train"
HYDRA_OPTIONS = ("--config-name", "-cn", "--config-dir", "-cd", "--config-path", "-cp")


def run(arguments: List[str]) -> None:
    """Hand all arguments to fairseq, the repairs of `fairseq_repairs` in place before it parses them."""
    sys.argv = fairseq_command(arguments)
    # First of all fairseq, since the program sets up logging.
    program = importlib.import_module("fairseq_cli." + sys.argv[0].removeprefix("fairseq-").replace("-", "_"))
    # Tasks and models of a user directory are imported by fairseq unless its package is imported already, as here.
    # The repairs come with the tasks.
    importlib.import_module("amos_fairseq.tasks")
    importlib.import_module("amos_fairseq.models.pretraining")
    # Processes that fairseq spawns, one per GPU, import the main program. It has to be fairseq's: with ours they would
    # have this package imported, too.
    ours, sys.modules["__main__"] = sys.modules["__main__"], program
    try:
        program.cli_main()
    finally:
        sys.modules["__main__"] = ours


def fairseq_command(arguments: List[str]) -> List[str]:
    """The full command line: the program's name, the user directory unless it is given, then the arguments."""
    user_dir = str(Path(amos_fairseq.__file__).resolve().parent)
    options = [argument.split("=")[0] for argument in arguments]
    check_user_dir(arguments)
    if any(option in HYDRA_OPTIONS for option in options):
        given = "common.user_dir" in options
        return ["fairseq-hydra-train", *arguments, *([] if given else [f"common.user_dir={user_dir}"])]
    given = "--user-dir" in options
    return ["fairseq-train", *([] if given else ["--user-dir", user_dir]), *arguments]


def check_user_dir(arguments: List[str]) -> None:
    """Refuse a user directory that is not there, which fairseq answers with a traceback."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        option, _, value = argument.partition("=")
        if option in ("--user-dir", "common.user_dir"):
            path = value or following
            if not Path(path).is_dir():
                sys.exit(
                    f"amos-fairseq train: error: {option} {path} is no folder, seen from {Path.cwd()}: leave it out, "
                    "this package fills it in"
                )
