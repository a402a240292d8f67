"""Fine-tuning through fairseq-train, by its registered name."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch

from amos_fairseq import checkpoints
from amos_fairseq.checkpoints import storage
from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.kinds import KINDS
from amos_fairseq.finetune.labelled import read_examples, read_problem
from amos_fairseq.finetune.model import load_finetuned
from amos_fairseq.methods import METHODS
from amos_fairseq.pretrained.averaging import average

pytest.importorskip("fairseq")
import amos_fairseq.models.finetuned  # noqa: E402, F401
import amos_fairseq.tasks  # noqa: E402, F401 (installs the repairs)
from amos_fairseq.tasks.finetuning import FinetuningTask, LabelledDataset  # noqa: E402

DROPOUT = dict(dropout=0.1, attention_dropout=0.1, pooler_dropout=0.1)


def parameters(path):
    return checkpoints.read(path)["model"]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_network_learns_a_toy_problem_and_answers_alike_when_loaded(toy, checkpoint, finetune, tmp_path, kind):
    folder, start = toy(kind), checkpoint()
    validation = finetune(folder, start, save_dir=tmp_path / "run").log.validation
    shutil.rmtree(start)  # a checkpoint needs nothing else
    finetuned = load_finetuned(tmp_path / "run")
    assert finetuned.problem == read_problem(folder) and not finetuned.network.training
    results = {
        split: KINDS[kind].evaluate(
            folder, finetuned.problem, split, predict(finetuned.network, read_examples(folder, split), batch_tokens=50)
        )
        for split in ("train", "valid")
    }
    metric, goal = finetuned.problem.metrics[0], 0.98 if kind == "regression" else 1.0
    assert results["train"][metric] >= goal
    best = max(validation, key=lambda row: row[metric])
    for name in finetuned.problem.metrics:
        # near ties may be ranked otherwise in batches of another width
        tolerance = 5e-3 if kind == "regression" else 1e-4
        assert best[name] == pytest.approx(results["valid"][name], abs=tolerance), name


def test_the_best_checkpoint_is_that_of_the_best_metric_not_of_the_lowest_loss(toy, checkpoint, finetune, tmp_path):
    """With a rate that soon is too high, so that the last is not the best."""
    outcome = finetune(
        toy("classification"), checkpoint(), save_dir=tmp_path, lr=[0.05], max_update=24, batch_size=16
    )
    accuracies = [(row["accuracy"], row["num_updates"]) for row in outcome.log.validation]
    assert len(set(accuracy for accuracy, _ in accuracies)) > 1
    _, updates = max(accuracies)
    assert (tmp_path / "checkpoint_best").resolve().name.split("_")[2] == f"{updates:.0f}"


def test_every_valid_split_has_its_own_metrics(toy, checkpoint, finetune, tmp_path):
    folder = toy("classification", valid1=7)
    outcome = finetune(folder, checkpoint(), save_dir=tmp_path, max_update=4, valid_subset="valid,valid1")
    lines = [line for line in outcome.out[0].splitlines() if "| valid" in line and "{" in line]
    logged = {line.split(" | ")[2]: json.loads(line[line.index("{"):]) for line in lines}
    finetuned = load_finetuned(tmp_path)
    for split, prefix in (("valid", "valid_"), ("valid1", "valid1_")):
        outputs = predict(finetuned.network, read_examples(folder, split))
        expected = KINDS["classification"].evaluate(folder, finetuned.problem, split, outputs)["accuracy"]
        assert float(logged[split][f"{prefix}accuracy"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["span", pytest.param("classification", marks=pytest.mark.soak)])
def test_two_processes_and_micro_batches_are_one_batch(toy, checkpoint, finetune, tmp_path, kind):
    """31 examples an update, in parts of up to 8: the last one of an epoch is ragged, and so is validation."""
    folder, start = toy(kind, train=31), checkpoint()
    options = dict(max_update=6, total_num_update=12, batch_size_valid=5)
    layouts = {
        "one": (1, dict(batch_size=31)),
        "micro-batches": (1, dict(batch_size=8, update_freq=[4])),
        "processes": (2, dict(batch_size=8, update_freq=[2])),
    }
    found = {}
    for name, (processes, layout) in layouts.items():
        outcome = finetune(folder, start, processes, save_dir=tmp_path / name, **options, **layout)
        found[name] = outcome.log, parameters(tmp_path / name / "checkpoint_last")
    (one, expected), *others = found.values()
    for log, model in others:
        for rows, expected_rows in ((log.train, one.train), (log.validation, one.validation)):
            losses = [row["loss"] for row in rows]
            assert losses == pytest.approx([row["loss"] for row in expected_rows], rel=1e-4, abs=1e-5)
        for row, expected_row in zip(log.validation, one.validation):
            for metric in read_problem(folder).metrics:
                assert row[metric] == pytest.approx(expected_row[metric], abs=1e-6)
        for key, value in expected.items():
            shift = kind == "span" and value.shape == (2,)  # which softmax ignores: Adam follows the rounding of 0
            torch.testing.assert_close(model[key], value, rtol=1e-3, atol=5e-4 if shift else 1e-4)


@pytest.mark.parametrize("processes", [2, pytest.param(1, marks=pytest.mark.soak)])
def test_a_resumed_run_ends_with_the_same_bits(toy, checkpoint, finetune, tmp_path, processes):
    """With dropout, from the middle of the second epoch, after the pre-trained checkpoint has gone."""
    folder, start = toy("classification", train=27), checkpoint()
    options = dict(DROPOUT, max_update=10, save_interval_updates=3, layer_decay=0.8, batch_size=8 // processes)
    through = finetune(folder, start, processes, save_dir=tmp_path / "through", **options)
    shutil.rmtree(start.parent)
    (tmp_path / "resumed").mkdir()
    shutil.copytree(tmp_path / "through" / "checkpoint_2_6", tmp_path / "resumed" / "checkpoint_2_6")
    resumed = finetune(folder, start, processes, save_dir=tmp_path / "resumed", **options)
    assert [row["num_updates"] for row in resumed.log.train] == [7, 8, 9, 10]
    assert [row["loss"] for row in resumed.log.train] == [row["loss"] for row in through.log.train[6:]]
    first, second = (checkpoints.read(tmp_path / run / "checkpoint_last") for run in ("through", "resumed"))
    assert same(first["model"], second["model"])
    moments, resumed_moments = (state["last_optimizer_state"]["state"] for state in (first, second))
    assert moments.keys() == resumed_moments.keys()
    assert all(same(moments[key], resumed_moments[key]) for key in moments)


@pytest.mark.parametrize("place", ["validation", pytest.param("optimizer", marks=pytest.mark.soak)])
def test_a_run_that_is_stopped_goes_on_with_the_same_command_to_the_same_bits(
    toy, checkpoint, finetune, tmp_path, place
):
    folder, start = toy("regression"), checkpoint()
    options = dict(DROPOUT, max_update=6)
    finetune(folder, start, save_dir=tmp_path / "through", **options)
    options["save_dir"] = tmp_path / "stopped"
    stopped = finetune(folder, start, fails=True, events=[(0, place, 1, "SIGUSR2")], **options)
    assert stopped.codes == [75] and len(stopped.log.train) < 6
    finetune(folder, start, **options)
    assert same(*(parameters(tmp_path / run / "checkpoint_last") for run in ("through", "stopped")))


@pytest.mark.parametrize("kind", ["span", "choice"])
def test_a_batch_in_parts_is_that_batch(toy, kind):
    sample = LabelledDataset("train", read_examples(toy(kind), "train"), padding=1, seed=1).collater([3, 1, 4, 0, 5])
    for parts, sizes in ((1, [5]), (2, [3, 2]), (4, [2, 2, 1]), (8, [1] * 5)):
        split = FinetuningTask.split_batch(FinetuningTask, sample, parts)
        assert [part["nsentences"] for part in split] == sizes
        assert sum(part["ntokens"] for part in split) == sample["ntokens"]
        for name in ("id", "targets", *(["candidates"] if kind == "span" else [])):
            assert torch.equal(torch.cat([part[name] for part in split]), sample[name])
        for name, value in sample["net_input"].items():
            assert torch.equal(torch.cat([part["net_input"][name] for part in split]), value)
    assert FinetuningTask.split_batch(FinetuningTask, {}, 2) == [{}]


def test_batches_are_drawn_anew_in_every_epoch_and_for_every_seed(toy):
    orders = {}
    for seed, epoch in ((1, 1), (1, 2), (2, 1)):
        dataset = LabelledDataset("train", read_examples(toy("regression"), "train"), padding=1, seed=seed)
        dataset.set_epoch(epoch)
        orders[seed, epoch] = dataset.ordered_indices().tolist()
        assert dataset.ordered_indices().tolist() == orders[seed, epoch]  # as after a resume
        assert sorted(orders[seed, epoch]) == list(range(32))
    assert orders[1, 1] != orders[1, 2] != orders[2, 1] != orders[1, 1]


def test_validation_is_read_by_length(toy):
    examples = read_examples(toy("regression"), "valid")
    order = LabelledDataset("valid", examples, padding=1, seed=1).ordered_indices()
    assert sorted(order) == list(range(13))
    assert examples.lengths[order].tolist() == sorted(examples.lengths, reverse=True)


# What it starts from

@pytest.fixture
def new_model(tmp_path):
    """new_model(folder, pretrained, from_scratch=False): task and model before the first update."""

    def new_model(folder, pretrained, from_scratch=False):
        options = dict(data=folder, pretrained=pretrained, from_scratch=from_scratch, layer_decay=1.0, optimizer="adam")
        options |= dict(max_valid_steps=None, save_dir=tmp_path / "new", restore_file="checkpoint_last.pt")
        torch.manual_seed(1)
        dropouts = dict(dropout=0.2, attention_dropout=0.3, pooler_dropout=0.4)
        task = FinetuningTask(Namespace(_name="finetuning", **options))
        return task, task.build_model(Namespace(_name="finetuned", **dropouts))

    return new_model


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_checkpoints_are_started_from_and_load_again(toy, checkpoint, new_model, tmp_path, name):
    kind = "prompt" if name in ("bert_mlm", "script_selfcritic", "coco_lm") else "classification"
    start = checkpoint(name)
    task, model = new_model(toy(kind), start)
    network, pretrained = model.network, parameters(start)
    for key, value in network.encoder.state_dict().items():
        assert torch.equal(value, pretrained[f"method.encoder.{key}"]), key
    if kind == "prompt":
        head = "clm_head" if name == "coco_lm" else "mlm_head"
        for key, value in network.head.lm_head.state_dict().items():
            assert torch.equal(value, pretrained[f"method.{head}.{key}"]), key
        assert network.head.lm_head.token_embeddings is network.encoder.token_embeddings

    cfg = {"task": {"_name": "finetuning"}, "model": {}}
    state = {"cfg": cfg, "task_state": task.state_dict(), "model": model.state_dict()}
    storage.write(tmp_path / "checkpoint_1_0", state, dict(number=1, score=None, purposes=[]))
    finetuned = load_finetuned(tmp_path)
    assert (finetuned.origin, finetuned.problem) == (task.origin, task.problem)
    assert finetuned.tokenizer.symbols == task.tokenizer.symbols
    assert same(finetuned.network.state_dict(), network.state_dict())


@pytest.mark.parametrize("kind", ["classification", "prompt"])
def test_from_scratch_is_the_same_network_with_other_parameters(toy, checkpoint, new_model, kind):
    folder, start = toy(kind), checkpoint()
    tuned, scratch, again = (
        new_model(folder, start, from_scratch)[1].state_dict() for from_scratch in (False, True, True)
    )
    assert same(scratch, again) and scratch.keys() == tuned.keys()
    for name, value in tuned.items():
        assert scratch[name].shape == value.shape
        if value.dim() > 1 and not name.startswith("network.head.dense") and "out_proj" not in name:
            assert not torch.allclose(scratch[name], value, rtol=0, atol=1e-2), name


def test_a_fine_tuned_encoder_is_gone_on_from_with_a_new_head(toy, checkpoint, finetune, new_model, tmp_path):
    start = checkpoint()
    finetune(toy("classification"), start, save_dir=tmp_path / "first")
    first = load_finetuned(tmp_path / "first")  # the best of the run
    _, model = new_model(toy("span"), tmp_path / "first")
    assert same(model.network.encoder.state_dict(), first.network.encoder.state_dict())
    assert not same(first.network.encoder.state_dict(), new_model(toy("span"), start)[1].network.encoder.state_dict())
    finetune(toy("span"), tmp_path / "first", save_dir=tmp_path / "second")
    assert load_finetuned(tmp_path / "second").origin.method == first.origin.method


def test_dropouts_are_those_of_the_command(toy, checkpoint, new_model):
    network = new_model(toy("classification"), checkpoint())[1].network
    layer = network.encoder.layers[0]
    assert network.encoder.embeddings.dropout.p == layer.dropout.p == 0.2
    assert layer.self_attn.dropout == 0.3 and network.head.dropout.p == 0.4


def test_a_language_model_that_is_absent_cannot_be_asked(toy, checkpoint, new_model, capsys):
    with pytest.raises(SystemExit):
        new_model(toy("prompt"), checkpoint("coco_lm", clm_weight=0.0))
    assert "holds no language model on the encoder for a prompt to ask: take a checkpoint of" in capsys.readouterr().err


# What a user gets wrong

def with_examples(folder, split, **changes):
    """The folder, with another split in the place of its own."""
    examples = read_examples(folder, split)._replace(**changes)
    np.savez(folder / f"{split}.npz", **{key: value for key, value in examples._asdict().items() if value is not None})
    return folder


def with_problem(folder, **changes):
    problem = json.loads((folder / "problem.json").read_text())
    (folder / "problem.json").write_text(json.dumps({**problem, **changes}))
    return folder


def over_long(folder):
    examples = read_examples(folder, "train")
    lengths = np.array([40, examples.lengths.sum() - 40, *[0] * (len(examples.lengths) - 2)])
    lengths[1:] = len(examples.tokens) // 100
    lengths[-1] += len(examples.tokens) - lengths.sum()
    return with_examples(folder, "train", lengths=lengths)


MISTAKES = {  # what: (kind, change of the folder, options, what the line must say)
    "no labelled folder": ("classification", lambda folder: folder.parent, {}, "holds no problem.json"),
    "no such split": ("classification", None, dict(valid_subset="test"), "holds no split 'test'"),
    "split without labels": (
        "classification", lambda folder: with_examples(folder, "valid", targets=None), {},
        "valid of {folder} has no targets for its 13 examples: it can be predicted only",
    ),
    "another vocabulary": (
        "classification", lambda folder: with_problem(folder, sentencepiece_sha256="0" * 64), {},
        "is encoded with another vocabulary than {pretrained} has: encode it anew",
    ),
    "label out of range": (
        "classification", lambda folder: with_problem(folder, labels=["only"]), {},
        "has label 1, which is none of the 1 labels",
    ),
    "sequence longer than the positions": (
        "classification", over_long, {}, "example 0 of train of {folder} has 40 tokens, more than the encoder's 32"
    ),
    "sequence longer than a batch": (
        "classification", None, dict(max_tokens=5, batch_size=None), "max_tokens 5 is less than the longest sequence"
    ),
    "sequence longer than a batch of validation": (
        "classification", None, dict(max_tokens_valid=5), "max_tokens_valid 5 is less than the longest sequence"
    ),
    "limit on validation": ("classification", None, dict(max_valid_steps=2), "max_valid_steps 2: metrics are of whole"),
    "another optimizer with layer decay": (
        "classification", None, dict(layer_decay=0.8, optimizer="adam"), "layer_decay 0.8 needs an optimizer with"
    ),
    "an answer that is no number": (
        "classification", None, dict(lr=[1e30], max_update=1, warmup_updates=0),
        "the network answers nan or infinity to 13 of 13 sequences, first to number 0: it has diverged",
    ),
    "no layer decay": ("classification", None, dict(layer_decay=0.0), "layer_decay 0.0 is out of range: it must"),
    "no such checkpoint": ("classification", None, dict(pretrained="nowhere"), "nowhere does not exist"),
    "prompt without language model": ("prompt", None, dict(pretrained="electra_rtd"), "electra_rtd trains no language"),
    "arch of pre-training": ("classification", None, dict(arch="bert_mlm_tiny", pooler_dropout=None), "arch bert_mlm"),
    "criterion of pre-training": ("classification", None, dict(criterion="bert_mlm"), "criterion bert_mlm"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_the_run_with_one_line(toy, checkpoint, finetune, tmp_path, mistake):
    kind, change, options, told = MISTAKES[mistake]
    folder, start = toy(kind), checkpoint()
    if options.get("pretrained") in METHODS:
        options = dict(options, pretrained=checkpoint(options["pretrained"]))
    told = told.format(folder=folder, pretrained=start)
    given = change(folder) if change else folder
    options = {"best_checkpoint_metric": "accuracy", **options}
    outcome = finetune(given, options.pop("pretrained", start), fails=True, save_dir=tmp_path / "run", **options)
    message = outcome.err[0].splitlines()[-1]
    assert message.startswith("amos_fairseq: error: ") and told in message, message
    assert "Traceback" not in outcome.out[0] + outcome.err[0] and not list(tmp_path.glob("run/checkpoint*"))


def test_a_checkpoint_of_pre_training_is_not_loaded_as_a_fine_tuned_one(checkpoint):
    with pytest.raises(ValueError, match="is no checkpoint of fine-tuning: it is of kind pretraining"):
        load_finetuned(checkpoint())


def test_another_task_is_not_taken_up_by_a_resumed_run(toy, checkpoint, finetune, tmp_path):
    start, options = checkpoint(), dict(save_dir=tmp_path / "run", disable_validation=True)
    finetune(toy("classification"), start, max_update=2, **options)
    outcome = finetune(toy("classification", train=33), start, fails=True, max_update=4, **options)
    assert "was trained otherwise than this command says" in outcome.err[0] and "data" in outcome.err[0]




def test_a_mean_of_checkpoints_is_fine_tuned(toy, checkpoint, finetune, tmp_path):
    paths = [checkpoint(), tmp_path / "other"]
    shutil.copytree(*paths)
    average(paths, tmp_path / "mean")
    finetune(toy("classification"), tmp_path / "mean", save_dir=tmp_path / "run", max_update=2)
    assert load_finetuned(tmp_path / "run").problem.kind == "classification"
