"""Runs commands in forks of one process that has imported fairseq, so that its start-up is paid once.

Standard input holds one job a line, in JSON: the function to call, its arguments, the number of processes, which find
each other through the variables that torchrun sets, the folder to run in, and whether it is to fail: if it is not, the
first process that does ends the others. In the folder `streams`, process N writes N.out and N.err.
The answer to a job is one line with the exit codes. A child calls its function last, so it ends as a program would.
"""

import gc
import json
import os
import pkgutil
import signal
import socket
import sys
import time
from typing import List, Optional

SECONDS = 3600  # no job takes as long, however slow the machine: what does hangs


def serve() -> Optional[str]:
    """Run jobs until standard input ends. In a child, returns the function to call."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    import fairseq_cli.train  # noqa: F401, I001 (the first, since it sets up logging)
    import fairseq_cli.hydra_train  # noqa: F401
    import fairseq_cli.validate  # noqa: F401
    import torch._dynamo  # noqa: F401 (which every optimizer imports)

    warm_up()
    gc.freeze()  # the children need not visit what was imported

    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        children = []
        for rank in range(job["processes"]):
            child = os.fork()
            if child == 0:
                become(job, rank, port)
                return job["function"]
            children.append(child)
        print(json.dumps(wait(children, job["fails"])), file=answers, flush=True)


def warm_up() -> None:
    """Read a command's options, which fills the tables of what parses them; --user-dir is imported by each child."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    given = ["data", "--task", "masked_lm", "--criterion", "masked_lm", "--arch", "roberta_base"]
    convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), given))


def become(job: dict, rank: int, port: int) -> None:
    os.setpgid(0, 0)  # killed with its own children
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in its background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup for all
    os.chdir(job["folder"])
    files = os.devnull, *(os.path.join(job["streams"], f"{rank}.{kind}") for kind in ("out", "err"))
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = [job["function"], *job["arguments"]]
    if job["processes"] > 1:
        world = {"WORLD_SIZE": job["processes"], "RANK": rank, "LOCAL_RANK": rank}
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in {**world, **address}.items()})


def wait(children: List[int], fails: bool) -> List[int]:
    """The exit codes. What goes on is killed where that can change nothing: where all of it has been stopped by a
    signal, where a process has failed in a job that is not to, or when time is up.
    """
    codes, stopped, deadline = {}, set(), time.monotonic() + SECONDS
    while len(codes) < len(children):
        time.sleep(0.01)
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if done and os.WIFSTOPPED(status):
                stopped.add(child)
            elif done:
                codes[child] = os.waitstatus_to_exitcode(status)
        left = set(children) - set(codes)
        if left <= stopped or (any(codes.values()) and not fails) or time.monotonic() > deadline:
            for child in left:
                os.killpg(child, signal.SIGKILL)
    return [codes[child] for child in children]


if __name__ == "__main__":
    function = serve()
    if function is not None:
        sys.exit(pkgutil.resolve_name(function)())
