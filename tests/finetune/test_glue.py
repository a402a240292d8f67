"""GLUE's files exactly as they are distributed, what is read of them, and the files that its server reads."""
import json

import numpy as np
import pytest

from amos_fairseq.finetune import glue, labelled
from amos_fairseq.finetune.kinds import KINDS

# The first lines are the public files' own; sentences are made up.
MNLI_COLUMNS = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2"
)
MNLI_PARSES = "1\t2\tgenre\t( a )\t( b )\t(ROOT a)\t(ROOT b)"
FILES = {
    "CoLA/train.tsv": 'gj04\t1\t\talpha "beta gamma\ngj04\t0\t*\tbeta.\n',
    "CoLA/dev.tsv": "clc95\t0\t*\tgamma\n",
    "CoLA/test.tsv": "index\tsentence\n0\talpha\n1\tbeta\n",
    "SST-2/train.tsv": "sentence\tlabel\nalpha \t0\nbeta gamma\t1\n",
    "SST-2/dev.tsv": "sentence\tlabel\nalpha\t1\n",
    "SST-2/test.tsv": "index\tsentence\n0\tgamma\n",
    "MRPC/train.tsv": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t702876\t702977\t"alpha" beta\tgamma\r\n',
    "MRPC/dev.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n0\t1355540\t1355592\talpha\tbeta\r\n",
    "MRPC/test.tsv": "\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n0\t1089874\t1089925\tbeta\tbeta\r\n",
    "STS-B/train.tsv": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\talpha\tbeta\t5.000\n"
        "1\tmain-news\theadlines\t2015\t1\thttp://a\thttp://b\talpha\tgamma\t0.500\n"
    ),
    "STS-B/dev.tsv": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tmain-captions\tMSRvid\t2012test\t0000\tnone\tnone\tbeta\tbeta\t2.75\n"
    ),
    "STS-B/test.tsv": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n"
        "0\tmain-captions\tMSRvid\t2012test\t0024\tnone\tnone\talpha\tbeta\n"
    ),
    "QQP/train.tsv": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n133273\t213221\t213222\talpha?\tbeta?\t0\n"
        "213222\t4\t5\talpha\n, or beta?\t1\n286099\t6\t7\tgamma?\tgamma?\t1\n"
    ),
    "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n201359\t1\t2\talpha\tbeta\t1\n3\t4\t5\talpha\n",
    "QQP/test.tsv": "id\tquestion1\tquestion2\n0\talpha\tbeta\n1\tbeta\tgamma\n",
    "MNLI/train.tsv": f"{MNLI_COLUMNS}\tlabel1\tgold_label\n0\t{MNLI_PARSES}\talpha\tbeta\tneutral\tentailment\n",
    "MNLI/dev_matched.tsv": (
        f"{MNLI_COLUMNS}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        f"0\t{MNLI_PARSES}\talpha\tgamma\tneutral\tentailment\tneutral\tneutral\tcontradiction\tneutral\n"
    ),
    "MNLI/dev_mismatched.tsv": (
        f"{MNLI_COLUMNS}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        f"0\t{MNLI_PARSES}\tbeta\tgamma\tneutral\tentailment\tneutral\tneutral\tneutral\tcontradiction\n"
    ),
    "MNLI/test_matched.tsv": f"{MNLI_COLUMNS}\n0\t{MNLI_PARSES}\talpha\talpha\n",
    "MNLI/test_mismatched.tsv": f"{MNLI_COLUMNS}\n0\t{MNLI_PARSES}\tgamma\talpha\n",
    "diagnostic/diagnostic.tsv": "index\tsentence1\tsentence2\n0\tbeta\tgamma\n",
    "QNLI/train.tsv": "index\tquestion\tsentence\tlabel\n0\talpha?\tbeta\tnot_entailment\n1\tbeta?\tbeta\tentailment\n",
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\talpha?\tgamma\tentailment\n",
    "QNLI/test.tsv": "index\tquestion\tsentence\n0\tgamma?\tbeta\n",
    "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\talpha\x85beta\u2028gamma\tbeta\tnot_entailment\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tbeta\tbeta\tentailment\n",
    "RTE/test.tsv": "index\tsentence1\tsentence2\n0\tgamma\tbeta\n",
    "WNLI/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\talpha\tbeta\t1\n",
    "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\talpha\tbeta\t0\n",
}
# split: texts, targets
EXPECTED = {
    "CoLA": {"train": ([('alpha "beta gamma',), ("beta.",)], [1, 0]), "valid": ([("gamma",)], [0]),
             "test": ([("alpha",), ("beta",)], None)},
    "SST-2": {"train": ([("alpha ",), ("beta gamma",)], [0, 1]), "valid": ([("alpha",)], [1]),
              "test": ([("gamma",)], None)},
    "MRPC": {"train": ([('"alpha" beta', "gamma")], [1]), "valid": ([("alpha", "beta")], [0]),
             "test": ([("beta", "beta")], None)},
    "STS-B": {"train": ([("alpha", "beta"), ("alpha", "gamma")], [1.0, 0.1]), "valid": ([("beta", "beta")], [0.55]),
              "test": ([("alpha", "beta")], None)},
    "QQP": {"train": ([("alpha?", "beta?"), ("gamma?", "gamma?")], [0, 1]), "valid": ([("alpha", "beta")], [1]),
            "test": ([("alpha", "beta"), ("beta", "gamma")], None)},
    "MNLI": {"train": ([("alpha", "beta")], [1]), "valid": ([("alpha", "gamma")], [2]),
             "valid1": ([("beta", "gamma")], [0]), "test": ([("alpha", "alpha")], None),
             "test1": ([("gamma", "alpha")], None), "test2": ([("beta", "gamma")], None)},
    "QNLI": {"train": ([("alpha?", "beta"), ("beta?", "beta")], [1, 0]), "valid": ([("alpha?", "gamma")], [0]),
             "test": ([("gamma?", "beta")], None)},
    "RTE": {"train": ([("alpha\x85beta\u2028gamma", "beta")], [1]), "valid": ([("beta", "beta")], [0]),
            "test": ([("gamma", "beta")], None)},
    "WNLI": {"train": ([("alpha", "beta")], [1]), "valid": ([("alpha", "beta")], [0])},
}
METRICS = {"CoLA": "matthews", "STS-B": "spearman"}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "glue" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "glue"


@pytest.fixture
def prepare(folder, tokenizer, tmp_path):
    def prepare(name, **options):
        return glue.prepare(tmp_path / "out", name, folder, tokenizer, **options), tmp_path / "out"

    return prepare


def sequences(examples):
    return [part.tolist() for part in np.split(examples.tokens, examples.lengths.cumsum()[:-1])]


@pytest.mark.parametrize("name", EXPECTED)
def test_public_files_give_these_texts_and_labels(name, prepare, tokenizer):
    problem, out = prepare(name)
    assert problem == labelled.read_problem(out) and problem.metrics[0] == METRICS.get(name, "accuracy")
    assert {path.stem for path in out.glob("*.npz")} == set(EXPECTED[name])
    for split, (texts, targets) in EXPECTED[name].items():
        examples = labelled.read_examples(out, split)
        assert sequences(examples) == [tokenizer.sequence(*map(tokenizer.encode, row)) for row in texts]
        assert targets is None and examples.targets is None or examples.targets.tolist() == pytest.approx(targets)


def test_lines_with_missing_fields_are_left_out_and_told(prepare):
    problem, _ = prepare("QQP")
    fields = "left out, whose fields are too few or too many"
    assert problem.about["notes"] == [f"2 lines of train {fields}: 3, 4", f"1 lines of valid {fields}: 3"]
    assert problem.about["examples"] == {"train": 2, "valid": 1, "test": 2}


def test_of_a_test_file_no_line_is_left_out(prepare, folder):
    (folder / "QQP/test.tsv").write_text("id\tquestion1\tquestion2\n0\talpha\n")
    with pytest.raises(ValueError, match="test.tsv, line 2: 2 fields, but 3 columns"):
        prepare("QQP")


def test_paraphrases_in_their_own_files_give_the_same(folder, tokenizer, tmp_path):
    expected = glue.prepare(tmp_path / "expected", "MRPC", folder, tokenizer)
    header, train = FILES["MRPC/train.tsv"].splitlines(keepends=True)
    dev = FILES["MRPC/dev.tsv"].splitlines(keepends=True)[1]
    for path in (folder / "MRPC").iterdir():
        path.unlink()
    (folder / "MRPC/msr_paraphrase_train.txt").write_bytes((header + dev + train).encode())
    (folder / "MRPC/msr_paraphrase_test.txt").write_bytes((header + "1\t1089874\t1089925\tbeta\tbeta\r\n").encode())
    with pytest.raises(ValueError, match="dev_ids.tsv does not exist: .*msr_paraphrase_test.txt and dev_ids.tsv"):
        glue.prepare(tmp_path / "out", "MRPC", folder, tokenizer)
    (folder / "MRPC/dev_ids.tsv").write_text("1355540\t1355592\n")
    problem = glue.prepare(tmp_path / "out", "MRPC", folder, tokenizer)
    assert problem.labels == expected.labels and problem.about["examples"] == expected.about["examples"]
    for split in ("train", "valid", "test"):
        ours, theirs = (labelled.read_examples(tmp_path / name, split) for name in ("out", "expected"))
        assert sequences(ours) == sequences(theirs)
        assert (ours.targets is None) == (split == "test")
    (folder / "MRPC/dev_ids.tsv").write_text("1\t2\n")
    with pytest.raises(ValueError, match="dev_ids.tsv: 0 of its 1 pairs are in .*they do not fit"):
        glue.prepare(tmp_path / "another", "MRPC", folder, tokenizer)


@pytest.mark.parametrize("name, path, text, message", [
    ("CoLA", "CoLA/train.tsv", "sentence\tlabel\nalpha\t1\n", "line 1: 2 fields; expected are 4, source, label, "),
    ("CoLA", "CoLA/dev.tsv", "a\t2\t\talpha\n", "CoLA/dev.tsv, line 1: label '2' is none of 0, 1"),
    ("RTE", "RTE/train.tsv", FILES["QNLI/train.tsv"],
     "line 2: there is no column 'sentence1', needed are sentence1, sentence2, label; its columns are index, quest"),
    ("RTE", "RTE/train.tsv", FILES["RTE/train.tsv"].replace("not_entailment", "maybe"),
     "RTE/train.tsv, line 2: label 'maybe' is none of entailment, not_entailment"),
    ("STS-B", "STS-B/dev.tsv", FILES["STS-B/dev.tsv"].replace("2.75", "5.01"),
     "line 2: label '5.01' is no number from 0 to 5"),
    ("STS-B", "STS-B/dev.tsv", FILES["STS-B/dev.tsv"].replace("2.75", "x"), "line 2: label 'x' is no number"),
    ("RTE", "RTE/dev.tsv", "", "RTE/dev.tsv holds no examples: expected are columns sentence1, sentence2, label"),
    ("SST-2", "SST-2/train.tsv", b"sentence\tlabel\nalpha\t1\n\xff\t1\n", "SST-2/train.tsv, line 3: is no UTF-8"),
])
def test_other_files_than_expected_are_refused(name, path, text, message, folder, prepare):
    (folder / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        prepare(name)


def test_missing_files_are_named_with_what_was_expected(folder, prepare):
    (folder / "RTE/dev.tsv").unlink()
    with pytest.raises(ValueError, match="RTE/dev.tsv does not exist: .* folder RTE of GLUE, with train.tsv, dev.tsv"):
        prepare("RTE")
    with pytest.raises(ValueError, match="no task 'rte2': choose from MNLI, QQP"):
        prepare("rte2")


def test_pairs_are_cut_at_the_longer_text_and_counted(folder, prepare, tokenizer):
    (folder / "RTE/train.tsv").write_text(
        "index\tsentence1\tsentence2\tlabel\n0\talpha beta gamma alpha beta gamma\tbeta gamma\tentailment\n"
    )
    problem, out = prepare("RTE", max_length=9)
    assert problem.about["notes"] == ["cut to 9 tokens: 1 of train"]
    a, b, c = (tokenizer.encode(word)[0] for word in ("alpha", "beta", "gamma"))
    assert sequences(labelled.read_examples(out, "train")) == [[0, a, b, c, 2, 2, b, c, 2]]


def test_a_folder_is_encoded_once_and_kept_for_the_same_files_only(folder, prepare):
    problem, out = prepare("SST-2")
    before = (out / "train.npz").stat().st_mtime_ns
    assert prepare("SST-2")[0] == problem and (out / "train.npz").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="was encoded with other max_length: choose another --out"):
        prepare("SST-2", max_length=64)
    (folder / "SST-2/dev.tsv").write_text("sentence\tlabel\nbeta\t1\n")
    with pytest.raises(ValueError, match="was encoded with other files"):
        prepare("SST-2")


@pytest.mark.parametrize("name, split, outputs, file, text", [
    ("CoLA", "test", [[0.0, 1.0], [2.0, 1.0]], "CoLA.tsv", "0\t1\n1\t0\n"),
    ("MNLI", "test", [[0.0, 1.0, 0.0]], "MNLI-m.tsv", "0\tentailment\n"),
    ("MNLI", "test1", [[0.0, 1.0, 3.0]], "MNLI-mm.tsv", "0\tneutral\n"),
    ("MNLI", "test2", [[4.0, 1.0, 3.0]], "AX.tsv", "0\tcontradiction\n"),
    ("RTE", "test", [[0.0, 1.0]], "RTE.tsv", "0\tnot_entailment\n"),
    ("STS-B", "test", [0.25], "STS-B.tsv", "0\t1.25\n"),
    ("STS-B", "test", [1.1], "STS-B.tsv", "0\t5\n"),
])
def test_predictions_are_as_the_server_reads_them(name, split, outputs, file, text, prepare, tmp_path):
    problem, out = prepare(name)
    path = tmp_path / "predictions" / KINDS[problem.kind].predictions_name(name, split)
    KINDS[problem.kind].write_predictions(path, out, problem, split, np.array(outputs))
    assert path.name == file and path.read_text() == "index\tprediction\n" + text


def test_predictions_are_filed_under_the_indices_of_the_test_file(folder, prepare, tmp_path):
    (folder / "QQP/test.tsv").write_text("id\tquestion1\tquestion2\n7\talpha\tbeta\n5\tbeta\tgamma\n")
    problem, out = prepare("QQP")
    assert json.loads((out / "test.json").read_text()) == ["7", "5"]
    outputs = np.array([[0, 1], [1, 0]])
    KINDS["classification"].write_predictions(tmp_path / "QQP.tsv", out, problem, "test", outputs)
    assert (tmp_path / "QQP.tsv").read_text() == "index\tprediction\n7\t1\n5\t0\n"
