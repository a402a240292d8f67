"""Runs on a vocabulary of Hugging Face's: trained, looked at, fine-tuned, and exported with the same tokenizer."""

import random

import pytest
import torch

from amos_fairseq import from_pretrained
from amos_fairseq.cli import main
from amos_fairseq.data.fast_tokenizer import train_fast
from amos_fairseq.data.options import KINDS
from amos_fairseq.data.preparation import prepare
from amos_fairseq.data.vocabulary_files import read_vocabulary
from amos_fairseq.methods.config import Vocabulary
from tests.export.conftest import randomize
from tests.export.test_tokenizer import odd_sentences

WORDS = "alpha beta gamma, delta (epsilon) zeta na\u00efve caf\u00e9".split()


@pytest.fixture(scope="module", params=KINDS)
def fast(request):
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=9)) for _ in range(300)]
    return train_fast(texts, request.param, {"wordpiece": 60, "bpe": 290, "unigram": 29}[request.param], uncased=False)


@pytest.fixture
def run(fast, make_method, save_checkpoint, tmp_path):
    method = make_method("electra_rtd", vocabulary=Vocabulary.of(fast), max_positions=64, rel_pos_buckets=0).eval()
    randomize(method)
    save_checkpoint(tmp_path / "run" / "checkpoint_1_7", "electra_rtd", method, fast)
    return tmp_path / "run"


def test_it_is_trained_on_by_name(text, launch, arguments, tmp_path):
    options = dict(train_tokenizer="wordpiece", vocab_size=200, tokens_per_sample=32, valid_fraction=0.2, workers=1)
    prepare([str(text)], str(tmp_path / "data"), **options)
    command = arguments("electra_rtd", data=tmp_path / "data", save_dir=tmp_path / "run", max_update=2)
    launch("fairseq_cli.train:cli_main", command)
    model = from_pretrained(tmp_path / "run")
    assert (model.tokenizer.mask, len(model.tokenizer), model.encoder.config.padding_idx) == (4, 200, 0)
    assert model.tokenizer.encode("the") == read_vocabulary(str(tmp_path / "data")).encode("the")


def test_an_export_has_the_same_tokenizer_and_is_read_again(run, fast, export, transformers):
    status, _, err, folder = export(run)
    assert status == 0, err
    stock = transformers.AutoTokenizer.from_pretrained(folder)
    for text in odd_sentences(300):
        assert stock(text, split_special_tokens=True)["input_ids"] == fast.sequence(fast.encode(text))
    assert stock("alpha", "beta")["input_ids"] == fast.sequence(fast.encode("alpha"), fast.encode("beta"))
    assert (stock.pad_token_id, stock.mask_token_id, stock.cls_token_id) == (fast.pad, fast.mask, fast.bos)
    begin, end = stock.convert_ids_to_tokens([fast.bos, fast.eos])
    between = " ".join([end] * (stock("alpha", "beta")["input_ids"].count(fast.eos) - 1))
    assert f"A pair of texts is `{begin} A {between} B {end}`." in (folder / "README.md").read_text()
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (fast.pad, fast.bos, fast.eos)
    again = from_pretrained(folder)
    assert again.tokenizer.model == fast.model
    assert torch.equal(again.encode("alpha beta"), from_pretrained(run).encode("alpha beta"))


def test_its_spans_and_words_serve_what_looks_at_a_run(run, capsys):
    model, text = from_pretrained(run), "alpha beta, na\u00efve"
    assert "".join(text[found.begin : found.end] for found in model.detect(text)) == text.replace(" ", "")
    assert all(filling.token != "<mask>" for filling in model.fill_mask("alpha <mask> beta", top=5)[0])
    assert main.main(["inspect", str(run), "--text", "alpha <mask> beta"]) == 0, capsys.readouterr().err


def test_squad_answers_are_found_by_its_spans(fast):
    context = "alpha beta, na\u00efve  caf\u00e9 (epsilon)"
    ids, spans = fast.encode_with_spans(context)
    begin = context.index("caf")
    covered = [index for index, span in enumerate(spans) if begin <= span.begin and span.end <= begin + 4]
    assert "".join(context[slice(*spans[index])] for index in covered) == "caf\u00e9"


def test_it_is_fine_tuned(run, tmp_path, capsys):
    data = tmp_path / "data.tsv"
    data.write_text("text\tlabel\n" + "alpha beta\ta\nzeta\tb\n" * 4)
    files = ["--train", str(data), "--valid", str(data), "--out", str(tmp_path / "tuned"), "--text", "text"]
    options = ["--label", "label", "--epochs", "1", "--seeds", "1", "--max-length", "16", "--cpu"]
    assert main.main(["finetune", "file", "--model", str(run), *files, *options]) == 0, capsys.readouterr().err
