"""A checkpoint used without training: every function against the networks themselves."""
import subprocess
import sys

import pytest
import torch

import amos_fairseq
from amos_fairseq.data.vocabulary import train_vocabulary
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.model import Pretrained

TEXT = "Alpha beta,  gamma delta"


@pytest.fixture
def model(make_method, tokenizer):
    """model(name): a method with random parameters, as it is loaded."""

    def model(name, **options):
        vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
        method = make_method(name, vocabulary=vocabulary, gain=4.0, **options).eval()
        return Pretrained("here", name, method.encoder, tokenizer, method)

    return model


def tokens_of(model, text):
    return torch.tensor([[0, *model.tokenizer.encode(text), 2]])


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_is_all_that_it_takes(model, save_checkpoint, tokenizer, tmp_path, name):
    made = model(name)
    save_checkpoint(tmp_path / "checkpoint_1_2", name, made.method, tokenizer)
    loaded = amos_fairseq.from_pretrained(tmp_path)  # the run's folder
    assert loaded.name == name and loaded.tokenizer.symbols == tokenizer.symbols and not loaded.method.training
    assert torch.equal(loaded.features([TEXT]), made.features([TEXT]))
    for key, tensor in made.method.state_dict().items():
        assert torch.equal(loaded.method.state_dict()[key], tensor), key
    assert len(list(loaded.method.parameters())) == len(list(made.method.parameters()))  # tied ones still are


def test_an_older_checkpoint_needs_the_folder_of_its_data(model, save_checkpoint, tokenizer, tmp_path):
    made = model("bert_mlm")
    save_checkpoint(tmp_path / "checkpoint_1_2", "bert_mlm", made.method)
    with pytest.raises(ValueError, match="holds no vocabulary: name the folder of its prepared data"):
        amos_fairseq.from_pretrained(tmp_path)
    (tmp_path / "sentencepiece.model").write_bytes(tokenizer.model)
    (tmp_path / "manifest.json").touch()
    assert len(amos_fairseq.from_pretrained(tmp_path, data=tmp_path).tokenizer) == len(tokenizer)


def test_data_of_another_vocabulary_are_refused(model, save_checkpoint, tokenizer, tmp_path):
    """Of a checkpoint that holds its own, any other; of one that holds none, one of another size."""
    made = model("bert_mlm")
    save_checkpoint(tmp_path / "own/checkpoint_1_2", "bert_mlm", made.method, tokenizer)
    save_checkpoint(tmp_path / "none/checkpoint_1_2", "bert_mlm", made.method)
    (tmp_path / "sentencepiece.model").write_bytes(train_vocabulary(["a b c d e"] * 9, 16, uncased=True))
    (tmp_path / "manifest.json").touch()
    with pytest.raises(ValueError, match="has another vocabulary than .*own/checkpoint_1_2: name the one of its own"):
        amos_fairseq.from_pretrained(tmp_path / "own", data=tmp_path)
    with pytest.raises(ValueError, match="checkpoint_1_2 does not hold the network that it describes: [^\\n]*$"):
        amos_fairseq.from_pretrained(tmp_path / "none", data=tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_precision_become_float32(model, save_checkpoint, tokenizer, tmp_path, dtype):
    half = model("electra_rtd").method.to(dtype)
    save_checkpoint(tmp_path / "checkpoint_1_2", "electra_rtd", half, tokenizer)
    loaded = amos_fairseq.from_pretrained(tmp_path)
    assert loaded.features(TEXT).dtype == torch.float32
    for name, tensor in loaded.method.state_dict().items():
        assert torch.equal(tensor, half.state_dict()[name].to(tensor.dtype)), name


@pytest.mark.parametrize("name, message", [("translation", "is of a run of translation, none of amos_rtd"), (None, "")])
def test_what_is_no_checkpoint_of_a_method_is_named(model, save_checkpoint, tmp_path, name, message):
    if name:
        save_checkpoint(tmp_path / "checkpoint_1_2", name, model("bert_mlm").method)
    with pytest.raises(ValueError, match=message or "holds no checkpoint"):
        amos_fairseq.from_pretrained(tmp_path)


def test_features_are_the_mean_or_the_first_of_the_hidden_states(model):
    model = model("electra_rtd")
    hidden = model.encoder(tokens_of(model, TEXT))[0]
    torch.testing.assert_close(model.features(TEXT), hidden.mean(dim=0))
    torch.testing.assert_close(model.features([TEXT], pooling="first"), hidden[:1])


def test_features_depend_neither_on_order_nor_on_padding(model):
    model = model("coco_lm")
    texts = [TEXT, "alpha", "beta gamma, zeta"]
    alone = torch.stack([model.features(text) for text in texts])
    for batch_tokens in (1, 20, 1000):
        torch.testing.assert_close(model.features(texts, batch_tokens=batch_tokens), alone, atol=1e-6, rtol=1e-5)
    assert model.features([]).shape == (0, model.encoder.config.dim)


def test_features_hold_the_hidden_states_of_one_batch_at_a_time(model, allocations):
    model, texts = model("bert_mlm"), ["alpha beta gamma delta"] * 64
    tokens, finished = len(model.encode(texts[0])), []
    with allocations:
        model.features(texts[:4], batch_tokens=4 * tokens)
    one_batch = allocations.peak_bytes
    with allocations:
        model.features(texts, batch_tokens=4 * tokens, progress=finished.append)
    assert finished == [4] * 16
    all_states = 4 * len(texts) * tokens * model.encoder.config.dim
    assert allocations.peak_bytes - one_batch < all_states / 2


def test_encode_has_one_separator_at_the_end_and_two_between_a_pair(model):
    model = model("bert_mlm")
    first, second = map(model.tokenizer.encode, ("alpha", "beta gamma"))
    assert model.encode("alpha").tolist() == [0, *first, 2]
    assert model.encode("alpha", "beta gamma").tolist() == [0, *first, 2, 2, *second, 2]


NETWORKS = {"bert_mlm": "encoder", "script_selfcritic": "encoder", "electra_rtd": "generator", "coco_lm": "generator",
            "teams_mws": "generator", "peer_tqr": "generator"}


@pytest.mark.parametrize("name", [*NETWORKS, "amos_rtd"])
def test_a_mask_is_filled_by_the_masked_language_model(model, name):
    model = model(name)
    network = getattr(model.method, NETWORKS[name]) if name in NETWORKS else model.method.generators[-1]
    mask, (alpha,) = model.tokenizer.mask, model.tokenizer.encode("alpha")
    logits = model.method.mlm_head(network(torch.tensor([[0, alpha, mask, mask, 2]])))[0, 2:4].float()
    allowed = [i for i in range(len(model.tokenizer)) if i not in model.tokenizer.excluded]
    first, second = model.fill_mask("alpha <mask><mask>", top=3)
    for fillings, row in zip((first, second), logits):
        expected = row[allowed].softmax(dim=-1)
        likeliest = expected.topk(3).values.tolist()
        assert [filling.probability for filling in fillings] == pytest.approx(likeliest, rel=1e-5)
        assert fillings[0].token == model.tokenizer.symbols[allowed[expected.argmax()]]


@pytest.mark.parametrize("name", ["amos_rtd", "coco_lm", "teams_mws", "electra_rtd"])
def test_detection_is_the_complement_of_what_the_head_says(model, name):
    model = model(name)
    tokens = tokens_of(model, TEXT)
    hidden = model.method.encode(tokens, None)[1] if name == "teams_mws" else model.encoder(tokens)
    expected = 1 - model.method.rtd_head(hidden)[0, 1:-1].sigmoid()
    detections = model.detect(TEXT)
    assert [detection.replaced for detection in detections] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [TEXT[d.begin : d.end] for d in detections if d.token.endswith("alpha")] == ["Alpha"]


def test_detection_of_peer_is_the_top_level_and_of_script_the_critic(model):
    peer, script = model("peer_tqr"), model("script_selfcritic")
    head = peer.method.tqr_head
    score = head(peer.encoder(tokens_of(peer, TEXT)))[0, 1:-1]
    expected = (head.level_thresholds()[-1] - score).sigmoid()  # P(R <= K - 1)
    assert [d.replaced for d in peer.detect(TEXT)] == pytest.approx(expected.tolist(), abs=1e-6)
    logits = script.method.mlm_head(script.encoder(tokens_of(script, TEXT)))[0, 1:-1]
    expected = (-logits.logsumexp(-1)).sigmoid()
    assert [d.replaced for d in script.detect(TEXT)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_script_scores_in_one_pass_and_others_token_by_token(model):
    script, bert = model("script_selfcritic"), model("bert_mlm")
    probability = [1 - d.replaced for d in script.detect("alpha, beta")]
    (score,) = script.score(["alpha, beta"])
    assert score.pll == pytest.approx(torch.tensor(probability).log().sum().item(), rel=1e-4)
    assert score.tokens == len(probability) and script.score(["alpha"], special_tokens=True)[0].tokens == 3
    assert script.score(["alpha"], "masked") != script.score(["alpha"])
    assert bert.score(["alpha"]) == bert.score(["alpha"], "masked")


def test_within_words_the_first_and_the_last_token_are_two(model):
    """Of one word of one piece nothing else is masked."""
    bert = model("bert_mlm")
    within, masked = (bert.score(["alpha"], way, special_tokens=True)[0] for way in ("within-word", "masked"))
    assert len(bert.tokenizer.encode("alpha")) == 1 and within == masked


@pytest.mark.parametrize(
    "use, message",
    [
        (lambda model: model.features("alpha " * 200), "202 tokens, but the model reads"),
        (lambda model: model.features("alpha", pooling="max"), "pooling 'max' is none of mean, first"),
        (lambda model: model.fill_mask("alpha"), "there is no <mask> in 'alpha'"),
        (lambda model: model.fill_mask("<mask>", top=0), "top 0 must lie between 1 and the vocabulary's 56"),
        (lambda model: model.detect("alpha"), "MaskedLM learns to predict masked tokens, not to detect replaced ones"),
    ],
)
def test_mistakes_are_named(model, use, message):
    with pytest.raises(ValueError, match=message):
        use(model("bert_mlm"))


def test_an_encoder_alone_has_features_only(model):
    made = model("bert_mlm")
    alone = Pretrained("here", "bert_mlm", made.encoder, made.tokenizer)
    assert torch.equal(alone.features(TEXT), made.features(TEXT))
    with pytest.raises(ValueError, match="here holds an encoder only, not a masked language model"):
        alone.fill_mask("<mask>")


def test_loading_needs_no_fairseq():
    code = "import sys, amos_fairseq.pretrained; sys.exit('fairseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_method_whose_schedule_needs_the_length_of_the_run_is_loaded(model, save_checkpoint, tokenizer, tmp_path):
    made = model("amos_rtd", mixture="layer_switch", total_updates=90)
    save_checkpoint(tmp_path / "checkpoint_1_2", "amos_rtd", made.method, tokenizer)
    assert amos_fairseq.from_pretrained(tmp_path).method.total_updates == 90
