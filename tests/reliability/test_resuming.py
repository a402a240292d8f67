"""A run that is started again goes on exactly where its newest valid checkpoint stood, or says why not."""

import functools
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from amos_fairseq import checkpoints
from amos_fairseq.checkpoints import storage, store
from amos_fairseq.methods import METHODS
from tests.reliability.states import assert_equal
from tests.runs import REPOSITORY, USER_DIR

TRAIN, KILLED = "fairseq_cli.train:cli_main", "tests.reliability.killed:main"
NAME = "bert_mlm"
EXAMPLES = REPOSITORY / "examples"
COMMON = dict(disable_validation=True, num_workers=0, save_interval_updates=2, max_update=8)
TRAINED = ("model", "last_optimizer_state")


@pytest.fixture
def train(launch, arguments, tmp_path):
    """train(processes=1, fails=False, **options): in the folder `run`, unless options name another."""

    def train(processes=1, fails=False, function=TRAIN, before=(), name=NAME, **options):
        options = {**COMMON, "save_dir": tmp_path / "run", "batch_size": 8 // processes, **options}
        return launch(function, [*before, *arguments(name, **options)], processes, fails)

    return train


@pytest.fixture(scope="module")
def through(launch, arguments, tmp_path_factory):
    """through(processes, name): the checkpoints of a run that was never stopped."""

    @functools.cache
    def through(processes=1, name=NAME, **options):
        folder = tmp_path_factory.mktemp("through")
        options = {**COMMON, "save_dir": folder, "batch_size": 8 // processes, **options}
        launch(TRAIN, arguments(name, **options), processes)
        return folder

    return through


def last(folder):
    return checkpoints.read(folder / store.LAST)


def assert_same_training(folder, expected):
    found, wanted = last(folder), last(expected)
    for part in TRAINED:
        assert_equal(found[part], wanted[part], part)
    assert_equal(found["optimizer_history"][-1], wanted["optimizer_history"][-1])  # one for each start
    for part in "train_iterator", "scaler":
        assert_equal(found["extra_state"][part], wanted["extra_state"][part], part)


def error_of(outcome):
    """Told by the first process alone."""
    text = outcome.err[0]
    assert "".join(outcome.err).count("amos_fairseq: error: ") == 1 and "Traceback" not in text + "".join(outcome.out)
    return text[text.index("amos_fairseq: error: ") + len("amos_fairseq: error: "):]


# Kills

def kills(count):
    """(function of os, its call, processes): points within the saves of a run."""
    draw = random.Random(7)
    choices = [("fsync", 30), ("rename", 5), ("replace", 4)]
    for number in range(count):
        name, calls = draw.choice(choices)
        yield name, draw.randrange(calls), number % 2 + 1


CASES = [("fsync", 9, 1), ("replace", 1, 2)]
CASES += [pytest.param(*case, marks=pytest.mark.soak) for case in kills(40)]


@pytest.mark.parametrize("name, call, processes", CASES)
def test_a_run_killed_while_it_saves_ends_with_the_same_bits(train, through, tmp_path, name, call, processes):
    killed = train(processes, True, KILLED, [name, call])
    assert -9 in killed.codes
    train(processes)
    assert_same_training(tmp_path / "run", through(processes))
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_recipe_killed_and_started_again_goes_on_in_its_one_folder(launch, corpus, tmp_path):
    """Where log, configuration and metrics are, too; a path is seen from where the command is given."""
    command = [
        "--config-dir", EXAMPLES / NAME, "--config-name", "base", f"common.user_dir={USER_DIR}", "model=tiny",
        f"task.data={os.path.relpath(corpus, tmp_path)}", "task.tokens_per_sample=32", "dataset.num_workers=0",
        "common.cpu=true", "common.bf16=false", "distributed_training.distributed_world_size=1", "dataset.batch_size=8",
        "optimization.max_update=4", "lr_scheduler.warmup_updates=2", "checkpoint.save_interval_updates=2",
        "common.log_interval=1", "common.log_format=json", "dataset.disable_validation=true",
    ]
    killed = launch(KILLED, ["fsync", 9, *command], fails=True, folder=tmp_path)
    assert killed.codes == [-9]
    outcome = launch("fairseq_cli.hydra_train:cli_main", command, folder=tmp_path)
    assert [row["num_updates"] for row in outcome.log.train] == [3, 4]
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"] and os.listdir(tmp_path / "runs") == ["bert_mlm-base"]
    made = {path.name for path in (tmp_path / "runs/bert_mlm-base").iterdir()}
    assert {".hydra", "checkpoint_last", "hydra_train.log", "metrics.jsonl"} <= made


POINTS = [pytest.param(*point, marks=pytest.mark.soak) for point in [
    (name, processes, point)
    for name in METHODS for processes in (1, 2)
    for point in ("checkpoint_1_1", "checkpoint_1_4", "checkpoint_1_5", "checkpoint_2_6", "checkpoint_2_7")
]]


@pytest.mark.parametrize("name, processes, point", [(NAME, 1, "checkpoint_2_6"), *POINTS])
def test_a_run_resumed_from_any_point_ends_with_the_same_bits(train, through, tmp_path, name, processes, point):
    """The first update, within an epoch, at its end, after it and before the last update; without loader workers."""
    folder = through(processes, name, save_interval_updates=1, num_workers=1)
    assert (folder / point).is_dir()
    train(processes, name=name, restore_file=folder / point, save_interval_updates=1)
    assert_same_training(tmp_path / "run", folder)


@pytest.mark.parametrize("optimizer", ["adam", "fused_adamw"])
def test_decay_and_betas_are_those_of_the_command_that_goes_on(train, tmp_path, optimizer):
    options = dict(optimizer=optimizer, weight_decay=0.01, adam_betas="(0.9, 0.98)")
    train(max_update=2, **options)
    shutil.copytree(tmp_path / "run", tmp_path / "other", symlinks=True)
    train(max_update=4, **options)
    changed = {**options, "weight_decay": 0.9, "adam_betas": "(0.5, 0.6)"}
    outcome = train(max_update=4, save_dir=tmp_path / "other", **changed)
    assert "weight_decay 0.01 -> 0.9" in outcome.out[0] + outcome.err[0]
    same, other = last(tmp_path / "run"), last(tmp_path / "other")
    groups = other["last_optimizer_state"]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.5, 0.6)} and groups[0]["weight_decay"] == 0.9
    assert same["last_optimizer_state"]["param_groups"][0]["weight_decay"] == 0.01
    assert not all(torch.equal(same["model"][key], other["model"][key]) for key in same["model"])


def test_another_metric_of_the_best_checkpoint_is_refused(train):
    train(max_update=2)
    text = error_of(train(max_update=4, fails=True, best_checkpoint_metric="mlm"))
    assert "best_checkpoint_metric  loss  mlm" in text and "--allow-change best_checkpoint_metric" in text


def test_fp16_resumes_with_its_window_of_the_loss_scale(train, through, tmp_path):
    """Which grows every 3 updates, not 3 after the start."""
    options = dict(fp16=True, fp16_no_flatten_grads=True, fp16_scale_window=3, save_interval_updates=4)
    folder = through(1, NAME, **options)
    scaler = last(folder)["extra_state"]["scaler"]
    assert (scaler["loss_scale"], scaler["_iter"]) == (128 * 2**2, 8)
    train(restore_file=folder / "checkpoint_1_4", **options)
    assert_same_training(tmp_path / "run", folder)


def test_two_processes_one_and_two_again_see_the_same_samples(train, through, tmp_path):
    """Without dropout, which differs between processes, every update has the loss of the run of two throughout."""
    same = dict(dropout=0.0, attention_dropout=0.0, batch_size=4, name="electra_rtd")
    expected = train(2, save_dir=tmp_path / "two", **same).log.train
    rows = []
    for processes, until in (2, 2), (1, 4), (2, 8):
        rows += train(processes, max_update=until, update_freq=[2 // processes], **same).log.train
    assert [row["num_updates"] for row in rows] == list(range(1, 9))
    assert [row["bsz"] for row in rows] == [row["bsz"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-5)


# What is loaded

@pytest.fixture
def run(through, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(through(), tmp_path / "run", symlinks=True)


def test_a_finished_run_started_again_changes_no_checkpoint(run, train):
    def content():
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.glob("checkpoint_*/*")}

    before = content()
    outcome = train()
    assert content() == before and "done training: " in outcome.out[0] and not outcome.log.train


@pytest.mark.parametrize("named", ["", ".", "checkpoint_last", "checkpoint_last/manifest.json"])
def test_a_checkpoint_is_hashed_once_to_be_chosen(run, monkeypatch, named):
    """And not again for the options in it, which are compared with the run's own."""
    from amos_fairseq.checkpoints import training

    hashed, file_record = [], storage.file_record
    state = training.load_to_cpu(run / store.LAST)
    cfg, task_state = state["cfg"], state["task_state"]
    cfg.checkpoint.save_dir = str(run)
    if named:
        cfg.checkpoint.restore_file = str(run / named)
    trainer = SimpleNamespace(cfg=cfg, task=SimpleNamespace(state_dict=lambda: task_state))
    monkeypatch.setattr(storage, "file_record", lambda path: hashed.append(Path(path)) or file_record(path))
    chosen = training.chosen(cfg.checkpoint, trainer)["restore_file"]
    assert Path(chosen).samefile(run / store.LAST / storage.MANIFEST)
    assert sorted(path.name for path in hashed) == sorted(storage.FILES)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(run, train, through, tmp_path):
    newest = checkpoints.newest_valid(run)
    os.truncate(newest / storage.TRAINER, 1000)
    outcome = train()
    assert f"not used: {newest / storage.TRAINER} is damaged" in outcome.out[0]
    assert [row["num_updates"] for row in outcome.log.train] == [7, 8]
    assert_same_training(run, through())


def test_without_a_valid_checkpoint_no_run_starts_from_scratch_unless_asked(run, train):
    folders = [checkpoint.path for checkpoint in store.listed(run)]
    for folder in folders:
        (folder / storage.MODEL).unlink()
    outcome = train(fails=True)
    assert outcome.codes == [os.EX_DATAERR]
    message = error_of(outcome)
    assert message.startswith(f"none of the {len(folders)} checkpoints in {run} is valid; ")
    assert "--allow-scratch" in message and message.count("\n") == 1
    outcome = train(allow_scratch=True, max_update=1)
    assert [row["num_updates"] for row in outcome.log.train] == [1]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_missing_restore_file_ends_the_run(train, tmp_path, processes):
    outcome = train(processes, fails=True, restore_file=tmp_path / "missing.pt")
    assert os.EX_USAGE in outcome.codes
    assert error_of(outcome) == f"{tmp_path / 'missing.pt'} does not exist\n"
    assert not outcome.log.train


CHANGES = {  # option: what the row says
    "seed": (dict(seed=4), "seed    3     4"),
    "batch": (dict(update_freq=[2]), "batch   8 sequences x 1  8 sequences x 2"),
    "precision": (dict(bf16=True), "precision  fp32  bf16"),
    "encoder_ffn_embed_dim": (dict(encoder_ffn_embed_dim=64), "encoder_ffn_embed_dim  32    64"),
    "method": (dict(name="script_selfcritic"), "method  bert_mlm  script_selfcritic"),
}


@pytest.mark.parametrize("option", [pytest.param(option, marks=pytest.mark.soak) for option in CHANGES])
def test_a_changed_option_ends_the_resumed_run_with_a_table(run, train, option):
    changes, row = CHANGES[option]
    outcome = train(fails=True, max_update=9, **changes)
    message = " ".join(error_of(outcome).split())
    assert " ".join(row.split()) in message and f"--allow-change {option}" in message


def test_changes_are_told_together_and_allowed_by_name(run, train):
    outcome = train(fails=True, max_update=9, seed=4, batch_size=16)
    assert outcome.codes == [os.EX_USAGE] and not outcome.log.train
    assert error_of(outcome) == (
        f"{checkpoints.newest_valid(run)} was trained otherwise than this command says:\n"
        "option  then             now\n"
        "seed    3                4\n"
        "batch   8 sequences x 1  16 sequences x 1\n"
        "set what changed as it was, or allow it by name: --allow-change seed,batch\n"
    )
    outcome = train(max_update=9, seed=4, batch_size=16, allow_change="seed,batch")
    assert [row["num_updates"] for row in outcome.log.train] == [9]


def test_another_learning_rate_and_length_are_told_in_one_line(run, train):
    outcome = train(max_update=9, lr=[0.001], warmup_updates=3)
    (line,) = [line for line in outcome.out[0].splitlines() if "not as it was" in line]
    assert line.endswith("not as it was: max_update 8 -> 9, lr [0.002] -> [0.001], warmup_updates 2 -> 3")


def test_a_run_does_not_go_on_where_its_learning_rate_is_0(run, train):
    outcome = train(fails=True, max_update=9, total_num_update=8)
    assert outcome.codes == [os.EX_USAGE] and not outcome.log.train
    assert error_of(outcome) == (
        "total_num_update 8: the learning rate is 0 from there on, and the run has 8 updates already: raise "
        "--total-num-update, to --max-update for instance\n"
    )


@pytest.mark.parametrize("vocabulary", [True, False])
@pytest.mark.soak
def test_other_text_or_words_end_the_resumed_run(run, train, text, corpus, tmp_path, vocabulary):
    from amos_fairseq.data.preparation import prepare

    (tmp_path / "other.txt").write_text(text.read_text().replace("the ", "our "))
    options = dict(vocab_size=300) if vocabulary else dict(vocabulary=corpus)
    prepare([str(tmp_path / "other.txt")], str(tmp_path / "other"), tokens_per_sample=32, documents_whole=True,
            valid_fraction=0.2, workers=1, **options)
    message = error_of(train(fails=True, max_update=9, data=tmp_path / "other"))
    assert ("  vocabulary  " in message) == vocabulary and "  data  " in message.replace("data      ", "data  ")


# Files of fairseq

@pytest.fixture
def old(through, tmp_path):
    """The same state in a file as fairseq writes it."""
    torch.save(checkpoints.read(through() / "checkpoint_1_4"), tmp_path / "old.pt")
    return tmp_path / "old.pt"


def test_an_old_file_is_resumed_by_name_and_as_the_last_of_a_folder(old, train, through, tmp_path):
    train(restore_file=old)
    assert_same_training(tmp_path / "run", through())
    (tmp_path / "renamed").mkdir()
    shutil.copy(old, tmp_path / "renamed" / "checkpoint_last.pt")
    train(save_dir=tmp_path / "renamed")
    assert_same_training(tmp_path / "renamed", through())


class Runs:
    """Pickled, this is a call of os.mkdir."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["cfg", "model", "extra_state", pytest.param("all", marks=pytest.mark.soak)])
@pytest.mark.parametrize("option", [
    "restore_file", *[pytest.param(name, marks=pytest.mark.soak) for name in ("init_checkpoint", "finetune_from_model")]
])
def test_a_file_that_would_run_code_is_refused(old, train, tmp_path, place, option):
    state = torch.load(old, weights_only=False)
    state = {**state, place: {"x": [Runs(tmp_path / "ran")]}} if place != "all" else Runs(tmp_path / "ran")
    torch.save(state, old)
    outcome = train(fails=True, **{option: old})
    assert "is refused, since to load it could run code" in outcome.err[0] and not (tmp_path / "ran").exists()


# A full disk

@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_last_checkpoint(train, through, tmp_path, processes):
    outcome = train(processes, True, "tests.reliability.full_disk:main", ["10"])
    assert os.EX_IOERR in outcome.codes
    message = error_of(outcome)
    assert message == (
        f"no checkpoint can be written, earlier ones stay: {tmp_path / 'run'}: the disk of {tmp_path / 'run'} is full: "
        "make room there, then give the same command again\n"
    )
    kept = checkpoints.newest_valid(tmp_path / "run")
    assert kept.name == "checkpoint_1_4" and kept.samefile(tmp_path / "run" / store.LAST)
    train(processes)
    assert_same_training(tmp_path / "run", through(processes))


def test_a_run_of_an_optimizer_that_fairseq_knows_without_a_dataclass_is_resumed(launch, arguments, tmp_path):
    options = dict(optimizer="sgd", adam_betas=None, save_dir=tmp_path / "run", allow_change="max_update")
    for updates in (2, 4):
        command = arguments("electra_rtd", max_update=updates, **options)
        outcome = launch("fairseq_cli.train:cli_main", command)
    assert "Loaded checkpoint" in outcome.out[0] + outcome.err[0]
    assert [row["num_updates"] for row in outcome.log.train] == [3, 4]
