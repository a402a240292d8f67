"""What a stranger could put into options and files: code that is never run, and paths that lead nowhere else."""

import json
import os
import shutil

import pytest
import torch
import yaml

from amos_fairseq.cli import main as command
from amos_fairseq.data.manifest import load_manifest_for
from amos_fairseq.user_errors import Damaged

NAME = "coco_lm"
TRAIN, OURS, VALIDATE = "fairseq_cli.train:cli_main", "amos_fairseq.cli.main:main", "fairseq_cli.validate:cli_main"
CODE = "__import__('os').mkdir('ran')"


class Runs:
    """Pickled, this is a call of os.mkdir."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


OPTIONS = {  # what: options that hold code
    "betas": dict(adam_betas=CODE),
    "betas in a tuple": dict(adam_betas=f"(0.9, {CODE})"),
    "epsilons": dict(optimizer="adafactor", adam_betas=None, adafactor_eps=CODE),
    "lr": dict(lr=CODE),
    "update_freq": dict(update_freq=f"[{CODE}]"),
    "optimizer_overrides": dict(optimizer_overrides=CODE),
    "pipeline": dict(pipeline_model_parallel=True, pipeline_balance=CODE),
}
FILES = {"code.pt": Runs(), "nested.pt": {"cfg": {"model": [Runs()]}, "model": {}}}
NAMES_A_FILE = ("restore_file", "init_checkpoint", "generator_checkpoint", "finetune_from_model", "continue_once")
MKDIR = {"_target_": "os.mkdir", "path": "ran"}
MAKES = {"version": 1, "root": {"handlers": ["one"]}, "handlers": {"one": {"()": "os.mkdir", "path": "ran"}}}
HYDRA = {  # what: hydra's own group of a YAML file, and the place that is named
    "a callback": (dict(callbacks=dict(one=MKDIR)), "hydra.callbacks"),
    "a launcher": (dict(launcher={"_target_": "os.abort"}), "hydra.launcher._target_ 'os.abort'"),
    "a sweeper": (dict(sweeper=dict(params=dict(x=MKDIR))), "hydra.sweeper.params.x._target_"),
    "logging of jobs": (dict(job_logging=MAKES), "hydra.job_logging.handlers.one.()"),
    "logging of hydra": (dict(hydra_logging=MAKES), "hydra.hydra_logging.handlers.one.()"),
    "logging by a class": (
        dict(job_logging={"handlers": {"file": {"class": "shutil.rmtree"}}}), "hydra.job_logging.handlers.file.class"
    ),
    "logging elsewhere": (dict(job_logging={"handlers": "${task.data}"}), "hydra.job_logging.handlers '${task.data}'"),
    "variables": (dict(job=dict(env_set=dict(LD_PRELOAD="evil.so"))), "hydra.job.env_set"),
    "a package": (dict(searchpath=["pkg://antigravity"]), "hydra.searchpath pkg://antigravity"),
}
BILLION = "".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12))
FIELDS = ["log_file", "tensorboard_logdir", "wandb_project", "aim_repo", "plasma_path"]
REFERENCES = {name: f"${{common.{other}}}" * 12 for name, other in zip(FIELDS, FIELDS[1:])}
LENGTHS = {"log_file": "x" * 99_999, "aim_repo": "${common.log_file}" * 20}
YAML = {  # what: a file that never ends, and words
    "references": (yaml.safe_dump({"common": REFERENCES}), "values refer to others more than 1,000 times"),
    "a text without end": (yaml.safe_dump({"common": LENGTHS}), "common.aim_repo ${common.log_file}"),
    "defaults": ("defaults: [d0@x, d0@y]", "defaults name more than 1,000 files"),
    "a reference to nothing": ("common: {log_file: '${common.lgo}'}", "Interpolation key 'common.lgo' not found"),
    "YAML in a text": ("common: {log_file: '${oc.create:1}'}", "Unsupported interpolation type oc.create"),
    "digits": (f"common: {{seed: {'9' * 6000}}}", "digits.yaml: Exceeds the limit (4300 digits)"),
    "aliases": (f"a0: &a0 [1]\n{BILLION}", "values with its aliases written out"),
    "depth": ("a: " + "[" * 2_000, "is nested more than 32 levels deep"),
    "an alias of itself": ("a: &a [*a]", "is nested more than 32 levels deep"),
}
PATHS = {  # what: options
    "another folder as a shard": dict(data="{data}/data0:{data}/../elsewhere"),
    "a device as data": dict(data="/dev/zero"),
    "a long name as data": dict(data="x" * 300),
    "a link to itself as data": dict(data="{files}/loop"),
    "a split elsewhere": dict(valid_subset="../../elsewhere/valid"),
    "an absolute split": dict(train_subset="/etc/passwd"),
    "a long name for checkpoints": dict(save_dir="x" * 300),
    "a device for checkpoints": dict(save_dir="/dev/full"),
    "a folder of the kernel for checkpoints": dict(save_dir="/proc/run"),
    "a device to restore": dict(restore_file="/dev/zero"),
}


@pytest.fixture(scope="module")
def files(corpus, tmp_path_factory):
    """Files of a stranger, and a folder that is none of the data's."""
    folder = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        torch.save(content, folder / name)
    (folder / "noise.pt").write_bytes(bytes(range(256)) * 8)
    (folder / "half.pt").write_bytes((folder / "code.pt").read_bytes()[:100])
    (folder / "empty.pt").touch()
    os.symlink("loop", folder / "loop")
    return folder


@pytest.fixture(scope="module")
def outcomes(launch, arguments, yaml_config, files, corpus, tmp_path_factory):
    """By what was tried: exit status, output, errors, and what was made."""
    commands, folder = {}, tmp_path_factory.mktemp("hostile")
    (folder / "elsewhere").mkdir()

    def train(**options):
        return [TRAIN, arguments(NAME, **{"save_dir": "run", **options})]

    for what, options in OPTIONS.items():
        commands[what] = train(**options)
    for option in NAMES_A_FILE:
        commands[option] = train(**{option: files / "code.pt"})
    for name in "nested.pt", "noise.pt", "half.pt", "empty.pt":
        commands[name] = train(restore_file=files / name)
    validate = [str(corpus), "--task", NAME, "--batch-size", "2"]
    commands["validate"] = [VALIDATE, [*validate, "--path", str(files / "code.pt")]]
    commands["model_overrides"] = [VALIDATE, [*validate, "--path", "x.pt", "--model-overrides", CODE]]
    data = shutil.copytree(corpus, folder / "data")
    for what, options in PATHS.items():
        places = dict(data=data, files=files)
        commands[what] = train(**{name: value.format(**places) for name, value in options.items()})
    config = yaml_config(NAME)
    config["optimizer"]["adam_betas"] = CODE
    (folder / "yaml_betas.yaml").write_text(yaml.safe_dump(config))
    (folder / "yaml_tag.yaml").write_text("common: !!python/object/apply:os.mkdir [ran]\n")
    config = yaml_config(NAME)
    config["task"]["data"] = "data\0"
    (folder / "yaml_nul.yaml").write_text(yaml.safe_dump(config))
    for what, (group, _) in HYDRA.items():
        (folder / f"{what}.yaml").write_text(yaml.safe_dump({**yaml_config(NAME), "hydra": group}))
    for level in range(10):
        (folder / f"d{level}.yaml").write_text(f"defaults: [d{level + 1}@x, d{level + 1}@y]")
    (folder / "d10.yaml").write_text("one: 1")
    for what, (text, _) in YAML.items():
        (folder / f"{what}.yaml").write_text(text)
    commands["again"] = [OURS, ["train", "--config-name", "x", "--experimental-rerun", files / "code.pt"]]
    for name in "yaml_betas", "yaml_tag", "yaml_nul", *HYDRA, *YAML:
        commands[name] = [OURS, ["train", "--config-dir", str(folder), "--config-name", name]]
    commands = {what: [function, [str(part) for part in line]] for what, (function, line) in commands.items()}
    launch("tests.reliability.many:main", [json.dumps(list(commands.values())), folder])
    outcomes = json.loads((folder / "outcomes.json").read_text())
    made = [[path.name for path in (folder / str(number)).rglob("*")] for number in range(len(commands))]
    return {what: (*outcome[:3], names) for what, outcome, names in zip(commands, outcomes, made)}


def told(outcome):
    status, out, err, made = outcome
    line = err.splitlines()[-1]
    assert line.startswith("amos_fairseq: error: ") and "Traceback" not in out + err, err[-2000:]
    assert err.count("error: ") == 1 and "ran" not in made
    return status, line


@pytest.mark.parametrize("what", [*OPTIONS, "model_overrides", "yaml_betas", "yaml_tag", "again"])
def test_code_in_options_is_not_run(outcomes, what):
    status, line = told(outcomes[what])
    assert status == os.EX_USAGE


@pytest.mark.parametrize("what", [*HYDRA, *YAML])
def test_a_configuration_runs_nothing_and_ends(outcomes, what):
    """Before hydra acts, which would make its folder for the run's output."""
    status, line = told(outcomes[what])
    assert status == os.EX_USAGE and {**HYDRA, **YAML}[what][1] in line and outcomes[what][3] == []


@pytest.mark.parametrize("what", [*NAMES_A_FILE, "nested.pt", "validate"])
def test_code_in_a_checkpoint_is_not_run(outcomes, what):
    status, line = told(outcomes[what])
    assert "is refused, since to load it could run code" in line and ".pt" in line
    assert status == os.EX_DATAERR


@pytest.mark.parametrize("name", ["noise.pt", "half.pt", "empty.pt"])
def test_a_file_that_is_no_checkpoint_is_told(outcomes, files, name):
    status, line = told(outcomes[name])
    assert status == os.EX_DATAERR and str(files / name) in line


@pytest.mark.parametrize("what", [*PATHS, "yaml_nul"])
def test_a_path_that_leads_elsewhere_is_refused(outcomes, what):
    status, line = told(outcomes[what])
    assert status == os.EX_USAGE and len(line) < 1000


SPLITS = {"../x": "data0/../x", "/etc/x": "/etc/x", "train": "../data0/train", "x/../../y": "data0/x/../../y"}


@pytest.mark.parametrize("split", SPLITS)
def test_files_that_a_manifest_places_elsewhere_are_refused(corpus, tmp_path, split):
    data = shutil.copytree(corpus, tmp_path / "data")
    document = json.loads((data / "manifest.json").read_text())
    train = document["splits"].pop("train")
    shard = train["shards"][0]
    shard["files"] = {f"{SPLITS[split]}{name[-4:]}": record for name, record in shard["files"].items()}
    document["splits"] = {"train": train, **document["splits"], split: train}
    (data / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(Damaged, match="shards.0..files is not"):
        load_manifest_for(str(data))


@pytest.mark.parametrize("out", ["/dev/null", "/dev/full/out", "{tmp}/file", "{tmp}/file/out", "{tmp}/a:b", "x" * 300,
                                 "{tmp}/others", "{tmp}/loop", "out\0", ""])
def test_prepare_writes_nowhere_but_into_a_folder_of_its_own(text, tmp_path, monkeypatch, capsys, out):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("mine")
    os.symlink("loop", tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert command.main(["prepare", str(text), "--out", out.format(tmp=tmp_path)]) == os.EX_USAGE
    line = capsys.readouterr().err
    assert line.startswith("amos-fairseq prepare: error: ") and line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "others" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "mine"
