import json

import pytest

from amos_fairseq.analysis import expectations
from amos_fairseq.run_log import RunLog

ROWS = [
    {"num_updates": 10.0 * i, "mlm": 20.0, "mlm_4": 10.0 - i / 10, "rtd_accuracy_original_words": 0.95, "wps": 1234.5}
    for i in range(1, 41)
]
LOG = RunLog(ROWS, [{"num_updates": 400.0, "mlm_4": 5.0, "rtd_auc_words": 0.75}])


def test_measured_value_is_the_mean_of_the_last_tenth_of_training():
    assert expectations.measure_of(LOG, "mlm_4") == pytest.approx(10 - (3.7 + 3.8 + 3.9 + 4.0) / 4)


def test_what_only_validation_measures_is_taken_from_there():
    assert expectations.measure_of(LOG, "rtd_auc_words") == 0.75


def test_comparison_marks_what_lies_outside_its_range():
    expected = {"mlm_4": (5.0, 7.0), "rtd_accuracy_original_words": (0.96, 1.0)}
    assert [(row.name, row.measured, row.mark) for row in expectations.compare(LOG, expected)] == [
        ("mlm_4", pytest.approx(6.15), "ok"),
        ("rtd_accuracy_original_words", pytest.approx(0.95), "OUTSIDE"),
        ("rtd_auc_words", 0.75, ""),
        ("wps", 1234.5, ""),
    ]


def test_expectations_hold_for_a_default_quick_start_only(tmp_path):
    assert expectations.of_run(tmp_path) == {}
    (tmp_path / "quickstart.json").write_text(json.dumps({"method": "amos_rtd", "setting": "quickstart"}))
    assert "mlm_1" in expectations.of_run(tmp_path)
    (tmp_path / "quickstart.json").write_text(json.dumps({"method": "amos_rtd", "setting": "custom"}))
    assert expectations.of_run(tmp_path) == {}


def test_ranges_are_not_empty():
    assert all(low < high for ranges in expectations.EXPECTED.values() for low, high in ranges.values())
