"""Half precision trains: with fairseq's default loss scale, near what full precision gives."""

import math

import pytest
import torch

from amos_fairseq import checkpoints
from amos_fairseq.methods import METHODS

DEFAULT_SCALE = 128
PRECISIONS = {"bf16": dict(bf16=True), "fp16": dict(fp16=True, fp16_no_flatten_grads=True)}


CASES = [  # by turns; all of them with --nightly
    pytest.param(name, precision, marks=[pytest.mark.nightly] * ((number + place) % 2))
    for number, name in enumerate(METHODS) for place, precision in enumerate(PRECISIONS)
]


@pytest.mark.parametrize("name, precision", CASES)
def test_half_precision_trains_near_full_precision(training, launch, arguments, tmp_path, name, precision):
    options = dict(PRECISIONS[precision], save_dir=tmp_path, disable_validation=True)
    outcome = launch("fairseq_cli.train:cli_main", arguments(name, **options))
    rows, expected = outcome.log.train, training(name).outcome.log.train
    assert [row["num_updates"] for row in rows] == list(range(1, 9))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.01)  # near chance level for all
    assert rows[0]["gnorm"] == pytest.approx(expected[0]["gnorm"], rel=0.1)
    assert rows[-1]["loss"] < 0.99 * rows[0]["loss"]
    assert "overflow" not in outcome.out[0] + outcome.err[0]
    if precision == "fp16":
        assert {row["loss_scale"] for row in rows} == {DEFAULT_SCALE}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.half}[precision]
    model = checkpoints.read(tmp_path / "checkpoint_last")["model"]
    assert {value.dtype for value in model.values() if value.is_floating_point()} == {dtype}
