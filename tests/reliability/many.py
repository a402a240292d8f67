"""Runs many commands, each in a fork of a process that has imported fairseq and this package, and in its own folder.

Arguments: a JSON list of [function, arguments], and a folder. Below it, command N has the folder N, whose files are
what it makes. In outcomes.json is, for each, [exit status, output, errors, largest resident memory in MB,
seconds of CPU time].
"""

import json
import os
import pkgutil
import sys
import traceback
from pathlib import Path


def main():
    import_package()
    commands = json.loads(sys.argv[1])
    os.chdir(sys.argv[2])
    Path("outcomes.json").write_text(json.dumps([outcome(n, *command) for n, command in enumerate(commands)]))


def import_package():
    """fairseq does not, of a --user-dir whose package is imported already."""
    import amos_fairseq.models.pretraining  # noqa: F401
    import amos_fairseq.tasks  # noqa: F401


def outcome(number, function, arguments):
    folder, streams = Path(str(number)).absolute(), [Path(f"{number}.{kind}").absolute() for kind in ("out", "err")]
    folder.mkdir()
    child = os.fork()
    if child == 0:
        for descriptor, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
        os.chdir(folder)
        sys.argv = [function, *arguments]
        code = 1
        try:
            code = pkgutil.resolve_name(function)() or 0
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    texts = [path.read_text(errors="replace") for path in streams]
    return os.waitstatus_to_exitcode(status), *texts, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def unhashed():
    """fairseq-train as it is for data that are too many to be read at its start."""
    from fairseq_cli.train import cli_main

    from amos_fairseq.data import manifest

    import_package()
    manifest.HASHED_BYTES = -1
    cli_main()
