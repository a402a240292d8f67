"""What the replication concludes from numbers."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/replication"))
from claims import CLAIMS, Measured, holm, judge, p_within, seeds_needed  # noqa: E402
from variants import AMOS, METHODS, SEARCH  # noqa: E402


def test_a_mean_clearly_above_or_below_zero_is_seen_or_not_seen():
    words = [verdict.words for verdict in judge([[1.0, 1.1, 0.9], [-1.0, -1.1, -0.9], [1.0, -1.1, 0.9], [1.0]])]
    assert words == ["seen", "not seen", "undecided", "undecided (one seed)"]
    assert [verdict.words for verdict in judge([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])] == ["undecided", "seen"]


def test_what_is_within_a_margin_on_both_sides_is_no_difference_and_is_asked_only_where_there_is_a_margin():
    alike, far = [0.1, -0.1, 0.05, -0.05], [0.9, 1.1, 0.8, 1.2]
    assert [verdict.words for verdict in judge([alike, alike, [0.0] * 3], margins=[1.0, 0.0, 1.0])] == [
        "no difference", "undecided", "no difference"
    ]
    assert [verdict.words for verdict in judge([far, [0.4, 0.6, 0.5]], margins=[1.0, 1.0])] == ["seen", "seen"]


def test_no_difference_is_the_larger_of_two_one_sided_tests():
    values = [0.0, 1.0, 2.0, 3.0]  # mean 1.5, standard error 0.645497; of 4: t = 3.872983, of -4: 8.520563
    assert p_within(values, 4.0) == p_within([-value for value in values], 4.0) == pytest.approx(0.015233, abs=1e-6)
    assert p_within(values, 0.0) == p_within([1.0], 4.0) == 1.0


def test_seeds_are_told_for_what_decides_first_a_difference_or_none():
    spread = [-0.6, -0.2, 0.3, 0.6]  # mean .025, deviation .532
    (with_margin,), (without,) = judge([spread], 0.001, [1.0]), judge([spread], 0.001)
    assert with_margin.words == without.words == "undecided"
    assert with_margin.seeds_needed == 10 and without.seeds_needed == 1000


def test_the_interval_and_p_are_students():
    (verdict,) = judge([[1.0, 2.0, 3.0]])  # mean 2, standard error 1 / sqrt(3), t(0.975, 2 degrees) = 4.302653
    assert (verdict.mean, verdict.low, verdict.high) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-5)
    assert verdict.p == pytest.approx(0.074180, abs=1e-6)  # of t = 3.464102


def test_ps_are_corrected_for_the_number_of_claims_as_holm_does():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    alone, *_ = judge([[1.0, 1.5, 1.2]])
    first, *_ = judge([[1.0, 1.5, 1.2], *[[1.0, -1.0, 0.1]] * 9])
    assert alone.words == "seen" and first.words == "undecided" and first.p == pytest.approx(10 * alone.p)
    (stricter,) = judge([[1.0, 1.5, 1.2]], 0.01)
    assert alone.p == stricter.p > 0.01 and stricter.words == "undecided"


def test_seeds_that_would_decide_have_the_power_that_was_asked_for():
    # a difference of one deviation, two-sided 5 %, power 0.8: ten pairs, as tables of Cohen (1988) have it
    assert seeds_needed(1.0, 1.0, 0.05) == 10
    assert seeds_needed(1.0, 0.0, 0.05) == 2
    assert seeds_needed(0.001, 1.0, 0.05) == 1000


def test_differences_are_taken_in_points_over_the_seeds_that_both_have():
    claim = next(claim for claim in CLAIMS if claim.text == "COCO-LM is better than ELECTRA")
    scores = {"COCO-LM": {21: 0.8, 22: 0.7, 23: 0.9}, "ELECTRA": {22: 0.4, 21: 0.5, 24: 0.1}}
    runs = {name: {seed: Measured(by_seed[seed], {}, {}, {}) for seed in by_seed} for name, by_seed in scores.items()}
    assert claim.differences(runs) == pytest.approx([30.0, 30.0])


def test_every_claim_speaks_of_variants_that_are_trained():
    numbers = {name: 0.25 for name in ("mlm_1", "mlm_2", "mixture_weight_2", "rtd_auc_words", "scl_cosine_positive",
                                       "scl_cosine_negative", "unknown_share")}
    runs = {name: dict.fromkeys((1, 2), Measured(0.5, {}, numbers, numbers)) for name in {**METHODS, **AMOS}}
    for claim in CLAIMS:
        assert len(claim.differences(runs)) == 2, claim.text


def test_a_variant_is_the_recipe_but_for_its_changes_and_has_shares_in_updates():
    amos = SEARCH["AMOS"].options(1000)
    assert amos["generator_warmup_updates"] == 680 and amos["rel_pos_lr_factor"] == 100.0
    assert SEARCH["AMOS"].masking() == {"mask_prob": 0.3} and SEARCH["- mask .3"].masking() == {"mask_prob": 0.15}
    assert SEARCH["- generator alone"].options(1000) == {**amos, "generator_warmup_updates": 0}
    assert SEARCH["+ ramp"].options(1000) == {**amos, "rtd_warmup_updates": 160}
    assert "generator_warmup_updates" not in SEARCH["BERT"].options(1000)
