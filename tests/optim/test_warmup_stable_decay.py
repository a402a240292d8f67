"""The schedule's values, and that a resumed run goes on with them."""

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("fairseq")
from fairseq import checkpoint_utils  # noqa: E402

import amos_fairseq.tasks  # noqa: E402, F401
from amos_fairseq.optim.warmup_stable_decay import learning_rate  # noqa: E402


def rates(updates, **options):
    cfg = dict(lr=[0.8], warmup_updates=4, decay_share=0.4, decay_shape="linear", end_learning_rate=0.0)
    cfg = SimpleNamespace(**{**cfg, "total_num_update": 20.0, **options})
    return [pytest.approx(learning_rate(cfg, update), abs=1e-12) for update in updates]


def test_rise_plateau_and_linear_fall():
    assert rates([0, 1, 2, 4, 12, 14, 16, 18, 20, 99]) == [0.2, 0.2, 0.4, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]


def test_the_fall_ends_where_it_is_told():
    assert rates([12, 16, 20], end_learning_rate=0.4) == [0.8, 0.6, 0.4]


def test_the_other_fall_is_one_less_the_root():
    assert rates([12, 14, 18, 20], decay_shape="sqrt") == [0.8, 0.4, 0.8 * (1 - math.sqrt(0.75)), 0.0]


def test_without_warm_up_and_fall_the_rate_is_one_until_the_end():
    assert rates([0, 1, 19, 20], warmup_updates=0, decay_share=0.0) == [0.8, 0.8, 0.8, 0.0]


def test_a_run_resumed_in_the_fall_is_the_same(launch, arguments, tmp_path):
    options = dict(
        lr_scheduler="warmup_stable_decay", decay_share=0.5, decay_shape="sqrt", total_num_update=8, max_update=8,
        warmup_updates=2, lr=[0.004], save_interval_updates=3, disable_validation=True,
    )
    runs = [launch("fairseq_cli.train:cli_main", arguments("bert_mlm", **options, save_dir=tmp_path / "through"))]
    start = next((tmp_path / "through").glob("checkpoint_*_6"))
    options.update(save_dir=tmp_path / "resumed", restore_file=start)
    runs.append(launch("fairseq_cli.train:cli_main", arguments("bert_mlm", **options)))
    found, resumed = (
        [(row["num_updates"], row["lr"], row["loss"]) for row in run.log.train] for run in runs
    )
    assert found[-len(resumed):] == resumed and [row[0] for row in resumed] == [7, 8]
    assert [row[1] for row in found[:5]] == pytest.approx([0.002, 0.004, 0.004, 0.004, 0.002], abs=1e-9)
    models = (
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / run / "checkpoint_last"))["model"]
        for run in ("through", "resumed")
    )
    one, other = models
    assert all(torch.equal(other[name], value) for name, value in one.items())
