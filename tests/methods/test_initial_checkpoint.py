"""Continued pre-training: what each method takes from an earlier run of any method, what it leaves, what it refuses."""

import re

import pytest
import torch

from amos_fairseq.methods import METHODS
from amos_fairseq.methods.continuation import EarlierRun, load_generator, start_from


def modules(method):
    return {module for module, _ in method.named_children()}


def listed(names):
    return set(names.split(", ")) - {"nothing"}


@pytest.fixture
def start(make_method, caplog):
    """start(earlier, name, **options): the new method, and the modules that its log says were taken.

    On the way: the log is one line that names every module, and the parameters are what it says.
    """

    def start(earlier, name, **options):
        method, untouched = (make_method(name, **options) for _ in range(2))
        caplog.clear()
        with caplog.at_level("INFO", logger="amos_fairseq"):
            start_from(method, EarlierRun("old.pt", earlier.state_dict()))
        (message,) = caplog.messages
        taken, new = map(listed, re.fullmatch("old.pt: took (.*); new: (.*)", message).groups())
        assert taken | new == modules(method) and not taken & new

        learned = {key.replace("generators.0.", "generator."): value for key, value in earlier.state_dict().items()}
        of_taken = {parameter for module in taken for parameter in getattr(method, module).parameters()}
        for key, parameter in method.named_parameters():
            if parameter in of_taken:
                assert torch.equal(parameter, learned[key.replace("generators.0.", "generator.")]), key
            else:
                assert torch.equal(parameter, untouched.state_dict()[key]), key
        return method, taken

    return start


@pytest.mark.parametrize("name", METHODS)
def test_every_method_starts_from_the_encoder_of_bert_and_bert_and_script_from_its_head_too(make_method, start, name):
    """Where there is a generator, the MLM head is the generator's."""
    method, taken = start(make_method("bert_mlm", seed=5), name)
    assert taken == ({"encoder", "mlm_head"} if name in ("bert_mlm", "script_selfcritic") else {"encoder"})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_starts_from_the_encoder_of_amos_and_amos_from_all_of_it(make_method, start, name):
    """The other generators have another shape."""
    method, taken = start(make_method("amos_rtd", seed=5), name)
    assert taken == (modules(method) if name == "amos_rtd" else {"encoder"})


@pytest.mark.parametrize("name", METHODS)
def test_the_same_method_goes_on_with_all_of_its_parameters(make_method, start, batch, name):
    earlier = make_method(name, seed=5)
    method, taken = start(earlier, name)
    assert taken == modules(method)
    found, expected = (network.losses(network(batch), batch) for network in (method, earlier))
    assert all(torch.equal(found[term].total, expected[term].total) for term in expected)


FULL_WIDTH = dict(generator_layers=2, generator_embed_dim=0)  # as deep as the towers of the other methods here


@pytest.mark.parametrize(
    "earlier, name, options",
    [
        (("amos_rtd", dict(generator_depths=[1, 2])), "electra_rtd", FULL_WIDTH),
        (("electra_rtd", FULL_WIDTH), "amos_rtd", dict(generator_depths=[2])),
        (("coco_lm", dict(generator_layers=2)), "amos_rtd", dict(generator_depths=[1, 2])),
        (("teams_mws", {}), "peer_tqr", {}),
        (("peer_tqr", {}), "teams_mws", dict(tied_layers="none")),
        (("teams_mws", {}), "coco_lm", dict(generator_layers=2)),
    ],
)
def test_generator_of_the_same_shape_is_taken_whatever_its_method(make_method, start, batch, earlier, name, options):
    earlier_name, earlier_options = earlier
    earlier = make_method(earlier_name, seed=5, gain=5.0, **earlier_options)
    method, taken = start(earlier, name, **options)
    assert {"encoder", "mlm_head"} < taken and {"generator", "generators"} & taken
    of_both = (network(batch).masked_lm for network in (earlier, method))
    losses, predicted = zip(*((read.losses[:, -1], read.predicted[:, -1]) for read in of_both))  # AMOS: the deepest
    assert torch.equal(*losses) and torch.equal(*predicted)


@pytest.mark.parametrize(
    "earlier, name, options",
    [
        (("amos_rtd", dict(generator_depths=[1, 2])), "teams_mws", {}),  # its positions are its own
        (("amos_rtd", dict(generator_depths=[1, 2])), "coco_lm", dict(generator_layers=2)),  # as above
        (("peer_tqr", dict(tied_layers="none")), "peer_tqr", {}),  # its bottom layers are its own
        (("coco_lm", dict(generator_checkpoint="its.pt")), "coco_lm", {}),  # its token table is its own
        (("amos_rtd", dict(generator_depths=[2, 2], separate_generators=True)), "coco_lm", dict(generator_layers=2)),
        (("electra_rtd", FULL_WIDTH), "amos_rtd", dict(generator_depths=[2, 2], separate_generators=True)),
    ],
)
def test_generator_that_shares_less_or_is_one_of_several_is_left(make_method, start, earlier, name, options):
    earlier_name, earlier_options = earlier
    earlier = make_method(earlier_name, seed=5, **earlier_options)
    with torch.no_grad():  # what starts as a copy is one no longer
        for parameter in earlier.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert start(earlier, name, **options)[1] == {"encoder"}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "options, difference",
    [
        (dict(encoder_layers=3), r"encoder\.layers\.2\.self_attn\.in_proj\.weight is \(48, 16\), not absent"),
        (dict(encoder_layers=1), r"encoder\.layers\.1\.self_attn\.in_proj\.weight is absent, not \(48, 16\)"),
        (dict(encoder_ffn_embed_dim=32), r"encoder\.layers\.0\.fc1\.weight is \(32, 16\), not \(24, 16\)"),
        (dict(max_positions=16), r"encoder\.embeddings\.positions\.weight is \(16, 16\), not \(32, 16\)"),
        (dict(rel_pos_buckets=0), r"encoder\.relative_position_bias\.weight is absent, not \(8, 2\)"),
    ],
)
def test_another_encoder_is_refused_and_nothing_is_taken(make_method, name, options, difference):
    generators = {"teams_mws": dict(generator_layers=1), "peer_tqr": dict(generator_layers=1)}
    earlier = make_method("bert_mlm", seed=5, **options)
    method, untouched = (make_method(name, **generators.get(name, {})) for _ in range(2))
    message = f"old.pt does not hold the encoder that the options describe: {difference}; set the encoder's options"
    with pytest.raises(ValueError, match=message):
        start_from(method, EarlierRun("old.pt", earlier.state_dict()))
    assert all(torch.equal(value, untouched.state_dict()[key]) for key, value in method.state_dict().items())


def test_vocabulary_of_another_size_is_refused_with_both_shapes(make_method):
    state = make_method("bert_mlm").state_dict()
    state["encoder.token_embeddings.weight"] = torch.zeros(50, 16)
    with pytest.raises(ValueError, match=r"token_embeddings\.weight is \(50, 16\), not \(40, 16\); .* the vocabulary"):
        start_from(make_method("electra_rtd"), EarlierRun("old.pt", state))


@pytest.mark.parametrize(
    "option, there, here",
    [
        ("encoder_attention_heads", 4, 2),
        ("rel_pos_max_distance", 32, 16),
        ("rel_pos_bucketing", "released", "t5"),
    ],
)
def test_options_that_no_shape_shows_are_compared_where_the_run_tells_them(make_method, option, there, here):
    method, state = make_method("bert_mlm"), make_method("bert_mlm", seed=5).state_dict()
    with pytest.raises(ValueError, match=f"old.pt was trained with {option} {there}, not {here}: set it"):
        start_from(method, EarlierRun("old.pt", state, {option: there}))
    start_from(method, EarlierRun("old.pt", state, {option: here, "dropout": 0.5}))
    assert torch.equal(method.encoder.token_embeddings.weight, state["encoder.token_embeddings.weight"])


@pytest.mark.parametrize("width, taken", [(16, True), (0, False)])
def test_a_generator_with_other_heads_is_not_taken_though_its_shapes_are_the_same(make_method, width, taken):
    """Of a width of its own, 16, it has one head; with the encoder's width, 16 as well, the encoder's two."""
    options = dict(generator_layers=1, encoder_ffn_embed_dim=64, rel_pos_buckets=0)
    earlier = make_method("electra_rtd", seed=5, generator_embed_dim=width, **options)
    run = EarlierRun("old.pt", earlier.state_dict(), dict(encoder_attention_heads=2, generator_embed_dim=width))
    method, other = (make_method("electra_rtd", generator_embed_dim=16, **options) for _ in range(2))
    start_from(method, run)
    key = "generator.layers.0.fc1.weight"
    assert torch.equal(method.state_dict()[key], run.state[key]) == taken
    assert torch.equal(method.encoder.token_embeddings.weight, run.state["encoder.token_embeddings.weight"])
    if taken:
        load_generator(other, run)
    else:
        with pytest.raises(ValueError, match="old.pt was trained with encoder_attention_heads 2, not 1: set it as in"):
            load_generator(other, run)


def test_distances_do_not_matter_without_relative_positions(make_method):
    method, earlier = (make_method("bert_mlm", seed=seed, rel_pos_buckets=0) for seed in (0, 5))
    start_from(method, EarlierRun("old.pt", earlier.state_dict(), {"rel_pos_max_distance": 32}))
