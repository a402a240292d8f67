"""The releases' tokenizer: what it splits off, which pieces it drops, and whose numbers its ids are."""

import gzip
import json
from pathlib import Path

import pytest

from amos_fairseq.data import preparation
from amos_fairseq.data.released_tokenizer import ReleasedTokenizer, prepare
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import load_processor, train_vocabulary
from amos_fairseq.data.vocabulary_files import load_tokenizer

SENTENCES = ["the cat sat ( 1895-1943 ). on a mat , it 's", 'the mat - the " e-mail " cat !', "don't sit 's on"]
SPACE = "\u2581"
RELEASED = Path(__file__).parents[3] / "shared" / "data" / "released_vocabulary"  # Microsoft's, where it is at hand


@pytest.fixture(scope="module")
def model():
    return train_vocabulary(SENTENCES * 20, 55, uncased=False)


@pytest.fixture(scope="module")
def tokenizer(model):
    """With a dict.txt whose order is not that of the pieces, as one sorted by counts."""
    processor = load_processor(model)
    pieces = [processor.id_to_piece(index) for index in range(5, len(processor))]
    return ReleasedTokenizer(model, "".join(f"{piece} 7\n" for piece in reversed(pieces)).encode())


@pytest.mark.parametrize(
    "text, words",
    [
        ("(1895-1943).", ["(", "1895-1943", ")."]),
        ("an e-mail, sent.", ["an", "e-mail", ",", "sent", "."]),
        ("  \u201cIt\u2019s\u201d \u2014 O\u00b4Hara\u2013 ", ['"', "It's", '"', "-", "O'Hara", "-"]),
        ("``a'' 'b'", ['"', "a", '"', "'", "b", "'"]),
        ("it 's n't 'll, 'tis 's.", ["it", "'s", "n't", "'ll", ",", "'", "tis", "'s", "."]),
        ("('s ... company ' s", ["('s", "...", "company", "'s"]),
        ("'s-Hertogenbosch, JOHN 'S 'T", ["'s-Hertogenbosch", ",", "JOHN", "'S", "'T"]),
        ("they 'RE, I 'LL-x 'Ll \"'d say", ["they", "'RE", ",", "I", "'LL", "-x", "'", "Ll", "\"'d", "say"]),
        ("we' ve 'LL", ["we", "'ve", "'LL"]),
        ("$5 a+b <s> [CLS] <mask>", ["$", "5", "a+b", "<", "s", ">", "[", "CLS", "]", "<", "mask", ">"]),
        ("\u00bfqu\u00e9?\u00a0\u3010x\u3011", ["\u00bf", "qu\u00e9", "?", "\u3010", "x", "\u3011"]),
        (" \n", []),
    ],
)
def test_quotes_and_dashes_become_ascii_and_punctuation_around_words_is_split_off(text, words):
    assert prepare(text) == " ".join(words)


def test_ids_are_the_numbers_of_pieces_in_dict_txt_without_spaces_alone_before_punctuation(tokenizer, model):
    pieces = load_processor(model).encode("the cat ( 1895-1943 ). sat !", out_type=str)
    alone = [i for i, piece in enumerate(pieces) if piece == SPACE and pieces[i + 1] in ("!", ")", ").", "(", ".")]
    assert alone  # else there is nothing to drop
    expected = [piece for i, piece in enumerate(pieces) if i not in alone]
    ids = tokenizer.encode("the cat (1895-1943). sat!")
    assert [tokenizer.symbols[i] for i in ids] == expected
    lines = tokenizer.dictionary.decode().splitlines()
    assert all(lines[i - 4].split(" ")[0] == piece for i, piece in zip(ids, expected))
    assert tokenizer.symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"] and tokenizer.symbols[-1] == "<mask>"
    assert tokenizer.mask == len(lines) + 4 == len(tokenizer) - 1


def test_a_space_at_the_end_and_names_of_special_tokens_are_none(tokenizer):
    assert tokenizer.encode("the ") == tokenizer.encode("the")
    assert not {0, 1, 2, tokenizer.mask} & set(tokenizer.encode("<s> <pad> </s> <mask> [SEP]"))
    assert tokenizer.encode("") == [] and 3 in tokenizer.encode("the \u65e5")


@pytest.mark.parametrize(
    "text", ["the <mask> sat", "<mask>", "<mask>'s mat", "(<mask>). the cat", "the cat, <mask>", "<mask> <mask>!"]
)
def test_masks_stand_for_tokens_among_those_of_the_text(tokenizer, text):
    masked = tokenizer.encode_masked(text)
    assert masked.count(tokenizer.mask) == text.count("<mask>")
    # "cat" in the place of each mask is one token
    assert tokenizer.encode("cat") == [tokenizer.symbols.index(f"{SPACE}cat")]
    spelled = [tokenizer.symbols.index(f"{SPACE}cat") if token == tokenizer.mask else token for token in masked]
    assert spelled == tokenizer.encode(text.replace("<mask>", "cat"))


def test_what_follows_a_mask_at_once_starts_no_word(tokenizer):
    ids = tokenizer.encode_masked("<mask>the")
    assert ids[0] == tokenizer.mask and not tokenizer.symbols[ids[1]].startswith(SPACE)


@pytest.mark.parametrize("name", ["[MASK]", "<mask>"])
def test_mask_is_where_dict_txt_names_it_and_is_never_counted_twice(tokenizer, model, name):
    named = ReleasedTokenizer(model, f"{name} 1\n".encode() + tokenizer.dictionary)
    assert named.mask == 4 and len(named) == len(tokenizer) and named.symbols[4] == "<mask>"
    assert named.symbols[5:] == tokenizer.symbols[4:-1] and 4 in named.excluded
    assert named.encode("the cat") == [token + 1 for token in tokenizer.encode("the cat")]
    assert named.encode_masked("the <mask>")[-1] == 4 and load_tokenizer(named.model).mask == 4
    assert named.decode([4, *named.encode("the cat")]) == "<mask> the cat"


def test_nothing_is_prepared_with_it(tokenizer, tmp_path):
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary/sentencepiece.model").write_bytes(tokenizer.model)
    (tmp_path / "text").write_text("\n\n".join(SENTENCES * 9))
    with pytest.raises(ValueError, match="vocabulary is that of Microsoft's releases, which are fine-tuned"):
        preparation.prepare([str(tmp_path / "text")], str(tmp_path / "out"), vocabulary=str(tmp_path / "vocabulary"))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released vocabulary is not at hand")
def test_ids_are_those_of_the_public_class_and_spans_lie_on_the_text():
    tokenizer = ReleasedTokenizer((RELEASED / "sp.model").read_bytes(), (RELEASED / "dict.txt").read_bytes())
    assert (len(tokenizer), tokenizer.mask) == (64000, 4)
    with gzip.open(RELEASED / "ids.jsonl.gz", "rt", encoding="utf-8") as lines:
        for text, expected in (json.loads(line).values() for line in lines):
            ids, spans = tokenizer.encode_with_spans(text)
            assert tokenizer.encode(text) == ids == expected
            covered = "".join(text[slice(*span)] for span in spans)
            assert covered == "".join(text.replace(SPACE, " ").split()), text


def test_a_pair_has_two_separators(tokenizer):
    a, b = tokenizer.encode("the cat"), tokenizer.encode("a mat")
    assert tokenizer.sequence(a, b) == [0, *a, 2, 2, *b, 2]


@pytest.mark.parametrize("text", ["``the  cat'' (sat)\u2014on\na mat!", " the\u2019s ", "\u00bd \ufb01 the", ""])
def test_spans_lie_on_the_characters_of_their_tokens_in_order(tokenizer, text):
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids == tokenizer.encode(text) and len(ids) == len(spans)
    assert all(0 <= span.begin <= span.end <= len(text) for span in spans)
    assert [span.end for span in spans] == sorted(span.end for span in spans)
    assert not any(text[slice(*span)][:1].isspace() for span in spans)
    surfaces = [text[slice(*span)] for span in spans]
    assert "".join(surfaces) == "".join(text.split())
    if "cat" in text:
        seen = dict(zip((tokenizer.symbols[i].strip(SPACE) for i in ids), surfaces))
        assert seen['"'] in ("``", "''") and seen["-"] == "\u2014"


def test_both_files_travel_as_one(tokenizer, model):
    kept = load_tokenizer(tokenizer.model)
    assert isinstance(kept, ReleasedTokenizer) and kept.symbols == tokenizer.symbols
    assert (kept.sentencepiece, kept.dictionary) == (model, tokenizer.dictionary)
    assert kept.encode("the cat (1895).") == tokenizer.encode("the cat (1895).")
    assert type(load_tokenizer(model)) is Tokenizer


@pytest.mark.parametrize(
    "dictionary, reason",
    [
        (b"a 1\nb\n", "line 2: 'b'"),
        (b"a 1\na 2\n", "'a' is there already"),
        (b"[MASK] 1\n<mask> 1\n", "'<mask>' is there"),
        (b"[SEP] 1\n", "line 1: '\\[SEP\\]' is there"),
    ],
)
def test_a_damaged_dictionary_is_refused_with_its_line(model, dictionary, reason):
    with pytest.raises(ValueError, match=reason):
        ReleasedTokenizer(model, dictionary, "dict.txt")
