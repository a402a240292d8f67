"""An earlier run's generator that is read and no longer trained."""

import pytest
import torch

from amos_fairseq.methods.continuation import EarlierRun, load_generator

UNTIED = dict(tied_layers="none", generator_dropout=0.3)
METHODS = {  # of the frozen one the dropout plays no part
    "amos_rtd": {}, "electra_rtd": dict(generator_dropout=0.3), "coco_lm": dict(generator_dropout=0.3),
    "teams_mws": UNTIED, "peer_tqr": UNTIED,
}
OF_GENERATOR = ("generator", "mlm_head")
FROZEN = dict(generator_checkpoint="some.pt")


def without_dropout(name):
    return {option: value for option, value in METHODS[name].items() if option != "generator_dropout"}


@pytest.fixture
def make_frozen(make_method):
    """make_frozen(name, **options): the earlier run's method, and one with its generator."""

    def make_frozen(name, **options):
        earlier = make_method(name, seed=5, gain=10.0, **without_dropout(name))
        method = make_method(name, **METHODS[name], **FROZEN, **options)
        load_generator(method, EarlierRun("some.pt", earlier.state_dict()))
        return earlier, method

    return make_frozen


@pytest.mark.parametrize("table", ["shared", "separate", "gdes"])
@pytest.mark.parametrize("name", METHODS)
def test_it_proposes_as_it_did_and_learns_nothing(make_frozen, batch, gradients, name, table):
    earlier, method = make_frozen(name, token_table=table)
    with torch.no_grad():  # of AMOS the mixture is new
        found, expected = (network(batch).masked_lm for network in (method, earlier))
    assert torch.equal(found.losses, expected.losses) and torch.equal(found.predicted, expected.predicted)
    if name != "amos_rtd":
        assert torch.equal(found.sampled, expected.sampled)
    trained = {key for key, parameter in method.named_parameters() if parameter.requires_grad}
    assert not [key for key in trained if key.startswith(OF_GENERATOR)]
    reached = gradients(method, batch)
    assert any(key.startswith("encoder.layers") for key in reached) and reached <= trained
    assert ("mixture_head.weight" in reached) == (name == "amos_rtd")
    assert "mlm" not in method.losses(method(batch), batch)
    assert method.masked_lm_encoder.token_embeddings.weight is not method.encoder.token_embeddings.weight


def test_amoss_mixture_of_frozen_depths_is_still_learned(make_frozen, batch, gradients):
    _, method = make_frozen("amos_rtd")
    reached = gradients(method, batch, "rtd")
    assert "mixture_head.weight" in reached and not [key for key in reached if key.startswith(OF_GENERATOR)]


def test_with_gdes_the_encoder_starts_at_its_table(make_frozen):
    earlier, method = make_frozen("electra_rtd", token_table="gdes")
    assert torch.equal(method.encoder.token_embeddings.weight, earlier.mlm_head.token_embeddings.weight)
    assert method.encoder.token_embeddings.delta.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_it_costs_its_forward_pass_alone(make_method, make_frozen, batch, name):
    """Of 12 tokens each of 3 sequences, 9 of them selected."""
    _, method = make_frozen(name)
    trained = make_method(name, **without_dropout(name))
    of_generator = method.generator_flops(36, 12, 9)
    assert trained.training_flops(batch) - method.training_flops(batch) == 2 * of_generator > 0
    if name == "electra_rtd":  # two layers of width 8, one head, and the maps from and to a table of width 16
        layer = 36 * (8 * 8**2 + 4 * 12 * 8 + 4 * 8 * 32)
        last = 36 * 4 * 8**2 + 9 * (4 * 8**2 + 4 * 12 * 8 + 4 * 8 * 32)
        assert of_generator == layer + last + 36 * 2 * 16 * 8 + 9 * 2 * (8 * 16 + 16 * 40)


def test_a_generator_of_another_method_fits_if_it_is_the_same_network(make_method, batch):
    earlier = make_method("amos_rtd", seed=5, gain=10.0, generator_depths=[1, 2])
    method = make_method("electra_rtd", generator_layers=2, generator_embed_dim=0, **FROZEN)
    load_generator(method, EarlierRun("some.pt", earlier.state_dict()))
    found, expected = (network(batch).masked_lm.losses for network in (method, earlier))
    torch.testing.assert_close(found[:, 0], expected[:, 1])


@pytest.mark.parametrize("name, options, words", [
    ("electra_rtd", dict(output_bias_init="log_frequency"), "output_bias_init log_frequency is of a generator that is"),
    ("amos_rtd", dict(join_blocks=True), "join_blocks True trains the generator, which generator_checkpoint 'some.pt'"),
    ("amos_rtd", dict(adversarial_mlm_scale=0.1), "adversarial_mlm_scale 0.1 trains the generator, which"),
    ("teams_mws", {}, "generator_checkpoint leaves no layers to share: set tied_layers none, not half"),
    ("coco_lm", dict(random_replacements=True), "generator_checkpoint 'some.pt' is of a generator, which random_repl"),
])
def test_what_cannot_be_meant_is_refused(make_method, name, options, words):
    with pytest.raises(ValueError, match=words):
        make_method(name, **FROZEN, **options)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"amos_rtd"}))
def test_a_learning_rate_for_it_is_refused(make_method, name):
    method = make_method(name, **METHODS[name], **FROZEN, generator_lr_factor=2.0)
    with pytest.raises(ValueError, match="generator_lr_factor 2.0 is of no parameter"):
        method.learning_rate_groups()
