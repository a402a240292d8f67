"""What is installed, and what importing it costs."""
import subprocess
import sys
from importlib import metadata

import pytest

import amos_fairseq
from amos_fairseq.cli.main import COMMANDS

EVERY_COMMAND = ", ".join(f"amos_fairseq.cli.{name.replace('-', '_')}" for name in COMMANDS)


def test_version_is_that_of_the_installed_package():
    assert metadata.version("amos-fairseq") == amos_fairseq.__version__


def test_command_is_installed():
    (command,) = metadata.distribution("amos-fairseq").entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("amos-fairseq", "amos_fairseq.cli.main:main")


def test_apex_is_not_required():
    assert not any(requirement.startswith("apex") for requirement in metadata.requires("amos-fairseq"))


@pytest.mark.parametrize(
    "module, absent",
    [
        ("amos_fairseq", ["fairseq", "torch"]),
        ("amos_fairseq.cli.main", ["fairseq", "torch", "matplotlib"]),
        pytest.param(EVERY_COMMAND, ["fairseq", "matplotlib"], id="every command"),
        ("amos_fairseq.methods", ["fairseq"]),
        ("amos_fairseq.analysis.figures", ["fairseq", "torch", "matplotlib.pyplot"]),
    ],
)
def test_importing_a_module_leaves_the_rest_unimported(module, absent):
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
