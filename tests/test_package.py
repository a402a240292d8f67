"""What is installed, and what importing it costs."""
import os
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import amos_fairseq
from amos_fairseq import recipes
from amos_fairseq.cli import main
from amos_fairseq.cli.main import COMMANDS
from tests.runs import REPOSITORY

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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the source distribution and the wheel, and, as pip installs that, `installed`."""
    source, out = tmp_path_factory.mktemp("source") / "repository", tmp_path_factory.mktemp("built")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "outputs", "*.egg-info", "*.so")
    shutil.copytree(REPOSITORY, source, ignore=unwanted)
    build = f"from setuptools.build_meta import *; build_sdist({str(out)!r}); print(build_wheel({str(out)!r}))"
    environment = {**os.environ, "AMOS_FAIRSEQ_CPU": "0", "AMOS_FAIRSEQ_CUDA": "0"}
    done = subprocess.run([sys.executable, "-c", build], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target"]
    subprocess.run([*install, out / "installed", out / done.stdout.split()[-1]], check=True)
    return out


@pytest.fixture
def installed_command(built, tmp_path):
    """installed_command(*arguments): what `amos-fairseq` of the wheel prints, called from another folder."""
    environment = {**os.environ, "PYTHONPATH": str(built / "installed")}

    def installed_command(*arguments):
        command = [sys.executable, "-m", "amos_fairseq.cli.main", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return installed_command


def files_of(folder, patterns):
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def test_source_distribution_holds_what_the_repository_has(built):
    with tarfile.open(*built.glob("*.tar.gz")) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    folders, kinds = ("examples", "slurm", "tests"), ("py", "sh", "yaml", "md")
    wanted = [f"{folder}/**/*.{kind}" for folder in folders for kind in kinds]
    wanted += ["amos_fairseq/**/*.py", "amos_fairseq/csrc/*.h", "*.md", "*.toml", "LICENSE"]
    files = files_of(REPOSITORY, wanted)
    assert files - packed == set() and not [name for name in packed if name.endswith((".so", ".pyc"))]


def test_wheel_has_the_recipes_and_the_slurm_scripts(built, installed_command, tmp_path):
    package, patterns = built / "installed/amos_fairseq", ["examples/**/*.yaml", "slurm/*.sh", "csrc/*.h"]
    assert files_of(package, patterns[:2]) == files_of(REPOSITORY, patterns[:2])
    assert Path(installed_command("where").strip()) == package
    assert installed_command("recipes").startswith("amos_rtd/base  ")
    installed_command("recipes", "copy", tmp_path / "mine")
    assert files_of(tmp_path / "mine", patterns) == files_of(package, patterns[:2])


def test_wheel_composes_a_recipe_by_name_from_any_folder(installed_command):
    cfg = yaml.safe_load(installed_command("train", "--config-name", "amos_rtd/base", "task.data=/d", "--cfg", "job"))
    assert cfg["task"]["_name"] == "amos_rtd" and cfg["model"]["encoder_embed_dim"] == 768
    assert cfg["common"]["user_dir"].endswith("installed/amos_fairseq")


def test_recipes_are_listed_by_name_with_what_they_are(capsys):
    assert main.main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert {line.split()[0] for line in out.partition("\n\n")[0].splitlines() if line[0] != " "} == {
        f"{path.parent.name}/{path.stem}" for path in REPOSITORY.glob("examples/*/*.yaml")
    }
    assert "amos_rtd/base AMOS base (Meng et al., ICLR 2022), Table 5 and Appendix B. amos" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_nothing_is_written_over_by_a_copy(tmp_path, capsys):
    assert main.main(["recipes", "copy", str(tmp_path)]) == 64
    assert f"{tmp_path} exists: name another folder" in capsys.readouterr().err
    assert recipes.SLURM == REPOSITORY / "slurm" and not list(tmp_path.iterdir())


def test_constraints_fit_the_requirements_and_leave_torch_to_its_user():
    lines = (REPOSITORY / "examples/constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    for version in ("3.10", "3.11", "3.12", "3.13"):
        mine = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": version})]
        pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in mine}
        assert len(pinned) == len(mine) and not {"torch", "torchaudio", "triton", "amos-fairseq"} & pinned.keys()
        for requirement in map(Requirement, metadata.requires("amos-fairseq")):
            name = canonicalize_name(requirement.name)
            assert name in {"torch", "triton"} or requirement.specifier.contains(pinned[name]), requirement


def test_installer_takes_the_constraints_and_removes_a_torchaudio_of_another_torch(tmp_path):
    python, calls = tmp_path / "venv/bin/python", tmp_path / "calls"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$*" != "-c import torchaudio" ]\n')
    python.chmod(0o755)
    script = f"source {REPOSITORY}/examples/environment.sh && prepare_environment data"
    environment = {**os.environ, "AMOS_FAIRSEQ_VENV": str(tmp_path / "venv"), "AMOS_FAIRSEQ_CUDA": "0"}
    subprocess.run(["bash", "-euc", script], env=environment, check=True, capture_output=True)
    told = calls.read_text().splitlines()
    (install,) = [line for line in told if f"--editable {REPOSITORY}[data]" in line]
    assert f"--constraint {REPOSITORY}/examples/constraints.txt" in install
    assert [line for line in told if "uninstall" in line] == ["-m pip uninstall --quiet --quiet --yes torchaudio"]
