"""Labelled tasks from documentation: right labels, no leaks, public layouts."""
import csv
import json
import random
from collections import Counter

import pytest

from amos_fairseq.demo import documentation, documentation_tasks
from amos_fairseq.demo.documentation_tasks import Entry, Sentence

SOURCE = '''
def add(a, b):
    """Add one number to another. There is more.

    >>> add(1, 2)
    """

class Table:
    """A table of all the rows."""
    def find(self, key):
        """Short."""
    def _hidden(self):
        """Nobody needs to know about this one."""
'''


@pytest.fixture(scope="module")
def held_out():
    return documentation_tasks.read_held_out()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, held_out):
    folder = tmp_path_factory.mktemp("made") / "tasks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documentation_tasks, "read_held_out", lambda: held_out)
        documentation_tasks.write_tasks(folder, examples=120)
    return folder


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_a_module_yields_signatures_with_first_sentences(tmp_path):
    (tmp_path / "module.py").write_text(SOURCE)
    assert documentation_tasks.module_entries(str(tmp_path / "module.py"), "torch") == [
        Entry("torch", "add(a, b)", "Add one number to another"),
        Entry("torch", "Table()", "A table of all the rows"),
    ]


def test_held_out_modules_are_an_eighth_and_not_in_the_corpus(tmp_path, monkeypatch):
    sources = documentation.sources()
    held_out = [source for source in sources if source.held_out]
    assert 0.1 < len(held_out) / len(sources) < 0.15
    read = []
    monkeypatch.setattr(documentation, "sources", lambda: [*held_out[:3], *[s for s in sources if not s.held_out][:3]])
    monkeypatch.setattr(documentation, "ProcessPoolExecutor", InOneProcess)
    monkeypatch.setattr(documentation, "module_paragraphs", lambda path: read.append(path) or [])
    documentation.write_documentation(str(tmp_path / "a.txt"))
    assert read == [source.path for source in sources if not source.held_out][:3]


class InOneProcess:
    def __init__(self, processes, initializer):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, items, chunksize):
        return map(function, items)

    def shutdown(self, **_):
        pass


def test_splits_share_no_sentence_and_no_summary(held_out):
    sentences = {split: {sentence.text for sentence in part.sentences} for split, part in held_out.items()}
    summaries = {split: {entry.summary for entry in part.entries} for split, part in held_out.items()}
    assert all(len(part.entries) > 100 and len(part.sentences) > 1000 for part in held_out.values())
    for first, second in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not sentences[first] & sentences[second]
        assert not summaries[first] & summaries[second]


def test_acceptability_has_colas_columns_and_half_of_the_sentences_as_they_were(folder, held_out):
    texts = {sentence.text for sentence in held_out["train"].sentences}
    rows = rows_of(folder / "glue/CoLA/train.tsv")
    assert len(rows) == 120 and {len(row) for row in rows} == {4}
    assert [row[1] for row in rows] == ["0", "1"] * 60
    for _, label, _, sentence in rows:
        assert (sentence in texts) == (label == "1"), sentence
    test = rows_of(folder / "glue/CoLA/test.tsv")
    assert test[0] == ["index", "sentence"] and len(test) == 61


def test_half_of_the_words_neighbours_change_their_order():
    draw = random.Random(1)
    for length in (6, 7, 24):
        words = [f"word{i}" for i in range(length)]
        for _ in range(20):
            changed = documentation_tasks.with_half_shuffled(" ".join(words), draw).split()
            places = [i for i in range(length) if changed[i] != words[i]]
            assert sorted(changed) == sorted(words) and len(places) >= 2
            assert places[-1] - places[0] < (length + 1) // 2
    assert documentation_tasks.with_half_shuffled("same same", draw) == "same same"


def test_entailment_pairs_a_signature_with_its_own_summary_or_another_of_its_package(folder, held_out):
    rows = rows_of(folder / "glue/RTE/dev.tsv")
    assert rows[0] == ["index", "sentence1", "sentence2", "label"]
    known = {(entry.signature, entry.summary) for entry in held_out["dev"].entries}
    for index, signature, summary, label in rows[1:]:
        assert ((signature, summary) in known) == (label == "entailment"), index
    labels = [row[3] for row in rows[1:]]
    assert abs(labels.count("entailment") - len(labels) / 2) < 2


def test_a_cloze_has_the_words_before_and_after_the_one_that_was_left_out(folder, held_out):
    texts = [f" {sentence.text} " for sentence in held_out["train"].sentences]
    rows = rows_of(folder / "cloze/train.tsv")
    assert rows[0] == ["before", "after", "word"] and len(rows) == 1 + 120
    for before, after, word in rows[1:]:
        assert word in documentation_tasks.LEFT_OUT and any(f" {before} {word} {after} " in text for text in texts)
        assert len(before.split()) in range(2, 7) and len(after.split()) in range(2, 7)
    words = [row[2] for row in rows[1:]]
    assert {words.count(word) for word in documentation_tasks.LEFT_OUT} == {15}


def test_packages_have_named_columns(folder):
    rows = rows_of(folder / "package/valid.tsv")
    assert rows[0] == ["sentence", "package"] and {row[1] for row in rows[1:]} <= set(documentation_tasks.PACKAGES)
    assert (folder / "package/train.tsv").exists() and (folder / "package/test.tsv").exists()


def test_code_words_are_those_in_backticks_which_are_taken_away():
    text = "If ``axis is`` set, :func:`sum` adds (`a`) to a - `b`"
    assert documentation_tasks.code_words(Sentence("torch", text)) == [
        ("If", "text"), ("axis", "code"), ("is", "code"), ("set,", "text"), ("sum", "code"), ("adds", "text"),
        ("(a)", "code"), ("to", "text"), ("a", "text"), ("-", "text"), ("b", "code"),
    ]
    for text in ("nothing stands in any", "one `begins here", "two `a` and `b"):
        assert documentation_tasks.code_words(Sentence("torch", text)) == []


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_probed_word_is_as_often_code_as_text(folder, split):
    rows = rows_of(folder / f"probe/{split}.tsv")
    assert {len(row) for row in rows} == {0, 2}
    assert sum(not row for row in rows) == (120 if split == "train" else 60)  # sentences
    counts = Counter((row[0], row[1]) for row in rows if row)
    labelled = {word for word, label in counts if label != "_"}
    assert labelled and all(any(map(str.isalnum, word)) for word in labelled)
    assert all(counts[word, "code"] == counts[word, "text"] for word in labelled)


def test_answers_stand_in_their_contexts_where_they_are_said_to(folder):
    data = json.loads((folder / "squad/train-v2.0.json").read_text())
    questions = [(p["context"], q) for article in data["data"] for p in article["paragraphs"] for q in p["qas"]]
    assert len({question["id"] for _, question in questions}) == len(questions) >= 120
    for context, question in questions:
        assert question["is_impossible"] == (not question["answers"])
        for answer in question["answers"]:
            assert context[answer["answer_start"] :].startswith(answer["text"])
            name = question["question"].split()[2]
            assert context[: answer["answer_start"]].endswith(f"{name}: ")
    share = sum(question["is_impossible"] for _, question in questions) / len(questions)
    assert 0.1 < share <= 0.2


def test_an_interrupted_folder_is_not_there_and_the_next_call_writes_it_anew(tmp_path, monkeypatch, held_out):
    monkeypatch.setattr(documentation_tasks, "read_held_out", lambda: held_out)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(documentation_tasks.TASKS, "probe", interrupted)
        documentation_tasks.write_tasks(tmp_path / "tasks", examples=16)
    assert not list(tmp_path.iterdir())
    documentation_tasks.write_tasks(tmp_path / "tasks", examples=16)
    assert [path.name for path in tmp_path.iterdir()] == ["tasks"]


def test_the_same_installation_gives_the_same_files_and_an_existing_folder_is_refused(folder, tmp_path):
    documentation_tasks.write_tasks(tmp_path / "again", examples=120)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()
    with pytest.raises(ValueError, match="again exists: name another folder"):
        documentation_tasks.write_tasks(tmp_path / "again")
