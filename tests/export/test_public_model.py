"""From a public model to a domain, as the guide has it: prepared with its tokenizer, continued, exported, compared."""

import json

import pytest
import torch

from amos_fairseq import from_pretrained
from amos_fairseq.cli import main
from amos_fairseq.data.fast_tokenizer import train_fast
from amos_fairseq.export.huggingface import import_transformers

pytest.importorskip("tokenizers")
TRAIN = "fairseq_cli.train:cli_main"
VOCABULARY = 300
SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32,
    max_position_embeddings=64, pad_token_id=0,
)


@pytest.fixture(scope="module")
def stock_folder(text, tmp_path_factory):
    """stock_folder(class_name, **options): a stock model, random, with a WordPiece tokenizer of the text beside it."""
    transformers = pytest.importorskip("transformers") and import_transformers()
    fast = train_fast(text.read_text().splitlines(), "wordpiece", VOCABULARY, uncased=True)
    kept = json.loads(fast.model)

    def stock_folder(class_name, **options):
        torch.manual_seed(1)
        folder = tmp_path_factory.mktemp(class_name)
        model_class = getattr(transformers, class_name)
        model_class(model_class.config_class(**{**SHAPE, **options})).save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(kept["tokenizer"]))
        names = {key: kept["roles"][role] for key, role in
                 dict(cls_token="bos", sep_token="eos", pad_token="pad", unk_token="unk", mask_token="mask").items()}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **names}))
        return folder

    return stock_folder


@pytest.fixture(scope="module")
def electra(stock_folder):
    return stock_folder("ElectraForPreTraining", embedding_size=16)


@pytest.fixture(scope="module")
def data(electra, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("domain") / "data"
    words = ["prepare", str(text), "--out", str(out), "--vocabulary", str(electra), "--tokens-per-sample", "32"]
    assert main.main(words) == 0
    return out


@pytest.mark.parametrize("name, class_name", [("electra_rtd", "ElectraForPreTraining"), ("amos_rtd", "BertModel")])
@torch.no_grad()
def test_a_stock_electra_goes_on_and_its_export_is_what_the_stock_class_computes(
    electra, data, launch, arguments, tmp_path, capsys, name, class_name
):
    options = dict(
        init_checkpoint=electra, layer_norm_eps=1e-12, rel_pos_buckets=0, encoder_layers=2, encoder_attention_heads=1,
        encoder_embed_dim=16, encoder_ffn_embed_dim=32, max_positions=64, max_update=2, save_dir=tmp_path / "run",
        rtd_head_hidden_layer=True if name == "electra_rtd" else None, data=data,
    )
    assert f"init_checkpoint {electra}: took encoder; new: " in launch(TRAIN, arguments(name, **options)).out[0]

    exported = tmp_path / "exported"
    assert main.main(["export", str(tmp_path / "run"), "--out", str(exported)]) == 0, capsys.readouterr().err
    transformers = import_transformers()
    model = getattr(transformers, class_name).from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    run, line = from_pretrained(tmp_path / "run"), "The bada dibi."
    batch = tokenizer(line, return_tensors="pt")
    assert batch["input_ids"][0].tolist() == run.encode(line).tolist() == from_pretrained(electra).encode(line).tolist()
    theirs = model(**batch, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(run.features(line), theirs[0].mean(dim=0), atol=1e-5, rtol=0)
    gap = (run.features(line) - from_pretrained(electra).features(line)).abs().max()
    assert 0 < gap < 0.1  # two small updates away from its start


@torch.no_grad()
def test_a_stock_bert_is_loaded_with_its_masked_lm(stock_folder):
    folder = stock_folder("BertForMaskedLM")
    model, line = from_pretrained(folder), "the <mask> dibi"
    theirs = import_transformers().BertForMaskedLM.from_pretrained(folder).eval()
    tokens = model.tokenizer.sequence(model.tokenizer.encode_masked(line))
    logits = theirs(torch.tensor([tokens])).logits[0, tokens.index(model.tokenizer.mask)]
    logits[model.tokenizer.excluded] = -torch.inf
    best = logits.softmax(dim=-1).topk(3)
    [found] = model.fill_mask(line, top=3)
    assert [filling.token for filling in found] == [model.tokenizer.shown[token] for token in best.indices]
    torch.testing.assert_close(torch.tensor([filling.probability for filling in found]), best.values)


def test_public_models_share_a_table_of_results(electra, stock_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # no name is wrapped
    table = tmp_path / "own.tsv"
    table.write_text("text\tlabel\n" + "".join(f"bada {i} dibi\t{'ab'[i % 2]}\n" for i in range(12)))
    outs = []
    for folder in (electra, stock_folder("BertModel")):
        outs.append(str(tmp_path / folder.name))
        words = ["--train", str(table), "--valid", str(table), "--text", "text", "--label", "label", "--cpu"]
        words += ["--epochs", "1", "--seeds", "1", "--lr", "1e-3", "--batch-size", "4", "--jobs", "1"]
        status = main.main(["finetune", "file", "--model", str(folder), "--out", outs[-1], *words])
        assert status == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main.main(["finetune", "results", *outs]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "ElectraForPreTraining" in told and "BertModel" in told


def test_a_folder_without_its_tokenizer_is_refused_in_one_line(stock_folder):
    folder = stock_folder("BertModel")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="^[^\n]*holds no tokenizer.json: save the model's tokenizer there, too$"):
        from_pretrained(folder)
