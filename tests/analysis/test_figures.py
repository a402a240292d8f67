import pytest

from amos_fairseq.analysis import figures
from amos_fairseq.analysis.run_log import RunLog

AMOS = RunLog(
    train=[
        {"num_updates": 10.0, "mlm": 15.9, "mlm_4": 8.0, "mlm_6": 7.9, "rtd": 0.4,
         "mixture_weight_4": 0.5, "mixture_weight_6": 0.5, "rtd_accuracy_original": 1.0, "rtd_accuracy_replaced": 0.0},
        {"num_updates": 20.0, "mlm": 13.5, "mlm_4": 7.0, "mlm_6": 6.5, "rtd": 0.3,
         "mixture_weight_4": 0.4, "mixture_weight_6": 0.6, "rtd_accuracy_original": 0.9, "rtd_accuracy_replaced": 0.2},
    ],
    validation=[{"num_updates": 20.0, "mlm_4": 6.9, "mlm_6": 6.4, "rtd": 0.31}],
)
MASKED_LM = RunLog([{"num_updates": 10.0, "mlm": 8.0}], [])


def lines_of(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()
            if not line.get_label().startswith("_")}


def test_loss_terms_share_the_updates_but_not_the_scale():
    mlm, rtd = figures.loss_terms(AMOS).axes
    assert lines_of(mlm) == {
        "masked LM, layer 4": [[10, 8.0], [20, 7.0]],
        "masked LM, layer 6": [[10, 7.9], [20, 6.5]],
        "validation": [],
    }
    assert lines_of(rtd)["detection"] == [[10, 0.4], [20, 0.3]]
    assert (mlm.get_ylabel(), rtd.get_ylabel()) == ("loss (nats per masked token)", "loss (nats per token)")
    assert rtd.get_xlabel() == "updates"


def test_validation_is_drawn_as_points():
    mlm, _ = figures.loss_terms(AMOS).axes
    points = [line.get_xydata().tolist() for line in mlm.get_lines() if line.get_marker() == "o"]
    assert points == [[[20, 6.9]], [[20, 6.4]], []]  # the last one is the legend's


def test_mixture_weights_are_drawn_beside_the_uniform_mixture():
    (axes,) = figures.mixture_weights(AMOS).axes
    lines = lines_of(axes)
    assert lines["generator, layer 6"] == [[10, 0.5], [20, 0.6]]
    assert [y for _, y in lines["uniform (1/2)"]] == [0.5, 0.5]


def test_detection_accuracy_is_in_percent():
    (axes,) = figures.detection_accuracy(AMOS).axes
    assert lines_of(axes)["replaced tokens"] == [[10, 0.0], [20, pytest.approx(20.0)]]
    assert axes.get_ylabel() == "detection accuracy (% of tokens)"


def test_lines_differ_in_colour_and_in_dashes():
    assert len({color for color, _ in figures.STYLES}) == len(figures.STYLES)
    assert all(a[1] != b[1] for a, b in zip(figures.STYLES, figures.STYLES[1:]))


def test_figures_without_numbers_are_not_written(tmp_path):
    assert [path.name for path in figures.write(MASKED_LM, tmp_path)] == ["loss_terms.png"]
    assert {path.name for path in figures.write(AMOS, tmp_path)} == {
        "loss_terms.png", "mixture_weights.png", "detection_accuracy.png"
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())
