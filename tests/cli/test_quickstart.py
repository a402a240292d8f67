"""The quick start as a user runs it, on a small corpus of made-up words, and what it refuses."""
import argparse
import fcntl
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import timeit

import pytest

from amos_fairseq import flops, methods, pretrained  # noqa: F401  pretrained: not first while a test has fewer methods
from amos_fairseq.analysis.flops import Geometry, hardware_flops, without_memory
from amos_fairseq.analysis.sentence_probes import Result, wilson
from amos_fairseq.cli import main, processes, quickstart, recipe
from amos_fairseq.demo import documentation_tasks
from amos_fairseq.demo.documentation_tasks import LEFT_OUT, SPLITS, Entry, HeldOut, Sentence
from amos_fairseq.files import claimed
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.model import Pretrained

COMMAND = [sys.executable, "-m", "amos_fairseq.cli.main", "quickstart"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """400 kB: every line one sentence of words whose neighbours depend on each other, ten lines a document."""
    chance = random.Random(1)
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(3000)]
    lines = []
    for index in range(5500):
        start = chance.randrange(len(words))
        lines.append(" ".join(words[(start + step * step) % len(words)] for step in range(10)) + ".\n")
        lines.append("\n" if index % 10 == 9 else "")
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A quick start of six updates: its arguments, its folder, what it printed."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    arguments = ["--corpus", str(corpus), "--out", str(out), "--updates", "6"]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return arguments, out, done.stdout + done.stderr


def test_quickstart_prepares_trains_reports_and_inspects(finished):
    _, out, printed = finished
    assert {"data", "train.log", "checkpoint_last", "report", "huggingface", "quickstart.json"} <= set(os.listdir(out))
    assert "huggingface  MPNetModel; loaded again, it differs by" in printed and "fine-tuned" not in printed
    figures = {path.stem for path in (out / "report").glob("*.png")}
    assert {"losses", "detection", "mixture_weights", "sequence_cosines"} <= figures
    assert "<h2>Summary</h2>" in (out / "report" / "report.html").read_text()
    for text in ("masked LM loss (nats), layer 2", "mean mixture weight, layer 1", "[original -> drawn p]", " -> "):
        assert text in printed
    assert "items of swap" in printed and "of a replaced and an original word it finds" in printed
    assert "expected" not in printed  # of these settings, nothing is
    assert "INFO" not in printed and "DEBUG" not in printed
    assert "\t" not in printed


def test_second_run_shows_the_results_without_training(finished, capsys):
    arguments, out, printed = finished
    before = (out / "train.log").read_bytes()
    assert main.main(["quickstart", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "is done already" in shown
    assert (out / "train.log").read_bytes() == before
    table = printed[printed.index("measured") : printed.index("figure")]
    assert table in shown


def test_all_methods_train_on_one_corpus_and_end_in_one_report(corpus, tmp_path, started, monkeypatch, capfd):
    monkeypatch.setattr(quickstart, "started", started)
    few = {name: methods.METHODS[name] for name in ("electra_rtd", "bert_mlm")}
    monkeypatch.setattr(methods, "METHODS", few)
    arguments = ["--method", "all", "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--updates", "3"]
    assert main.main(["quickstart", *arguments]) == 0
    printed = capfd.readouterr().out.splitlines()
    header = next(number for number, line in enumerate(printed) if line.split() == list(few))
    losses = next(line for line in printed[header:] if line.startswith("masked LM loss (nats)"))
    assert all(5 < float(loss) < 8 for loss in losses.replace("*", "").split()[-2:])  # near that of frequencies alone
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "electra_rtd" in page and "bert_mlm" in page
    assert not (tmp_path / "out" / "bert_mlm" / "data").exists()


def test_other_settings_are_refused(finished, capsys):
    arguments, out, _ = finished
    assert main.main(["quickstart", *arguments[:-1], "7"]) == 64
    assert capsys.readouterr().err == (
        f"amos-fairseq quickstart: error: {out} is a quick start with updates 6, not 7: "
        "choose another --out, or delete it\n"
    )


def test_inspect_takes_text(finished, capsys):
    _, out, _ = finished
    assert main.main(["inspect", str(out), "--text", "bada dofu kila mone pura " * 4, "--color", "always"]) == 0
    printed = capsys.readouterr().out
    assert "bada" in printed and " -> " in printed and "\033[" in printed


def test_interrupted_run_can_go_on(corpus, tmp_path):
    """Interrupted as the training starts, it says so, ends that process, and keeps what is complete."""
    out = tmp_path / "out"
    arguments = ["--corpus", str(corpus), "--out", str(out), "--updates", "100000"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # a shell's background jobs ignore interrupts, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 900
    while not (out / "train.log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=900) == 130
    assert "The same command goes on" in process.stderr.read()
    with open(out / "quickstart.json") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by a training that is alive
    assert (out / "data" / "manifest.json").exists()
    assert not quickstart.is_trained(out, 100000)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "electra"], "unknown --method electra: choose one of amos_rtd, "),
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--corpus", "no.txt"], "no.txt (in "),
        (["--corpus", os.devnull], "--corpus /dev/null has 0 bytes, too few to learn from"),
    ],
)
def test_mistakes_are_told_before_any_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["quickstart", *arguments]) == 64
    assert capsys.readouterr().err.startswith(f"amos-fairseq quickstart: error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert main.main(["quickstart", "--out", str(tmp_path)]) == 64
    assert "is in use by something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_at_work_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    settings = quickstart.check_settings(argparse.Namespace(method="amos_rtd", updates=None, corpus=None))
    with claimed(out / "quickstart.json", settings, at_work="", begun_with=""):
        assert main.main(["quickstart", "--out", str(out)]) == 64
    assert "another quick start is at work" in capsys.readouterr().err
    assert json.loads((out / "quickstart.json").read_text())["setting"] == "quickstart"


def test_failed_training_shows_its_last_words(tmp_path, monkeypatch, capsys):
    failing = [sys.executable, "-c", "import sys; print('no space'); sys.exit(3)"]
    monkeypatch.setattr(processes, "PROGRAM", failing)
    with open(tmp_path / "lock", "w") as lock, pytest.raises(SystemExit) as ended:
        quickstart.train("amos_rtd", 5, tmp_path / "data", tmp_path, lock.fileno())
    assert "no space" in capsys.readouterr().err
    assert "the training ended with status 3" in ended.value.code and "train.log" in ended.value.code


@pytest.mark.parametrize(
    "chosen, factor, documentation, told",
    [
        (["amos_rtd"], 1, True, "about 4 minutes: "),  # 4e12 / 0.2 / 2e11 = 100 s, and 8,000 parses of 0.018 s
        (["amos_rtd"], 1, False, "about 3 minutes: "),  # 4,500 parses
        (["amos_rtd"], 10, True, "about 19 minutes: "),
        (methods.METHODS, 1, True, "about 17 minutes: "),  # of eight networks two are fine-tuned at a time
    ],
)
def test_the_time_is_told_from_how_fast_products_and_parses_are(
    chosen, factor, documentation, told, monkeypatch, capsys
):
    monkeypatch.setattr(flops, "peak_flops", lambda device: 2e11)
    monkeypatch.setattr(quickstart, "available_cores", lambda: 2)
    monkeypatch.setattr(timeit, "repeat", lambda parse, number: [0.02, 0.018, 0.03] if parse() else [])
    lengths = {method: factor * quickstart.recipe_updates(method) for method in chosen}
    quickstart.tell_time(lengths, lengths, documentation)
    assert capsys.readouterr().out.startswith(f"{told}2 CPU cores multiply matrices at 200 GFLOP/s, and one parses ")


def test_finetuning_compares_with_the_untrained_network(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(quickstart, "run_logged", lambda _, calls: called.extend(list(map(str, a)) for a, _ in calls))
    scores = {"untrained": 0.25, "a": 0.5, "b": 0.75}
    texts = [Sentence("torch", f"number {n} is one {word} {n + 1} more") for word in LEFT_OUT for n in range(600)]
    entries = [Entry("torch", f"f{n}()", f"Add {n} to it") for n in range(9)]
    held_out = dict.fromkeys(SPLITS, HeldOut(texts, entries))
    monkeypatch.setattr(documentation_tasks, "read_held_out", lambda: held_out)
    monkeypatch.setattr(recipe, "accuracy", lambda folder: scores[folder.name.split("-")[1]])
    found = quickstart.finetuned({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path)
    for (network, task), result in found.items():
        assert result.accuracy == scores[network] and result.items > 2000, task
    half = 0.98 / found["a", "CoLA"].items ** 0.5
    assert found["a", "CoLA"].interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.001)
    assert [("--from-scratch" in arguments) for arguments in called] == [True, False, False]
    assert not any((tmp_path / "finetuned" / f"{task}-{name}").exists() for task in recipe.FINETUNED for name in scores)
    for arguments in called:  # every file that is named is there
        named = [path for path in arguments if "tasks" in path and os.sep in path]
        assert named and all(os.path.exists(path) for path in named)


def test_frozen_encoders_are_probed_on_which_word_was_left_out(tmp_path, make_method, tokenizer):
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    method = make_method("bert_mlm", vocabulary=vocabulary, gain=4.0).eval()
    (tmp_path / "cloze").mkdir()
    rows = [f"{word} beta\tgamma\t{word}\n" * 30 for word in ("alpha", "delta")]
    rows = [row.replace("beta", f"beta {number} eta") for number, row in enumerate("".join(rows).splitlines(True))]
    (tmp_path / "cloze/test.tsv").write_text("before\tafter\tword\n" + "".join(rows))
    found = quickstart.frozen({"a": Pretrained("a", "bert_mlm", method.encoder, tokenizer, method)}, tmp_path)
    assert list(found) == [("a", "cloze")]
    assert all(result.items == 60 and result.accuracy > 0.9 for result in found.values())


def test_accuracy_is_the_mean_over_seeds_whatever_metric_comes_first(tmp_path, monkeypatch):
    scores = [{"valid": {"matthews": 0.1, "accuracy": accuracy}} for accuracy in (0.5, 0.7)]
    found = {seed: argparse.Namespace(scores=score) for seed, score in enumerate(scores)}
    monkeypatch.setattr("amos_fairseq.finetune.results.read_all", lambda folder: found)
    assert recipe.accuracy(tmp_path) == pytest.approx(0.6)


def test_a_cell_is_marked_where_it_is_clearly_above_untrained():
    low, high, near = (Result(share, wilson(round(1000 * share), 1000), 1000) for share in (0.5, 0.6, 0.54))
    assert quickstart.cell(high, low) == "60.0 ± 3.0*" and quickstart.cell(near, low) == "54.0 ± 3.1"
    assert quickstart.cell(low, low) == "50.0 ± 3.1"


def test_the_recipe_of_a_method_has_what_it_knows_and_costs_what_was_asked_for():
    for name in methods.METHODS:
        updates = recipe.updates_for(quickstart.FLOPS, name, recipe.model_options(name, 10**6))
        options = recipe.model_options(name, updates)
        geometry = Geometry(64, 16, updates, 0.3)
        method = without_memory(name, "tiny", 1024, geometry, options)
        cost = hardware_flops(method, geometry) * 64 * 16 * updates
        assert cost == pytest.approx(quickstart.FLOPS, rel=0.002), name
        assert ("generator_warmup_updates" in options) == (name != "bert_mlm")
    assert recipe.argument("generator_depths", [1, 2]) == ["--generator-depths", "1,2"]
    assert recipe.argument("join_blocks", True) == ["--join-blocks"] and recipe.argument("join_blocks", False) == []


@pytest.mark.parametrize("updates, interval", [(1, 1), (6, 2), (1300, 325), (1302, 326)])
def test_the_recipe_validates_four_times_the_last_time_at_the_end(updates, interval, tmp_path):
    arguments = recipe.training(tmp_path, tmp_path, "amos_rtd", {}, updates)
    for option in ("--validate-interval-updates", "--save-interval-updates"):
        assert arguments[arguments.index(option) + 1] == interval
