from pathlib import Path

import pytest
import torch

from amos_fairseq import run_log
from amos_fairseq.analysis import figures, quantities
from amos_fairseq.analysis.figures import CURVES
from amos_fairseq.methods import METHODS
from amos_fairseq.quantities import HIDDEN_STATES, LOWER, Quantity
from amos_fairseq.run_log import Run, RunLog

AMOS = RunLog(
    train=[
        {"num_updates": 10.0, "mlm": 15.9, "mlm_4": 8.0, "mlm_6": 7.9, "rtd": 0.4,
         "mixture_weight_4": 0.5, "mixture_weight_6": 0.5, "rtd_accuracy_replaced": 0.1},
        {"num_updates": 20.0, "mlm": 13.5, "mlm_4": 7.0, "mlm_6": 6.5, "rtd": 0.3,
         "mixture_weight_4": 0.4, "mixture_weight_6": 0.6, "rtd_accuracy_replaced": 0.2},
    ],
    validation=[{"num_updates": 20.0, "mlm_4": 6.9, "mlm_6": 6.4, "rtd": 0.31, "rtd_auc_words": 0.6}],
)
MASKED_LM = RunLog([{"num_updates": 10.0, "mlm": 8.0}, {"num_updates": 20.0, "mlm": 7.0}], [])


def runs(*logs, **options):
    return [Run(f"run {index}", Path("."), log, options) for index, log in enumerate(logs)]


def drawn(axes):
    """(colour, points) of each line that has any."""
    lines = [(line.get_color(), line.get_xydata().tolist()) for line in axes.get_lines()]
    return [(color, points) for color, points in lines if points]


def panels(picture):
    return {axes.get_title(loc="left"): axes for axes in picture.figure.axes}


def legend(picture):
    return [text.get_text() for text in picture.figure.legends[0].get_texts()]


def test_runs_overlay_in_one_panel_for_each_quantity_in_their_colours():
    picture = CURVES["losses"](runs(AMOS, MASKED_LM))
    mlm, rtd = panels(picture).values()
    first, second = figures.COLORS[:2]
    assert drawn(mlm) == [  # of depths the deepest; training, then validation
        (first, [[10, 7.9], [20, 6.5]]), (first, [[20, 6.4]]), (second, [[10, 8.0], [20, 7.0]]),
    ]
    assert drawn(rtd) == [(first, [[10, 0.4], [20, 0.3]]), (first, [[20, 0.31]])]
    assert [mlm.get_ylabel(), rtd.get_ylabel()] == ["nats per masked token", "nats per token"]
    assert {mlm.get_xlabel(), rtd.get_xlabel()} == {"updates"}
    assert legend(picture) == ["run 0", "run 1"]


def test_a_run_keeps_its_colour_where_others_are_missing():
    detection = CURVES["detection"](runs(MASKED_LM, AMOS))
    assert {color for axes in panels(detection).values() for color, _ in drawn(axes)} == {figures.COLORS[1]}
    assert legend(detection) == ["run 1"]


def test_shares_are_in_percent():
    axes = panels(CURVES["detection"](runs(AMOS)))["detection accuracy, replaced"]
    assert drawn(axes)[0][1] == [[10, 10.0], [20, 20.0]]
    assert axes.get_ylabel() == "% of replaced tokens"


def test_updates_are_logarithmic_where_a_run_is_long():
    long = RunLog([{"num_updates": 10.0, "mlm": 8.0}, {"num_updates": 500.0, "mlm": 7.0}], [])
    scales = [panels(CURVES["losses"](runs(log)))["masked LM loss"].get_xscale() for log in (MASKED_LM, long)]
    assert scales == ["linear", "log"]


def test_depths_are_lines_in_a_panel_of_their_run():
    picture = figures.papers()["mixture_weights"](runs(MASKED_LM, AMOS))
    (axes,) = picture.figure.axes
    assert axes.get_title(loc="left") == "run 1"
    shallow, deep, uniform = drawn(axes)
    assert [shallow[1], deep[1]] == [[[10, 0.5], [20, 0.4]], [[10, 0.5], [20, 0.6]]] and shallow[0] != deep[0]
    assert [y for _, y in uniform[1]] == [0.5, 0.5]
    assert legend(picture) == ["mean mixture weight, layer 4", "mean mixture weight, layer 6", "all equal"]


def test_figures_without_numbers_are_none():
    assert [name for name, draw in CURVES.items() if draw(runs(MASKED_LM))] == ["losses"]
    papers = figures.papers()
    assert [name for name, draw in papers.items() if draw(runs(MASKED_LM))] == []
    assert [name for name, draw in papers.items() if draw(runs(AMOS))] == ["generator_depths", "mixture_weights"]


@pytest.mark.parametrize("devices", [1, 8])
def test_compute_is_tokens_times_flops_of_a_token(devices):
    rows = [  # 1 MFLOP a token on each device: 0.001 TFLOP/s for 1000 tokens/s in all
        {"num_updates": 10.0, "wpb": 2000.0, "wps": 1000.0, "tflops": 0.001},
        {"num_updates": 30.0, "wpb": 500.0, "wps": 1000.0, "tflops": 0.001},
    ]
    (run,) = runs(RunLog(rows, []), distributed_world_size=devices)
    updates, totals = figures.compute(run)
    assert updates == [0, 10, 30]
    assert totals == pytest.approx([0, 0.02 * devices, 0.03 * devices])
    assert figures.compute(runs(MASKED_LM)[0]) == ([], [])


def test_compute_of_updates_whose_rate_was_rounded_to_0_is_that_of_the_next():
    rows = [{"num_updates": 10.0 * i, "wpb": 100.0, "wps": 1.0, "tflops": rate} for i, rate in ((1, 0.0), (2, 1e-5))]
    assert figures.compute(*runs(RunLog(rows, []))) == ([0, 20], [0, pytest.approx(0.02)])


def test_validation_stands_over_the_compute_spent_until_then():
    rows = [{"num_updates": 10.0 * i, "wpb": 1e6, "wps": 1e3, "tflops": 1.0} for i in (1, 2)]  # 1 GFLOP a token
    validation = [{"num_updates": 15.0, "rtd_auc_words": 0.6}, {"num_updates": 20.0, "rtd_auc_words": 0.7}]
    picture = figures.learning_by_compute(runs(RunLog(rows, validation)))
    (axes,) = picture.figure.axes
    assert drawn(axes)[0][1] == [[pytest.approx(15), 0.6], [pytest.approx(20), 0.7]]  # 15 updates: 1.5e16
    assert axes.get_xlabel() == "PFLOP spent in training"


def test_runs_that_differ_in_a_number_are_drawn_over_it():
    def run(depth, negatives, auc):
        log = RunLog(MASKED_LM.train, [{"num_updates": 20.0, "rtd_auc_words": auc}])
        return Run(f"{depth} {negatives}", Path("."), log, {"generator_layers": depth, "mws_negatives": negatives})

    sweep = [run(6, "sampled", 0.7), run(3, "sampled", 0.6), run(3, "hardest", 0.5)]
    picture = figures.by_option(sweep)
    (axes,) = picture.figure.axes
    assert [points for _, points in drawn(axes)] == [[[3, 0.6], [6, 0.7]], [[3, 0.5]]]
    assert axes.get_xlabel() == "generator_layers"
    assert legend(picture) == ["mws_negatives sampled", "mws_negatives hardest"]
    assert figures.by_option(sweep[:2]) is None  # two points are no curve


def test_smoothing_is_a_centred_mean_that_keeps_the_ends():
    assert figures.smooth([1.0, 2.0, 6.0, 3.0], 3) == [1, 3, pytest.approx(11 / 3), 3]
    assert figures.smooth([1.0, 2.0], 1) == [1, 2]
    assert [figures.smoothing(points) for points in (0, 100, 299, 300, 1000)] == [1, 1, 3, 3, 11]


def test_smoothed_lines_are_drawn_over_faint_ones_and_said_to_be():
    log = RunLog([{"num_updates": float(i), "mlm": float(i % 2)} for i in range(1, 401)], [])
    picture = CURVES["losses"](runs(log))
    faint, smooth = picture.figure.axes[0].get_lines()[:2]
    assert list(faint.get_ydata()) == [i % 2 for i in range(1, 401)] and faint.get_alpha() < 0.5
    assert list(smooth.get_ydata()[200:202]) == pytest.approx([3 / 5, 2 / 5])
    assert "run 0 over 5 logged intervals" in picture.caption


def test_every_run_differs_from_every_other_in_colour_and_line():
    styles = {(figures.style(index).color, figures.style(index).dashes) for index in range(figures.MAX_RUNS)}
    assert len(styles) == figures.MAX_RUNS == 28


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_of_all_that_it_logs_what_it_is(make_method, batch, name):
    method, logged = make_method(name).train(), {}
    for _ in range(2):
        output = method(batch)
        logged |= {**method.losses(output, batch), **method.statistics(output, batch)}
        method.eval()
    logged |= method.validation_statistics(output, batch, torch.zeros(2, len(method.excluded_tokens)))
    assert {run_log.split_depth(key)[0] for key in logged} == {*method.quantities, *HIDDEN_STATES}


def test_methods_agree_on_what_a_name_means():
    said = {}
    for name, quantity in (item for method in METHODS.values() for item in method.quantities.items()):
        assert said.setdefault(name, quantity) == quantity


NEW = RunLog([{"num_updates": 10.0, "rtd": 0.4, "span": 3.0, "span_accuracy_2": 0.5, "hunch": 7.0, "wpb": 9.0}], [])


def test_what_a_new_method_logs_is_drawn_and_summarized(monkeypatch):
    loss, share = Quantity("span loss", "nats per span", LOWER), Quantity("span accuracy", "% of spans", counted="pass")
    own = {**METHODS["electra_rtd"].quantities, "span": loss, "span_accuracy": share}
    monkeypatch.setitem(METHODS, "spans", type("Spans", (METHODS["electra_rtd"],), {"quantities": own}))
    assert quantities.summarized([NEW]) == ["rtd", "span", "span_accuracy_2", "hunch"]
    assert quantities.title("span") == "span loss (nats)"
    assert quantities.label("span_accuracy_2") == "span accuracy, pass 2"
    assert list(panels(CURVES["losses"](runs(NEW)))) == ["detection loss", "span loss"]
    assert list(panels(CURVES["others"](runs(NEW)))) == ["span accuracy", "hunch"]


def test_losses_stand_together_by_their_unit():
    everything = RunLog([{"num_updates": 10.0, **{name: 1.0 for name in quantities.known()}}], [])
    picture = CURVES["losses"](runs(everything))
    units = [axes.get_ylabel() for axes in picture.figure.axes]
    assert units == ["nats per masked token"] * 3 + ["nats per token"] * 3 + ["nats per sequence"]
    assert CURVES["others"](runs(everything)) is None


def test_a_collapsed_encoder_is_seen_in_a_figure_of_its_hidden_states():
    log = RunLog([], [{"num_updates": 10.0, "hidden_cosine": 0.99, "hidden_rank": 1.1}])
    cosine, rank = panels(CURVES["hidden_states"](runs(log))).values()
    assert drawn(cosine) == [(figures.COLORS[0], [[10, 0.99]])] and drawn(rank) == [(figures.COLORS[0], [[10, 1.1]])]


def test_names_are_put_in_words():
    assert quantities.label("mlm_4") == "masked LM loss, layer 4"
    assert quantities.title("mlm_4b") == "masked LM loss (nats), layer 4b"
    assert quantities.title("level_accuracy_2") == "quality accuracy, level 2"


def test_what_methods_log_is_summarized_in_one_order():
    assert quantities.summarized([MASKED_LM, AMOS]) == [
        "mlm", "mlm_4", "mlm_6", "rtd", "rtd_accuracy_replaced", "rtd_auc_words",
        "mixture_weight_4", "mixture_weight_6",
    ]
    assert run_log.names(AMOS, "mlm") == ["mlm_4", "mlm_6"]


def contrast(*cosines):
    rows = [{"num_updates": 10.0 * index, "scl_cosine_positive": cosine, "scl_cosine_negative": cosine / 2}
            for index, cosine in enumerate(cosines, start=1)]
    return RunLog(rows, [])


def test_the_axis_that_panels_share_holds_the_lines_of_all():
    narrow, wide = contrast(1.0, 1.0), contrast(1.0, 0.2)
    axes = figures.papers()["cosines"](runs(narrow, wide)).figure.axes
    assert axes[0].get_ylim() == axes[1].get_ylim()
    low, high = axes[0].get_ylim()
    assert low < 0.1 and high == 1.02


def test_shares_of_all_panels_are_seen():
    flat, rising = (
        RunLog([{"num_updates": 10.0, "level_accuracy_1": a, "level_accuracy_2": b} for a in (1.0,)], [])
        for b in (1.0, 0.3)
    )
    low, high = figures.papers()["quality_levels"](runs(flat, rising)).figure.axes[0].get_ylim()
    assert low < 30 and 100 < high < 103


@pytest.mark.parametrize("share, limits", [(1.0, (99.5, 100.03)), (0.0, (-0.03, 0.5)), (0.5, (49.5, 50.5))])
def test_a_flat_share_has_an_axis_of_shares(share, limits):
    log = RunLog([{"num_updates": 10.0, "rtd_accuracy_replaced": share}], [])
    (axes,) = CURVES["detection"](runs(log)).figure.axes
    assert axes.get_ylim() == pytest.approx(limits)


def test_a_peak_that_was_passed_is_shown():
    log = RunLog([{"num_updates": 10.0, "mfu": 0.5}, {"num_updates": 20.0, "mfu": 1.3}], [])
    (axes,) = figures.COURSE["speed"](runs(log)).figure.axes
    assert axes.get_ylim()[1] > 130


def test_a_run_of_one_row_is_a_point():
    (axes,) = CURVES["losses"](runs(RunLog([{"num_updates": 1.0, "mlm": 8.0}], []))).figure.axes
    assert axes.get_lines()[0].get_marker() == "."
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_compute_names_the_runs_that_are_drawn():
    timed = RunLog(
        [{"num_updates": 10.0, "wps": 10.0, "wpb": 5.0, "tflops": 1.0}], [{"num_updates": 10.0, "mlm": 7.0}]
    )
    untimed = RunLog([{"num_updates": 10.0, "mlm": 8.0}], [{"num_updates": 10.0, "mlm": 7.0}])
    assert legend(figures.learning_by_compute(runs(untimed, timed))) == ["run 1"]


def test_legend_has_markers_of_what_was_validated_only():
    trained, both = RunLog([{"num_updates": 1.0, "lr": 0.1}], []), RunLog([], [{"num_updates": 1.0, "lr": 0.1}])
    styles = {"a": figures.style(0), "b": figures.style(1)}
    shown, validated = figures.drawn({"a": [(trained, "lr")], "b": [(both, "lr")]}, styles)
    assert (shown["a"].marker, shown["b"], validated) == ("", styles["b"], True)
    assert figures.drawn({"b": [(both, "gnorm")]}, styles) == ({"b": styles["b"]._replace(marker="")}, False)
