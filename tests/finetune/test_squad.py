"""SQuAD: windows from public files, answers from logits, and what they are worth."""

import io
import json
import random

import numpy as np
import pytest
import sentencepiece

from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import train_vocabulary
from amos_fairseq.finetune import labelled, squad
from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.model import load_finetuned

TEN = "zero one two three four five six seven eight nine"


@pytest.fixture(scope="module")
def words():
    """A tokenizer that has each of its words as one token."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEN + " who what ?"]), model_writer=model, model_type="word", vocab_size=17,
        bos_id=0, pad_id=1, eos_id=2, unk_id=3, bos_piece="<s>", pad_piece="<pad>", eos_piece="</s>",
        unk_piece="<unk>", minloglevel=2,
    )
    return Tokenizer(model.getvalue())


def entry(key, question, *answers, impossible=None):
    """A question as the public files have it; answers are (text, answer_start)."""
    built = {"id": key, "question": question, "answers": [{"text": t, "answer_start": b} for t, b in answers]}
    return built if impossible is None else {**built, "is_impossible": impossible, "plausible_answers": []}


@pytest.fixture
def public(tmp_path):
    """public(name, (context, entries), ..): a file in the layout of the public ones."""

    def public(name, *paragraphs):
        paragraphs = [{"context": context, "qas": entries} for context, entries in paragraphs]
        path = tmp_path / name
        path.write_text(json.dumps({"version": "x", "data": [{"title": "t", "paragraphs": paragraphs}]}))
        return path

    return public


@pytest.fixture
def prepare(words, tmp_path):
    def prepare(files, tokenizer=words, **lengths):
        folder = tmp_path / "labelled"
        lengths = {"max_length": 10, "stride": 2, "max_question": 2, **lengths}
        problem = squad.prepare(folder, files, tokenizer, **lengths)
        return folder, problem, {split: labelled.read_examples(folder, split) for split in files}

    return prepare


def rows_of(tokenizer, examples):
    """The windows as text."""
    ends = np.cumsum(examples.lengths)
    return [tokenizer.decode(ids) for ids in np.split(examples.tokens, ends[:-1])]


# Windows


def test_windows_of_a_long_context_are_a_stride_apart_and_the_answer_is_where_it_lies_whole(words, public, prepare):
    answer = ("five six", TEN.index("five"))
    _, _, sets = prepare({"train": public("train-v1.1.json", (TEN, [entry("q", "who ?", answer)]))})
    ask = "<s> who ? </s> </s>"  # 5 tokens, so that 4 of the context fit
    assert rows_of(words, sets["train"]) == [
        f"{ask} zero one two three </s>",
        f"{ask} two three four five </s>",
        f"{ask} four five six seven </s>",
        f"{ask} six seven eight nine </s>",
    ]
    assert sets["train"].targets.tolist() == [[0, 0], [0, 0], [6, 7], [0, 0]]
    assert sets["train"].candidates.reshape(4, 10).tolist() == [[True] + [False] * 4 + [True] * 4 + [False]] * 4


def test_short_context_is_one_window_and_a_long_question_is_cut_and_counted(words, public, prepare):
    path = public("train-v1.1.json", ("nine eight", [entry("q", "what who ? what", ("eight", 5))]))
    _, problem, sets = prepare({"train": path})
    assert rows_of(words, sets["train"]) == ["<s> what who </s> </s> nine eight </s>"]
    assert sets["train"].targets.tolist() == [[6, 6]]
    assert problem.about["examples"] == {"train": 1}
    assert problem.about["notes"] == ["1 questions of train are cut to 2 tokens"]


def test_question_without_an_answer_points_at_the_first_token_and_makes_it_version_2(public, prepare):
    questions = [entry("a", "who ?", impossible=True), entry("b", "what ?", ("two", 9), impossible=False)]
    _, problem, sets = prepare({"train": public("a.json", ("zero one two", questions))})
    assert sets["train"].targets.tolist() == [[0, 0], [7, 7]]
    assert (problem.name, problem.metrics[0]) == ("SQuAD 2.0", "best_f1")


def test_version_1_selects_by_f1(public, prepare):
    _, problem, _ = prepare({"train": public("a.json", ("zero one", [entry("a", "who ?", ("zero", 0))]))})
    assert (problem.name, problem.kind, problem.metrics) == ("SQuAD 1.1", "span", ["f1", "em"])


def test_training_questions_whose_answer_is_not_in_its_place_are_left_out_with_a_line(public, prepare):
    context = "zero one two"
    questions = [entry("good", "who ?", ("one", 5)), entry("moved", "who ?", ("one", 4)), entry("blank", "?", (" ", 4))]
    files = {"train": public("a.json", (context, questions)), "valid": public("b.json", (context, questions))}
    folder, problem, sets = prepare(files)
    (note,) = problem.about["notes"]
    assert note.startswith("2 questions of train are left out, whose answer") and note.endswith(": moved, blank")
    assert sets["train"].targets.tolist() == [[6, 6]]
    assert sets["valid"].targets.tolist() == [[6, 6], [0, 0], [0, 0]]  # these are asked all the same
    assert len(squad.decode(folder, "train", np.zeros((9, 2))).ids) == 1
    assert len(squad.decode(folder, "valid", np.zeros((26, 2))).ids) == 3


def test_validation_takes_the_first_of_several_answers_that_is_in_its_place(public, prepare):
    answers = [("one", 0), ("two", 9), ("zero", 0)]
    _, _, sets = prepare({"valid": public("b.json", ("zero one two", [entry("a", "who ?", *answers)]))})
    assert sets["valid"].targets.tolist() == [[7, 7]]


def test_repeated_text_is_told_apart_by_where_it_starts(public, prepare):
    _, _, sets = prepare({"train": public("a.json", ("one two one", [entry("a", "who ?", ("one", 8))]))})
    assert sets["train"].targets.tolist() == [[7, 7]]


def test_questions_without_known_answers_have_no_targets_and_are_predicted_only(public, prepare):
    question = {"id": "a", "question": "who ?"}
    known = public("a.json", ("zero one", [entry("a", "who ?", impossible=True)]))
    folder, problem, sets = prepare({"train": known, "test": public("b.json", ("zero one", [question]))})
    assert problem.about["version"] == "2.0"
    assert sets["test"].targets is None
    assert squad.decode(folder, "test", np.zeros((8, 2))).texts == ["zero"]
    with pytest.raises(ValueError, match="does not hold the answers of 'test'"):
        squad.judge(folder, "test", np.zeros((8, 2)))


UNICODE = (
    "Na\u00efve caf\u00e9\u2019s cafe\u0301 \ufb01rst \u00bd \u2163 \u3392 \u65e5\u672c\u8a9e \U0001f600 "
    "a\u00a0b \u2026 \u0130stanbul 10\u202f000 end"
)
WHOLE, PART = "caf\u00e9\u2019s", "f\u00e9"


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def subwords(request):
    model = train_vocabulary([UNICODE + f" {number}" for number in range(30)], 110, uncased=request.param)
    return Tokenizer(model)


@pytest.mark.parametrize("answer", UNICODE.split(" ") + ["cafe\u0301 \ufb01rst", "\u00bd \u2163 \u3392", PART])
def test_answers_keep_their_characters_whatever_normalisation_makes_of_them(public, prepare, subwords, answer):
    path = public("a.json", (UNICODE, [entry("a", "end?", (answer, UNICODE.index(answer)))]))
    folder, _, sets = prepare({"train": path}, subwords, max_length=200, max_question=20)
    [target], examples = sets["train"].targets.tolist(), sets["train"]
    assert target[0] > 0 and examples.candidates[target].all()
    outputs = np.zeros((len(examples.tokens), 2))
    outputs[target[0], 0] = outputs[target[1], 1] = 9.0
    [text] = squad.decode(folder, "train", outputs).texts
    # Tokens may reach beyond a part of a word, never beyond the word.
    assert text == answer or (answer == PART and PART in text and text in WHOLE)


def test_another_version_or_layout_is_refused_in_one_line(public, prepare, tmp_path):
    first = public("a.json", ("zero one", [entry("a", "who ?", ("zero", 0))]))
    second = public("b.json", ("zero one", [entry("a", "who ?", impossible=True)]))
    with pytest.raises(ValueError, match="one version of SQuAD .* .*a.json is 1.1, .*b.json is 2.0"):
        prepare({"train": first, "valid": second})
    for content, message in [
        ("{", "is not JSON"),
        ("[]", "no 'data' \\(list\\) in '\\[\\]'"),
        ('{"data": [{"paragraphs": [{"qas": [{"question": "who"}], "context": "c"}]}]}', "no 'id' \\(str\\)"),
        ('{"data": [{"paragraphs": [{"qas": [7], "context": "c"}]}]}', "no 'id' \\(str\\) in '7'"),
        ('{"data": [{"paragraphs": [{"qas": [], "context": "c"}]}]}', "has no questions"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "a", "question": "q", "answers": [{}]}]}]}]}', "no 'text'"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "a", "question": "q"}]}]}]}', "no 'context'"),
    ]:
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            prepare({"train": tmp_path / "c.json"})
        assert "\n" not in str(error.value) and "c.json" in str(error.value)
    twice = public("d.json", ("zero one", [entry("a", "who ?", ("zero", 0))] * 2))
    with pytest.raises(ValueError, match="two questions with the id 'a'"):
        prepare({"train": twice})
    useless = public("e.json", ("zero one", [entry("a", "who ?", ("zero", 1))]))
    with pytest.raises(ValueError, match="no question with an answer that stands in its place"):
        prepare({"train": useless})
    with pytest.raises(ValueError, match="missing.json does not exist"):
        prepare({"train": tmp_path / "missing.json"})
    assert not (tmp_path / "labelled").exists()


@pytest.mark.parametrize("stride", [0, 5])
def test_stride_that_would_leave_gaps_is_refused(public, prepare, stride):
    path = public("a.json", (TEN, [entry("a", "who ?", ("zero", 0))]))
    with pytest.raises(ValueError, match=f"a stride of {stride} tokens: windows of 10 .* hold 4"):
        prepare({"train": path}, stride=stride)


def test_folder_is_written_once_and_kept_for_the_same_options_only(public, prepare):
    path = public("a.json", (TEN, [entry("a", "who ?", ("zero", 0))]))
    folder, problem, _ = prepare({"train": path})
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert prepare({"train": path})[1] == problem
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    with pytest.raises(ValueError, match="was encoded with .* stride"):
        prepare({"train": path}, stride=3)


# Answers from logits


def test_best_span_is_the_highest_sum_that_runs_forward_within_the_longest_answer():
    logits = np.array([[9.0, 9.0], [1.0, 5.0], [3.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    context = np.array([[False], [True], [True], [True], [True]])
    assert squad.best_span(logits, context) == (7.0, 2, 4)  # not 3 + 5, which runs backward, nor 9 + 9, no candidate
    assert squad.best_span(logits, context, max_answer=2) == (6.0, 1, 1)
    assert squad.best_span(logits, context, n_best=1)[0] == -np.inf  # the best start is behind the best end
    assert squad.best_span(logits, np.zeros((5, 1), dtype=bool))[0] == -np.inf


def test_answer_is_the_best_of_all_windows_and_null_the_worst(public, prepare):
    questions = [entry("a", "who ?", ("five", 24), impossible=False), entry("b", "what ?", impossible=True)]
    folder, _, sets = prepare({"valid": public("b.json", (TEN, questions))})
    assert len(sets["valid"].lengths) == 8  # windows from zero, two, four, six, twice
    outputs = np.zeros((8, 10, 2))
    outputs[:4, 0] = [[2.0, 1.0], [4.0, 1.0], [3.0, -2.0], [2.0, 2.0]]
    outputs[1, 5, 0] = outputs[1, 6, 1] = 1.0  # two three
    outputs[3, 7, 0] = outputs[3, 8, 1] = 2.0  # eight nine
    outputs[3, 4, 0] = outputs[3, 9, 1] = 50.0  # </s> around the context
    outputs[4:, 0] = 3.0
    outputs[7, 6] = 1.5  # seven
    predictions = squad.decode(folder, "valid", outputs.reshape(-1, 2))
    assert predictions.ids == ["a", "b"]
    assert predictions.texts == ["eight nine", "seven"]
    assert predictions.null_odds.tolist() == [1.0 - 4.0, 6.0 - 3.0]


def test_a_span_is_one_of_the_window_that_gives_its_first_token_the_most_context(public, prepare):
    """Windows hold 0-3, 2-5, 4-7 and 6-9: 3 has 0 and 1 tokens on its smaller side, 4 has 1 and 0, 5 has 0 and 1."""
    folder, _, _ = prepare({"valid": public("b.json", (TEN, [entry("a", "who ?", ("five", 24))]))})

    def answer(window, first, last=None):
        outputs = np.zeros((4, 10, 2))
        outputs[0, 5, 0] = outputs[0, 6, 1] = 1.0  # zero one
        outputs[window, 5 + first - 2 * window, 0] = 9.0
        if last is not None:
            outputs[window, 5 + last - 2 * window, 1] = 9.0
        return squad.decode(folder, "valid", outputs.reshape(-1, 2)).texts

    assert answer(0, 3) == ["zero one"] and answer(1, 3) == ["three"]
    assert answer(1, 4) == ["four"] and answer(2, 4) == ["zero one"]
    assert answer(1, 4, 5) == ["four five"]  # its last token has more context in the next


def test_text_of_an_answer_is_that_of_the_context_with_its_spaces(public, prepare):
    folder, _, sets = prepare({"valid": public("b.json", ("zero  one\ntwo", [entry("a", "who ?", ("one", 6))]))})
    outputs = np.zeros((9, 2))
    outputs[5, 0] = outputs[7, 1] = 1.0
    assert squad.decode(folder, "valid", outputs).texts == ["zero  one\ntwo"]
    with pytest.raises(ValueError, match=r"outputs \(8, 2\) are not start and end logits of 9 tokens"):
        squad.decode(folder, "valid", outputs[:8])


def test_predictions_are_the_files_of_the_leaderboards(public, prepare, tmp_path):
    questions = [entry("a", "who ?", ("one", 5), impossible=False), entry("b", "who ?", impossible=True)]
    folder, _, sets = prepare({"valid": public("b.json", ("zero one", questions))})
    outputs = np.zeros((2, 8, 2))
    outputs[0, 6] = 1.0
    outputs[1, 0] = 0.5
    squad.write_predictions(folder, "valid", outputs.reshape(-1, 2), tmp_path / "out")
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == {"a": "one", "b": ""}
    assert json.loads((tmp_path / "out/null_odds.json").read_text()) == {"a": -2.0, "b": 1.0}
    with pytest.raises(ValueError, match="predictions.json is there already"):
        squad.write_predictions(folder, "valid", outputs.reshape(-1, 2), tmp_path / "out")
    squad.write_predictions(folder, "valid", outputs.reshape(-1, 2), tmp_path / "other", threshold=1.0)
    assert json.loads((tmp_path / "other/predictions.json").read_text()) == {"a": "one", "b": "zero"}


def test_version_1_has_no_null_odds_and_always_answers(public, prepare, tmp_path):
    folder, _, _ = prepare({"valid": public("b.json", ("zero one", [entry("a", "who ?", ("zero", 0))]))})
    outputs = np.zeros((8, 2))
    outputs[0] = 9.0
    squad.write_predictions(folder, "valid", outputs, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["predictions.json"]
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == {"a": "zero"}
    assert squad.measure(squad.judge(folder, "valid", outputs)[0]) == {"em": 1.0, "f1": 1.0}


# Scores


@pytest.mark.parametrize(
    "text, answers, em, f1",
    [
        ("The Eiffel-Tower, a tower!", ["eiffeltower tower"], 1.0, 1.0),
        ("a cat sat", ["cat mat", "the cat sat down"], 0.0, 0.8),  # 2 common of 2 and 3 words
        ("x x y", ["x y y"], 0.0, 2 / 3),
        ("an analyst", ["analyst"], 1.0, 1.0),  # articles only as whole words
        ("dog", ["cat"], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("The", ["a"], 1.0, 0.0),  # no word is common, as 1.1's script has it
        ("", [], 1.0, 1.0),
        ("the", [], 1.0, 1.0),
        ("cat", [], 0.0, 0.0),
        ("caf\u00e9 \u2014 x", ["Caf\u00c9 \u2014 x"], 1.0, 1.0),  # punctuation is ASCII's only
    ],
)
def test_exact_match_and_f1_of_texts(text, answers, em, f1):
    assert squad.compare(text, answers) == pytest.approx((em, f1), abs=1e-15)


def test_thresholds_of_version_2_by_hand():
    texts = ["paris", "rome", "big cat", "dog"]
    answers = [["Paris"], [], ["the cat"], []]
    scores = squad.measure(squad.compared(texts, answers, np.array([-3.0, -1.0, 0.5, 2.0])))
    # Above 0 nothing is answered: 1 0 0 1. Answering paris alone is the best by match; by F1 also big cat, 2/3, does
    # not pay for rome: 1 + 1 + 0 + 1 beats 1 + 0 + 2/3 + 1.
    expected = {
        "em": 0.5, "f1": 0.5, "has_answer_em": 0.5, "has_answer_f1": 0.5, "no_answer_em": 0.5, "no_answer_f1": 0.5,
        "best_em": 0.75, "best_em_threshold": -3.0, "best_f1": 0.75, "best_f1_threshold": -3.0,
    }
    assert scores == pytest.approx(expected)
    scores = squad.measure(squad.compared(texts, answers, np.array([-3.0, 9.0, 0.5, 2.0])))
    assert (scores["best_em"], scores["best_em_threshold"]) == (0.75, -3.0)
    assert (scores["best_f1"], scores["best_f1_threshold"]) == (pytest.approx((3 + 2 / 3) / 4), 0.5)
    assert scores["f1"] == 0.75  # at threshold 0


def test_silence_is_best_where_every_answer_is_wrong():
    scores = squad.measure(squad.compared(["a b", "c"], [[], ["d"]], np.array([-1.0, -2.0])))
    assert (scores["best_f1"], scores["best_f1_threshold"], scores["f1"]) == (0.5, 0.0, 0.0)


def random_predictions(number, seed=0):
    """Texts, answers and distinct null odds of questions with 0 to 3 answers, near misses and odd characters."""
    draw = random.Random(seed)
    parts = ["the", "a", "An", "cat", "Cat,", "dog", "\u00c9mile", "42", "$42", "--", "x-y", "\u2013", "", "!"]

    def text():
        return " ".join(draw.choices(parts, k=draw.randint(0, 4)))

    answers = [[text() for _ in range(draw.randint(0, 3))] for _ in range(number)]
    texts = [draw.choice([*known, text()]) for known in answers]
    return texts, answers, np.array([draw.gauss(0, 3) for _ in range(number)])


def test_thresholds_are_the_best_of_all_that_could_be_tried():
    for seed in range(10):
        texts, answers, odds = random_predictions(40, seed)
        answers = [known if "cat" in " ".join(known).lower() else [] for known in answers]  # none that is blank
        scores = squad.measure(squad.compared(texts, answers, odds))

        def of(name, threshold):
            column = ["em", "f1"].index(name)
            spoken = ["" if odd > threshold else text for text, odd in zip(texts, odds)]
            golds = [[answer for answer in known if squad.normalize(answer)] for known in answers]
            # For the thresholds, an answer is one even if normalisation leaves nothing of it.
            return np.mean(
                [squad.compare(text, gold)[column] if gold else float(not text) for text, gold in zip(spoken, golds)]
            )

        for name in ("em", "f1"):
            tried = [of(name, threshold) for threshold in [-np.inf, *odds]]
            assert scores[f"best_{name}"] == pytest.approx(max(tried), abs=1e-12)
            if scores[f"best_{name}_threshold"] != 0:
                assert of(name, scores[f"best_{name}_threshold"]) == pytest.approx(max(tried), abs=1e-12)


def test_scores_of_2500_random_texts_are_those_of_torchmetrics():
    import torch

    theirs = pytest.importorskip("torchmetrics.functional.text.squad")
    texts, answers, _ = random_predictions(2500)
    answers = [[answer for answer in known if squad.normalize(answer)] for known in answers]
    pairs = [(text, known) for text, known in zip(texts, answers) if known]
    assert len(pairs) > 1500
    torch.set_default_dtype(torch.float64)
    try:
        for text, known in pairs:
            scores = theirs.squad(
                {"prediction_text": text, "id": "a"}, {"answers": {"answer_start": [0], "text": known}, "id": "a"}
            )
            assert squad.compare(text, known) == pytest.approx(
                (float(scores["exact_match"]) / 100, float(scores["f1"]) / 100), abs=1e-9
            )
    finally:
        torch.set_default_dtype(torch.float32)


def test_scores_of_2500_random_questions_are_those_of_the_official_evaluation():
    theirs = pytest.importorskip("transformers.data.metrics.squad_metrics", reason="transformers 5 has it no more")
    from types import SimpleNamespace

    texts, answers, odds = random_predictions(2500, seed=1)
    examples = [
        SimpleNamespace(qas_id=str(number), answers=[{"text": answer} for answer in known])
        for number, known in enumerate(answers)
    ]
    by_id = dict(enumerate(texts)), dict(enumerate(odds.tolist()))
    texts_by_id, odds_by_id = ({str(number): value for number, value in values.items()} for values in by_id)
    official = theirs.squad_evaluate(examples, texts_by_id, odds_by_id, no_answer_probability_threshold=0.0)
    ours = squad.measure(squad.compared(texts, answers, odds))
    names = {
        "em": "exact", "f1": "f1", "has_answer_em": "HasAns_exact", "has_answer_f1": "HasAns_f1",
        "no_answer_em": "NoAns_exact", "no_answer_f1": "NoAns_f1", "best_em": "best_exact", "best_f1": "best_f1",
    }
    for name, their_name in names.items():
        assert ours[name] == pytest.approx(official[their_name] / 100, abs=1e-9), name
    assert ours["best_em_threshold"] == official["best_exact_thresh"]
    assert ours["best_f1_threshold"] == official["best_f1_thresh"]


# Through training


def toy(number, seed, draw_words):
    """Paragraphs whose answer is what stands from `alpha` to `beta`; every fourth question has none."""
    draw, paragraphs = random.Random(seed), []
    for index in range(number):
        words = draw.choices(draw_words, k=draw.randint(4, 9))
        place = draw.randrange(len(words))
        answer = ["alpha", *draw.choices(draw_words, k=draw.randint(0, 1)), "beta"]
        if index % 4:
            words[place:place] = answer
        context = "  ".join(words)
        found = [("  ".join(answer), len("  ".join([*words[:place], ""])))] if index % 4 else []
        paragraphs.append((context, [entry(str(index), "gamma", *found, impossible=not found)]))
    return paragraphs


def test_tiny_network_learns_to_answer_and_not_to(public, tokenizer, checkpoint, finetune, tmp_path):
    fill = "delta epsilon zeta eta theta".split()
    files = {"train": public("train.json", *toy(48, 0, fill)), "valid": public("dev.json", *toy(24, 1, fill))}
    squad.prepare(tmp_path / "labelled", files, tokenizer, max_length=14, stride=4, max_question=2)
    finetune(tmp_path / "labelled", checkpoint(), save_dir=tmp_path / "run", save_interval=5, validate_interval=5)
    trained = load_finetuned(tmp_path / "run")
    for split, least in [("train", 0.9), ("valid", 0.7)]:
        outputs = predict(trained.network, labelled.read_examples(tmp_path / "labelled", split))
        scores = squad.measure(squad.judge(tmp_path / "labelled", split, outputs)[0])
        print(split, scores)
        assert scores["f1"] > least
