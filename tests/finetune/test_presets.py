"""The papers' searches by their literal sizes and values, and what a setting makes of a number of examples."""
import statistics

import pytest

from amos_fairseq.finetune.presets import EIGHT, PRESETS, PUBLISHED, Setting, paper_with_means, published_for, settings


@pytest.mark.parametrize("preset, task, size", [
    ("quick", "own", 1),
    ("amos", "MNLI", 5 * 4 * 2 * 2), ("amos", "SQuAD 2.0", 4 * 2 * 2 * 2), ("amos", "own", 80),
    ("coco_lm", "RTE", 4 * 4 * 2 * 2), ("coco_lm", "MNLI", 4 * 3), ("coco_lm", "SQuAD 1.1", 32),
    ("coco_lm_large", "CoLA", 64), ("coco_lm_large", "QQP", 12), ("coco_lm_large", "SQuAD 2.0", 32),
    ("teams_base", "RTE", 1), ("teams_search", "RTE", 5 * 2 * 3),
    ("peer_small", "RTE", 4), ("peer_base", "MNLI", 4),
    ("script_base", "MNLI", 1),
    ("amos_best", "MNLI", 1), ("coco_lm_best", "SQuAD 2.0", 1),
    ("prompts", "few-shot MNLI", 9), ("prompts_coco_lm", "few-shot MNLI", 9),
])
def test_number_of_settings(preset, task, size):
    found = settings(preset, task)
    assert len(found) == size == len({setting.name for setting in found})


@pytest.mark.parametrize("preset, task, setting", [
    ("teams_small", "SQuAD 1.1", Setting(8e-5, 5, 48, 0.1, adam_betas=(0.9, 0.999))),
    ("teams_large", "SQuAD 2.0", Setting(3e-5, 2, 48, 0.1, adam_betas=(0.9, 0.999))),
    ("teams_base", "CoLA", Setting(3e-5, 5, 32, 0.1, adam_betas=(0.9, 0.999))),
    ("script_small", "STS-B", Setting(3e-4, 10, 32, 0.1, 0.0, 0.8, (0.9, 0.999), layer_decay_top=2)),
    ("script_base", "SQuAD 1.1", Setting(1e-4, 2, 32, 0.1, 0.0, 0.8, (0.9, 0.999), layer_decay_top=2)),
    ("amos_best", "CoLA", Setting(2e-5, 10, 32, 0.1)),
    ("coco_lm_large_best", "RTE", Setting(2e-5, 5, 32, 0.0625)),
])
def test_single_settings(preset, task, setting):
    assert settings(preset, task) == [setting]


def test_peer_trains_small_tasks_for_20_epochs_without_decay():
    for task, epochs in (("RTE", 20), ("QNLI", 4)):
        found = settings("peer_base", task)
        assert {(setting.lr, setting.batch_size) for setting in found} == {
            (lr, size) for lr in (5e-5, 3e-5) for size in (16, 32)
        }
        assert {setting[1:2] + setting[3:] for setting in found} == {(epochs, 0.1, 0.0, 1.0, (0.9, 0.999), 0, 0)}


def test_learning_rates_of_large_models_differ():
    def rates(task):
        return sorted({setting.lr for setting in settings("coco_lm_large", task)})

    assert rates("RTE") == rates("SQuAD 2.0") == [7e-6, 1e-5, 2e-5, 3e-5]
    assert rates("SST-2") == [5e-6, 7e-6, 1e-5, 2e-5]


def test_overrides_take_the_place_of_a_preset_s_values():
    found = settings("amos", "RTE", {"lr": [1e-4], "batch_size": [8, 4], "epochs": [1]})
    assert [(setting.lr, setting.epochs, setting.batch_size, setting.warmup) for setting in found] == [
        (1e-4, 1, 8, 0.06), (1e-4, 1, 8, 0.1), (1e-4, 1, 4, 0.06), (1e-4, 1, 4, 0.1)
    ]
    assert {setting.updates for setting in settings("prompts", "own", {"epochs": [2]})} == {0}


def test_length_of_a_run_follows_from_examples_batch_size_and_epochs():
    setting = Setting(lr=1e-5, epochs=3, batch_size=16, warmup=0.06)
    assert setting.num_updates(2490) == 3 * 156 and setting.num_warmup_updates(2490) == 28
    assert setting.num_updates(16) == 3 and setting.num_warmup_updates(16) == 0
    assert setting._replace(updates=1000).num_updates(2490) == 1000
    assert setting._replace(epochs=0.01).num_updates(16) == 1


def test_names_say_what_is_searched_and_what_is_unusual():
    assert Setting(1e-5, 3, 16, 0.06).name == "lr1e-05_epochs3_batch16_warmup0.06"
    assert settings("script_base", "RTE")[0].name == (
        "lr0.0001_epochs10_batch32_warmup0.1_wd0_layerdecay0.8_top2_betas0.9-0.999"
    )
    assert settings("prompts", "own")[0].name == "lr1e-05_updates1000_batch2_warmup0_wd0_betas0.9-0.999"


def test_unknown_presets_and_tasks_without_a_grid_are_refused():
    with pytest.raises(ValueError, match="--preset best is none of quick, amos"):
        settings("best", "RTE")
    with pytest.raises(ValueError, match="--preset peer_base has nothing for SQuAD 2.0: choose one of quick, amos"):
        settings("peer_base", "SQuAD 2.0")


# The averages that the papers print beside the eight values.
@pytest.mark.parametrize("row, average", [
    ("bert_base", 83.1), ("electra_base", 85.5), ("amos_base", 88.6), ("amos_base++", 89.4), ("coco_lm_base", 87.2),
    ("coco_lm_base++", 88.6), ("coco_lm_large++", 90.8), ("peer_small", 81.50), ("peer_base", 86.77),
])
def test_published_values_have_the_published_average(row, average):
    values = [PUBLISHED[row].values[task] for task in EIGHT]
    mean = statistics.mean(value[0] if isinstance(value, tuple) else value for value in values)
    assert mean == pytest.approx(average, abs=0.0501)
    assert PUBLISHED[row].values.get("average", average) == average


def test_rows_are_chosen_by_method_and_width():
    assert published_for("amos_rtd", 768) == "amos_base" and published_for("coco_lm", 1024) == "coco_lm_large++"
    assert published_for("peer_tqr", 256) == "peer_small" and published_for("bert_mlm", 768) == "bert_base"
    assert published_for("amos_rtd", 128) is None and published_for("amos_rtd", 1024) is None
    assert all(", Table" in row.source for row in PUBLISHED.values())


def test_presets_of_peer_are_shown_as_its_paper_shows_them():
    assert [preset for preset in PRESETS if paper_with_means(preset)] == ["peer_small", "peer_base"]
    assert PUBLISHED["peer_base"].means == {"MNLI": ("accuracy",), "STS-B": ("pearson", "spearman")}


def test_every_preset_has_settings_for_some_task():
    for preset in PRESETS:
        assert settings(preset, "RTE")
