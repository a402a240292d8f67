"""Stock models of Hugging Face in local folders: outputs are theirs within 1e-5; what new runs take of them."""

import json
import re
from pathlib import Path

import pytest
import torch

from amos_fairseq.cli import main
from amos_fairseq.export.huggingface import import_transformers
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.continuation import start_from
from amos_fairseq.pretrained import stock

pytest.importorskip("transformers")

SIZE = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=1, intermediate_size=24,
    max_position_embeddings=34,
)
CLASSES = {
    "BertModel": {}, "BertForMaskedLM": {}, "RobertaModel": {}, "RobertaForMaskedLM": dict(type_vocab_size=1),
    "MPNetModel": {}, "MPNetForMaskedLM": dict(layer_norm_eps=1e-5), "ElectraModel": dict(embedding_size=16),
    "ElectraForPreTraining": dict(embedding_size=8), "ElectraForMaskedLM": dict(embedding_size=8),
}
TOKENS = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 9, 2, 1, 1, 1]])
PADDING = TOKENS == 1


@pytest.fixture
def save(tmp_path):
    """save(class_name, place="", **options): the model with random parameters, and the folder that it is saved to."""
    transformers = import_transformers()

    def save(class_name, place="", **options):
        torch.manual_seed(len(class_name))
        model_class = getattr(transformers, class_name)
        options = {**SIZE, **CLASSES[class_name], "pad_token_id": 1, **options}
        model = model_class(model_class.config_class(**options)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.15)
        model.save_pretrained(tmp_path / "model" / place)
        return model, tmp_path / "model"

    return save


@pytest.mark.parametrize("class_name", CLASSES)
@torch.no_grad()
def test_outputs_are_those_of_the_stock_class(save, class_name):
    model, folder = save(class_name)
    found = stock.load(folder)
    output = model(TOKENS, attention_mask=(~PADDING).long(), output_hidden_states=True)
    hidden = found.encoder(TOKENS, PADDING)
    theirs = output.hidden_states[-1]
    torch.testing.assert_close(hidden[~PADDING], theirs[~PADDING], atol=1e-5, rtol=0)
    if class_name.endswith("MaskedLM"):
        logits = found.heads["mlm_head"](hidden)
        torch.testing.assert_close(logits[~PADDING], output.logits[~PADDING], atol=1e-5, rtol=0)
    if class_name == "ElectraForPreTraining":
        logits = -found.heads["rtd_head"](hidden)  # our sign: positive is original
        torch.testing.assert_close(logits[~PADDING], output.logits[~PADDING], atol=1e-5, rtol=0)


@pytest.mark.parametrize("old", [False, True])
def test_a_bin_is_read_as_data_with_the_names_of_today_or_of_2018(save, old):
    model, folder = save("BertForMaskedLM")
    state = {name.replace("LayerNorm.weight", "LayerNorm.gamma") if old else name: tensor
             for name, tensor in model.state_dict().items()}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    expected = model.bert.encoder.layer[1].output.LayerNorm.weight
    assert torch.equal(stock.load(folder).encoder.layers[1].final_layer_norm.weight, expected)


GUIDE = Path(__file__).parents[2] / "examples/guides/public_model.md"


def table_of_guide():
    """By source class and method: what the guide says is taken."""
    rows = [line.strip("|").split("|") for line in GUIDE.read_text().splitlines() if line.startswith(("| from", "| `"))]
    (_, *names), *rows = [[cell.strip().strip("`") for cell in row] for row in rows]
    return {row[0]: dict(zip(names, row[1:])) for row in rows}


TABLE = table_of_guide()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("class_name", TABLE)
def test_what_is_taken_is_what_the_guide_says(save, make_method, caplog, class_name, name):
    _, folder = save(class_name, embedding_size=16) if class_name.startswith("Electra") else save(class_name)
    config = stock.load(folder).encoder.config
    method = make_method(
        name, encoder_attention_heads=1, max_positions=config.max_positions, rel_pos_buckets=config.rel_pos_buckets,
        rel_pos_max_distance=128, layer_norm_eps=config.layer_norm_eps, vocabulary=Vocabulary(40, 1, [0, 1, 2, 3, 39]),
    )
    caplog.set_level("INFO")
    start_from(method, stock.earlier_run(folder, "here"))
    assert re.fullmatch("here: took (.*); new: .*", caplog.messages[-1])[1] == TABLE[class_name][name]
    torch.testing.assert_close(method.exported_encoder()(TOKENS, PADDING), stock.load(folder).encoder(TOKENS, PADDING))


def test_electra_goes_on_with_its_generator_and_both_heads(save, make_method, caplog):
    generator, _ = save("ElectraForMaskedLM", "generator", embedding_size=16, hidden_size=8, intermediate_size=32)
    discriminator, folder = save("ElectraForPreTraining", embedding_size=16)
    with torch.no_grad():  # the two were trained on one table
        discriminator.electra.embeddings.word_embeddings.weight.copy_(generator.electra.embeddings.word_embeddings.weight)
    discriminator.save_pretrained(folder)
    method = make_method(
        "electra_rtd", generator_embed_dim=8, encoder_attention_heads=1, max_positions=34, rel_pos_buckets=0,
        layer_norm_eps=1e-12, rtd_head_hidden_layer=True,
    )
    caplog.set_level("INFO")
    start_from(method, stock.earlier_run(folder, "here"))
    assert caplog.messages[-1] == "here: took encoder, rtd_head, generator, mlm_head; new: nothing"
    with torch.no_grad():
        logits = method.mlm_head(method.generator(TOKENS, PADDING))
        expected = generator(TOKENS, attention_mask=(~PADDING).long()).logits
    torch.testing.assert_close(logits[~PADDING], expected[~PADDING], atol=1e-5, rtol=0)


class Code:
    def __reduce__(self):
        return print, ("run",)


def sharded(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def with_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Code()}, folder / "pytorch_model.bin")


def configured(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


MISTAKES = {
    "several files": (sharded, "has its weights in several files: save it again with save_pretrained"),
    "code": (with_code, "is refused, since to load it could run code"),
    "more layers": (configured(num_hidden_layers=3), "its config.json: bert.encoder.layer.2.attention.* is absent"),
    "wider": (configured(intermediate_size=32), r"describes: layers.0.fc1.weight is \(24, 16\), not \(32, 16\)"),
    "another activation": (configured(hidden_act="relu"), "has hidden_act 'relu', this package's encoder only 'gelu'"),
    "relative keys": (configured(position_embedding_type="relative_key"), "has position_embedding_type 'relative_key'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(save, mistake):
    change, message = MISTAKES[mistake]
    _, folder = save("BertForMaskedLM")
    change(folder)
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        stock.load(folder)


def test_a_head_whose_decoder_is_not_the_table_is_left_and_told_of(save, caplog):
    _, folder = save("BertForMaskedLM", tie_word_embeddings=False)
    assert stock.load(folder).heads == {}
    assert "its MLM head has a decoder of its own, not the token table: not taken" in caplog.messages[0]


TRAIN = "fairseq_cli.train:cli_main"
ABSOLUTE = dict(rel_pos_buckets=0, layer_norm_eps=1e-12)


def write_tokenizer(folder, corpus, specials=("<s>", "<pad>", "</s>", "<unk>")):
    tokenizers = pytest.importorskip("tokenizers")
    lines = open(f"{corpus}/data0/dict.txt", encoding="utf-8").read().split("\n")
    symbols = [*specials, *(line.rsplit(" ", 1)[0] for line in lines if line), "<mask>"]
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=specials[3])).save(str(folder / "tokenizer.json"))
    return len(symbols)


@pytest.mark.parametrize("name", ["electra_rtd", "amos_rtd"])
def test_a_run_starts_from_a_stock_folder(save, corpus, launch, arguments, tmp_path, name):
    (tmp_path / "model").mkdir()
    size = write_tokenizer(tmp_path / "model", corpus)
    options = dict(vocab_size=size, num_hidden_layers=1, intermediate_size=32, max_position_embeddings=32)
    _, folder = save("ElectraForPreTraining", embedding_size=16, **options)
    options = dict(init_checkpoint=folder, encoder_attention_heads=1, save_dir=tmp_path / "run", max_update=2)
    told = launch(TRAIN, arguments(name, **options, **ABSOLUTE)).out[0]
    assert f"| init_checkpoint {folder}: took encoder; new: " in told
    options["layer_norm_eps"], options["save_dir"] = 1e-5, tmp_path / "other"
    error = launch(TRAIN, arguments(name, **options, rel_pos_buckets=0), fails=True).err[0].splitlines()[-1]
    assert error.endswith("was trained with layer_norm_eps 1e-12, not 1e-05: set it as in that run")


def test_another_vocabulary_and_a_remote_name_are_refused_with_the_remedy(save, corpus, launch, arguments, tmp_path):
    (tmp_path / "model").mkdir()
    size = write_tokenizer(tmp_path / "model", corpus, ("[CLS]", "[PAD]", "[SEP]", "[UNK]"))
    _, folder = save("BertModel", vocab_size=size)
    for path, words in ((folder, f"with `amos-fairseq prepare --vocabulary {folder}`"),
                        ("google/electra-base", "does not exist: give a local folder, nothing is downloaded")):
        options = dict(init_checkpoint=path, save_dir=tmp_path / "run", **ABSOLUTE)
        error = launch(TRAIN, arguments("electra_rtd", **options), fails=True).err[0].splitlines()[-1]
        assert error.startswith("amos_fairseq: error: init_checkpoint ") and error.endswith(words)


def test_inspect_shows_what_a_stock_masked_lm_says_and_refuses_an_encoder_alone(save, corpus, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    size = write_tokenizer(tmp_path / "model", corpus)
    _, folder = save("BertForMaskedLM", vocab_size=size)
    command = ["inspect", str(folder), "--json"]
    assert main.main([*command, "--text", "<mask>", "--top", "2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    position, = shown["positions"]
    assert position["index"] == 1 and len(position["proposals"]) == 1
    assert main.main(command) == 64
    assert capsys.readouterr().err.endswith(f"{folder} was trained elsewhere: give --text, or prepared --data\n")
    save("BertModel", vocab_size=size)
    assert main.main([*command, "--text", "a"]) == 64
    told = f"{folder} holds an encoder only, not its heads: name a checkpoint of pre-training\n"
    assert capsys.readouterr().err.endswith(told)
