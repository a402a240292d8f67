"""What the replication concludes from numbers."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/replication"))
from claims import CLAIMS, Measured, judge  # noqa: E402
from variants import VARIANTS, argument  # noqa: E402


def test_a_mean_clearly_above_or_below_zero_is_seen_or_not_seen():
    assert judge([1.0, 1.1, 0.9]).words == "seen"
    assert judge([-1.0, -1.1, -0.9]).words == "not seen"
    assert judge([1.0, -1.1, 0.9]).words == "undecided"
    assert judge([1.0]).words == "undecided (one seed)"


def test_the_interval_is_students():
    verdict = judge([1.0, 2.0, 3.0])  # mean 2, standard error 1 / sqrt(3), t(0.95, 2 degrees) = 2.919986
    assert (verdict.mean, verdict.low, verdict.high) == pytest.approx((2.0, 0.314145, 3.685855), abs=1e-5)


def test_differences_are_taken_seed_by_seed_and_in_points():
    claim = next(claim for claim in CLAIMS if claim.text == "COCO-LM is better than ELECTRA")
    runs = {"COCO-LM": [Measured(0.8, {}, {}), Measured(0.7, {}, {})], "ELECTRA": [Measured(0.5, {}, {})] * 2}
    assert claim.differences(runs) == pytest.approx([30.0, 20.0])


def test_every_claim_speaks_of_variants_that_are_trained():
    numbers = {name: 0.25 for name in ("mlm_1", "mlm_2", "mixture_weight_2", "rtd_auc_words", "scl_cosine_positive",
                                       "scl_cosine_negative", "unknown_share")}
    runs = {name: [Measured(0.5, numbers, numbers)] * 2 for name in VARIANTS}
    for claim in CLAIMS:
        assert len(claim.differences(runs)) == 2, claim.text


def test_options_become_arguments():
    assert argument("scl_weight", 0.0) == ("--scl-weight", "0.0")
    assert argument("generator_depths", [2]) == ("--generator-depths", "2")
    assert argument("join_blocks", True) == ("--join-blocks",)
