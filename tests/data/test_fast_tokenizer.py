"""Vocabularies of Hugging Face's tokenizers: their ids, what is special in them, and what is refused."""

import json
import random

import numpy as np
import pytest

from amos_fairseq.data import fast_tokenizer
from amos_fairseq.data.manifest import read_manifest
from amos_fairseq.data.options import KINDS
from amos_fairseq.data.preparation import prepare
from amos_fairseq.data.vocabulary_files import load_tokenizer, read_vocabulary

tokenizers = pytest.importorskip("tokenizers")

WORDS = "alpha beta gamma delta, epsilon (zeta) na\u00efve caf\u00e9 don't 1895-1943 \u65e5\u672c \U0001f600".split()
ODD = ["  alpha\t\nbeta ", "\ufb01rst \u00bd A\u0301", "[SEP] </s> <mask> [MASK]", "\ud800x", ""]
ODD += ["alpha\u2581beta \u200d"]


def texts(count=300):
    draw = random.Random(1)
    return [" ".join(draw.choices(WORDS, k=9)) for _ in range(count)]


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    sizes = {"wordpiece": 90, "bpe": 300, "unigram": 44}
    return fast_tokenizer.train_fast(texts(), request.param, sizes[request.param], uncased=False)


@pytest.fixture
def bert(tmp_path):
    """A folder as BERT's: special ids in the midst, unused ones, a table that is larger."""
    names = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "alpha", "beta", "##s", ","]
    fast = tokenizers.Tokenizer(tokenizers.models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    fast.normalizer = tokenizers.normalizers.BertNormalizer()
    fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    fast.decoder = tokenizers.decoders.WordPiece()
    fast.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    fast.enable_truncation(4)
    folder = tmp_path / "bert"
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 16}))
    return folder


def test_a_models_ids_and_size_are_kept_and_nothing_special_or_unused_is_drawn(bert):
    tokenizer = read_vocabulary(str(bert))
    assert len(tokenizer) == 16 and tokenizer.symbols[7:12] == ["alpha", "beta", "##s", ",", "madeupword0011"]
    assert (tokenizer.pad, tokenizer.unk, tokenizer.bos, tokenizer.eos, tokenizer.mask) == (0, 3, 4, 5, 6)
    assert tokenizer.special == [0, 3, 4, 5, 6]
    assert sorted({*range(16)} - {*tokenizer.excluded}) == [7, 8, 9, 10]
    assert tokenizer.encode("Alphas, beta alpha x beta") == [7, 9, 10, 8, 7, 3, 8]
    assert tokenizer.sequence([7], [8]) == [4, 7, 5, 8, 5]
    assert tokenizer.encode_masked("alpha <mask>, beta") == [7, 6, 10, 8]
    assert tokenizer.decode([4, 7, 9, 6]) == "[CLS] alphas [MASK]"
    assert tokenizer.shown[6:10] == ["<mask>", "\u2581alpha", "\u2581beta", "s"]


def test_ids_are_those_of_the_library_and_survive_as_bytes(trained):
    again = load_tokenizer(trained.model)
    stock = tokenizers.Tokenizer.from_str(json.dumps(json.loads(trained.model)["tokenizer"]))
    for text in texts(200):
        assert again.encode(text) == stock.encode(text, add_special_tokens=False).ids
        assert again.sequence(again.encode(text)) == stock.encode(text).ids
    assert again.sequence([9], [8]) == [again.bos, 9, again.eos, 8, again.eos]
    assert again.symbols == trained.symbols and again.sha256 == trained.sha256


@pytest.mark.parametrize("text", [*ODD, "alpha  beta, na\u00efve \U0001f600!"])
def test_odd_text_has_spans_in_order_and_no_special_token_but_unknown(trained, text):
    ids, spans = trained.encode_with_spans(text)
    assert ids == trained.encode(text) and len(ids) == len(spans)
    assert not set(ids) & set(trained.excluded) - {trained.unk}
    assert all(0 <= span.begin <= span.end <= len(text) for span in spans)
    assert [span.end for span in spans] == sorted(span.end for span in spans)
    assert not any(text[slice(*span)][:1].isspace() for span in spans)
    flat, lengths = trained.encode_batch([text.replace("\ud800", "\ufffd"), "alpha"])
    assert flat.tolist() == ids + trained.encode("alpha") and lengths[0] == len(ids)


def test_a_line_break_between_words_is_not_unknown(trained):
    assert trained.unk not in trained.encode("alpha\nbeta\t gamma")


def test_what_is_shown_marks_where_words_start(trained):
    ids = trained.encode("na\u00efve alpha")
    assert "".join(trained.shown[token] for token in ids).split("\u2581")[1:] == ["na\u00efve", "alpha"]
    assert trained.shown[trained.mask] == "<mask>"


def test_prepared_data_have_the_models_ids_and_a_vocabulary_for_the_next(bert, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(["Alphas, beta alpha", "beta x"] * 40))
    for out, vocabulary in (("one", bert), ("two", tmp_path / "one")):
        prepare([str(tmp_path / "text.txt")], str(tmp_path / out), vocabulary=str(vocabulary), workers=1,
                tokens_per_sample=16)
    tokens = np.fromfile(tmp_path / "one/data0/train.bin", np.uint16)
    assert tokens[0] == 4 and tokens[15] == 5
    assert set(tokens.tolist()) == {3, 4, 5, 7, 8, 9, 10}
    assert tokens.tobytes() == (tmp_path / "two/data0/train.bin").read_bytes()
    manifest = read_manifest(str(tmp_path / "one"))
    assert manifest.vocabulary_size == 16 and manifest.splits["train"].unknown_tokens > 0
    lines = (tmp_path / "one/dict.txt").read_text().splitlines()
    assert len(lines) == 16 and lines[7].startswith("alpha ") and lines[1] == "[unused0] 0"


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare_trains_wordpieces(tmp_path, workers):
    (tmp_path / "text.txt").write_text("\n\n".join(texts()))
    manifest = prepare([str(tmp_path / "text.txt")], str(tmp_path / "out"), train_tokenizer="wordpiece", vocab_size=90,
                       workers=workers)
    tokenizer = read_vocabulary(str(tmp_path / "out"))
    assert manifest.vocabulary_size == len(tokenizer) == 90 and tokenizer.symbols[0] == "[PAD]"


def damaged(bert, **changes):
    path = bert / "tokenizer.json"
    document = json.loads(path.read_text())
    for name, tokens in changes.items():
        document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] not in tokens]
        for token in tokens:
            document["model"]["vocab"].pop(token)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("case, reason", [
    ("slow", "holds a slow tokenizer (vocab.txt): load it with"),
    ("mask", "has no mask token ([MASK], <mask>): a vocabulary to train with needs one"),
    ("pad", "has no pad token ([PAD], <pad>)"),
    ("beyond", "',' has id 10, beyond the model's table of 10 rows: remove it"),
    ("remote", "google/bert does not exist: give a local file or folder: nothing is downloaded"),
    ("no JSON", "tokenizer.json is no JSON"),
    ("other JSON", "is no tokenizer that `tokenizers`"),
])
def test_what_cannot_be_a_vocabulary_is_told_in_one_line(bert, case, reason, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = str(bert)
    if case == "slow":
        (bert / "tokenizer.json").rename(bert / "vocab.txt")
    elif case in ("mask", "pad"):
        damaged(bert, removed=[f"[{case.upper()}]"])
    elif case == "beyond":
        (bert / "config.json").write_text(json.dumps({"vocab_size": 10}))
    elif case == "remote":
        path = "google/bert"
    else:
        (bert / "tokenizer.json").write_text("{" if case == "no JSON" else "{}")
    with pytest.raises(ValueError) as error:
        read_vocabulary(path)
    assert reason in str(error.value).replace(f" (in {tmp_path})", "") and "\n" not in str(error.value)
