"""What `finetune` refuses before any work, what it says of the data, and the results of finished folders."""
import json

import pytest

from amos_fairseq.cli import main
from amos_fairseq.finetune import results, sweep
from amos_fairseq.finetune.commands import own_name
from amos_fairseq.finetune.presets import Setting
from amos_fairseq.methods.config import Vocabulary

TEXT = "text\tlabel\nalpha\ta\nbeta\tb\n"


@pytest.fixture
def model(tmp_path, make_method, tokenizer, save_checkpoint):
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    method = make_method("bert_mlm", vocabulary=vocabulary)
    save_checkpoint(tmp_path / "run/checkpoint_1_2", "bert_mlm", method, tokenizer)
    return tmp_path / "run"


@pytest.fixture
def command(tmp_path, capsys):
    """command(*arguments): exit status, and the last line of what was printed; {} stands for the folder of the test."""

    def command(*arguments):
        try:
            status = main.main(["finetune", *(argument.replace("{}", str(tmp_path)) for argument in arguments)])
        except SystemExit as ended:
            status = ended.code
        captured = capsys.readouterr()
        lines = (captured.out + captured.err).replace(f"{tmp_path}/", "").splitlines()
        return status, lines[-1] if lines else ""

    return command


FILE = ("file", "--model", "{}/run", "--train", "{}/train.tsv", "--valid", "{}/train.tsv", "--text", "text",
        "--label", "label", "--out", "{}/out", "--cpu")
TOKENS = ("tokens", "--model", "{}/run", "--train", "{}/train.tsv", "--valid", "{}/train.tsv", "--out", "{}/out")
GLUE = ("glue", "--model", "{}/run", "--glue", "{}/glue", "--out", "{}/out", "--cpu")
PROMPT = ("prompt", "--model", "{}/run", "--out", "{}/out", "--cpu")


@pytest.mark.parametrize("arguments, message", [
    ((*FILE, "--lr", "0"), "argument --lr: '0' has values outside of above 0 to 1"),
    ((*FILE, "--epochs", "x"), "argument --epochs: 'x' is no list of numbers: write 1 or 1,2"),
    ((*FILE, "--batch-size", "8,0"), "argument --batch-size: '8,0' has values outside of 1 to 1e+06"),
    ((*FILE, "--seeds", "a"), "--seeds a is no list of whole numbers: write 1,2,3"),
    ((*FILE, "--seeds", "1,-2"), "--seeds 1,-2 is no list of whole numbers"),
    ((*FILE, "--preset", "best"), "--preset best is none of quick, amos"),
    ((*FILE, "--paper", "x"), "--paper x is none of bert_base, electra_base"),
    ((*FILE, "--jobs", "0"), "--jobs must be at least 1, got 0"),
    ((*FILE, "--max-length", "33"), "--max-length 33: the model reads up to 32 tokens, and fewer than 16 hold no"),
    ((*FILE, "--max-length", "8"), "--max-length 8: the model reads up to 32 tokens"),
    ((*FILE, "--metric", "pearson"), "--metric pearson does not measure these labels"),
    ((*FILE, "--model", "{}/none"), "none does not exist"),
    ((*FILE, "--train", "{}/none.tsv"), "none.tsv does not exist"),
    ((*FILE, "--label", "class"), "train.tsv, line 2: there is no column 'class'"),
    ((*FILE, "--multi-label", "--metric", "accuracy"), "--metric accuracy does not measure these labels: choose"),
    ((*FILE, "--multi-label", "--regression"), "argument --regression: not allowed with argument --multi-label"),
    ((*FILE, "--layer-decay-top", "-1"), "argument --layer-decay-top: '-1' has values outside of 0 to 100"),
    ((*TOKENS, "--tags", "3"), "train.tsv, line 1: there is no column '3', needed are 1, 3"),
    ((*TOKENS, "--metric", "f1"), "--metric f1 does not measure these labels: choose from accuracy, macro_f1"),
    ((*TOKENS, "--name", "a/b"), "--name a/b is no name of a folder: leave out '/'"),
    ((*FILE, "--name", "a/b"), "--name a/b is no name of a folder: leave out '/'"),
    (GLUE, "glue/MNLI/train.tsv does not exist: glue should have the folder MNLI of GLUE"),
    ((*GLUE, "--tasks", "RTE,SST2"), "--tasks SST2: GLUE has MNLI, QQP, QNLI, SST-2, CoLA, RTE, MRPC, STS-B, WNLI"),
    (PROMPT, "a prompt needs --glue FOLDER, or --train, --test, --text and --label of your own"),
    ((*PROMPT, "--train", "a", "--test", "a", "--text", "t", "--label", "l"),
     "your own prompt needs --template and --label-words"),
    (("results", "{}"), "is no folder of amos-fairseq finetune"),
])
def test_mistakes_are_told_in_one_line_before_any_work(arguments, message, command, model, tmp_path):
    (tmp_path / "train.tsv").write_text(TEXT)
    status, line = command(*arguments)
    assert status == 64 and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, path", [("toy", "data/toy.tsv"), ("toy", "toy/train.tsv")])
def test_a_task_is_named_after_its_file_or_the_folder_of_train(name, path, tmp_path):
    assert own_name(tmp_path / path) == name


@pytest.fixture
def finished(tmp_path):
    """finished(folder, seed=1, **about): a folder with one finished run."""

    def finished(name, seed=1, **about):
        folder = tmp_path / name / f"runs/RTE/x/seed{seed}"
        folder.mkdir(parents=True)
        about = {"model": "m", "from_scratch": False, "method": "amos_rtd", "width": 768, **about}
        (tmp_path / name / sweep.ABOUT).write_text(json.dumps(about))
        scores = {"valid": {"accuracy": 0.875}}
        setting = Setting(1e-5, 3, 16, 0.1)
        results.write(folder, results.Result("RTE", "classification", ["accuracy"], setting, seed, scores, 9, 1.0))
        return tmp_path / name

    return finished


def test_results_are_shown_beside_the_paper_of_the_method(finished, capsys):
    folder = finished("one")
    assert main.main(["finetune", "results", str(folder)]) == 0
    table = capsys.readouterr().out
    assert table.startswith("amos_rtd, m\n") and "amos_base (AMOS, Table 1)." in " ".join(table.split())
    assert "RTE accuracy 86.6 87.5".split() in [line.split() for line in table.splitlines()]
    assert all(len(line) <= 80 for line in table.splitlines() if str(folder) not in line)
    assert "| RTE | accuracy | 86.6 | 87.5 | 1 | 87.5 to 87.5 |" in (folder / "results.md").read_text()
    assert main.main(["finetune", "results", str(folder), "--paper", "coco_lm_base++"]) == 0
    assert "RTE accuracy 87.4 87.5" in " ".join(capsys.readouterr().out.split())


def test_folders_of_one_model_are_shown_together(finished, command):
    finished("one"), finished("two", seed=2), finished("again")
    status, _ = command("results", "{}/one", "{}/two")
    assert status == 0
    status, line = command("results", "{}/one", "{}/again")
    assert status == 64 and "one and again both hold RTE with seed 1: leave one out" in line


def test_several_models_have_a_row_each(finished, capsys):
    folders = [finished("one"), finished("two", seed=2), finished("other", model="n")]
    folders.append(finished("new", from_scratch=True))
    assert main.main(["finetune", "results", *map(str, folders)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert table.startswith("model RTE amos_rtd, m 87.5 (2) amos_rtd, n 87.5 (1) amos_rtd, m, from scratch 87.5 (1) ")
