"""What pre-training is worth on real text: a model that is trained here, against the same network untrained.

The text is the documentation of what is installed, the tasks are made from the part of it that the model has not seen.
"""
import statistics

import pytest

from amos_fairseq.data.preparation import prepare
from amos_fairseq.demo.documentation import write_documentation
from amos_fairseq.demo.documentation_tasks import LEFT_OUT, write_tasks
from amos_fairseq.finetune import results
from tests.runs import AMOS_FAIRSEQ

NAME, LENGTH = "bert_mlm", 32
PRETRAINING = (  # two minutes on one core: until the masked LM has left the frequency of words behind
    f"--task {NAME} --arch {NAME}_tiny --criterion {NAME} --dropout 0 --attention-dropout 0 --cpu "
    f"--tokens-per-sample {LENGTH} --batch-size 32 --optimizer fused_adamw --weight-decay 0.01 --lr 1e-3 "
    "--lr-scheduler polynomial_decay --warmup-updates 250 "
    "--total-num-update 2500 --max-update 2500 --clip-norm 2.0 --num-workers 0 --no-epoch-checkpoints "
    "--validate-interval-updates 2500 --log-format json"
).split()


@pytest.fixture
def amos_fairseq(launch):
    return lambda *arguments: launch(AMOS_FAIRSEQ, arguments).out[0]


@pytest.mark.nightly
def test_a_pretrained_model_knows_better_which_word_was_left_out_than_an_untrained_one(amos_fairseq, tmp_path):
    folder = tmp_path
    write_tasks(folder / "tasks", examples=1600)
    write_documentation(str(folder / "text.txt"), megabytes=4)
    prepare([str(folder / "text.txt")], str(folder / "data"), vocab_size=1024, tokens_per_sample=LENGTH, uncased=True)
    print(amos_fairseq("train", folder / "data", *PRETRAINING, "--save-dir", folder / "run")[-1500:])
    accuracies = {}
    for kind, options in (("pre-trained", []), ("untrained", ["--from-scratch"])):
        out = folder / kind
        amos_fairseq(
            "finetune", "prompt", "--model", folder / "run", "--out", out, "--cpu",
            "--train", folder / "tasks/cloze/train.tsv", "--test", folder / "tasks/cloze/test.tsv",
            "--text", "before", "--text-b", "after", "--label", "word", "--template", "{text} {mask} {text_b}",
            "--label-words", ",".join(f"{word}={word}" for word in LEFT_OUT), "--samples", 0, "--per-class", 50,
            "--max-length", LENGTH, "--seeds", "1,2,3", "--lr", "3e-4", "--batch-size", 16, "--epochs", 1, *options,
        )
        scores = [result.scores["test"]["accuracy"] for result in results.read_all(out).values()]
        assert len(scores) == 3
        accuracies[kind] = scores
    margin = statistics.median(accuracies["pre-trained"]) - statistics.median(accuracies["untrained"])
    print(f"\naccuracy over 3 seeds, chance {1 / len(LEFT_OUT):.3f}: {accuracies}; margin {100 * margin:.1f} points")
    assert min(accuracies["pre-trained"]) > max(accuracies["untrained"]) and margin > 0.05


def test_tasks_in_the_layouts_of_glue_and_squad_go_all_the_way_to_prediction_files(
    amos_fairseq, launch, arguments, tmp_path
):
    folder = tmp_path
    launch("tests.demo.little:main", ["corpus", "--tasks", folder / "tasks", "--examples", 120])
    amos_fairseq("train", *arguments(NAME, max_positions=128, max_update=2, save_dir=folder / "run"))
    common = ["--model", folder / "run", "--seeds", 1, "--epochs", 0.2, "--lr", "1e-3", "--export-predictions", "--cpu"]
    table = amos_fairseq("finetune", "glue", "--glue", folder / "tasks/glue", "--tasks", "CoLA,RTE", *common,
                         "--out", folder / "glue")
    rows = {tuple(line.split()[:2]) for line in table.splitlines()}
    assert {("CoLA", "matthews"), ("RTE", "accuracy")} <= rows
    for task, header in (("CoLA", "index\tprediction"), ("RTE", "index\tprediction")):
        lines = (folder / f"glue/predictions/{task}.tsv").read_text().splitlines()
        assert lines[0] == header and len(lines) == 1 + 60
    squad = folder / "tasks/squad"
    table = amos_fairseq("finetune", "squad", "--train", squad / "train-v2.0.json", "--valid", squad / "dev-v2.0.json",
                         "--test", squad / "dev-v2.0.json", "--max-length", 128, "--stride", 32, *common,
                         "--out", folder / "squad")
    assert "SQuAD 2.0" in table and "best_em/best_f1" in (folder / "squad/results.md").read_text()
