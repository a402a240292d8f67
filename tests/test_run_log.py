import json

from amos_fairseq import run_log
from amos_fairseq.run_log import RunLog

LOG = RunLog([{"num_updates": 10.0, "loss": 9.0}], [])


def line(update, stamp="2026-11-20 12:00:00 | INFO | train_inner | ", **values):
    return stamp + json.dumps({"epoch": 1, "update": 0.5, **values, "num_updates": str(update)}) + "\n"


def valid_line(update, **values):
    return json.dumps({"epoch": 1, **{f"valid_{name}": value for name, value in values.items()},
                       "valid_num_updates": str(update)}) + "\n"


def test_values_become_numbers_and_other_text_is_skipped():
    log = run_log.parse(["fairseq_cli | {'_name': None}\n", line(10, loss="9.125", ppl=None, note="x")])
    assert log.train == [{"epoch": 1.0, "update": 0.5, "loss": 9.125, "num_updates": 10.0}]
    assert log.validation == []


def test_lines_of_a_log_file_have_no_time_stamp():
    assert run_log.parse([line(10, stamp="", loss="9")]).train[0]["loss"] == 9.0


def test_validation_names_are_those_of_training():
    log = run_log.parse([line(10, loss="9"), valid_line(10, loss="8.5", rtd_auc="0.7")])
    assert log.validation == [{"epoch": 1.0, "loss": 8.5, "rtd_auc": 0.7, "num_updates": 10.0}]


def test_epoch_summary_is_no_row():
    summary = json.dumps({"epoch": 1, "train_loss": "7", "train_num_updates": "20"})
    assert [row["num_updates"] for row in run_log.parse([line(20, loss="7"), summary]).train] == [20]


def test_repeated_line_replaces_the_earlier():
    assert [row["loss"] for row in run_log.parse([line(10, loss="9"), line(10, loss="8")]).train] == [8.0]


def test_resumed_run_replaces_all_that_it_repeats():
    before = [line(10, loss="9"), line(20, loss="8"), valid_line(20, loss="8"), line(30, loss="7")]
    log = run_log.parse([*before, valid_line(30, loss="7"), line(20, loss="8.5")])
    assert [(row["num_updates"], row["loss"]) for row in log.train] == [(10, 9.0), (20, 8.5)]
    assert [row["num_updates"] for row in log.validation] == [20]


def test_truncated_last_line_is_skipped(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(line(10, loss="9") + line(20, loss="8")[:-20])
    assert [row["num_updates"] for row in run_log.read(path).train] == [10]


def kept(kind, update, **values):
    return json.dumps({"kind": kind, "time": "2026-11-20T12:00:00+00:00", "num_updates": update, **values}) + "\n"


def test_history_holds_training_validation_and_options(tmp_path):
    options = {"common": {"_name": None, "seed": 1}, "model": {"_name": "amos_rtd", "generator_depths": [1, 2]}}
    (tmp_path / "metrics.jsonl").write_text(
        kept("start", 0, options=options) + kept("train", 10, loss=9.5) + kept("epoch", 10, loss=9.9)
        + kept("validation", 10, subset="valid", loss="nan") + kept("train", 20, loss=8.5)[:-9]
    )
    run = run_log.open_run(tmp_path)
    assert run.log.train == [{"num_updates": 10.0, "loss": 9.5}]
    assert [row["num_updates"] for row in run.log.validation] == [10]
    assert run.options == {"seed": 1, "model": "amos_rtd", "generator_depths": [1, 2]}


def test_of_several_validation_subsets_the_first_is_the_run_s():
    both = {"valid": 0.8, "valid1": 0.6}
    rows = [kept("validation", 10, subset=subset, accuracy=value) for subset, value in both.items()]
    assert run_log.parse(rows).validation == [{"num_updates": 10.0, "accuracy": 0.8}]


def test_start_forgets_what_an_abandoned_part_logged_later(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        kept("start", 0) + kept("train", 10, loss=9) + kept("train", 20, loss=8) + kept("validation", 20, loss=8)
        + kept("start", 10) + kept("validation", 15, loss=7)
    )
    log = run_log.read(tmp_path)
    assert [row["num_updates"] for row in log.train] == [10]
    assert [(row["num_updates"], row["loss"]) for row in log.validation] == [(15, 7)]


def test_log_of_before_there_was_a_history_stays(tmp_path):
    (tmp_path / "train.log").write_text(line(10, loss="9") + line(20, loss="8") + line(30, loss="7"))
    (tmp_path / "metrics.jsonl").write_text(kept("start", 20) + kept("train", 30, loss=7.5))
    rows = run_log.read(tmp_path).train
    assert [(row["num_updates"], row["loss"]) for row in rows] == [(10, 9), (20, 8), (30, 7.5)]


def test_names_are_sorted_by_depth():
    log = run_log.parse([line(10, mlm_10="1", mlm_4b="2", mlm_4a="3", mlm_accuracy_4="4", rtd="5", rtd_auc="6")])
    assert run_log.names(log, "mlm") == ["mlm_4a", "mlm_4b", "mlm_10"]
    assert run_log.names(log, "rtd") == ["rtd"] and run_log.names(log, "clm") == []
    assert run_log.split_depth("mixture_weight_4a") == ("mixture_weight", "4a")


def test_sum_over_depths_is_no_depth():
    log = run_log.parse([line(10, mlm="9", mlm_4="5", mlm_6="4"), line(20, mlm="8", rtd="1")])
    assert run_log.names(log, "mlm") == ["mlm_4", "mlm_6"]
    assert run_log.names(RunLog(log.train[1:], []), "mlm") == ["mlm"]


def test_series_holds_the_rows_that_have_the_value():
    rows = run_log.parse([line(10, loss="9"), line(20, loss="8", rtd="0.5")]).train
    assert run_log.series(rows, "rtd") == ([20.0], [0.5])


# As fairseq prints its configuration: groups of options, and one of its objects that is no literal.
OPTIONS = (
    "2026-11-20 12:00:00 | INFO | fairseq_cli.train | {'_name': None, 'common': {'_name': None, 'seed': 1}, "
    "'model': {'_name': 'amos_rtd_tiny', 'generator_depths': [1, 2]}, 'task': {'_name': 'amos_rtd', 'data': 'data'}, "
    "'criterion': Namespace(seed=7, data='other'), 'checkpoint': {'save_dir': 'SAVED'}, 'scoring': None}\n"
)


def test_options_are_those_of_all_groups(tmp_path):
    (tmp_path / "log").write_text(OPTIONS + line(10, loss="9"))
    assert run_log.read_options(tmp_path / "log") == {
        "seed": 1, "model": "amos_rtd_tiny", "generator_depths": [1, 2], "task": "amos_rtd", "data": "data",
        "save_dir": "SAVED",
    }


def test_options_are_those_of_the_last_start_that_printed_them_whole(tmp_path):
    (tmp_path / "log").write_text(OPTIONS + OPTIONS.replace("'seed': 1", "'seed': 2") + OPTIONS[:150] + "\n")
    assert run_log.read_options(tmp_path / "log")["seed"] == 2


def test_run_is_named_by_its_folder_or_by_its_log(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "train.log").write_text(line(10, loss="9"))
    run = run_log.open_run(folder)
    assert (run.name, run.folder, len(run.log.train), run.options) == ("base", folder, 1, {})
    (tmp_path / "job-1.log").write_text(OPTIONS.replace("SAVED", str(folder)) + line(10, loss="9"))
    run = run_log.open_run(tmp_path / "job-1.log")
    assert (run.name, run.folder, run.options["task"]) == ("job-1", folder, "amos_rtd")
    assert run_log.open_run(folder, "mine").name == "mine"


def test_options_that_differ_are_those_of_two_runs_at_least(tmp_path):
    runs = [
        run_log.Run("a", tmp_path, LOG, {"seed": 1, "lr": [0.1], "save_dir": "a", "mixture": "learned"}),
        run_log.Run("b", tmp_path, LOG, {"seed": 1, "lr": [0.2], "save_dir": "b"}),
        run_log.Run("c", tmp_path, LOG, {"seed": 1}),
    ]
    assert run_log.differing_options(runs) == {"lr": [[0.1], [0.2], None]}


def test_a_speed_that_was_not_timed_is_absent():
    log = run_log.parse([line(1, wps="0", tflops="0", mfu="0", mlm_accuracy="0"), line(2, wps="7")])
    assert [run_log.series(log.train, name) for name in ("wps", "tflops", "mfu")] == [([2], [7]), ([], []), ([], [])]
    assert run_log.series(log.train, "mlm_accuracy") == ([1], [0])


def test_a_speed_that_was_timed_is_there_even_if_its_digits_are_0():
    (row,) = run_log.parse([line(2, wps="7", tflops="0", mfu="2e-07")]).train
    assert (row["tflops"], row["mfu"]) == (0, 2e-7)
