import argparse
import json
import subprocess
import sys
import types

import pytest

from amos_fairseq import __version__
from amos_fairseq.cli import main
from amos_fairseq.finetune.commands import COMMANDS
from amos_fairseq.user_errors import Damaged


@pytest.fixture
def command(monkeypatch):
    """Register a function as the command `report`, which takes one PATH."""
    def register(function):
        module = types.SimpleNamespace(
            HELP="A command.", add_arguments=lambda parser: parser.add_argument("path"), run=function
        )
        monkeypatch.setitem(sys.modules, "amos_fairseq.cli.report", module)
        return main.main(["report", "x"])

    return register


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"  {name} " in out for name in main.COMMANDS)
    assert "\t" not in out and max(map(len, out.splitlines())) <= 100


def test_no_arguments_show_the_help(capsys):
    assert main.main([]) == 64
    assert "commands:" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main.main(["--version"])
    assert capsys.readouterr().out == f"amos-fairseq {__version__}\n"


def test_unknown_command_is_refused_with_the_choices(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["reprot"])
    assert ended.value.code == 64
    assert "invalid choice: 'reprot'" in capsys.readouterr().err


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_describes_itself(name, capsys):
    if name == "train":
        pytest.skip("fairseq describes it")
    with pytest.raises(SystemExit) as ended:
        main.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: amos-fairseq {name}")


def test_no_help_waits_for_torch():
    """Each command's but that of `train`, which is fairseq's; of `finetune` that of its sub-commands, too."""
    lines = [[name, "--help"] for name in main.COMMANDS if name != "train"]
    lines += [["finetune", name, "--help"] for name in (*COMMANDS, "results")]
    program = (
        "import contextlib, json, sys\nfrom amos_fairseq.cli import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    with contextlib.suppress(SystemExit): main.main(line)\n"
        "    assert not {'torch', 'fairseq'} & sys.modules.keys(), line"
    )
    done = subprocess.run([sys.executable, "-c", program, json.dumps(lines)], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.count("usage: amos-fairseq") == len(lines)


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("shards must be\n positive, got 0"), 64, "shards must be positive, got 0"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 64, "a.txt: No such file or directory"),
        (ValueError(), 64, "ValueError"),
        (Damaged("a.idx is damaged"), 65, "a.idx is damaged"),
    ],
)
def test_mistake_is_told_in_one_line(command, capsys, error, status, line):
    def fail(args: argparse.Namespace):
        raise error

    assert command(fail) == status
    assert capsys.readouterr().err == f"amos-fairseq report: error: {line}\n"


def test_traceback_is_shown_on_request(command, monkeypatch):
    def fail(args):
        raise ValueError("no")

    monkeypatch.setenv("AMOS_FAIRSEQ_TRACEBACK", "1")
    with pytest.raises(ValueError):
        command(fail)


def test_interruption_is_quiet(command, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    assert command(interrupt) == 130
    assert capsys.readouterr().err == ""


def test_reader_that_leaves_early_is_no_error(tmp_path):
    code = (
        "import sys; from amos_fairseq.cli import main; "
        "main.run_command = lambda *_: [print(i) for i in range(10**6)]; sys.exit(main.main(['report', 'x']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "amos_fairseq.cli.main", "flops", "--updats=3"], capture_output=True, text=True
    )
    line = "amos-fairseq flops: error: unrecognized arguments: --updats=3, did you mean --updates?\n"
    assert (done.returncode, done.stderr) == (64, line)
