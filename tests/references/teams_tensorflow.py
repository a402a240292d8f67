"""TEAMS of the TensorFlow Model Garden on drawn weights, inputs and replacements; writes teams_tensorflow.json.

python3.11 -m venv VENV && VENV/bin/pip install tensorflow-cpu==2.20.0 tf-keras==2.20.0 scipy gin-config pyyaml \
tensorflow-hub && VENV/bin/pip install --no-deps tf-models-official==2.20.0 && VENV/bin/python THIS_FILE

The weights are not stored: test_teams_tensorflow.py draws them again, with numpy alone.
"""

import json
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np

RESULTS = Path(__file__).with_suffix(".json")
VOCABULARY, PADDING, MASK, SPECIALS = 40, 1, 39, 4
DIM, HEADS, FFN, MAX_POSITIONS = 16, 2, 24, 16
ENCODER_LAYERS, GENERATOR_LAYERS, TIED_LAYERS, NEGATIVES = 4, 4, 2, 5
LENGTHS, MASKED = (12, 9, 12, 6), (3, 2, 3, 1)
TABLE_WIDTHS = {"table as wide as the encoder": DIM, "factorised table": 8}
WEIGHTS_SEED, DIRECTION_SEED, INPUTS_SEED = 1, 2, 3

LAYER = {  # our module -> its outputs and inputs, theirs, whose rows follow each other in ours
    "self_attn.in_proj": (3 * DIM, DIM, ["self_attention/query", "self_attention/key", "self_attention/value"]),
    "self_attn.out_proj": (DIM, DIM, ["self_attention/attention_output"]),
    "self_attn_layer_norm": (DIM, None, ["self_attention_layer_norm"]),
    "fc1": (FFN, DIM, ["intermediate"]),
    "fc2": (DIM, FFN, ["output"]),
    "final_layer_norm": (DIM, None, ["output_layer_norm"]),
}
LAYERS = [f"encoder.layers.{i}" for i in range(ENCODER_LAYERS)] + ["branch_layer"]
LAYERS += [f"generator.layers.{i}" for i in range(TIED_LAYERS, GENERATOR_LAYERS)]


def shapes(table_width: int) -> dict:
    """Our parameters that have one of theirs: name -> shape. The projection's bias, which theirs lacks, is not here."""
    found = {
        "encoder.token_embeddings.weight": (VOCABULARY, table_width),
        "encoder.embeddings.positions.weight": (MAX_POSITIONS, table_width),
        "mlm_head.bias": (VOCABULARY,),
    }
    if table_width != DIM:
        found["encoder.embeddings.projection.weight"] = (DIM, table_width)
    modules = {f"{layer}.{part}": sizes[:2] for layer in LAYERS for part, sizes in LAYER.items()}
    modules |= {"encoder.embeddings.layer_norm": (table_width, None)}
    modules |= {"rtd_head.dense": (DIM, DIM), "rtd_head.score": (1, DIM)}
    for head in ("mlm_head", "mws_head"):
        modules |= {f"{head}.dense": (table_width, DIM), f"{head}.layer_norm": (table_width, None)}
    for module, (outputs, inputs) in modules.items():
        found |= {f"{module}.weight": (outputs, inputs) if inputs else (outputs,), f"{module}.bias": (outputs,)}
    return found


def normal(table_width: int, seed: int) -> dict:
    """Standard normal arrays by parameter; of RandomState, whose streams numpy promises not to change."""
    random = np.random.RandomState(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes(table_width).items()}


def weights(table_width: int) -> dict:
    """Our parameters' values by name; large enough that every layer has a say."""
    drawn = normal(table_width, WEIGHTS_SEED)
    return {name: 0.25 * x + np.float32(name.endswith("layer_norm.weight")) for name, x in drawn.items()}


def directions(table_width: int) -> dict:
    """What gradients are multiplied with, so that one number tells of each."""
    return normal(table_width, DIRECTION_SEED)


def drawn_inputs() -> dict:
    """Padded sequences, selected positions per sequence in order, replacements (some right), candidates."""
    random = np.random.RandomState(INPUTS_SEED)
    words = np.arange(SPECIALS, MASK)
    original = np.full((len(LENGTHS), max(LENGTHS)), PADDING)
    inputs = {"selected": [], "sampled_tokens": [], "candidate_tokens": []}
    for row, (length, count) in enumerate(zip(LENGTHS, MASKED)):
        original[row, :length] = random.choice(words, length)
        selected = np.sort(random.choice(np.arange(1, length), count, replace=False))
        originals = original[row, selected]
        inputs["selected"].append(selected.tolist())
        sampled = np.where(random.rand(count) < 0.3, originals, random.choice(words, count))
        inputs["sampled_tokens"].append(sampled.tolist())
        others = [random.choice(np.setdiff1d(words, token), NEGATIVES, replace=False) for token in originals]
        inputs["candidate_tokens"].append(np.column_stack([originals, others]).tolist())
    masked = original.copy()
    for row, selected in enumerate(inputs["selected"]):
        masked[row, selected] = MASK
    masked[0, inputs["selected"][0][:2]] = original[0, inputs["selected"][0][0]], words[0]  # one kept, one random
    return {"original_tokens": original.tolist(), "masked_tokens": masked.tolist(), **inputs}


# --- TensorFlow ---


def padded(rows: list, width: int) -> np.ndarray:
    """Rows of different length, filled up with zeros, which their prediction weights hide."""
    return np.array([row + [np.zeros_like(row[0]).tolist()] * (width - len(row)) for row in rows], np.int32)


def results(table_width: int, inputs: dict) -> dict:
    """Their losses, and their gradients times `directions`, by our names."""
    sys.modules.setdefault("tensorflow_datasets", mock.MagicMock())  # imported for reading data sets only
    import tensorflow as tf
    import tf_keras
    from official.modeling import tf_utils
    from official.nlp.configs.encoders import BertEncoderConfig
    from official.nlp.modeling import models
    from official.projects.teams import teams, teams_pretrainer, teams_task

    sizes = dict(vocab_size=VOCABULARY, hidden_size=DIM, num_attention_heads=HEADS, intermediate_size=FFN)
    sizes |= dict(max_position_embeddings=MAX_POSITIONS, embedding_size=table_width)
    sizes |= dict(dropout_rate=0.0, attention_dropout_rate=0.0)
    config = teams.TeamsPretrainerConfig(
        candidate_size=1 + NEGATIVES,
        num_shared_generator_hidden_layers=TIED_LAYERS,
        num_discriminator_task_agnostic_layers=ENCODER_LAYERS - 1,
        generator=BertEncoderConfig(num_layers=GENERATOR_LAYERS, **sizes),
        discriminator=BertEncoderConfig(num_layers=ENCODER_LAYERS, **sizes),
    )
    width = max(MASKED)
    candidates = padded(inputs["candidate_tokens"], width)
    original, masked = (np.array(inputs[name], np.int32) for name in ("original_tokens", "masked_tokens"))
    fed = {
        "input_word_ids": masked,
        "input_mask": (original != PADDING).astype(np.int32),
        "input_type_ids": np.zeros_like(original),
        "masked_lm_positions": padded(inputs["selected"], width),
        "masked_lm_ids": candidates[..., 0],
        "masked_lm_weights": (np.arange(width) < np.array(MASKED)[:, None]).astype(np.float32),
    }
    fed = {name: tf.constant(value) for name, value in fed.items()}
    sampled = tf.one_hot(padded(inputs["sampled_tokens"], width), VOCABULARY)
    negatives = tf.constant(candidates[..., 1:])
    with (
        mock.patch.object(tf_utils, "get_activation", lambda name: tf_keras.activations.gelu),  # exact, not by tanh
        mock.patch.object(models.electra_pretrainer, "sample_from_softmax", lambda *_, **__: sampled),
        mock.patch.object(teams_pretrainer, "sample_k_from_softmax", lambda *_, **__: negatives),
    ):
        task = teams_task.TeamsPretrainTask(teams_task.TeamsPretrainTaskConfig(model=config))
        model = task.build_model()
        model(fed)  # makes the variables
        places = corresponding_variables(model, table_width)
        values, probes = weights(table_width), directions(table_width)
        for name, rows, variable in places:
            variable.assign(as_theirs(values, name, rows, variable))
        metrics = task.build_metrics()
        with tf.GradientTape() as tape:
            total = task.build_losses(fed, model(fed), metrics)
    slopes = dict.fromkeys(values, 0.0)
    gradients = tape.gradient(total, [variable for *_, variable in places])
    for (name, rows, variable), gradient in zip(places, gradients):
        probe = as_theirs(probes, name, rows, variable)
        slopes[name] += float((tf.convert_to_tensor(gradient).numpy() * probe.astype(np.float64)).sum())
    losses = {metric.name: float(metric.result()) for metric in metrics if metric.name.endswith("loss")}
    found = {"losses": losses, "slopes": slopes}
    return {kind: {name: round(x, 7) for name, x in numbers.items()} for kind, numbers in found.items()}


def as_theirs(arrays: dict, name: str, rows: slice, variable) -> np.ndarray:
    """An array of ours in the layout of their variable: kernels are (inputs, outputs), their logit means replaced."""
    array = arrays[name][rows]
    array = array.T if "kernel" in variable.name else array
    return array.reshape(variable.shape) * (-1 if name.startswith("rtd_head.score") else 1)


def corresponding_variables(model, table_width: int) -> list:
    """(our parameter, its rows, their variable) of all of theirs but the pooler and the token types, set to zero."""
    encoder, generator = model.discriminator_mws_network, model.generator_network
    rtd_head, embedding = model.discriminator_rtd_head, encoder.embedding_network
    found, kinds = [], {"weight": ("kernel", "gamma", "embeddings"), "bias": ("bias", "beta")}

    def place(ours: str, owner, theirs: list):
        for name, shape in shapes(table_width).items():
            module, _, kind = name.rpartition(".")
            if module == ours:
                rows = shape[0] // len(theirs)
                for i, part in enumerate(theirs):
                    ends = tuple(f"/{part}/{word}:0" for word in kinds[kind])
                    (variable,) = {v.ref(): v for v in owner.weights if f"/{v.name}".endswith(ends)}.values()
                    found.append((name, slice(i * rows, (i + 1) * rows), variable))

    layers = [*encoder.hidden_layers, *rtd_head.hidden_layers, *generator.hidden_layers[TIED_LAYERS:]]
    for ours, layer in zip(LAYERS, layers, strict=True):
        for part, (*_, theirs) in LAYER.items():
            place(f"{ours}.{part}", layer, theirs)
    place("encoder.token_embeddings", embedding, ["word_embeddings"])
    place("encoder.embeddings.positions", embedding, ["position_embedding"])
    place("encoder.embeddings.layer_norm", embedding, ["embeddings/layer_norm"])
    place("encoder.embeddings.projection", embedding, ["embedding_projection"])
    place("mlm_head", model.masked_lm, ["output_bias"])
    place("mlm_head.dense", model.masked_lm, ["transform/dense"])
    place("mlm_head.layer_norm", model.masked_lm, ["transform/LayerNorm"])
    place("mws_head.dense", model.discriminator_mws_head, ["transform/mws_dense"])
    place("mws_head.layer_norm", model.discriminator_mws_head, ["transform/mws_layernorm"])
    place("rtd_head.dense", rtd_head, ["transform/rtd_dense"])
    place("rtd_head.score", rtd_head, ["transform/rtd_head"])
    assert {name for name, *_ in found} == set(shapes(table_width))
    placed = {variable.ref() for *_, variable in found}
    for variable in model.weights:
        if "type_embeddings" in variable.name:
            variable.assign(np.zeros(variable.shape))
        else:
            assert variable.ref() in placed or "cls_transform" in variable.name, variable.name
    return found


def main():
    os.environ |= {"TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    inputs = drawn_inputs()
    cases = {name: results(width, inputs) for name, width in TABLE_WIDTHS.items()}
    packages = ("tensorflow-cpu", "tf-keras", "tf-models-official", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    text = json.dumps({"versions": versions, "inputs": inputs, "cases": cases}, indent=2)
    text = re.sub(r"\[[^][]*]", lambda row: " ".join(row[0].split()), text)  # a line for each innermost list
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
