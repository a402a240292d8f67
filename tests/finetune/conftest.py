"""Toy problems that a tiny network solves, a model to start from, and fairseq-train on them."""

import hashlib
import json

import numpy as np
import pytest

from amos_fairseq.finetune import labelled, squad, tagged
from amos_fairseq.finetune.labelled import Examples, Problem
from amos_fairseq.methods.config import Vocabulary
from tests.runs import USER_DIR, flags

TRAIN = "fairseq_cli.train:cli_main"
WORDS = "gamma delta epsilon zeta eta theta".split()  # fill; alpha and beta are what decides
METRICS = {
    "classification": ["accuracy", "f1"],
    "multi_label": ["micro_f1", "subset_accuracy"],
    "choice": ["accuracy"],
    "regression": ["pearson_spearman", "spearman", "pearson"],
    "prompt": ["accuracy"],
}
OPTIONS = dict(
    task="finetuning", arch="finetuned", criterion="finetuning", optimizer="fused_adamw", adam_betas="(0.9,0.98)",
    adam_eps=1e-6, lr=[0.01], lr_scheduler="polynomial_decay", warmup_updates=4, total_num_update=40, max_update=40,
    batch_size=8, log_format="json", log_interval=1, seed=1, cpu=True, dropout=0.0, attention_dropout=0.0,
    pooler_dropout=0.0, maximize_best_checkpoint_metric=True,
)


def as_examples(sequences, targets=None, candidates=None):
    return Examples(
        np.concatenate(sequences).astype(np.int32), np.array([len(sequence) for sequence in sequences]),
        None if targets is None else np.array(targets), None if candidates is None else np.concatenate(candidates),
    )


@pytest.fixture(scope="session")
def toy(tokenizer, tmp_path_factory):
    """toy(kind, **splits): a labelled folder; each split has so many examples, train 32 and valid 13 by default.

    classification, prompt   which of alpha and beta is there
    multi_label              whether alpha is there, and whether beta: one of them is
    choice                   beside words, the one of eight that alpha is in; all of them are longer than a model reads
    regression               the share of words that are alpha
    span                     alpha, beta, and up to one word between them
    token                    B-FIRST is alpha, B-SECOND is beta
    """

    def example(kind, draw):
        words = [str(word) for word in draw.choice(WORDS, draw.integers(3, 8))]
        place, label = int(draw.integers(len(words))), int(draw.integers(2))
        if kind == "regression":
            chosen = draw.random(len(words)) < draw.random()
            return ["alpha" if alpha else word for alpha, word in zip(chosen, words)], float(chosen.mean())
        if kind == "span":
            answer = ["alpha", *words[:label], "beta"]
            return [*words[:place], *answer, *words[place:]], " ".join(answer)
        if kind == "choice":
            label = int(draw.integers(8))
            return [[*words, "alpha" if place == label else "beta"] for place in range(8)], label
        if kind == "multi_label":
            return [*words[:place], ("alpha", "beta")[label], *words[place:]], [1 - label, label]
        if kind == "token":
            words[place] = ("alpha", "beta")[label]
            return words, [{"alpha": "B-FIRST", "beta": "B-SECOND"}.get(word, "O") for word in words]
        return [*words[:place], ("alpha", "beta")[label], *words[place:]], label

    def examples(kind, seed, size):
        draw = np.random.default_rng(seed)
        return [example(kind, draw) for _ in range(size)]

    def sequence(words, kind):
        ids = [token for word in words for token in tokenizer.encode(word)]
        assert len(ids) == len(words)
        return tokenizer.sequence(ids + [tokenizer.mask] if kind == "prompt" else ids)

    def question(number, words, answer):
        context = " ".join(words)
        answers = [{"text": answer, "answer_start": context.index(answer)}]
        return {"context": context, "qas": [{"id": str(number), "question": "zeta", "answers": answers}]}

    def toy(kind, **splits):
        folder = tmp_path_factory.mktemp(kind)
        written = {split: examples(kind, seed, size) for seed, (split, size) in enumerate(
            {"train": 32, "valid": 13, **splits}.items()
        )}
        if kind == "span":
            for split, pairs in written.items():
                paragraphs = [question(number, *pair) for number, pair in enumerate(pairs)]
                public = {"version": "1.1", "data": [{"title": split, "paragraphs": paragraphs}]}
                (folder / f"{split}.json").write_text(json.dumps(public))
            files = {split: folder / f"{split}.json" for split in written}
            squad.prepare(folder / "labelled", files, tokenizer, max_length=32, stride=8, max_question=4)
            return folder / "labelled"
        if kind == "token":
            files = {split: folder / f"{split}.conll" for split in written}
            for split, pairs in written.items():
                sentences = ("\n".join(" ".join(row) for row in zip(*pair)) for pair in pairs)
                files[split].write_text("\n\n".join(sentences) + "\n")
            tagged.prepare(folder / "labelled", "toy", files, tokenizer, max_length=32)
            return folder / "labelled"
        labels = {"regression": [], "choice": list("01234567")}.get(kind, ["first", "second"])
        tokens = [tokenizer.encode(word)[0] for word in ("gamma", "delta")] if kind == "prompt" else []
        about = {"repeats": dict.fromkeys(written, 1)} if kind == "prompt" else {}
        sha256 = hashlib.sha256(tokenizer.model).hexdigest()
        problem = Problem("toy", kind, METRICS[kind], sha256, labels, tokens, about)
        examples_of = {}
        for split, pairs in written.items():
            texts = [text for texts, _ in pairs for text in (texts if kind == "choice" else [texts])]
            found = as_examples([sequence(words, kind) for words in texts], [target for _, target in pairs])
            lengths = found.lengths.reshape(-1, 8) if kind == "choice" else found.lengths
            examples_of[split] = found._replace(lengths=lengths)
        labelled.write(folder / "labelled", problem, examples_of)
        return folder / "labelled"

    return toy


@pytest.fixture
def checkpoint(make_method, tokenizer, save_checkpoint, tmp_path):
    """checkpoint(name, **options): of a method with random parameters."""

    def checkpoint(name="bert_mlm", **options):
        vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
        path = tmp_path / f"pretrained_{name}" / "checkpoint_1_1"
        save_checkpoint(path, name, make_method(name, vocabulary=vocabulary, gain=2.0, **options), tokenizer)
        return path

    return checkpoint


@pytest.fixture
def finetune(launch):
    """finetune(folder, pretrained, processes=1, fails=False, events=(), **options): fairseq-train on a labelled folder.

    events: what happens to it, as tests/reliability/disturbed.py has it; function: to be called in place of TRAIN
    """

    def finetune(folder, pretrained, processes=1, fails=False, events=(), function=TRAIN, **options):
        if "best_checkpoint_metric" not in options:
            options["best_checkpoint_metric"] = labelled.read_problem(folder).metrics[0]
        options = {**OPTIONS, "pretrained": pretrained, **options}
        options["warmup_updates"] = min(options["warmup_updates"], options["max_update"])
        command = [str(folder), *flags(dict(options, user_dir=USER_DIR))]
        if events:
            return launch("tests.reliability.disturbed:main", [json.dumps(events), *command], processes, fails)
        return launch(function, command, processes, fails)

    return finetune
