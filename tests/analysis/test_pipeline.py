"""The stages of a sentence: literal numbers, then every method's against the method itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from amos_fairseq.analysis import inspection, pipeline
from amos_fairseq.analysis.checkpoint import Sampling, TrainedRun
from amos_fairseq.data.masking import MaskingOptions
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.methods.stages import Proposals, Words
from amos_fairseq.pretrained.model import Pretrained

TEXT = "alpha beta gamma delta epsilon zeta eta theta alpha gamma"


@pytest.fixture
def trained(make_method, tokenizer):
    """trained(name): a run of random parameters."""

    def trained(name, task=(), **options):
        vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
        method = make_method(name, vocabulary=vocabulary, gain=4.0, **options).eval()
        return TrainedRun(Pretrained("here", name, method.encoder, tokenizer, method), None, dict(task))

    return trained


def test_a_draw_has_its_probability_in_the_mixture_of_the_generators_logits():
    method = SimpleNamespace(excluded_tokens=torch.tensor([False, False, True]))
    proposed = {
        "layer 1": Proposals(torch.tensor([[0.0, 4.0, 9.0]]), torch.tensor([0.25])),
        "layer 2": Proposals(torch.tensor([[4.0, 0.0, 9.0]]), torch.tensor([0.75])),
    }
    (draw,) = pipeline.draws(method, torch.tensor([0]), proposed, Words("abc", [1], top=2))  # mixed logits 3 and 1
    assert draw.token == "a" and draw.probability == pytest.approx(0.880797, abs=1e-6)  # sigmoid(2)


def test_without_a_generator_all_tokens_that_can_be_drawn_are_as_likely():
    method = SimpleNamespace(excluded_tokens=torch.tensor([True, False, False, False, False]))
    (draw,) = pipeline.draws(method, torch.tensor([3]), {}, Words("abcde", [1], top=2))
    assert (draw.token, draw.probability) == ("d", 0.25)


OF_POSITIONS = {
    "amos_rtd": {"sampled"}, "coco_lm": {"sampled", "correction"}, "teams_mws": {"sampled", "candidates"},
    "peer_tqr": {"sampled", "ranking"}, "script_selfcritic": {"sampled"}, "electra_rtd": {"sampled"}, "bert_mlm": set(),
}
OF_TOKENS = {"original", "masked", "selected", "corrupted", "replaced", "logit", "probability"}


@pytest.mark.parametrize("name", METHODS)
def test_a_sentence_has_the_fields_of_its_method_and_no_others(trained, name):
    (sentence,) = trained(name).inspect_text([TEXT], Sampling(mask_prob=0.3))
    document = sentence.as_json()
    assert document["method"] == name and document["text"] == TEXT
    of_tokens = OF_TOKENS if name != "bert_mlm" else {"original", "masked", "selected"}
    assert all(set(token) == of_tokens for token in document["tokens"])
    assert len(document["positions"]) == sum(token["selected"] for token in document["tokens"]) == 3
    for position in document["positions"]:
        assert set(position) == {"index", "proposals", *OF_POSITIONS[name]}
        assert document["tokens"][position["index"]]["selected"]


@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_are_the_methods(trained, tokenizer, name):
    run = trained(name)
    method = run.model.method
    tokens = np.array(tokenizer.sequence(tokenizer.encode(TEXT)))
    batch = pipeline.masked_batch(run.model, tokens, MaskingOptions(mask_prob=0.3), seed=1, number=0)
    with torch.no_grad():
        output = method(batch)
        sentence = pipeline.follow(run.model, batch, top=2)
    ids = {symbol: number for number, symbol in enumerate(tokenizer.symbols)}
    allowed = ~method.excluded_tokens
    depths = output.masked_lm.losses.shape[1]
    for row, position in enumerate(sentence.positions):
        assert len(position.proposals) == depths
        for depth, proposal in enumerate(position.proposals):
            # Over all tokens p = exp(-loss); over those that can be drawn it is larger by one factor.
            assert proposal.original >= (-output.masked_lm.losses[row, depth]).exp().item() * 0.9999
            if allowed[output.masked_lm.predicted[row, depth]]:
                assert ids[proposal.top[0].token] == output.masked_lm.predicted[row, depth]
        if name != "bert_mlm":
            assert ids[position.sampled.token] == output.sampled_tokens[row]
    if name != "bert_mlm":
        corrupted = torch.tensor([[ids[token.corrupted] for token in sentence.tokens]])
        assert torch.equal(corrupted, output.corruption.corrupted_tokens)
        assert [token.replaced for token in sentence.tokens] == output.corruption.replaced_positions[0].tolist()
        with torch.no_grad():
            expected = method.detection_logits(corrupted)[0]
        assert [token.logit for token in sentence.tokens] == pytest.approx(expected.tolist(), abs=1e-5)
        probabilities = [token.probability for token in sentence.tokens]
        assert probabilities == pytest.approx(expected.sigmoid().tolist(), abs=1e-6)


def test_mixture_weights_are_those_of_amos(trained):
    run = trained("amos_rtd")
    (sentence,) = run.inspect_text([TEXT], Sampling(mask_prob=0.3))
    names = ["layer 1", "layer 2", "layer 4"]
    for position in sentence.positions:
        assert [proposal.generator for proposal in position.proposals] == names
        weights = [proposal.mixture_weight for proposal in position.proposals]
        assert sum(weights) == pytest.approx(1) and len(set(weights)) == 3


def test_candidates_are_the_original_and_the_negatives_of_teams(trained):
    run = trained("teams_mws", num_negatives=3)
    (sentence,) = run.inspect_text([TEXT], Sampling(mask_prob=0.3))
    for position in sentence.positions:
        tokens = [choice.token for choice in position.details["candidates"]]
        assert tokens[0] == sentence.tokens[position.index].original and len(set(tokens)) == 4
        assert sum(choice.probability for choice in position.details["candidates"]) == pytest.approx(1)


@pytest.mark.parametrize("name", METHODS)
def test_written_masks_are_all_that_is_masked_and_have_no_original(trained, name):
    run = trained(name)
    sentence, plain = run.inspect_text(["alpha <mask> gamma <mask>", "alpha"], Sampling(top=4))
    assert [position.index for position in sentence.positions] == [2, 4] and plain.positions == []
    filled = run.model.fill_mask("alpha <mask> gamma <mask>", top=4)
    for position, fillings in zip(sentence.positions, filled):
        deepest = position.proposals[-1]
        assert [choice.token for choice in deepest.top] == [filling.token for filling in fillings]
        expected = [filling.probability for filling in fillings]
        assert [choice.probability for choice in deepest.top] == pytest.approx(expected, rel=1e-4)
        assert deepest.original is None and "candidates" not in position.details
        assert sentence.tokens[position.index].original is sentence.tokens[position.index].replaced is None


def test_the_same_seed_gives_the_same_and_another_seed_other_masks(trained):
    first, again, other = (trained("amos_rtd").inspect_text([TEXT] * 2, Sampling(0.3, seed)) for seed in (1, 1, 2))
    assert first == again and first != other
    assert first[0].positions != first[1].positions  # the number of the sentence counts


def test_masks_are_drawn_as_the_run_drew_them(trained):
    shares = dict(mask_token_prob=0.0, keep_prob=1.0, random_prob=0.0, mask_prob=0.5, data="elsewhere")
    (sentence,) = trained("electra_rtd", task=shares).inspect_text([TEXT])
    assert sum(token.selected for token in sentence.tokens) == 5
    assert all(token.masked == token.original for token in sentence.tokens)


def test_random_replacements_have_no_proposals(trained):
    (sentence,) = trained("coco_lm", random_replacements=True).inspect_text([TEXT])
    (first, *_) = sentence.positions
    assert first.proposals == [] and first.sampled.probability == pytest.approx(1 / (56 - 5))


def test_ablations_without_a_head_lack_its_fields(trained):
    (teams,) = trained("teams_mws", mws_weight=0.0).inspect_text([TEXT])
    (detecting,) = trained("teams_mws", rtd_weight=0.0).inspect_text([TEXT])
    (copying,) = trained("coco_lm", clm_without_copy=True).inspect_text([TEXT])
    assert teams.positions[0].details == {} and "candidates" in detecting.positions[0].details
    assert {token.probability for token in detecting.tokens} == {None}
    correction = copying.positions[0].details["correction"]
    assert correction.copy is None and correction.corrected == correction.language_model[0]


def test_a_line_that_is_too_long_is_named(trained):
    with pytest.raises(ValueError, match="line 2 has 42 tokens, but the model reads 32: shorten it"):
        trained("bert_mlm").inspect_text(["alpha", "alpha " * 40])


def test_what_a_new_method_says_of_a_position_is_told_and_printed(trained, monkeypatch):
    def details(self, output, batch, words):
        return {"hunch": [2.5] * len(words.known), "second": [words.named([4], [0.5])[0]] * len(words.known)}

    monkeypatch.setitem(METHODS, "hunches", type("Hunches", (METHODS["electra_rtd"],), {"details": details}))
    run = trained("hunches", generator_embed_dim=8)
    (sentence,) = run.inspect_text([TEXT])
    symbol = run.model.tokenizer.symbols[4]
    told = sentence.as_json()["positions"][0]
    assert told["hunch"] == 2.5 and told["second"] == {"token": symbol, "probability": 0.5}
    cells = inspection.cells_of(sentence, sentence.positions[0], 0.5)
    assert cells["hunch"].plain == "hunch 2.500" and cells["second"].plain == f"-> {inspection.piece(symbol)} 0.500"
