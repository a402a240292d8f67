"""Groups of parameters with learning rates of their own."""

import pytest

from amos_fairseq.methods import METHODS

SHARED_TABLE = {"encoder.token_embeddings.weight"}
FACTORS = dict(rel_pos_lr_factor=30.0, encoder_lr_factor=0.25, generator_lr_factor=2.0)
TWO_NETWORKS = [name for name in METHODS if name not in ("bert_mlm", "script_selfcritic")]


def groups_of(method):
    """(factor, names of its parameters) by group."""
    names = {parameter: name for name, parameter in method.named_parameters()}
    groups = method.learning_rate_groups()
    return {group.name: (group.factor, {names[parameter] for parameter in group.parameters}) for group in groups}


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_is_in_one_group_and_by_default_all_factors_are_1(make_method, name):
    method = make_method(name)
    groups = method.learning_rate_groups()
    assert {group.factor for group in groups} == {1.0}
    assert sorted(map(id, method.parameters())) == sorted(id(p) for group in groups for p in group.parameters)


@pytest.mark.parametrize("name", TWO_NETWORKS)
def test_factors_are_those_of_the_options_and_what_both_networks_use_has_1(make_method, name):
    groups = groups_of(make_method(name, **FACTORS))
    assert {group: factor for group, (factor, _) in groups.items()} == dict(
        rel_pos=30.0, encoder=0.25, generator=2.0, shared=1.0
    )
    assert all(name.endswith("relative_position_bias.weight") for name in groups["rel_pos"][1])
    assert len(groups["rel_pos"][1]) == 2  # one of each network
    assert SHARED_TABLE <= groups["shared"][1]


@pytest.mark.parametrize("name, shared", [
    ("electra_rtd", SHARED_TABLE), ("amos_rtd", SHARED_TABLE), ("coco_lm", "encoder.embeddings."),
    ("peer_tqr", "encoder.layers.0."), ("teams_mws", "encoder.layers.0."),
])
def test_shared_are_the_token_table_and_what_the_method_shares_besides(make_method, name, shared):
    """The generator of two layers on a small encoder shares its lower one (TEAMS, PEER), COCO-LM's no layer."""
    found = groups_of(make_method(name))["shared"][1]
    if shared is SHARED_TABLE:
        assert found == shared
    else:
        assert any(name.startswith(shared) for name in found)
        assert all(name.startswith(("encoder.embeddings.", "encoder.layers.0.", *SHARED_TABLE)) for name in found)


def test_heads_belong_to_the_network_that_they_read(make_method):
    groups = groups_of(make_method("amos_rtd"))
    assert {"rtd_head.score.weight", "encoder.layers.1.fc1.weight"} <= groups["encoder"][1]
    assert {"mixture_head.weight", "mlm_head.bias", "mlm_head.dense.weight"} <= groups["generator"][1]
    branches = groups_of(make_method("teams_mws"))["encoder"][1]
    assert {"mws_head.dense.weight", "branch_layer.fc1.weight", "encoder.layers.1.fc1.weight"} <= branches


@pytest.mark.parametrize("name", ["bert_mlm", "script_selfcritic"])
def test_one_network_has_a_group_for_the_biases_and_one_for_the_rest(make_method, name):
    groups = groups_of(make_method(name, rel_pos_lr_factor=30.0))
    assert groups["rel_pos"] == (30.0, {"encoder.relative_position_bias.weight"})
    assert groups.keys() == {"rel_pos", "encoder"} and groups["encoder"][0] == 1.0


@pytest.mark.parametrize("name, options, words", [
    ("bert_mlm", dict(rel_pos_buckets=0, rel_pos_lr_factor=30.0), "rel_pos_lr_factor 30.0 is of no parameter"),
    ("coco_lm", dict(random_replacements=True, generator_lr_factor=2.0), "generator_lr_factor 2.0 is of no parameter"),
    ("coco_lm", dict(generator_checkpoint="run", generator_lr_factor=2.0), "generator_lr_factor 2.0 is of no"),
])
def test_a_factor_of_no_parameter_is_refused(make_method, name, options, words):
    with pytest.raises(ValueError, match=words):
        make_method(name, **options).learning_rate_groups()


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_not_above_0_is_refused(make_method, name, value):
    with pytest.raises(ValueError, match=f"{name} {value} is out of range: it must be above 0"):
        make_method("electra_rtd", **{name: value})
