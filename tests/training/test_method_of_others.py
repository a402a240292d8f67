"""A method in a package of its own goes through every command: example_method/ beside this file, 57 lines."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import amos_fairseq
from amos_fairseq import plugins, run_log
from amos_fairseq.methods import METHODS

USER_DIR = Path(__file__).with_name("example_method")
NAME = "delta_electra"
AMOS_FAIRSEQ = "amos_fairseq.cli.main:main"


@pytest.fixture(scope="module")
def run(launch, arguments, tmp_path_factory):
    """Trained by fairseq-train for 6 updates, then on to 9 by the same command."""
    folder = tmp_path_factory.mktemp("delta_electra") / "run"
    for updates in (6, 9):
        command = arguments(
            NAME, user_dir=USER_DIR, generator_embed_dim=8, delta_init_std=0.1, max_update=updates, save_dir=folder,
            save_interval_updates=3,
        )
        outcome = launch("fairseq_cli.train:cli_main", command)
        with open(folder / "train.log", "a") as log:
            log.write(outcome.err[0] + outcome.out[0])
    return folder


@pytest.fixture(scope="module")
def command(launch):
    """command(*arguments): what `amos-fairseq` with the method's package prints."""

    def command(*arguments, **options):
        outcome = launch(AMOS_FAIRSEQ, ["--user-dir", USER_DIR, *arguments], **options)
        return (outcome.err if options.get("fails") else outcome.out)[0]

    return command


def test_it_trains_validates_and_goes_on(run):
    train, validation = run_log.read(run / "train.log")
    assert [row["num_updates"] for row in train] == list(range(1, 10))
    assert all(row["delta_norm"] > 0 for row in train) and validation[-1]["num_updates"] == 9
    assert "rtd_auc_words" in validation[-1] and train[-1]["loss"] < train[0]["loss"]


def test_hydra_knows_it(launch, yaml_config, run, tmp_path):
    config = yaml_config("electra_rtd")
    config["common"]["user_dir"] = str(USER_DIR)
    for group in ("task", "model", "criterion"):
        config[group]["_name"] = NAME
    config["model"]["delta_init_std"] = 0.1
    config["optimization"]["max_update"] = 2
    config["checkpoint"] = dict(save_dir=str(tmp_path / "run"))
    (tmp_path / "own.yaml").write_text(json.dumps(config))  # JSON is yaml
    options = ["--config-dir", tmp_path, "--config-name", "own", f"hydra.run.dir={tmp_path}/hydra"]
    log = launch("fairseq_cli.hydra_train:cli_main", options).log
    assert log.train[1]["loss"] == run_log.read(run / "train.log").train[1]["loss"]


def test_its_options_have_rules(launch, arguments, tmp_path):
    wrong = arguments(NAME, user_dir=USER_DIR, delta_init_std=-1, save_dir=tmp_path)
    outcome = launch("fairseq_cli.train:cli_main", wrong, fails=True)
    assert "delta_init_std -1.0 is out of range: it must be at least 0" in outcome.err[0]


def test_it_is_inspected_and_its_cost_is_counted(run, command):
    sentence = json.loads(command("inspect", run, "--text", "the bada", "--json"))
    assert sentence["method"] == NAME and all("probability" in token for token in sentence["tokens"])
    rows = [json.loads(row) for row in command("flops", NAME, "electra_rtd", "--json").splitlines()]
    assert {row["method"] for row in rows} == {NAME, "electra_rtd"} and rows[0]["token"] == rows[2]["token"]


def test_what_it_logs_is_in_the_report(run, command, tmp_path):
    assert "length of the table's change" in command("report", run, "--out", tmp_path / "report")
    assert "length of the table&#x27;s change" in (tmp_path / "report/report.html").read_text()


def test_its_table_is_folded_wherever_its_encoder_is_used(run, monkeypatch):
    monkeypatch.setenv(plugins.USER_DIR, str(USER_DIR))
    model = amos_fairseq.from_pretrained(run)
    METHODS.pop(NAME)  # no other test of this process knows it
    tokens = model.encode("the bada")[None]
    with torch.no_grad():
        assert torch.equal(model.method.rtd_head(model.encoder(tokens)), model.method.detection_logits(tokens))
    assert not torch.equal(model.encoder.token_embeddings.weight, model.method.encoder.token_embeddings.weight)


def test_it_is_exported_fine_tuned_and_embeds(run, command, launch, tmp_path):
    command("export", run, "--out", tmp_path / "model")
    assert "DeBERTaV3" in (tmp_path / "model/README.md").read_text()
    (tmp_path / "text").write_text("the bada\nthe mufe\n")
    for source in (run, tmp_path / "model"):
        command("embed", source, tmp_path / "text", "--out", tmp_path / f"{source.name}.npy")
    vectors, exported = (np.load(tmp_path / f"{name}.npy") for name in ("run", "model"))
    assert vectors == pytest.approx(exported, abs=1e-6)
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "the bada\ta\nthe mufe\tb\n" * 8)
    own = ["--train", tmp_path / "a.tsv", "--valid", tmp_path / "a.tsv", "--text", "text", "--label", "label"]
    options = ["--out", tmp_path / "tuned", "--cpu", "--seeds", "1", "--epochs", "1", "--max-length", "16"]
    assert "accuracy" in command("finetune", "file", "--model", run, *own, *options)
    without_package = ["finetune", "prompt", "--model", tmp_path / "model", *own[:2], "--test", *own[3:], *options]
    outcome = launch(AMOS_FAIRSEQ, without_package, fails=True)
    assert outcome.codes == [64] and f"unknown method {NAME}: choose from amos_rtd, " in outcome.err[0]


def test_a_folder_that_is_no_package_is_told(launch, tmp_path):
    outcome = launch(AMOS_FAIRSEQ, ["--user-dir", tmp_path, "flops"], fails=True)
    assert outcome.codes == [64] and "is no package, it holds no __init__.py" in outcome.err[0]
