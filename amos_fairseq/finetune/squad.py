"""SQuAD 1.1 and 2.0: public files to windows, and logits to answers and their scores.

    question, context  ->  <s> question </s> </s> part of the context </s>: windows, `stride` context tokens apart
    start, end logits  ->  best span of all windows, whose first token has the most context there
                           null odds = lowest <s> score of the windows - score of that span
    2.0                    no answer where the null odds are above a threshold

Windows are those of BERT (Devlin et al., 2019) and COCO-LM's released scripts. Exact match, F1 and the best thresholds
are those of the official evaluation scripts (Rajpurkar et al., 2016; 2018), but in [0, 1].

A folder that `prepare` wrote holds, beside what training reads, all that `evaluate` needs:
    <split>.questions.json  contexts, and the id, context and answers of each question
    <split>.windows.npz     `Windows`
"""

import json
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from amos_fairseq import json_files
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.files import check_regular, durably_written, replace_durably
from amos_fairseq.finetune import labelled, tables
from amos_fairseq.finetune.labelled import Examples, Problem
from amos_fairseq.finetune.metrics import records
from amos_fairseq.finetune.windows import begins_of, of_most_context

N_BEST = 20  # starts and ends that are paired
MAX_ANSWER = 30  # tokens
METRICS = {"1.1": ["f1", "em"], "2.0": ["best_f1", "best_em", "f1", "em"]}
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answer(NamedTuple):
    """`text`, said to stand at character `begin` of the context."""

    text: str
    begin: int


class Question(NamedTuple):
    """answers: [] if the context has none, None if the file does not say; context: which one"""

    id: str
    text: str
    context: int
    answers: Optional[List[Answer]]


class Dataset(NamedTuple):
    """One public file; version 1.1, or 2.0 where questions may have no answer."""

    version: str
    contexts: List[str]
    questions: List[Question]


class Windows(NamedTuple):
    """Where the windows lie: token t of window w is token t - prefix[w] + begin[w] of its question's context.

    question        (W,) of which question
    prefix          (W,) tokens before those of the context
    begin           (W,) first token of the context
    spans           (tokens of all contexts, 2) the characters of each, begin and end
    context_tokens  (contexts,) number of tokens
    """

    question: np.ndarray
    prefix: np.ndarray
    begin: np.ndarray
    spans: np.ndarray
    context_tokens: np.ndarray


class Predictions(NamedTuple):
    """Of each question: its id, the text of its best span, and how much better no answer is than that span."""

    ids: List[str]
    texts: List[str]
    null_odds: np.ndarray


def read(path) -> Dataset:
    """Read train-v1.1.json, dev-v2.0.json or any file in their format; ValueError in one line if it is in another."""
    try:
        check_regular(path)
        content, surrogates = tables.load_json(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    tables.tell_surrogates(path, surrogates)

    def field(entry: Any, key: str, kind: type) -> Any:
        if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
            raise ValueError(f"{path} is not in SQuAD's format: no {key!r} ({kind.__name__}) in {str(entry)[:80]!r}")
        return entry[key]

    paragraphs = [part for article in field(content, "data", list) for part in field(article, "paragraphs", list)]
    entries = [(number, entry) for number, part in enumerate(paragraphs) for entry in field(part, "qas", list)]
    ids = Counter(field(entry, "id", str) for _, entry in entries)
    if not ids:
        raise ValueError(f"{path} has no questions")
    if ids.most_common(1)[0][1] > 1:
        raise ValueError(f"{path} has two questions with the id {ids.most_common(1)[0][0]!r}")
    version = "2.0" if any("is_impossible" in entry for _, entry in entries) else "1.1"
    questions = []
    for number, entry in entries:
        answers = [
            Answer(field(answer, "text", str), field(answer, "answer_start", int))
            for answer in (field(entry, "answers", list) if "answers" in entry else [])
        ]
        known = bool(answers) or (version == "2.0" and "answers" in entry)
        if entry.get("is_impossible"):
            answers, known = [], True
        questions.append(Question(entry["id"], field(entry, "question", str), number, answers if known else None))
    return Dataset(version, [field(part, "context", str) for part in paragraphs], questions)


def prepare(
    out: Path, files: Mapping[str, Path], tokenizer: Tokenizer, max_length: int = 512, stride: int = 128,
    max_question: int = 64,
) -> Problem:
    """Encode {"train": train-v2.0.json, "valid": dev-v2.0.json}, unless the folder `out` holds it already.

    max_length      tokens of a window, special ones included
    stride          tokens of the context from one window to the next
    max_question    tokens; longer questions are cut and counted

    A window's target is the first answer, or <s> where the window lacks a part of it. Questions of `train` whose answer
    does not stand where the file says are left out and counted.
    Raises ValueError, before anything is written, if the files are not in SQuAD's format or of different versions, or
    the lengths leave no room.
    """
    room = max_length - max_question - len(tokenizer.sequence([], []))
    if not 1 <= stride <= room:
        raise ValueError(
            f"a stride of {stride} tokens: windows of {max_length} with questions of up to {max_question} hold {room} "
            "of the context, so it is from 1 to that"
        )
    out, files = Path(out), {split: Path(path) for split, path in files.items()}
    source = tables.source_of(files, tokenizer, max_length, stride=stride, max_question=max_question)
    if tables.is_written(out, source):
        return labelled.read_problem(out)
    datasets = {split: read(path) for split, path in files.items()}
    answered = [split for split in datasets if any(asked.answers is not None for asked in datasets[split].questions)]
    versions = list({datasets[split].version for split in answered})
    if len(versions) != 1:
        found = ", ".join(f"{files[split]} is {datasets[split].version}" for split in answered) or "none has"
        raise ValueError(f"files of one version of SQuAD are needed, one of them with answers: {found}")
    (version,), notes, examples = versions, [], {}
    if "train" in datasets:
        datasets["train"], left_out = trainable(datasets["train"], str(files["train"]))
        if left_out:
            ids = ", ".join(left_out[:5] + [".."] * (len(left_out) > 5))
            what = "questions of train are left out, whose answer does not stand in its place in the context"
            notes.append(f"{len(left_out):,} {what}: {ids}")
    out.mkdir(parents=True, exist_ok=True)
    for split, dataset in datasets.items():
        examples[split], windows, cut = encode(dataset, tokenizer, max_length, stride, max_question)
        if cut:
            notes.append(f"{cut:,} questions of {split} are cut to {max_question} tokens")
        with durably_written(out / f"{split}.windows.npz") as stream:
            np.savez(stream, **windows._asdict())
        questions = [{"id": q.id, "context": q.context, "answers": q.answers and [text for text, _ in q.answers]}
                     for q in dataset.questions]
        content = {"contexts": dataset.contexts, "questions": questions}
        replace_durably(out / f"{split}.questions.json", json.dumps(content, ensure_ascii=False).encode())
    questions = {split: len(dataset.questions) for split, dataset in datasets.items()}
    about = {"source": source, "version": version, "examples": questions, "notes": notes}
    problem = Problem(f"SQuAD {version}", "span", METRICS[version], source["vocabulary"], about=about)
    labelled.write(out, problem, examples)
    return problem


def trainable(dataset: Dataset, name: str) -> Tuple[Dataset, List[str]]:
    """Without the questions whose answer nobody knows, or does not stand in its place; the ids of these."""
    kept, left_out = [], []
    for question in dataset.questions:
        usable = question.answers == [] or answer_in_place(question, dataset.contexts[question.context])
        (kept if usable else left_out).append(question)
    if not kept:
        raise ValueError(f"{name} has no question with an answer that stands in its place in the context")
    return dataset._replace(questions=kept), [question.id for question in left_out]


def answer_in_place(question: Question, context: str) -> Optional[Answer]:
    """The first answer that the context has at the character where the file says."""
    found = (a for a in question.answers or [] if a.text.strip() and a.begin >= 0 and context.startswith(*a))
    return next(found, None)


def encode(
    dataset: Dataset, tokenizer: Tokenizer, max_length: int, stride: int, max_question: int
) -> Tuple[Examples, Windows, int]:
    """The windows of all questions, one after the other, and how many questions were cut.

    Targets are None if the answers of a question are not known.
    """
    contexts, spans = zip(*map(tokenizer.encode_with_spans, dataset.contexts))
    spans = [np.array(places, dtype=np.int32).reshape(-1, 2) for places in spans]
    tokens, targets, candidates, windows, cut = [], [], [], [], 0
    for number, question in enumerate(dataset.questions):
        ids, places = contexts[question.context], spans[question.context]
        # Some tokens stand for no character of their own: a space, the first ones of a ligature.
        visible = places[:, 0] < places[:, 1]
        answer = answer_in_place(question, dataset.contexts[question.context]) or Answer("", 0)
        answer_end = answer.begin + len(answer.text)
        answered = np.flatnonzero(visible & (places[:, 0] < answer_end) & (places[:, 1] > answer.begin))
        asked = tokenizer.encode(question.text)
        cut += len(asked) > max_question
        prefix = len(tokenizer.sequence(asked[:max_question], [])) - 1
        room = max_length - prefix - 1
        for begin in begins_of(len(ids), room, stride).tolist():
            part = slice(begin, begin + room)
            tokens.append(np.array(tokenizer.sequence(asked[:max_question], ids[part]), dtype=np.int32))
            inside = len(answered) > 0 and begin <= answered[0] and answered[-1] < begin + room
            targets.append([answered[0] - begin + prefix, answered[-1] - begin + prefix] if inside else [0, 0])
            candidates.append(np.concatenate([[True], np.zeros(prefix - 1, dtype=bool), visible[part], [False]]))
            windows.append([number, prefix, begin])
    known = all(question.answers is not None for question in dataset.questions)
    lengths = np.array([len(sequence) for sequence in tokens])
    targets = np.array(targets) if known else None
    examples = Examples(np.concatenate(tokens), lengths, targets, np.concatenate(candidates))
    return examples, Windows(*np.array(windows).T, np.concatenate(spans), np.array([len(s) for s in spans])), cut


def best_span(
    logits: np.ndarray, candidates: np.ndarray, n_best: int = N_BEST, max_answer: int = MAX_ANSWER
) -> Tuple[float, int, int]:
    """(score, first, last) of the highest logits[first, 0] + logits[last, 1] with first <= last < first + max_answer.

    Of pairs of the `n_best` starts and ends among candidates (T, 2); the score is -inf if there is no pair.
    """
    start, end = np.where(candidates, logits, -np.inf).T
    firsts, lasts = (np.argsort(-scores, kind="stable")[:n_best] for scores in (start, end))
    apart = lasts - firsts[:, None]
    scores = np.where((apart >= 0) & (apart < max_answer), start[firsts][:, None] + end[lasts], -np.inf)
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[first, last]), int(firsts[first]), int(lasts[last])


def decode(folder, split: str, outputs: np.ndarray) -> Predictions:
    """Answers from outputs (tokens of all windows, 2): start and end logits; a question without any span has "".

    As in the code of BERT and ELECTRA, a span is one of the window in which its first token has the most context.
    """
    examples = labelled.read_examples(Path(folder), split)
    if outputs.shape != (len(examples.tokens), 2):
        raise ValueError(f"outputs {outputs.shape} are not start and end logits of {len(examples.tokens)} tokens")
    content, windows = _read_sidecars(folder, split)
    questions = content["questions"]
    best = [(-np.inf, 0, 0)] * len(questions)  # score, begin and end characters
    null = np.full(len(questions), np.inf)
    context_start = np.cumsum(windows.context_tokens) - windows.context_tokens
    ends = windows.begin + examples.lengths - windows.prefix - 1  # </s> is last
    windows_of = np.bincount(windows.question)
    for window, (question, start) in enumerate(zip(windows.question.tolist(), examples.starts)):
        if not windows.begin[window]:  # the question's first
            parts = slice(window, window + windows_of[question])
            context_tokens = windows.context_tokens[questions[question]["context"]]
            window_of = parts.start + of_most_context(windows.begin[parts], ends[parts], context_tokens)
        tokens = slice(start, start + examples.lengths[window])
        logits = outputs[tokens].astype(np.float64)
        null[question] = min(null[question], logits[0].sum())
        allowed = np.repeat(examples.candidates[tokens, None], 2, axis=1)
        allowed[0] = False
        allowed[windows.prefix[window] : -1, 0] &= window_of[windows.begin[window] : ends[window]] == window
        score, first, last = best_span(logits, allowed)
        if score > best[question][0]:
            shift = context_start[questions[question]["context"]] + windows.begin[window] - windows.prefix[window]
            best[question] = (score, windows.spans[first + shift, 0], windows.spans[last + shift, 1])
    texts = [content["contexts"][q["context"]][begin:end] for q, (_, begin, end) in zip(questions, best)]
    return Predictions([q["id"] for q in questions], texts, null - np.array([score for score, _, _ in best]))


def _read_sidecars(folder, split: str) -> Tuple[Dict[str, Any], Windows]:
    content = json_files.read(Path(folder) / f"{split}.questions.json")
    return content, Windows(**labelled.arrays(Path(folder) / f"{split}.windows.npz"))


def normalize(text: str) -> str:
    """Lower case without punctuation, articles and doubled spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


def compare(text: str, answers: Sequence[str]) -> Tuple[float, float]:
    """(exact match, F1 of the bags of words) of normalised texts, the best of the answers; without any, "" is right.

    F1 = 2 common / (words of text + words of answer), 0 where there is no word at all, as in 1.1's script
    """
    text = normalize(text)
    if not answers:
        return float(not text), float(not text)
    words = Counter(text.split())
    scores = []
    for answer in map(normalize, answers):
        wanted = Counter(answer.split())
        scores.append(2 * (words & wanted).total() / max(words.total() + wanted.total(), 1))
    return float(text in map(normalize, answers)), max(scores)


def compared(
    texts: Sequence[str], answers: Sequence[Sequence[str]], null_odds: Optional[np.ndarray] = None
) -> np.ndarray:
    """(N,) records of one text per question, given all its answers; null_odds (N,): of 2.0

    text, em, f1                    `compare`
    null_odds, has_answer, silent   of 2.0; silent: the text is ""
    """
    fields = {"text": np.array(texts, dtype=np.str_)}
    if null_odds is not None:
        fields |= {"null_odds": null_odds, "has_answer": np.array([bool(known) for known in answers])}
        fields["silent"] = fields["text"] == ""
        answers = [list(filter(normalize, known)) for known in answers]
    fields["em"], fields["f1"] = np.array([compare(*pair) for pair in zip(texts, answers)]).T
    return records(fields)


def at_zero(found: np.ndarray, name: str) -> np.ndarray:
    """(N,) em or f1; of 2.0 with no answer where the odds are above 0."""
    if "null_odds" not in found.dtype.names:
        return found[name]
    return np.where(found["null_odds"] > 0, ~found["has_answer"], found[name])


def best(found: np.ndarray, name: str) -> Tuple[float, float]:
    """The highest mean em or f1 of 2.0 over all thresholds, and that threshold."""
    odds, has_answer = found["null_odds"], found["has_answer"]
    # Threshold by threshold, from none answered to all: one more question is answered, by text.
    order = np.argsort(odds, kind="stable")
    gains = np.where(has_answer, found[name], np.where(found["silent"], 0.0, -1.0))[order]
    totals = np.concatenate([[0.0], np.cumsum(gains)]) + (~has_answer).sum()
    return float(totals.max() / len(found)), float(np.concatenate([[0.0], odds[order]])[totals.argmax()])


SCORES = {  # of `compared` questions
    "f1": lambda found, ids: float(at_zero(found, "f1").mean()),
    "em": lambda found, ids: float(at_zero(found, "em").mean()),
    "best_f1": lambda found, ids: best(found, "f1")[0],
    "best_em": lambda found, ids: best(found, "em")[0],
}


def measure(found: np.ndarray) -> Dict[str, float]:
    """The official scores of `compared` questions.

    1.1   em, f1
    2.0   em, f1 at threshold 0, each also of the questions with (has_answer_) and without (no_answer_) an answer;
          best_em, best_f1 over all thresholds, and best_em_threshold, best_f1_threshold
    """
    results = {}
    for name in ("em", "f1"):
        scores = at_zero(found, name)
        results[name] = float(scores.mean())
        if "null_odds" in found.dtype.names:
            for group, members in [("has_answer", found["has_answer"]), ("no_answer", ~found["has_answer"])]:
                if members.any():
                    results[f"{group}_{name}"] = float(scores[members].mean())
            results[f"best_{name}"], results[f"best_{name}_threshold"] = best(found, name)
    return results


def judge(folder, split: str, outputs: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Answers that outputs (tokens of all windows, 2), start and end logits, give, `compared`; the questions' ids."""
    ids, texts, null_odds = decode(folder, split, outputs)
    answers = [question["answers"] for question in _read_sidecars(folder, split)[0]["questions"]]
    if None in answers:
        raise ValueError(f"{folder} does not hold the answers of {split!r}: it can be predicted, not evaluated")
    version = labelled.read_problem(Path(folder)).about["version"]
    return compared(texts, answers, null_odds if version == "2.0" else None), np.array(ids)


def write_predictions(folder, split: str, outputs: np.ndarray, out, threshold: float = 0.0) -> None:
    """Write what the leaderboards read: out/predictions.json {id: text}, and of 2.0 null_odds.json {id: odds}.

    threshold   of 2.0: no answer, "", where the null odds are above it
    """
    ids, texts, null_odds = decode(folder, split, outputs)
    files = {"predictions.json": dict(zip(ids, texts))}
    if labelled.read_problem(Path(folder)).about["version"] == "2.0":
        spoken = ["" if odds > threshold else text for text, odds in zip(texts, null_odds)]
        files = {"predictions.json": dict(zip(ids, spoken)), "null_odds.json": dict(zip(ids, null_odds.tolist()))}
    for name in files:
        if (Path(out) / name).exists():
            raise ValueError(f"{Path(out) / name} is there already: name another folder")
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_durably(Path(out) / name, json.dumps(content, ensure_ascii=False).encode())
