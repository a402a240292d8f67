"""Few-shot prompts with demonstrations: what is asked, of whom, and how answers are averaged."""

import numpy as np
import pytest

from amos_fairseq.finetune import labelled, prompts
from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.kinds import KINDS
from amos_fairseq.finetune.model import load_finetuned
from amos_fairseq.finetune.prompts import Template
from amos_fairseq.finetune.tables import Table

TEMPLATE = "{text} , {mask} , {text_b}"
LABEL_WORDS = {"no": "beta", "yes": "alpha"}
DECISIVE = {"no": "gamma", "yes": "delta"}
FILL = "epsilon zeta eta theta".split()


def make_table(path, rows, seed):
    """Pairs of texts, the second of which begins with what decides; as many of both labels."""
    path.write_text(f"{rows} {seed}")
    draw = np.random.default_rng(seed)
    labels = [str(label) for label in draw.permutation(["yes", "no"] * (rows // 2))]
    texts = [(" ".join(draw.choice(FILL, 3)), " ".join([DECISIVE[label], *draw.choice(FILL, 2)])) for label in labels]
    return Table(path, list(range(1, rows + 1)), texts, labels)


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """prepare(**options): the problem and the decoded sequences by split, of 3 examples per class of 40."""

    def prepare(folder="labelled", rows=40, tests=6, **options):
        train, test = make_table(tmp_path / "train.tsv", rows, 0), make_table(tmp_path / "test.tsv", tests, 1)
        options = {
            "seed": 13, "template": TEMPLATE, "label_words": LABEL_WORDS, "per_class": 3, "samples": 4,
            "train_sequences": 20, "max_length": 60, **options,
        }
        problem = prompts.prepare(tmp_path / folder, "toy", train, {"test": test}, tokenizer, **options)
        sets = {split: labelled.read_examples(tmp_path / folder, split) for split in ("train", "valid", "test")}
        texts = {
            split: [tokenizer.decode(ids) for ids in np.split(examples.tokens, np.cumsum(examples.lengths)[:-1])]
            for split, examples in sets.items()
        }
        return problem, sets, texts, train

    return prepare


# Templates


@pytest.mark.parametrize(
    "template, texts, expected",
    [
        ("{text} ? {mask} , {text_b}", ["alpha beta.", "Gamma delta."], "alpha beta <unk> MASK , gamma delta ."),
        ("{text} alpha {mask} .", ["Gamma beta ."], "gamma beta . alpha MASK ."),
        ("{text}{mask}, {text_b}", [" gamma ", "eta"], "gamma MASK , eta"),
        ("{mask} : {text}", ["eta ,"], "MASK <unk> eta ,"),
    ],
)
def test_template_is_filled_in_field_by_field(tokenizer, template, texts, expected):
    ids = Template(template, tokenizer, 50).encode(texts, tokenizer.mask)
    assert tokenizer.decode(ids).replace("<mask>", "MASK") == tokenizer.decode(
        [token for word in expected.split() for token in ([tokenizer.mask] if word == "MASK" else tokenizer.encode(
            "?" if word == "<unk>" else word
        ))]
    ).replace("<mask>", "MASK")


def test_final_mark_goes_before_one_of_the_template_and_a_capital_after_a_comma(words_seen):
    ask = words_seen("{text} ? {mask} , {text_b}")
    assert ask("Alpha.", "Beta is.") == ["Alpha", "beta is."]
    assert ask("Alpha!?", "eta") == ["Alpha!", "eta"]
    assert words_seen("{text} It was {mask} .")("Alpha .") == ["Alpha ."]
    assert words_seen("{mask} : {text}")("Alpha") == ["Alpha"]


@pytest.fixture
def words_seen(tokenizer):
    """words_seen(template)(*texts): the texts as they are encoded."""

    def of(template):
        prompt = Template(template, tokenizer, 50)
        return lambda *texts: [prompt.adapt(text, field) for text, field in zip(texts, ("text", "text_b"))]

    return of


def test_longer_text_is_cut_and_never_the_mask(tokenizer):
    prompt = Template("{text} , {mask} , {text_b}", tokenizer, 8)
    literals = sum(len(tokenizer.encode(literal)) for literal in (",", ","))
    assert prompt.room == 8 - 1 - literals
    ids = prompt.encode(["alpha beta gamma delta epsilon zeta", "eta"], tokenizer.mask)
    assert len(ids) == 8 and ids.count(tokenizer.mask) == 1 and prompt.cut == 1
    assert ids[-1] == tokenizer.encode("eta")[0] and ids[0] == tokenizer.encode("alpha")[0]
    prompt.encode(["alpha", "eta"], tokenizer.mask)
    assert prompt.cut == 1


@pytest.mark.parametrize(
    "template", ["{text}", "{mask}", "{text} {mask} {mask}", "{text} {mask} {other}", "{text {mask}", "{text_b} {mask}"]
)
def test_template_without_its_fields_is_refused(tokenizer, template):
    with pytest.raises(ValueError, match="it has {text}, {mask} and for pairs {text_b}, each once"):
        Template(template, tokenizer, 50)


def test_template_for_other_texts_or_longer_than_its_share_is_refused(tokenizer):
    with pytest.raises(ValueError, match="does not fit examples of 2 texts"):
        Template("{text} {mask}", tokenizer, 50).encode(["alpha", "beta"], tokenizer.mask)
    with pytest.raises(ValueError, match="3 tokens do not fit the template"):
        Template("{text} , {mask}", tokenizer, 3)


# Label words


def test_label_words_are_written_as_label_equals_word():
    words = {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"}
    assert prompts.parse_label_words("entailment=Yes, neutral=Maybe,contradiction=No") == words
    assert prompts.MNLI_LABEL_WORDS == words
    for text in ("yes", "a=b", "a=b,a=c", "a=,b=c", "=a,b=c", ""):
        with pytest.raises(ValueError, match="write label=word,label=word"):
            prompts.parse_label_words(text)


def test_label_words_have_the_tokens_that_follow_a_space(tokenizer):
    tokens = prompts.find_label_tokens(LABEL_WORDS, tokenizer)
    assert [tokenizer.symbols[token] for token in tokens] == ["\u2581beta", "\u2581alpha"]


def test_label_word_of_several_pieces_is_refused_with_its_pieces(tokenizer):
    pieces = [tokenizer.symbols[token] for token in tokenizer.encode("alphabeta")]
    assert len(pieces) > 1
    with pytest.raises(ValueError) as error:
        prompts.find_label_tokens({"a": "alpha", "b": "alphabeta"}, tokenizer)
    seen = " ".join(pieces)
    assert str(error.value) == f"label word 'alphabeta' is no single token but {seen}: choose a word that is one"
    with pytest.raises(ValueError, match="label word '\u4e2d' is no single token but .*<unk>"):
        prompts.find_label_tokens({"a": "\u4e2d", "b": "beta"}, tokenizer)
    with pytest.raises(ValueError, match="'alpha' and 'Alpha' are the same token"):
        prompts.find_label_tokens({"a": "alpha", "b": "Alpha"}, tokenizer)


# Splits and demonstrations


def test_split_has_as_many_examples_of_each_class_and_none_twice():
    targets = np.array([0, 1, 2] * 40)
    train, valid = prompts.draw_split(targets, "abc", 16, seed=13)
    assert targets[train].tolist() == targets[valid].tolist() == [0] * 16 + [1] * 16 + [2] * 16
    assert len({*train, *valid}) == 96
    again, other = (prompts.draw_split(targets, "abc", 16, seed)[0] for seed in (13, 21))
    assert (again == train).all() and (other != train).any()
    with pytest.raises(ValueError, match="82 examples of each label are drawn: 'a' has 40"):
        prompts.draw_split(targets, "abc", 41, seed=13)


def test_demonstrations_are_of_every_class_and_in_training_never_the_example_itself():
    targets = np.repeat([0, 1, 2], 4)
    draws = prompts.draw_demonstrations(targets, 3, 4, 600, True, np.random.default_rng(0))
    assert draws.shape == (12, 600, 3)
    for example in range(12):
        for of_class in range(3):
            allowed = set(range(4)) - ({example % 4} if example // 4 == of_class else set())
            seen, counts = np.unique(draws[example, :, of_class], return_counts=True)
            assert set(seen) == allowed
            assert counts.min() > 600 / len(allowed) * 0.7  # each as often
    draws = prompts.draw_demonstrations(targets, 3, 4, 200, False, np.random.default_rng(0))
    assert all(set(draws[example, :, of_class]) == set(range(4)) for example in range(12) for of_class in range(3))


def test_sequences_are_prompt_and_one_demonstration_of_each_class(prepare, tokenizer):
    problem, sets, texts, train = prepare()
    assert (problem.kind, problem.labels, problem.metrics) == ("prompt", ["no", "yes"], ["accuracy"])
    assert problem.label_tokens == [tokenizer.encode("beta")[0], tokenizer.encode("alpha")[0]]
    assert problem.about["repeats"] == {"train": 4, "valid": 4, "test": 4}  # 20 / 6 passes, and 4 samples
    assert [len(sets[split].lengths) for split in ("train", "valid", "test")] == [24, 24, 24]
    examples = list(zip(train.texts, train.labels))
    asked = {f"{first} , <mask> , {second}": label for (first, second), label in examples}
    shown = {prompt.replace("<mask>", LABEL_WORDS[label]): label for prompt, label in asked.items()}
    drawn = {split: set() for split in texts}
    for split in ("train", "valid"):
        for text, target in zip(texts[split], sets[split].targets):
            prompt, *demonstrations = text.removeprefix("<s> ").removesuffix(" </s>").split(" </s> </s> ")
            assert problem.labels[target] == asked[prompt]
            assert [shown[demonstration] for demonstration in demonstrations] == ["no", "yes"]
            if split == "train":
                assert prompt.replace("<mask>", LABEL_WORDS[asked[prompt]]) not in demonstrations
            drawn[split].add(prompt)
            drawn["test"].update(demonstrations)
    assert len(drawn["train"]) == len(drawn["valid"]) == 6 and not drawn["train"] & drawn["valid"]
    assert len(drawn["test"]) == 6  # all demonstrations are of the training examples
    assert len(set(texts["train"])) > 6  # new ones at each pass


def test_folder_is_the_same_for_a_seed_and_another_for_another(prepare):
    first, again, other = (prepare(folder, seed=seed)[2] for folder, seed in [("a", 13), ("b", 13), ("c", 21)])
    assert first == again
    assert set(first["train"]) != set(other["train"])


def test_unknown_label_and_unlabelled_tests_are_refused_before_writing(prepare, tmp_path):
    with pytest.raises(ValueError, match="label 'yes' is none of no, perhaps"):
        prepare(label_words={"no": "beta", "perhaps": "alpha"})
    assert not (tmp_path / "labelled").exists()


# Evaluation


def test_answer_of_an_example_is_the_mean_of_its_logits(prepare, tmp_path):
    problem, sets, _, _ = prepare()
    targets = sets["test"].targets[::4]

    def evaluate(outputs):
        return KINDS["prompt"].evaluate(tmp_path / "labelled", problem, "test", outputs)

    outputs = np.zeros((6, 4, 2))
    outputs[np.arange(6), :, targets] = [[3.0, -1.0, -1.0, 0.0]]  # mean 0.25
    assert prompts.average(outputs.reshape(24, 2), 4)[0, targets[0]] == 0.25
    assert evaluate(outputs.reshape(24, 2)) == {"accuracy": 1.0}
    outputs[0] *= -1
    assert evaluate(outputs.reshape(24, 2)) == {"accuracy": pytest.approx(5 / 6)}


def test_tiny_network_learns_to_fill_the_prompt(prepare, checkpoint, finetune, tmp_path):
    _, sets, _, _ = prepare(rows=80, tests=20, per_class=16, train_sequences=160)
    finetune(
        tmp_path / "labelled", checkpoint(max_positions=48), save_dir=tmp_path / "run", batch_size=16, max_update=120,
        total_num_update=120, save_interval=12, validate_interval=12,
    )
    trained = load_finetuned(tmp_path / "run")
    for split in ("train", "test"):
        outputs = predict(trained.network, sets[split])
        scores = KINDS["prompt"].evaluate(tmp_path / "labelled", trained.problem, split, outputs)
        assert scores["accuracy"] > 0.9, split
