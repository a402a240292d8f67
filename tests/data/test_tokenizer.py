"""Text to ids and back, as preparation has it."""

import random

import pytest

from amos_fairseq.data.tokenizer import Span, Tokenizer, word_numbers
from amos_fairseq.data.vocabulary import load_processor, train_vocabulary

WORDS = ["alpha", "beta", "Gamma,", "delta", "epsilon", "na\u00efve", "caf\u00e9", "\ufb01rst", "\u00bd", "x"]
ODD = "  The \ufb01rst\u00a0 na\u00efve\nword, \u00bd \u00dcn\u00ef \u65e5\u672c <mask> </s> "


@pytest.fixture(scope="module")
def tokenizer():
    draw = random.Random(1)
    return Tokenizer(train_vocabulary((" ".join(draw.choices(WORDS, k=9)) for _ in range(200)), 60, uncased=True))


def test_special_tokens_are_fairseqs_first_four_and_the_mask_is_last(tokenizer):
    assert tokenizer.symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.symbols[-1] == "<mask>" and tokenizer.mask == len(tokenizer) - 1 == 63
    assert {0, 1, 2, 3, tokenizer.mask} <= set(tokenizer.excluded)


def test_ids_are_those_of_preparation(tokenizer):
    processor = load_processor(tokenizer.model)
    for text in ["alpha beta", "Gamma, alpha\nbeta", ODD]:
        pieces = processor.encode(text.replace("\n", " "))
        assert tokenizer.encode(text) == [tokenizer.symbols.index(processor.id_to_piece(piece)) for piece in pieces]
        assert tokenizer.encode_batch([text, text])[0].tolist() == 2 * tokenizer.encode(text)
        assert not {0, 1, 2, tokenizer.mask} & set(tokenizer.encode(text))


def test_half_a_character_is_the_replacement_character(tokenizer):
    text = "alpha \ud800 beta\udcff"
    assert tokenizer.encode(text) == tokenizer.encode(text.replace("\ud800", "\ufffd").replace("\udcff", "\ufffd"))
    assert [text[begin:end] for begin, end in tokenizer.encode_with_spans(text)[1]][0] == "alpha"


def test_decoding_gives_the_normalised_text_back(tokenizer):
    assert tokenizer.decode(tokenizer.encode("Alpha  beta\nGAMMA, \ufb01rst")) == "alpha beta gamma, first"
    assert tokenizer.decode([0, *tokenizer.encode("alpha"), tokenizer.mask, 2]) == "<s> alpha <mask> </s>"


def test_a_pair_has_two_separators(tokenizer):
    assert tokenizer.sequence([7, 8]) == [0, 7, 8, 2]
    assert tokenizer.sequence([7, 8], [9]) == [0, 7, 8, 2, 2, 9, 2]


@pytest.mark.parametrize("text", ["alpha beta", "\nalpha  Gamma, x ", ODD, ""])
def test_spans_lie_on_the_characters_of_their_tokens_in_order(tokenizer, text):
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids == tokenizer.encode(text)
    assert all(0 <= span.begin <= span.end <= len(text) for span in spans)
    assert [span.end for span in spans] == sorted(span.end for span in spans)
    seen = {tokenizer.symbols[token].strip("\u2581"): text[slice(*span)] for token, span in zip(ids, spans)}
    if "alpha" in text:
        assert seen["alpha"] == "alpha"
    if "Gamma" in text:
        assert "".join(text[slice(*span)] for span in spans).replace(" ", "").startswith("alphaGamma,")


def test_text_around_masks_is_encoded_as_if_they_were_words(tokenizer):
    mask, alpha, beta = tokenizer.mask, tokenizer.encode("alpha"), tokenizer.encode("beta")
    comma = tokenizer.symbols.index(",")
    assert tokenizer.encode_masked("alpha <mask> beta") == [*alpha, mask, *beta]
    assert tokenizer.encode_masked("<mask>, <mask>") == [mask, comma, mask]
    assert tokenizer.encode_masked("alpha <mask>\u65e5") == [*alpha, mask, tokenizer.unk]
    assert tokenizer.encode_masked("alpha beta") == [*alpha, *beta]


def test_tokens_of_a_word_have_its_number_and_punctuation_is_a_word_of_its_own():
    """Tokens un happy , don ' t, a space alone before the last word, and one at the end of the text."""
    text = "unhappy, don't go "
    spans = [(0, 2), (2, 7), (7, 8), (9, 12), (12, 13), (13, 14), (15, 15), (15, 17), (18, 18)]
    begins = [Span(begin, begin + 1) for begin in (0, 7, 9, 12, 13, 15)]
    unhappy, comma, don, quote, t, go = dict.fromkeys(word_numbers(text, begins))  # six that differ
    assert word_numbers(text, [Span(*span) for span in spans]) == [unhappy, unhappy, comma, don, quote, t, go, go, 0]


def test_words_of_a_tokenizers_own_tokens_begin_where_it_has_spaces_or_punctuation(tokenizer):
    text = "alpha xepsilon, delta"
    ids, spans = tokenizer.encode_with_spans(text)
    numbers = word_numbers(text, spans)
    surfaces = {}
    for number, span in zip(numbers, spans):
        surfaces[number] = surfaces.get(number, "") + text[span.begin : span.end]
    assert list(surfaces.values()) == ["alpha", "xepsilon", ",", "delta"] and len(ids) > 4
