import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import amos_fairseq
from amos_fairseq.cli.train import fairseq_command
from tests.runs import AMOS_FAIRSEQ

USER_DIR = str(Path(amos_fairseq.__file__).parent)
RECIPES = Path(__file__).parents[2] / "examples" / "amos_rtd"


def test_user_dir_is_filled_in():
    assert fairseq_command(["data", "--lr", "1"]) == ["fairseq-train", "--user-dir", USER_DIR, "data", "--lr", "1"]


def test_given_user_dir_is_kept(tmp_path):
    given = f"--user-dir={tmp_path}"
    assert fairseq_command(["data", given]) == ["fairseq-train", "data", given]


def test_configuration_means_hydra(tmp_path):
    arguments = ["--config-dir", str(RECIPES), "--config-name=base", "task.data=x"]
    assert fairseq_command(arguments) == ["fairseq-hydra-train", *arguments, f"common.user_dir={USER_DIR}"]
    given = f"common.user_dir={tmp_path}"
    assert fairseq_command([*arguments, given])[-1] == given


@pytest.mark.parametrize(
    "function, command", [(AMOS_FAIRSEQ, ["train"]), ("fairseq_cli.train:cli_main", ["--user-dir", USER_DIR])]
)
def test_help_lists_what_is_named_before_fairseqs_options(function, command, launch):
    names = ["--task", "amos_rtd", "--arch", "amos_rtd_small", "--criterion", "amos_rtd", "--optimizer", "adam"]
    ours, fairseqs = launch(function, [*command, *names, "--help"]).out[0].split("\nusage: ")
    assert "  --mixture learned " in ours and "  --encoder-embed-dim 256 " in ours
    assert "  --mask-prob 0.15 " in ours and "  --use-old-adam off " in ours and "--log-format" not in ours
    assert "  --log-format LOG_FORMAT\n" in fairseqs and max(map(len, ours.splitlines())) <= 80


@pytest.mark.parametrize("given, inside", [
    (["--config-name", "amos_rtd/base"], ["--config-name", "base"]), (["-cn=amos_rtd/base"], ["-cn=base"]),
])
def test_a_recipe_is_found_by_name(given, inside):
    command = ["fairseq-hydra-train", "--config-dir", str(RECIPES), *inside, f"common.user_dir={USER_DIR}"]
    assert fairseq_command(given) == command


def test_overrides_may_stand_anywhere(tmp_path):
    given = ["task.data=x", f"--config-dir={RECIPES}", "--cfg", "job", "~model", "--config-name", "base", "model=tiny"]
    options = [f"--config-dir={RECIPES}", "--cfg", "job", "--config-name", "base"]
    overrides = ["task.data=x", "~model", "model=tiny", f"common.user_dir={USER_DIR}"]
    assert fairseq_command(given) == ["fairseq-hydra-train", *options, *overrides]


def test_a_recipe_that_is_not_there_is_told_with_those_that_are(capsys):
    with pytest.raises(SystemExit):
        fairseq_command(["--config-name", "amos_rtd/bse"])
    assert "--config-name amos_rtd/bse is none of amos_rtd/base, amos_rtd/base_plus" in capsys.readouterr().err


def test_options_of_a_method_are_listed_with_their_defaults(launch):
    lines = launch(AMOS_FAIRSEQ, ["options", "amos_rtd", "--size", "small"]).out[0].splitlines()
    assert [line for line in lines if line and line[0] != " "] == ["task:", "model:", "optimizer:"]
    about = {line.split()[0]: line.split()[1:2] for line in lines if line.startswith("  --")}
    assert about["--data"] == ["(required)"]
    assert about["--encoder-embed-dim"] == ["256"] and about["--mask-prob"] == ["0.15"] and "--save-dir" not in about
    groups = yaml.safe_load(launch(AMOS_FAIRSEQ, ["options", "amos_rtd", "--yaml"]).out[0])
    assert groups["model"]["_name"] == "amos_rtd" and groups["model"]["generator_depths"] == [4, 6, 8]
    assert groups["optimizer"]["_name"] == "fused_adamw" and groups["task"]["data"] == "???"


def test_spawned_processes_start_as_fairseq_starts_them(tmp_path):
    """They import the main program before the user directory, whose tasks fairseq skips if the package is there."""
    (tmp_path / "spawned.py").write_text("import sys\ndef look(rank):\n    print('amos_fairseq' in sys.modules)\n")
    (tmp_path / "program.py").write_text(
        "import fairseq_cli.train, spawned, sys, torch.multiprocessing\n"
        "from amos_fairseq.cli.main import main\n"
        "if __name__ == '__main__':\n"
        "    fairseq_cli.train.cli_main = lambda: torch.multiprocessing.spawn(spawned.look, nprocs=1)\n"
        "    sys.exit(main(['train']))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nFalse\n")


def test_configuration_that_is_not_there_is_told_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        fairseq_command(["-cd", str(RECIPES), "-cn=bse"])
    assert ended.value.code == os.EX_USAGE
    line = f"amos-fairseq train: error: --config-dir {RECIPES} holds no bse.yaml, seen from {Path.cwd()}\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "given", [["--user-dir", "amos"], ["--user-dir=amos"], ["--config-name", "base", "common.user_dir=amos"]]
)
def test_user_directory_that_is_not_there_is_told_in_one_line(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        fairseq_command(["data", *given])
    option = "common.user_dir" if "base" in given else "--user-dir"
    assert ended.value.code == os.EX_USAGE
    assert capsys.readouterr().err == (
        f"amos-fairseq train: error: {option} amos is no folder, seen from {tmp_path}: leave it out, this package "
        "fills it in\n"
    )
