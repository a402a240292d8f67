"""Each method trained, validated and configured by its name, through fairseq's own commands."""

import importlib.util
import json
import math
from types import SimpleNamespace

import pytest

from amos_fairseq.data.preparation import prepare
from amos_fairseq.methods import METHODS

TERMS = {  # name: {loss term: weight}
    "amos_rtd": {"mlm": 1, "rtd": 50},
    "teams_mws": {"mlm": 1, "rtd": 5, "mws": 2},
    "peer_tqr": {"mlm": 1, "tqr": 50},
    "electra_rtd": {"mlm": 1, "rtd": 50},
    "bert_mlm": {"mlm": 1},
}
DETECTION = {
    "generator_accuracy", "sampled_accuracy", "replaced_share",
    "rtd_accuracy_original_words", "rtd_accuracy_original_all", "rtd_accuracy_replaced",
}
STATISTICS = {
    "amos_rtd": DETECTION
    | {f"{kind}_{depth}" for kind in ("mlm", "mlm_accuracy", "mixture_weight") for depth in (1, 2)},
    "teams_mws": DETECTION | {"mws_accuracy"},
    "peer_tqr": DETECTION
    | {"unknown_share"}
    | {f"level_{kind}_{level}" for kind in ("accuracy", "threshold") for level in (1, 2)},
    "electra_rtd": DETECTION,
    "bert_mlm": {"mlm_accuracy"},
}
SPEED = {"tflops", "mfu"}  # in training only
OF_GRADIENTS = {"amos_rtd": {"candidate_tail"}}  # in training only
FAIRSEQ = {  # what fairseq itself logs
    "epoch", "update", "wps", "ups", "wpb", "bsz", "num_updates", "lr", "gnorm", "train_wall", "wall", "best_loss"
}
ROUNDING = 1e-5  # of terms and statistics; fairseq prints 6 digits in all, so a loss above 10 has fewer


HIDDEN_STATES = {"hidden_cosine", "hidden_rank"}  # in validation only, as AUC
AUC = {"rtd_auc_words", "rtd_auc_all", "rtd_auc_identity"}


def shares(row):
    return {key: value for key, value in row.items() if any(w in key for w in ("accuracy", "share", "weight", "auc"))}


def test_every_update_logs_the_loss_its_terms_statistics_and_speed(training, name):
    train = training(name).outcome.log.train
    assert [row["num_updates"] for row in train] == list(range(1, 9))
    for row in train:
        speed = set() if row is train[0] else SPEED  # nothing is timed in the first update
        assert speed | {"loss"} < row.keys()
        if name in TERMS:
            statistics = STATISTICS[name] | OF_GRADIENTS.get(name, set())
            assert row.keys() - FAIRSEQ == TERMS[name].keys() | statistics | speed | {"loss"}


def test_a_rate_however_small_is_logged_in_significant_digits(monkeypatch):
    from fairseq.logging import meters, metrics, progress_bar

    from amos_fairseq.criterions.pretraining import PretrainingCriterion

    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(meters, "time", clock)
    with metrics.aggregate(new_root=True) as logged:
        for clock.now in (0.0, 3e3):
            PretrainingCriterion.reduce_metrics([{"tflop": 1e-6, "peak_seconds": 1e-5}])
    rates = {name: progress_bar.format_stat(value) for name, value in logged.get_smoothed_values().items()}
    assert rates == {"loss": "0", "tflops": "3.33333e-10", "mfu": "3.33333e-09"}


def test_every_validation_logs_the_same_and_the_auc_of_detection(training, name):
    train, validation = training(name).outcome.log
    assert [row["num_updates"] for row in validation] == [3, 5, 6, 8]  # mid-epoch saves, ends of an epoch, of the run
    for row in validation:
        assert train[0].keys() - FAIRSEQ - SPEED - row.keys() == OF_GRADIENTS.get(name, set())
        added = row.keys() - FAIRSEQ - train[0].keys()
        detects = "rtd_accuracy_replaced" in row
        assert added == HIDDEN_STATES | (AUC if detects else set())


def test_logged_numbers_are_finite_and_shares_are_shares(training, name):
    train, validation = training(name).outcome.log
    for row in train + validation:
        assert all(math.isfinite(value) for value in row.values())
        assert all(0 <= value <= 1 for value in shares(row).values())
        assert row.get("mixture_weight_1", 0.5) + row.get("mixture_weight_2", 0.5) == pytest.approx(1, abs=2 * ROUNDING)
        assert all(row.get(key, 0) >= 0 for key in SPEED)


@pytest.mark.parametrize("name", TERMS)
def test_logged_loss_is_the_weighted_sum_of_logged_terms(training, name):
    train, validation = training(name).outcome.log
    for row in train + validation:
        expected = sum(weight * row[term] for term, weight in TERMS[name].items())
        assert row["loss"] == pytest.approx(expected, abs=(sum(TERMS[name].values()) + 1) * ROUNDING / 2 + 5e-5)


def test_loss_falls(training, name):
    train, validation = training(name).outcome.log
    assert train[-1]["loss"] < 0.99 * train[0]["loss"]
    assert validation[-1]["loss"] < validation[0]["loss"]


def test_validate_command_finds_the_loss_that_training_logged(training, launch, corpus, user_dir, name):
    checkpoint = training(name).folder / "checkpoint_last"
    command = [corpus, "--user-dir", user_dir, "--task", name, "--path", checkpoint]
    command += ["--batch-size", 8, "--seed", 3, "--log-format", "json", "--cpu"]  # the seed decides who shares a batch
    outcome = launch("fairseq_cli.validate:cli_main", command)
    row = json.loads([line for line in outcome.out[0].splitlines() if '"valid_loss"' in line][-1].split(" | ")[-1])
    logged = training(name).outcome.log.validation[-1]
    for key in logged.keys() - FAIRSEQ:
        assert float(row[f"valid_{key}"]) == pytest.approx(logged[key], rel=1e-5, abs=ROUNDING)


def test_hydra_train_with_yaml_is_the_same_run(training, launch, yaml_config, tmp_path, name):
    config = yaml_config(name)
    config["checkpoint"] = dict(save_dir=str(tmp_path / "run"), save_interval_updates=3)
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))  # JSON is yaml
    command = ["--config-dir", tmp_path, "--config-name", "tiny", f"hydra.run.dir={tmp_path}/hydra"]
    log = launch("fairseq_cli.hydra_train:cli_main", command).log
    expected = training(name).outcome.log
    for rows, expected_rows in zip(log, expected):
        assert [row["loss"] for row in rows] == [row["loss"] for row in expected_rows]
        assert len(rows) == len(expected_rows) > 0


TENSORBOARD = any(importlib.util.find_spec(module) for module in ("tensorboard", "tensorboardX"))


@pytest.mark.skipif(not TENSORBOARD, reason="tensorboard is not installed")
def test_tensorboard_log_is_written(launch, arguments, tmp_path):
    options = dict(max_update=1, save_dir=tmp_path / "run", tensorboard_logdir=tmp_path / "board")
    launch("fairseq_cli.train:cli_main", arguments(next(iter(METHODS)), **options))
    assert list((tmp_path / "board").rglob("events.out.tfevents.*"))


def test_training_validates_alike_on_a_folder_and_on_any_of_its_shards_in_any_order(launch, arguments, text, tmp_path):
    options = dict(vocab_size=300, tokens_per_sample=32, shards=3, valid_fraction=0.2, workers=1)
    prepare([str(text)], str(tmp_path / "data"), **options)
    shards = [f"{tmp_path}/data/data{number}" for number in range(3)]
    losses = []
    for number, data in enumerate((f"{tmp_path}/data", shards[2], f"{shards[1]}:{shards[0]}")):
        run = arguments("bert_mlm", data=data, max_update=1, lr=[1e-12], save_dir=tmp_path / str(number), no_save=True)
        losses.append(launch("fairseq_cli.train:cli_main", run).log.validation[-1]["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
