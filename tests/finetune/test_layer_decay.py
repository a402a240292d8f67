"""Lower learning rates for lower layers: the rule on literal numbers, and what reaches the optimizer in each precision.
"""

import pytest
import torch

pytest.importorskip("fairseq")
import amos_fairseq.tasks  # noqa: E402, F401 (installs the repairs)
from amos_fairseq import checkpoints  # noqa: E402
from amos_fairseq.finetune.labelled import Problem  # noqa: E402
from amos_fairseq.finetune.model import Origin, learning_rate_factors, new_network  # noqa: E402
from amos_fairseq.modules.encoder import EncoderConfig  # noqa: E402

ENCODER = dict(vocab_size=40, padding_idx=1, layers=3, dim=16, heads=2, ffn_dim=24, max_positions=32)
PRECISIONS = {
    "fp32": {},
    "bf16": dict(bf16=True),
    "fp16": dict(fp16=True),
    "memory-efficient bf16": dict(memory_efficient_bf16=True),
    "memory-efficient fp16": dict(memory_efficient_fp16=True),
}


def network(kind="classification", method="electra_rtd", **options):
    problem = Problem("toy", kind, ["accuracy"], "", ["a", "b"], [5, 6] if kind == "prompt" else [])
    return new_network(Origin(method, EncoderConfig(**{**ENCODER, **options})), problem, mask_token=39)


def test_factors_of_three_layers():
    factors = learning_rate_factors(network(embedding_dim=8), 0.5)
    expected = {
        "head.dense": 1.0, "head.out_proj": 1.0, "encoder.layers.2": 1.0, "encoder.layers.1": 0.5,
        "encoder.layers.0": 0.25, "encoder.relative_position_bias": 0.25, "encoder.embeddings.projection": 0.125,
        "encoder.embeddings.positions": 0.125, "encoder.embeddings.layer_norm": 0.125,
        "encoder.token_embeddings": 0.125,
    }
    found = {}
    for name, factor in factors.items():
        (module,) = [module for module in expected if name.startswith(f"{module}.")]
        found.setdefault(module, set()).add(factor)
    assert found == {module: {factor} for module, factor in expected.items()}
    assert factors.keys() == dict(network(embedding_dim=8).named_parameters()).keys()


def test_factors_of_electras_code_are_two_decays_lower_beneath_the_head():
    """Its layers, counted from 1, have decay ** (L + 2 - l), embeddings decay ** (L + 2)."""
    factors = learning_rate_factors(network(), 0.8, top=2)
    assert factors["head.dense.weight"] == 1.0 and factors["encoder.layers.2.fc1.weight"] == pytest.approx(0.64)
    assert factors["encoder.layers.0.fc1.weight"] == pytest.approx(0.8**4)
    assert factors["encoder.token_embeddings.weight"] == pytest.approx(0.8**5)


def test_the_table_that_a_prompt_reads_learns_as_the_embeddings_do():
    factors = learning_rate_factors(network("prompt", "bert_mlm"), 0.5)
    assert factors["encoder.token_embeddings.weight"] == 0.125 and factors["head.lm_head.bias"] == 1.0
    assert "head.lm_head.token_embeddings.weight" not in factors


def test_without_decay_all_learn_alike():
    assert set(learning_rate_factors(network(), 1.0).values()) == {1.0}


@pytest.mark.parametrize(
    "precision",
    [pytest.param(name, marks=[pytest.mark.soak] * name.startswith("memory")) for name in PRECISIONS],
)
def test_every_layer_has_its_rate_after_the_schedulers_steps(toy, checkpoint, finetune, tmp_path, precision):
    """Of 2 layers: 1, 1/2 and 1/4 of 0.01 * (40 - 5) / (40 - 4), for as many parameters as those layers have."""
    options = dict(PRECISIONS[precision], layer_decay=0.5, max_update=5, weight_decay=0.1, disable_validation=True)
    finetune(toy("classification"), checkpoint(), save_dir=tmp_path, **options)
    state = checkpoints.read(tmp_path / "checkpoint_last")
    rate = 0.01 * 35 / 36
    groups = state["last_optimizer_state"]["param_groups"]
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
    matrices = {1.0: 4 + 2, 0.5: 4 + 1, 0.25: 2}  # with the head's; with the table of relative positions; embeddings
    vectors = {1.0: 8 + 2, 0.5: 8, 0.25: 2}
    expected = []
    for factor in (1.0, 0.5, 0.25):
        expected.append((pytest.approx(factor * rate, rel=1e-9), 0.1, matrices[factor]))
        expected.append((pytest.approx(factor * rate, rel=1e-9), 0.0, vectors[factor]))
    assert found == expected


def test_the_first_step_of_each_layer_is_as_long_as_its_rate(toy, checkpoint, finetune, tmp_path):
    """Adam's first step is its learning rate, in the direction of the gradient's sign."""
    start = checkpoint()
    options = dict(layer_decay=0.5, layer_decay_top=2, max_update=1, warmup_updates=0, adam_eps=1e-12)
    options["disable_validation"] = True
    finetune(toy("classification"), start, save_dir=tmp_path, **options)
    before, after = (checkpoints.read(path)["model"] for path in (start, tmp_path / "checkpoint_last"))
    for layer, factor in ((1, 0.25), (0, 0.125)):
        name = f"encoder.layers.{layer}.fc1.bias"
        moved = (after[f"network.{name}"] - before[f"method.{name}"]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, factor * 0.01), rtol=1e-3, atol=0)
