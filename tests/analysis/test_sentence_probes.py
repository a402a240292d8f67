"""The items made of a text, and probes on encoders that see the order of words or do not."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from amos_fairseq.analysis import sentence_probes
from amos_fairseq.analysis.sentence_probes import DEVELOPMENT, HELD_OUT, PARTS, TASKS, Items, make_items
from amos_fairseq.modules.encoder import Encoder, EncoderConfig

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in "aeiou"]


@pytest.fixture(scope="module")
def texts():
    """Sentences of 12 different words in the order of WORDS, so that any change of the order can be seen."""
    draw = random.Random(1)
    places = (sorted(draw.sample(range(len(WORDS)), 12)) for _ in range(2400))
    return [". ".join(" ".join(WORDS[i] for i in next(places)) for _ in range(4)) + "." for _ in range(600)]


def test_blocks_are_eight_neighbouring_words_of_a_sentence():
    assert sentence_probes.blocks("a b c d e f g") == []
    assert sentence_probes.blocks("a b c d e f g h i") == ["a b c d e f g h"]
    assert sentence_probes.blocks(" ".join("abcdefghijklmnop")) == ["a b c d e f g h", "i j k l m n o p"]
    text = "One two.\n\n three\n four. five. \n \nsix"
    assert list(sentence_probes.sentences([text])) == ["One two", "three four", "five", "six"]


def test_one_pair_of_neighbours_that_differ_changes_places_and_the_first_word_stays():
    swap, draw = sentence_probes.with_neighbours_swapped, random.Random(1)
    found = {swap("The a a A b b c", draw) for _ in range(50)}
    assert found == {"The a a b A b c", "The a a A b c b"}
    assert swap("The a A a", draw) == "The a A a"


def test_items_are_literally_these():
    texts = [f"{word} the quick brown fox jumps over dogs{number}." for word in WORDS for number in range(20)]
    items = make_items("swap", texts, DEVELOPMENT, 200)
    assert len(items.test) == 200 and items.test[:2] == [
        ("ba the quick brown fox jumps over dogs13", "ba quick the brown fox jumps over dogs13"),
        ("te the quick brown fox jumps over dogs16", "te the brown quick fox jumps over dogs16"),
    ]
    assert make_items("acceptability", texts, HELD_OUT, 200).test[:2] == [
        ("fo the quick brown fox jumps over dogs18", "fo the fox jumps brown quick over dogs18"),
        ("tu the quick brown fox jumps over dogs7", "tu brown the quick fox jumps over dogs7"),
    ]


def bag(text):
    return tuple(sorted(text.casefold().split()))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_made_of_the_same_words_is_on_one_side(task, texts):
    backwards = [". ".join(" ".join(part.split()[::-1]) for part in text[:-1].split(". ")) for text in texts]
    sides = [make_items(task, [*texts, *map(str.upper, texts), *backwards], part) for part in PARTS]
    assert sides[0].train == sides[1].train
    parts = (sides[0].train, sides[0].test, sides[1].test)
    assert len({bag(written) for part in parts for written, _ in part}) == sum(map(len, parts))
    assert all(bag(written) == bag(changed) and written != changed for part in parts for written, changed in part)


def test_the_order_of_texts_and_other_text_change_no_item(texts):
    items = make_items("swap", texts, most=400)
    assert make_items("swap", texts[::-1], most=400) == items
    assert set(make_items("swap", texts[:500], most=10**6).test) <= set(make_items("swap", texts, most=10**6).test)


class Reading(nn.Module):
    """Hidden states are the words, or whether a word comes before the one on its left in WORDS."""

    def __init__(self, sees_order):
        super().__init__()
        self.token_embeddings = nn.Embedding.from_pretrained(torch.eye(3 + len(WORDS)))
        self.sees_order = sees_order
        self.config = SimpleNamespace(dim=3 + len(WORDS), padding_idx=1, max_positions=64)

    layers = ()

    def begin(self, hidden, padding_mask=None):
        tokens = hidden.argmax(dim=-1)
        if self.sees_order:
            hidden = torch.zeros_like(hidden)
            hidden[:, 1:-1, 0] = (tokens[:, 1:-1] < tokens[:, :-2]).float()
        return hidden, SimpleNamespace(run=lambda hidden, stop: hidden)


class OfWords:
    """A word is a token, numbered as in WORDS."""

    bos, pad, eos = 0, 1, 2

    def encode(self, text):
        return [3 + WORDS.index(word) for word in text.casefold().split()]

    def sequence(self, ids):
        return [self.bos, *ids, self.eos]


@pytest.mark.parametrize("task", TASKS)
def test_a_bag_of_words_gets_half_and_an_encoder_that_sees_the_order_all(task, texts):
    words, order = (Reading(sees_order).eval() for sees_order in (False, True))
    result = sentence_probes.probe_texts(words, OfWords(), task, texts)
    assert result.items >= 400 and result.accuracy == 0.5
    result = sentence_probes.probe_texts(order, OfWords(), task, texts, HELD_OUT)
    assert result.accuracy > 0.99 and result.interval == sentence_probes.wilson(
        round(result.accuracy * result.items), result.items
    )


def test_the_same_is_found_again_and_an_untrained_network_is_always_the_same(texts):
    config = EncoderConfig(padding_idx=1, vocab_size=3 + len(WORDS), layers=1, dim=16, heads=2, ffn_dim=16,
                           max_positions=12, dropout=0.5)
    encoder, items = Encoder(config).eval(), make_items("swap", texts, most=200)
    results = [sentence_probes.probe_items(encoder, OfWords(), items) for _ in range(2)]
    assert results[0] == results[1] and results[0].items == 200
    twins = [sentence_probes.untrained(encoder).state_dict() for _ in range(2)]
    assert all(torch.equal(twins[0][key], twins[1][key]) for key in twins[0])
    assert not torch.equal(twins[0]["token_embeddings.weight"], encoder.token_embeddings.weight)
    with pytest.raises(ValueError, match="the encoder is in training mode, in which dropout is at work: call eval"):
        sentence_probes.probe_items(encoder.train(), OfWords(), items)


def test_what_is_longer_than_the_encoder_reads_loses_its_end():
    encoder, seen = Reading(sees_order=False).eval(), []
    encoder.config.max_positions = 6
    encoder.token_embeddings.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    pairs = [(" ".join(WORDS[i : i + 8]), " ".join(WORDS[i + 1 : i + 9])) for i in range(8)]
    sentence_probes.probe_items(encoder, OfWords(), Items(pairs, pairs))
    assert set(seen) == {6}


@pytest.mark.parametrize("right, items, low, high", [
    (8, 10, 0.4902, 0.9433), (1000, 2000, 0.4781, 0.5219), (1644, 2000, 0.8046, 0.8381), (200, 200, 0.9812, 1.0)
])
def test_intervals_are_wilsons(right, items, low, high):
    assert sentence_probes.wilson(right, items) == pytest.approx((low, high), abs=5e-5)


def test_what_makes_no_items_is_refused(texts):
    with pytest.raises(ValueError, match="task spelling is none of swap, acceptability"):
        make_items("spelling", texts)
    with pytest.raises(ValueError, match="part test is none of development, held_out"):
        make_items("swap", texts, "test")
    with pytest.raises(ValueError, match="100 items are too few to tell anything: take at least 200"):
        make_items("swap", texts, most=100)
    with pytest.raises(ValueError, match="the text makes 0 items of swap, blocks of 8 neighbouring words, but 200 are"):
        make_items("swap", [])
    with pytest.raises(ValueError, match="makes 19 items of acceptability, sentences of 6 to 24 words, but 200 are"):
        make_items("acceptability", texts[:12])
