"""What a user gets wrong is told in one line, before any work."""

import os
import shutil
import subprocess
import sys

import pytest

NAME = "amos_rtd"


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    """Data folders that are not what prepare wrote."""
    made = tmp_path_factory.mktemp("folders")
    (made / "empty").mkdir()
    shutil.copytree(corpus, made / "other_dictionary")
    dictionary = made / "other_dictionary" / "dict.txt"
    copies = [dictionary] if dictionary.exists() else []
    for path in copies + list((made / "other_dictionary").glob("*/dict.txt")):
        lines = path.read_text().splitlines()
        lines[5], lines[6] = lines[6], lines[5]
        path.unlink()
        path.write_text("\n".join(lines) + "\n")
    return made


MISTAKES = {  # what: (options, what the line must name)
    "missing data folder": (dict(data="nowhere"), ["nowhere"]),
    "folder without manifest": (dict(data="empty"), ["empty", "prepare"]),
    "dictionary of another corpus": (dict(data="other_dictionary"), ["dict.txt"]),
    "depths below the generator": (dict(generator_depths=[1, 3], generator_layers=2), ["generator_depths", "2"]),
    "blocks longer than the positions": (dict(tokens_per_sample=64), ["tokens_per_sample 64", "max_positions 32"]),
    "blocks shorter than the prepared ones": (dict(tokens_per_sample=16), ["32 tokens", "tokens_per_sample 16"]),
    "nothing masked": (dict(mask_prob=0.0), ["mask_prob", "0.0"]),
    "everything masked": (dict(mask_prob=1.0), ["mask_prob", "1.0"]),
    "more than everything masked": (dict(mask_prob=1.5), ["mask_prob", "1.5"]),
    "masking shares above 1": (dict(keep_prob=0.5), ["keep_prob", "0.5"]),
    "unknown mixture": (dict(mixture="lerned"), ["mixture 'lerned'", "learned"]),
    "unknown bucketing": (dict(rel_pos_bucketing="t6"), ["rel_pos_bucketing", "t6"]),
    "heads that do not divide the width": (dict(encoder_attention_heads=3), ["16", "3"]),
    "arch of another method": (
        dict(arch="electra_rtd_tiny", generator_depths=None), ["arch electra_rtd", "task amos_rtd"]
    ),
    "criterion of another method": (dict(criterion="bert_mlm"), ["criterion bert_mlm", "task amos_rtd"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_the_run_with_one_line(launch, arguments, folders, tmp_path, mistake):
    options, named = MISTAKES[mistake]
    options = dict(options, save_dir=tmp_path / "run")
    if "data" in options:
        options["data"] = folders / options["data"]
    outcome = launch("fairseq_cli.train:cli_main", arguments(NAME, **options), fails=True)
    message = outcome.err[0].splitlines()[-1]
    assert message.startswith("amos_fairseq: error: ") and len(message) < 300 + len(str(folders))
    assert all(word in message for word in named), message
    assert "Traceback" not in outcome.out[0] + outcome.err[0]
    assert "loaded" not in outcome.out[0]  # no data was read
    assert not list(tmp_path.rglob("*.pt*"))


def test_command_line_exits_with_64_and_the_line(arguments, user_dir, tmp_path):
    """The command itself, from another folder and with a slash at the end of the user directory."""
    command = [sys.executable, "-m", "fairseq_cli.train"]
    command += arguments(NAME, mask_prob=1.5, user_dir=f"{user_dir}{os.sep}", save_dir=tmp_path / "run")
    environment = {**os.environ, "PYTHONPATH": str(user_dir.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 64
    *before, message = done.stderr.splitlines()
    assert message == "amos_fairseq: error: mask_prob 1.5 is out of range: it must be above 0 and below 1"
    assert "amos_fairseq: error" not in "".join(before) + done.stdout and "Traceback" not in done.stderr


def test_user_directory_that_does_not_exist_is_named_in_full(launch, arguments, tmp_path):
    command = arguments(NAME, user_dir="amos_fairseq", save_dir=tmp_path)
    outcome = launch("fairseq_cli.train:cli_main", command, fails=True)
    message = outcome.err[0].splitlines()[-1]
    assert message.startswith("FileNotFoundError: ") and message.endswith(f"{os.sep}amos_fairseq")
