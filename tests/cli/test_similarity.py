"""similarity as a user runs it."""
import json
import re

import pytest

from amos_fairseq.cli import main
from amos_fairseq.methods.config import Vocabulary
from tests.analysis.test_similarity import write_beir


@pytest.fixture
def command(tmp_path, make_method, tokenizer, save_checkpoint, capsys):
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    for name in ("electra_rtd", "bert_mlm"):
        method = make_method(name, vocabulary=vocabulary, gain=4.0)
        save_checkpoint(tmp_path / name / "checkpoint_1_2", name, method, tokenizer)
    write_beir(tmp_path / "own")
    (tmp_path / "sts.csv").write_text("a,b,s\nalpha,beta,1\nalpha,alpha eta,4\nzeta,zeta eta,5\ntheta,eta,0\n")

    def command(*arguments):
        given = (argument.replace("FOLDER", str(tmp_path)) for argument in arguments)
        status = main.main(["similarity", *given])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.replace(f"{tmp_path}/", "")

    return command


def test_tasks_and_anisotropy_of_models_stand_beside_each_other(command):
    tasks = ["--tasks", "FOLDER/sts.csv", "FOLDER/own", "--columns", "a,b,s"]
    arguments = ["FOLDER/electra_rtd", "FOLDER/bert_mlm", *tasks]
    status, out, _ = command(*arguments)
    table, _, notes = out.partition("\n\n")
    rows = [re.split("  +", line.strip()) for line in table.splitlines()]
    assert status == 0 and rows[0] == ["electra_rtd", "bert_mlm"]
    assert [row[0] for row in rows[1:]] == [
        "sts, Spearman", "own, nDCG@10", "own, recall@100", "word cosine", "word rank", "text cosine", "text rank"
    ]
    assert rows[3][1].startswith("100.0 (100.0 to") and "near 1, all are alike" in notes
    document = json.loads(command(*arguments, "--json")[1])
    assert [model["model"] for model in document["models"]] == ["electra_rtd", "bert_mlm"]
    assert [model["truncated"] for model in document["models"]] == [0, 0]
    value = document["models"][1]["tasks"][1]["nDCG@10"]["value"]
    assert rows[2][2].startswith(f"{100 * value:.1f} (")


def test_a_corpus_of_one_text_has_no_cosine(command, tmp_path):
    for path, text in (("corpus", '{"_id": "d", "text": "alpha beta"}'), ("queries", '{"_id": "q", "text": "alpha"}')):
        (tmp_path / f"own/{path}.jsonl").write_text(text)
    (tmp_path / "own/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    status, out, _ = command("FOLDER/electra_rtd", "--tasks", "FOLDER/own")
    assert status == 0 and re.search(r"text cosine +-\n", out)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tasks", "FOLDER/sts.csv"], "sts.csv, line 2: there is no column 'sentence1'"),
        (["--tasks", "FOLDER/sts.csv", "--columns", "a,b"], "--columns a,b must be three: of both texts"),
        (["--tasks", "FOLDER/own", "--split", "dev"], "own/qrels/dev.tsv does not exist"),
        (["--tasks", "FOLDER/own", "--layer", "7"], "layer 7 must lie between -3 and 2, the encoder's last layer"),
    ],
)
def test_mistakes_are_told_in_one_line(command, arguments, message):
    status, out, err = command("FOLDER/electra_rtd", *arguments)
    assert status != 0 and out == "" and err.count("\n") == 1
    assert err.startswith(f"amos-fairseq similarity: error: {message}")
