"""The fast tokenizer gives the ids of ours, on odd text as well."""

import io
import random
import unicodedata

import pytest
import sentencepiece

from amos_fairseq.data.sentencepiece_model import BPE, CONTROL, NORMAL, UNIGRAM, UNKNOWN, fields, parse
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import train_vocabulary
from amos_fairseq.export.tokenizer import fast_tokenizer, merges, write_tokenizer

pytest.importorskip("tokenizers")

WORDS = (
    "The quick brown fox jumps over the lazy dog, again and again; the dogs are jumping! (foxes) don't mind 3.14 2026 "
    "caf\u00e9 na\u00efve \u00dcbung Stra\u00dfe \u00c5ngstr\u00f6m \u0130stanbul \u0131rmak Vi\u1ec7t ti\u1ebfng "
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u1f4d\u03bc\u03b7\u03c1\u03bf\u03c2 "
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0451\u0436 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \uac12 "
    "---- ==== aaaa ... '' \U0001f600"
).split()
SPACES = ["\t", "\n", "\r", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028", "\u2009", "\x85", "\ufeff", "\u2581", "  "]
ODD = [
    "\ufb01", "\u00bd", "\u2460", "\u2163", "\ufdfa", "\u2116", "\u2103", "\u212b", "\u1e9e", "\u03c2", "\u01c5",
    "\u0149", "\ufb03", "\uff26\uff55\uff4c\uff4c", "A\u0301", "e\u0302\u0301", "I\u0307", "x\u0302", "X\u0302",
    "\u304b\u3099", "\u1112\u1161\u11ab", "\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u270a\U0001f3fd",
    "\u0e01\u0e33", "\u0915\u093c", "\u05e0\u05bc", "\u0627\u0654", "\x00", "\x01", "\x7f", "\ufffd", "\u00ad",
    "\u200d", "\u00a8", "\u00b4", "\u2026", "\U00020000", "madeupword0000", "----------", "=========", "aaaaaaa",
    "''''", "<s", "mask>",
]


def odd_sentences(count):
    """Words in all cases and normal forms between all kinds of spaces, odd characters, and characters at random.

    Accents are in Unicode's order: SentencePiece leaves another order alone, the tokenizers library cannot.
    """
    draw = random.Random(4)
    forms = [str, str.upper, str.title, lambda word: unicodedata.normalize("NFD", word)]
    planes = [(0x20, 0x7F), (0x20, 0x250), (0x370, 0x600), (0x3000, 0x3100), (0xAC00, 0xD7A4), (0x1F300, 0x1F600)]

    def part():
        kind = draw.random()
        if kind < 0.6:
            return draw.choice(forms)(draw.choice(WORDS))
        drawn = draw.choice(ODD) if kind < 0.85 else chr(draw.randrange(*draw.choice(planes)))
        return drawn if len(drawn) > 1 or not unicodedata.combining(drawn) else "\ufffe"

    return [
        "".join(part() + draw.choice([" ", " ", "", draw.choice(SPACES)]) for _ in range(draw.randint(3, 25)))
        for _ in range(count)
    ]


def texts():
    draw = random.Random(5)
    made_up = ["".join(draw.choice("bdfgklmn") + draw.choice("aeiou") for _ in range(3)) for _ in range(200)]
    return (" ".join(draw.choices(WORDS, k=6) + draw.choices(made_up, k=4)) for _ in range(600))


def trained(**options):
    """A SentencePiece model, as a user may bring one."""
    model = io.BytesIO()
    defaults = dict(vocab_size=260, normalization_rule_name="nmt_nfkc_cf", character_coverage=1.0, minloglevel=2)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts(), model_writer=model, **{**defaults, **options})
    return model.getvalue()


def prepared(uncased, normalization="nmt_nfkc"):
    """As `amos-fairseq prepare` trains it."""
    return train_vocabulary(texts(), 260, uncased, normalization)


MODELS = {
    "bpe-cased": lambda: prepared(uncased=False),
    "bpe-uncased": lambda: prepared(uncased=True),
    "bpe-nfkc": lambda: prepared(uncased=False, normalization="nfkc"),
    "bpe-nfkc-uncased": lambda: prepared(uncased=True, normalization="nfkc"),
    "bpe-identity": lambda: prepared(uncased=False, normalization="identity"),
    "unigram": lambda: trained(model_type="unigram"),
    "unigram-bytes": lambda: trained(model_type="unigram", byte_fallback=True, vocab_size=500),
    "bpe-bytes": lambda: trained(model_type="bpe", byte_fallback=True, vocab_size=500),
    "bpe-across-words": lambda: trained(model_type="bpe", split_by_whitespace=False),
}


@pytest.fixture(scope="module")
def odd():
    sentences = odd_sentences(1000)
    assert len(set(sentences)) == 1000
    return sentences


@pytest.mark.parametrize("name", MODELS)
def test_1000_of_1000_odd_sentences_have_the_same_ids(name, odd):
    ours = Tokenizer(MODELS[name]())
    fast, expected = fast_tokenizer(ours), [ours.encode(text) for text in odd]
    found = [fast.encode(text, add_special_tokens=False).ids for text in odd]
    assert sum(map(len, expected)) > 10_000
    if name.startswith("unigram"):  # of equally likely pieces, "." ".." or ".." ".", rounding errors choose
        assert sum(left != right for left, right in zip(expected, found)) < 50
        expected, found = [sorted(ids) for ids in expected], [sorted(ids) for ids in found]
    assert [text for text, left, right in zip(odd, expected, found) if left != right] == []


@pytest.fixture
def loaded(transformers, tokenizer, tmp_path):
    """As AutoTokenizer loads it."""
    write_tokenizer(tokenizer, 32, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mpnet"}')
    return transformers.AutoTokenizer.from_pretrained(tmp_path)


def test_templates_special_tokens_and_lengths(loaded, tokenizer):
    alpha, beta = (tokenizer.encode(word) for word in ("alpha", "beta"))
    assert loaded("alpha")["input_ids"] == [0, *alpha, 2]
    assert loaded("alpha", "beta") == {"input_ids": [0, *alpha, 2, 2, *beta, 2], "attention_mask": [1] * 6}
    names = ("bos", "pad", "eos", "unk", "cls", "sep", "mask")
    assert [getattr(loaded, f"{name}_token_id") for name in names] == [0, 1, 2, 3, 0, 2, tokenizer.mask]
    assert len(loaded) == len(tokenizer) and loaded.model_max_length == 32
    assert [loaded.convert_ids_to_tokens(token) for token in range(len(tokenizer))] == tokenizer.symbols
    cut = loaded(100 * "alpha ", truncation=True)["input_ids"]
    assert len(cut) == 32 and cut[-1] == 2
    padded = loaded(["alpha", "alpha beta"], padding=True)["input_ids"]
    assert padded[0] == [0, *alpha, 2, 1]
    assert loaded.decode(loaded("Alpha  beta")["input_ids"], skip_special_tokens=True) == "alpha beta"


@pytest.mark.parametrize("text", ["alpha <mask> beta", "<mask>alpha", "<mask> alpha<mask>", "alpha <mask>, beta"])
def test_a_mask_in_a_text_is_as_ours_has_it(loaded, tokenizer, text):
    assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode_masked(text)


def test_special_names_in_a_text_are_text_if_that_is_asked_for(loaded, tokenizer):
    text = "alpha </s> <mask> <s>"
    ids = loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == tokenizer.encode(text) and not {0, 2, tokenizer.mask} & set(ids)
    assert loaded(text, add_special_tokens=False)["input_ids"][1:] == [2, tokenizer.mask, 0]


def test_offsets_lie_on_the_characters(loaded, tokenizer):
    text = "  Alpha beta,\talpha"
    offsets = loaded(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert [text[begin:end].strip() for begin, end in offsets] == ["Alpha", "beta", ",", "alpha"]


def test_merges_come_best_first_with_every_way_to_make_a_piece():
    scores = {"a": -9.0, "b": -8.0, "ab": -1.0, "ba": 0.0, "aba": -2.0}
    assert merges(scores) == [("b", "a"), ("a", "b"), ("a", "ba"), ("ab", "a")]


def test_fields_of_a_message():
    # field 1: varint 300; field 2: bytes "ab"; field 10: four bytes; field 3: eight bytes
    message = b"\x08\xac\x02" + b"\x12\x02ab" + b"\x55\x01\x02\x03\x04" + b"\x19" + bytes(8)
    assert list(fields(message)) == [(1, 300), (2, b"ab"), (10, b"\x01\x02\x03\x04"), (3, bytes(8))]


@pytest.mark.parametrize("model_type, kind", [("bpe", BPE), ("unigram", UNIGRAM)])
def test_a_model_file_is_read_as_sentencepiece_reads_it(model_type, kind):
    model = trained(model_type=model_type)
    processor, parsed = sentencepiece.SentencePieceProcessor(model_proto=model), parse(model)
    assert parsed.model_type == kind and not parsed.byte_fallback and parsed.usual_whitespaces
    assert [piece.text for piece in parsed.pieces] == [processor.id_to_piece(i) for i in range(len(processor))]
    assert [piece.score for piece in parsed.pieces] == [processor.get_score(i) for i in range(len(processor))]
    assert [piece.kind for piece in parsed.pieces[:4]] == [UNKNOWN, CONTROL, CONTROL, NORMAL]
    assert len(parsed.charsmap) > 1000 and parse(trained(normalization_rule_name="identity")).charsmap == b""


@pytest.mark.parametrize(
    "options, obstacle",
    [
        (dict(model_type="char"), "is neither a BPE nor a unigram model"),
        (dict(add_dummy_prefix=False), "treats spaces in its own way"),
        (dict(remove_extra_whitespaces=False), "treats spaces in its own way"),
        (dict(treat_whitespace_as_suffix=True), "treats spaces in its own way"),
        (dict(user_defined_symbols=["fox"]), "has user-defined or unused pieces"),
    ],
)
def test_what_the_library_cannot_do_is_refused(options, obstacle):
    with pytest.raises(ValueError, match=f"the SentencePiece model {obstacle}"):
        fast_tokenizer(Tokenizer(trained(**options)))
