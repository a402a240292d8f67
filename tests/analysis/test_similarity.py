"""Similarity and retrieval: layouts, nDCG beside a transcription of its definition, and what a collapse looks like."""
import math
import random

import numpy as np
import pytest
import scipy.stats
import torch

from amos_fairseq.analysis import similarity
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.model import Pretrained

WORDS = "alpha beta gamma delta epsilon zeta eta theta".split()


@pytest.fixture
def model(make_method, tokenizer):
    vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
    method = make_method("electra_rtd", vocabulary=vocabulary, gain=4.0, dtype=torch.double).eval()
    return Pretrained("here", "electra_rtd", method.encoder, tokenizer, method)


def write_beir(folder, documents=40, queries=6):
    """Random texts, with grades 0 to 2; a query has a document of its own name, as in ArguAna."""
    draw = random.Random(1)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))

    (folder / "qrels").mkdir(parents=True)
    names = [f"d{number}" for number in range(documents)] + ["q0"]
    titles = draw.choices(["", "beta"], k=len(names))
    lines = ['{"_id": "%s", "title": "%s", "text": "%s"}\n' % (*pair, text()) for pair in zip(names, titles)]
    (folder / "corpus.jsonl").write_text("".join(lines))
    asked = [f"q{number}" for number in range(queries)]
    (folder / "queries.jsonl").write_text("".join('{"_id": "%s", "text": "%s"}\n' % (name, text()) for name in asked))
    grades = {name: {document: draw.randint(0, 2) for document in draw.sample(names[:-1], 5)} for name in asked}
    rows = [f"{query}\t{document}\t{grade}\n" for query in asked for document, grade in grades[query].items()]
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return grades


def ndcg_by_definition(ranking, grades, at):
    """Jarvelin and Kekalainen (2002) as trec_eval computes it: gain / log2(1 + rank)."""
    dcg = 0.0
    for rank in range(1, at + 1):
        if rank <= len(ranking):
            dcg += grades.get(ranking[rank - 1], 0) / math.log(1 + rank, 2)
    ideal = 0.0
    for rank, grade in enumerate(sorted((g for g in grades.values() if g > 0), reverse=True)[:at]):
        ideal += grade / math.log(2 + rank, 2)
    return dcg / ideal


def test_ndcg_of_a_literal_ranking():
    """Grades 0, 2, 1 found against 2, 1: (2 / log2 3 + 1 / log2 4) / (2 + 1 / log2 3)."""
    expected = (2 / 1.584962500721156 + 0.5) / (2 + 1 / 1.584962500721156)
    assert similarity.ndcg(["x", "a", "b"], {"a": 2, "b": 1}, 10) == pytest.approx(expected)
    assert similarity.ndcg(["x", "a", "b"], {"a": 2, "b": 1}, 1) == 0.0
    assert similarity.recall(["x", "a"], {"a": 2, "b": 1, "c": 0}) == 0.5


@pytest.mark.parametrize("pooling, layer", [("mean", -1), ("first", 1)])
def test_retrieval_equals_a_transcription_with_sorted_lists(model, tmp_path, pooling, layer):
    grades = write_beir(tmp_path / "own")
    task = similarity.read_beir(tmp_path / "own")
    assert task.relevance == grades and len(task.documents) == 41
    found = task.judged(similarity.Embedder(model, pooling, layer))

    def vectors(texts):
        features = model.features(texts, pooling, layer=layer).double().numpy()
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    documents = dict(zip(task.documents, vectors(list(task.documents.values()))))
    ndcgs, recalls = [], []
    for query, of_query in grades.items():
        vector = vectors([task.queries[query]])[0]
        ranking = sorted((name for name in documents if name != query), key=lambda name: -documents[name] @ vector)
        ndcgs.append(ndcg_by_definition(ranking, of_query, 10))
        relevant = [name for name, grade in of_query.items() if grade]
        recalls.append(sum(name in ranking[:100] for name in relevant) / len(relevant))
    assert found["nDCG@10"].value == pytest.approx(np.mean(ndcgs), abs=1e-6)
    assert found["recall@100"].value == pytest.approx(np.mean(recalls)) == 1.0
    assert found["nDCG@10"].low < found["nDCG@10"].value < found["nDCG@10"].high


def test_spearman_is_of_the_cosines(model, tmp_path):
    draw = random.Random(2)
    rows = [(" ".join(draw.choices(WORDS, k=4)), " ".join(draw.choices(WORDS, k=5)), draw.random()) for _ in range(30)]
    lines = "".join(f"{a}\t{b}\t{score}\n" for a, b, score in rows)
    (tmp_path / "dev.tsv").write_text("sentence1\tsentence2\tscore\n" + lines)
    found = similarity.read_sts(tmp_path / "dev.tsv").judged(similarity.Embedder(model))["Spearman"]
    first, second, scores = zip(*rows)
    cosines = torch.nn.functional.cosine_similarity(model.features(first), model.features(second))
    assert found.value == pytest.approx(scipy.stats.spearmanr(cosines, scores).statistic, abs=1e-6)
    assert found.low < found.value < found.high


def test_the_same_state_for_all_is_a_cosine_and_a_rank_of_one(model):
    texts = ["alpha beta", "gamma delta eta", "theta zeta"]
    sound = similarity.Embedder(model).anisotropy(texts)
    states = torch.cat([model.encoder(model.encode(text)[None])[0, 1:-1] for text in texts]).detach()
    directions = torch.nn.functional.normalize(states, dim=-1) @ torch.nn.functional.normalize(states, dim=-1).T
    off = ~torch.eye(len(states), dtype=torch.bool)
    assert sound["word_cosine"] == pytest.approx(directions[off].mean().item(), abs=1e-6)
    assert sound["word_rank"] > 2 and sound["text_rank"] > 1.05
    with torch.no_grad():
        model.encoder.layers[-1].final_layer_norm.weight.zero_()
        model.encoder.layers[-1].final_layer_norm.bias.fill_(1.0)
    assert list(similarity.Embedder(model).anisotropy(texts).values()) == pytest.approx([1.0] * 4, abs=1e-6)


def test_texts_that_are_too_long_lose_their_ends_and_are_counted(model):
    embed = similarity.Embedder(model)
    long = " ".join(WORDS * 9)
    assert torch.equal(embed([long, "alpha"])[0], embed([" ".join((WORDS * 9)[:30])])[0]) and embed.truncated == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\tnone\t1\n", "line 2: 'none' is not in corpus.jsonl"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t0.5\n", "line 2: score '0.5' is no whole number"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t0\n", "no document is relevant, all scores are 0"),
        ("qrels/test.tsv", "a\tb\nq0\td0\n", "line 2: there is no column 'query-id'"),
        ("corpus.jsonl", '{"_id": "d0", "text": ""}\n', "line 1: needed are _id and text, got _id, text"),
        ("corpus.jsonl", '{"_id": 3, "text": "x"}\n', "line 1: needed are _id and text"),
        ("queries.jsonl", '{"_id": "q0", "text": "x"}\n' * 2, "line 2: _id 'q0' is there already"),
        ("queries.jsonl", "", "holds no text"),
    ],
)
def test_a_folder_that_is_none_of_beir_is_told_in_a_line(tmp_path, name, content, message):
    write_beir(tmp_path / "own")
    (tmp_path / "own" / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}[:,]? {message}[^\n]*$"):
        similarity.read_beir(tmp_path / "own")


def test_scores_that_are_all_alike_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("sentence1,sentence2,score\nx,y,1\nx,z,1\n")
    with pytest.raises(ValueError, match="a.csv: all 2 scores are alike, with which nothing correlates"):
        similarity.read_sts(tmp_path / "a.csv")


def test_pairs_are_read_as_sts_b_has_them(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_text('index\tsentence1\tsentence2\tscore\n0\tA "plane\tB\t5.000\n1\tC\tD\t0.5\n')
    pairs = similarity.read_sts(path)
    assert pairs[:3] == ("dev", ['A "plane', "C"], ["B", "D"]) and pairs.scores.tolist() == [5.0, 0.5]


NAMES = "sentence1\tsentence2\tscore\n"


@pytest.mark.parametrize("text, message", [
    ("a\tb\t1\nc\td\t2\ne\tf\t3\n", "line 2: there is no column 'sentence1', needed are sentence1, sentence2, score"),
    (NAMES, "holds no examples: expected are columns sentence1, sentence2, score"),
    (NAMES + "a\tb\t1\n", "all 1 scores are alike, with which nothing correlates"),
    (NAMES + "a\tb\thigh\nc\td\t1\n", "line 2: label 'high' is no number"),
    (NAMES + "a\nb\n", "line 2: 1 fields, but 3 columns"),
])
def test_other_files_of_pairs_are_refused(tmp_path, text, message):
    (tmp_path / "pairs.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        similarity.read_sts(tmp_path / "pairs.tsv")
