"""Microsoft's checkpoints: their names, shapes and forward pass, written down here from their description.

There is no released file here: the tests make files with exactly the keys and shapes of one, narrow ones.
"""

import argparse
import json
import math
import os
import re
import resource

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from amos_fairseq import from_pretrained
from amos_fairseq.checkpoints import storage
from amos_fairseq.cli import main
from amos_fairseq.data.released_tokenizer import ReleasedTokenizer
from amos_fairseq.data.tokenizer import Tokenizer
from amos_fairseq.data.vocabulary import load_processor, train_vocabulary
from amos_fairseq.modules.relative_position import released_buckets
from amos_fairseq.pretrained import released
from amos_fairseq.pretrained.loading import VOCABULARY
from amos_fairseq.pretrained.model import Pretrained

V, DIM, FFN, HEADS, BUCKETS, POSITIONS = 40, 8, 12, 2, 32, 32
TABLES = ("embed_tokens.weight", "lm_head.weight")
METHODS = ("amos", "cocolm")
ENCODER = "encoder.sentence_encoder."
IN_PROJ = f"{ENCODER}layers.0.self_attn.in_proj.weight"
POSITION_TABLE = "auxiliary.sentence_encoder.embed_positions.weight"


def network_shapes(layers, buckets=BUCKETS):
    shapes = {
        "embed_tokens.weight": (V, DIM),
        "embed_positions.weight": (POSITIONS, DIM),
        "emb_layer_norm.weight": (DIM,),
        "emb_layer_norm.bias": (DIM,),
        "relative_attention_bias.weight": (buckets, HEADS),
    }
    for i in range(layers):
        for module, shape in {
            "self_attn.in_proj": (3 * DIM, DIM),
            "self_attn.out_proj": (DIM, DIM),
            "self_attn_layer_norm": (DIM,),
            "fc1": (FFN, DIM),
            "fc2": (DIM, FFN),
            "final_layer_norm": (DIM,),
        }.items():
            shapes |= {f"layers.{i}.{module}.weight": shape, f"layers.{i}.{module}.bias": shape[:1]}
    return shapes


def head_shapes(with_table):
    shapes = {"dense.weight": (DIM, DIM), "dense.bias": (DIM,), "layer_norm.weight": (DIM,), "layer_norm.bias": (DIM,)}
    return shapes | {"weight": (V, DIM), "bias": (V,)} if with_table else shapes


def prefixed(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


def released_shapes(model_type=None, layers=12, generator_layers=None, buckets=BUCKETS):
    """Of their fairseq model; without a model type the encoder of fine-tuning, before the head of a task."""
    shapes = prefixed(ENCODER, network_shapes(layers, buckets))
    shapes |= {"encoder.binary_head.out_proj.weight": (1, DIM), "encoder.binary_head.out_proj.bias": (1,)}
    if model_type is not None:
        depth = generator_layers or {"amos": 8, "cocolm": 4}[model_type]
        shapes |= prefixed("auxiliary.sentence_encoder.", network_shapes(depth, buckets))
        shapes |= prefixed("auxiliary.lm_head.", head_shapes(with_table=True))
    if model_type == "amos":
        shapes["auxiliary.lm_head.layer_mixture.weight"] = (1, DIM)
    if model_type == "cocolm":
        shapes |= {"encoder.lm_head.weight": (V, DIM), "encoder.lm_head.bias": (V,)}
        shapes |= prefixed("encoder.seq_head.", head_shapes(with_table=False))
    return shapes


def random_state(shapes, model_type=None):
    """Tied as theirs: one token table; of COCO-LM one embedding network."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in shapes.items():
        state[name] = torch.randn(shape, generator=generator) * 0.3 + ("norm.weight" in name)
        if name.endswith(TABLES):
            state[name] = state["encoder.sentence_encoder.embed_tokens.weight"]
        elif model_type == "cocolm" and "emb" in name and name.startswith("auxiliary."):
            state[name] = state[name.replace("auxiliary.", "encoder.")]
    return state


HUGGINGFACE = [  # in this order
    (r"^encoder\.sentence_encoder\.", ""),
    (r"^embed_tokens", "embeddings.word_embeddings"),
    (r"^embed_positions", "embeddings.position_embeddings"),
    (r"^emb_layer_norm", "embeddings.LayerNorm"),
    (r"^layers\.", "encoder.layer."),
    (r"\.self_attn\.", ".attention.self_attn."),
    (r"\.self_attn_layer_norm", ".attention.LayerNorm"),
    (r"\.fc1", ".intermediate.dense"),
    (r"\.fc2", ".output.dense"),
    (r"\.final_layer_norm", ".output.LayerNorm"),
]


def as_huggingface(state, prefix=""):
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(ENCODER):
            for pattern, replacement in HUGGINGFACE:
                name = re.sub(pattern, replacement, name)
            renamed[prefix + name] = tensor
    return renamed


# Their forward pass, in float64.

def released_bucket(distance, buckets, max_distance):
    side = buckets // 2
    exact = side // 2
    size = abs(distance)
    if size >= exact:
        ratio = math.log(size / exact) / math.log((max_distance - 1) / exact)
        size = min(side - 1, exact + math.ceil(ratio * (side - 1 - exact)))
    return int(math.copysign(size, distance))


def released_bias(table, length, max_distance, positions=512):
    """(H, T, T); their rows are shifted so that the lowest of 512 positions is row 0."""
    shift = min(released_bucket(d, len(table), max_distance) for d in range(1 - positions, positions))
    rows = [[released_bucket(k - q, len(table), max_distance) - shift for k in range(length)] for q in range(length)]
    return table[torch.tensor(rows)].permute(2, 0, 1)


def norm(x, parameters, name):
    return F.layer_norm(x, x.shape[-1:], parameters[f"{name}.weight"], parameters[f"{name}.bias"], eps=1e-5)


def linear(x, parameters, name):
    return x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]


def reference_states(state, network, tokens, padding_mask, layers, max_distance=128):
    """Hidden states after each layer, the embeddings first."""
    prefix = f"{network}.sentence_encoder."
    parameters = {name.removeprefix(prefix): x.double() for name, x in state.items() if name.startswith(prefix)}
    batch, length = tokens.shape
    x = parameters["embed_tokens.weight"][tokens] + parameters["embed_positions.weight"][:length]
    x = norm(x, parameters, "emb_layer_norm") * ~padding_mask[..., None]
    bias = released_bias(parameters["relative_attention_bias.weight"], length, max_distance)
    bias = bias.masked_fill(padding_mask[:, None, None, :], -math.inf)
    states = [x]
    for i in range(layers):
        q, k, v = linear(x, parameters, f"layers.{i}.self_attn.in_proj").chunk(3, -1)
        q, k, v = (y.view(batch, length, HEADS, -1).transpose(1, 2) for y in (q, k, v))
        weights = (q * (DIM // HEADS) ** -0.5 @ k.transpose(2, 3) + bias).softmax(-1)
        attended = (weights @ v).transpose(1, 2).reshape(batch, length, DIM)
        x = x + linear(attended, parameters, f"layers.{i}.self_attn.out_proj")
        x = norm(x, parameters, f"layers.{i}.self_attn_layer_norm")
        inner = linear(x, parameters, f"layers.{i}.fc1")
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, parameters, f"layers.{i}.fc2"), parameters, f"layers.{i}.final_layer_norm")
        states.append(x)
    return states


def reference_projection(x, state, head):
    parameters = {name: tensor.double() for name, tensor in state.items()}
    x = linear(x, parameters, f"{head}.dense")
    return norm(0.5 * x * (1 + torch.erf(x / math.sqrt(2))), parameters, f"{head}.layer_norm")


# Files

@pytest.fixture(scope="session")
def vocabulary_files():
    """sp.model and dict.txt of V symbols with <mask>, whose order is not that of the pieces."""
    texts = ["the cat sat on a mat , it 's ( 1895-1943 )."] * 30
    model = train_vocabulary(texts, V, uncased=False)
    processor = load_processor(model)
    pieces = [processor.id_to_piece(index) for index in range(5, len(processor))]
    dictionary = "".join(f"{piece} 7\n" for piece in reversed(pieces)).encode()
    return {"sp.model": model, "dict.txt": dictionary}


@pytest.fixture
def folder(tmp_path, vocabulary_files):
    """A folder with a tokenizer; its name tells nothing."""
    folder = tmp_path / "release" / "of"
    folder.mkdir(parents=True)
    for name, content in vocabulary_files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def save(folder):
    def save(state, name="model.pt"):
        if name.endswith(".safetensors"):
            save_file({key: tensor.clone() for key, tensor in state.items()}, folder / name)
        else:
            torch.save(state, folder / name)
        return folder / name

    return save


def states(model_type):
    return random_state(released_shapes(model_type), model_type)


def compare(found, expected):
    gap = (found - expected).abs().max().item()
    print(f"differs by {gap:.1e} of {expected.abs().max():.1f}")
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("model_type, keys", [("amos", 259), ("cocolm", 216), (None, 151)])
def test_a_file_has_as_many_keys_as_a_release(model_type, keys):
    assert len(released_shapes(model_type)) == keys


def test_amos_computes_what_the_release_does(folder, save, make_batch):
    state = states("amos")
    save(state)
    loaded = released.load(folder)
    assert loaded.name == "amos_rtd" and loaded.method.config.generator_depths == [4, 6, 8]
    assert isinstance(loaded.tokenizer, ReleasedTokenizer) and not loaded.method.training
    method, batch = loaded.method.double(), make_batch(lengths=(20, 13, 6))
    with torch.no_grad():
        expected = reference_states(state, "encoder", batch.original_tokens, batch.padding_mask, layers=12)[-1]
        hidden = loaded.encoder(batch.original_tokens, batch.padding_mask)
        compare(hidden[batch.valid_positions], expected[batch.valid_positions])
        parameters = {name: tensor.double() for name, tensor in state.items()}
        scores = linear(expected, parameters, "encoder.binary_head.out_proj").squeeze(-1)
        compare(method.rtd_head(hidden)[batch.valid_positions], scores[batch.valid_positions])

        tower = reference_states(state, "auxiliary", batch.masked_tokens, batch.padding_mask, layers=8)
        states_by_depth = torch.stack([tower[depth][batch.masked_positions] for depth in (4, 6, 8)])
        generated = method.generate(batch)
        compare(generated, states_by_depth)
        mixture = (states_by_depth @ parameters["auxiliary.lm_head.layer_mixture.weight"].T).squeeze(-1).T.softmax(-1)
        compare(method.mix(generated, batch), mixture)
        projected = reference_projection(states_by_depth, state, "auxiliary.lm_head")
        logits = projected @ parameters["auxiliary.lm_head.weight"].T + parameters["auxiliary.lm_head.bias"]
        compare(method.mlm_head(generated), logits)


def test_coco_lm_computes_what_the_release_does(folder, save, make_batch):
    state = states("cocolm")
    save(state)
    loaded = released.load(folder)
    assert loaded.name == "coco_lm" and loaded.method.config.generator_layers == 4
    method, batch = loaded.method.double(), make_batch(lengths=(20, 13, 6))
    with torch.no_grad():
        expected = reference_states(state, "encoder", batch.original_tokens, batch.padding_mask, layers=12)[-1]
        hidden = loaded.encoder(batch.original_tokens, batch.padding_mask)
        compare(hidden[batch.valid_positions], expected[batch.valid_positions])
        parameters = {name: tensor.double() for name, tensor in state.items()}
        scores = linear(expected, parameters, "encoder.binary_head.out_proj").squeeze(-1)
        compare(method.rtd_head(hidden)[batch.valid_positions], scores[batch.valid_positions])
        corrected = linear(expected, parameters, "encoder.lm_head")[batch.valid_positions]
        compare(F.linear(*method.clm_head.output_layer(hidden))[batch.valid_positions], corrected)
        compare(method.scl_head(hidden[:, 0]), reference_projection(expected[:, 0], state, "encoder.seq_head"))

        generated = method.generator(batch.masked_tokens, batch.padding_mask)[batch.masked_positions]
        tower = reference_states(state, "auxiliary", batch.masked_tokens, batch.padding_mask, layers=4)[-1]
        projected = reference_projection(tower[batch.masked_positions], state, "auxiliary.lm_head")
        logits = projected @ parameters["auxiliary.lm_head.weight"].T + parameters["auxiliary.lm_head.bias"]
        compare(method.mlm_head(generated), logits)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (64, 128), (128, 256)])
def test_our_released_buckets_are_the_formula_at_every_distance(buckets, max_distance):
    offsets = range(-511, 512)
    rows = [released_bucket(d, buckets, max_distance) for d in offsets]
    assert released_buckets(torch.tensor(offsets), buckets, max_distance).tolist() == [r - min(rows) for r in rows]


@pytest.mark.parametrize("buckets, given, expected", [(64, None, 128), (128, None, 256), (64, 200, 200)])
def test_sizes_are_read_from_the_tensors_and_the_largest_distance_is_a_rule(folder, save, buckets, given, expected):
    save(random_state(released_shapes(layers=2, buckets=buckets)))
    loaded = released.load(folder, name="amos_rtd", max_distance=given)
    config = loaded.encoder.config
    assert (config.layers, config.dim, config.ffn_dim, config.heads) == (2, DIM, FFN, HEADS)
    assert (config.vocab_size, config.max_positions, config.padding_idx) == (V, POSITIONS, 1)
    assert (config.rel_pos_buckets, config.rel_pos_max_distance) == (buckets, expected)
    assert config.rel_pos_bucketing == "released"
    assert loaded.method is None


def test_an_encoder_alone_reports_the_heads_that_it_leaves(folder, save, caplog):
    names = (f"classification_heads.sentence_classification_head.{name}.weight" for name in ("dense", "out_proj"))
    head = {name: torch.ones(3, DIM) for name in names}
    save(random_state(released_shapes(layers=1)) | head)
    loaded = released.load(folder, name="coco_lm")
    assert (loaded.method, loaded.name) == (None, "coco_lm")
    (message,) = (record.getMessage() for record in caplog.records)
    assert all(name in message for name in (*head, "encoder.binary_head.out_proj.weight"))


@pytest.mark.parametrize("prefix", ["encoder.", "decoder.", "", "bare"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fairseq_files_load_whatever_their_prefix_wrapping_and_precision(folder, save, prefix, wrapped, dtype):
    shapes = released_shapes(layers=1)
    if prefix == "bare":
        shapes = prefixed(ENCODER, network_shapes(1))
    state = {name: tensor.to(dtype) for name, tensor in random_state(shapes).items()}
    old = ENCODER if prefix == "bare" else "encoder."
    file = {name.replace(old, prefix.replace("bare", ""), 1): tensor for name, tensor in state.items()}
    save({"model": file, "args": argparse.Namespace(lr=[0.1]), "extra_state": {"epoch": 3}} if wrapped else file)
    encoder = released.load(folder, name="amos_rtd").encoder
    expected = state[IN_PROJ].float()
    assert torch.equal(encoder.layers[0].self_attn.in_proj.weight, expected)
    expected = state["encoder.sentence_encoder.relative_attention_bias.weight"].float()
    assert torch.equal(encoder.relative_position_bias.weight, expected)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("prefix", ["amos.", "cocolm.", ""])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_hugging_face_files_hold_the_same_encoder(folder, save, prefix, file, caplog):
    state = random_state(released_shapes(layers=2))
    expected = released.load(save(state), name="amos_rtd").encoder.state_dict()
    (folder / "model.pt").unlink()
    caplog.clear()
    save(as_huggingface(state, prefix) | {"classifier.dense.weight": torch.ones(2, 2)}, file)
    (folder / "config.json").write_text(json.dumps({"model_type": "cocolm", "max_rel_pos": 77, "layer_norm_eps": 1e-5}))
    loaded = released.load(folder)
    assert loaded.name == ("amos_rtd" if prefix == "amos." else "coco_lm")
    assert loaded.encoder.config.rel_pos_max_distance == 77
    found = loaded.encoder.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert "classifier.dense.weight" in caplog.text


def changed(**changes):
    """Tensors of a COCO-LM file by another value, None to leave them out."""
    state = random_state(released_shapes("cocolm", layers=2, generator_layers=1), "cocolm")
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({IN_PROJ: None}, f"lacks {IN_PROJ}: if that is right, name it in allow_missing"),
        ({f"{ENCODER}relative_attention_bias.weight": None}, "lacks .*relative_attention_bias.weight"),
        ({f"{ENCODER}layers.0.fc9.bias": torch.ones(2)}, "has also .*layers.0.fc9.bias: .* allow_unexpected"),
        ({"auxiliary.lm_head.layer_norm.bias": None}, "lacks auxiliary.lm_head.layer_norm.bias"),
        ({"encoder.binary_head.out_proj.weight": None}, "lacks encoder.binary_head.out_proj.weight"),
        ({IN_PROJ: torch.ones(3, DIM)}, rf"{IN_PROJ} is \(3, 8\), where it should be \(24, 8\)"),
        ({IN_PROJ: torch.ones(24, 8, dtype=torch.int64)}, f"{IN_PROJ} holds torch.int64"),
        ({f"{ENCODER}layers.7.fc1.bias": torch.ones(2)}, "has layers 0, 1, 7 of its encoder"),
        ({"encoder.lm_head.weight": torch.ones(V, DIM)}, "encoder.lm_head.weight differ, but are one parameter"),
        ({POSITION_TABLE: torch.ones(POSITIONS, DIM)}, f"{ENCODER}embed_positions.weight and {POSITION_TABLE} differ"),
        ({"epoch": 3}, "no dictionary of tensors"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(folder, save, changes, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        released.load(save(changed(**changes)))
    assert "\n" not in str(refusal.value) and "model.pt" in str(refusal.value)


def test_what_is_allowed_by_name_may_be_missing_or_too_much(folder, save):
    extra = "encoder.sentence_encoder.version"
    save(changed(**{"encoder.binary_head.out_proj.bias": None, extra: torch.ones(1)}))
    loaded = released.load(folder, allow_missing=["encoder.binary_head.*"], allow_unexpected=[extra])
    assert torch.equal(loaded.method.rtd_head.score.bias, torch.zeros(1))  # its initial value


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_a_file_that_could_run_code_is_refused_and_does_not_run_it(folder, save, tmp_path, name):
    save({**changed(), "x": Code(str(tmp_path / "ran"))}, name)
    with pytest.raises(ValueError, match=f"{name} is refused, since to load it could run code") as refusal:
        released.load(folder)
    assert not (tmp_path / "ran").exists() and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "model.safetensors"])
def test_a_cut_file_is_told_in_one_line(folder, save, name):
    file = save(changed(), name)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{name} cannot be read") as refusal:
        released.load(folder)
    assert "\n" not in str(refusal.value)


def test_what_is_no_such_checkpoint_is_told(folder, save):
    with pytest.raises(ValueError, match="of holds none of model.pt, pytorch_model.bin, model.safetensors"):
        released.load(folder)
    with pytest.raises(ValueError, match="nothing does not exist"):
        released.load(folder / "nothing")
    save({"weight": torch.ones(1)})
    with pytest.raises(ValueError, match="no checkpoint of AMOS or COCO-LM"):
        released.load(folder)
    state = random_state(released_shapes(layers=1))
    save(state)
    with pytest.raises(ValueError, match="may be of AMOS or of COCO-LM"):
        released.load(folder)
    (folder / "config.json").write_text('{"model_type": "cocolm", "layer_norm_eps": 1e-12}')
    with pytest.raises(ValueError, match="layer_norm_eps 1e-12"):
        released.load(folder)
    save(as_huggingface(state), "pytorch_model.bin")
    with pytest.raises(ValueError, match="model.pt and pytorch_model.bin: name one file"):
        released.load(folder)


def test_the_path_tells_which_of_the_two_it_is(folder, save):
    save(random_state(released_shapes(layers=1)))
    for name, method in (("COCO-LM base", "coco_lm"), ("amos", "amos_rtd")):
        folder = folder.rename(folder.with_name(name))
        assert released.load(folder).name == method


def test_a_missing_or_another_tokenizer_is_told_or_given(folder, save, tmp_path):
    save(changed())
    moved = {name: (folder / name).rename(tmp_path / name) for name in ("sp.model", "dict.txt")}
    with pytest.raises(ValueError, match=r"sp.model and .*dict.txt not found: .*dict.tar.gz"):
        released.load(folder)
    loaded = released.load(folder, moved["sp.model"], moved["dict.txt"])
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the cat")) == "the cat"
    moved["dict.txt"].write_bytes(moved["dict.txt"].read_bytes() + b"more 1\n")
    with pytest.raises(ValueError, match="a table of 40 tokens, dict.txt makes 41"):
        released.load(folder, moved["sp.model"], moved["dict.txt"])


def test_depths_of_an_unusual_amos_have_to_be_told(folder, save):
    save(random_state(released_shapes("amos", layers=2, generator_layers=3), "amos"))
    with pytest.raises(ValueError, match="generator's 3 layers have heads: name generator_depths"):
        released.load(folder)
    assert released.load(folder, generator_depths=[1, 3]).method.config.generator_depths == [1, 3]


# Writing

OPTIONS = dict(encoder_embed_dim=DIM, encoder_ffn_embed_dim=FFN, encoder_attention_heads=HEADS, max_positions=POSITIONS)
OPTIONS |= dict(rel_pos_buckets=BUCKETS, rel_pos_max_distance=100, rel_pos_bucketing="released")
NAMES = {"amos": "amos_rtd", "cocolm": "coco_lm"}
GENERATORS = {"amos": 4, "cocolm": 1}


@pytest.fixture
def trained(make_method, vocabulary_files):
    def trained(model_type, **options):
        method = make_method(NAMES[model_type], gain=3.0, **{**OPTIONS, **options}).eval()
        tokenizer = Tokenizer(vocabulary_files["sp.model"])
        return Pretrained("a run", NAMES[model_type], method.encoder, tokenizer, method)

    return trained


@pytest.mark.parametrize("model_type", METHODS)
def test_a_run_is_written_in_fairseqs_layout_and_read_again_bit_by_bit(trained, tmp_path, model_type):
    run, out = trained(model_type, dropout=0.2), tmp_path / "out"
    released.write(run, out)
    file = torch.load(out / "model.pt", weights_only=True)
    shapes = released_shapes(model_type, layers=2, generator_layers=GENERATORS[model_type])
    assert {name: tuple(tensor.shape) for name, tensor in file.items()} == shapes
    assert torch.equal(file["encoder.binary_head.out_proj.weight"], run.method.rtd_head.score.weight)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "dict.txt", "model.pt", "sp.model"]
    assert not list(tmp_path.glob("*.tmp"))
    loaded = released.load(out)
    found, expected = loaded.method.state_dict(), run.method.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert loaded.encoder.config == run.encoder.config and loaded.name == run.name
    # it was trained on text that nothing was split off from
    assert type(loaded.tokenizer) is Tokenizer and loaded.tokenizer.symbols == run.tokenizer.symbols


@pytest.mark.parametrize("model_type", METHODS)
def test_a_run_is_written_in_hugging_faces_layout(trained, tmp_path, model_type):
    run, out = trained(model_type), tmp_path / "out"
    released.write(run, out, "huggingface")
    shapes = as_huggingface(released_shapes(None, layers=2), f"{model_type}.")
    file = torch.load(out / "pytorch_model.bin", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in file.items()} == shapes
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == (model_type, DIM, 2)
    assert (config["rel_pos_bins"], config["max_rel_pos"], config["num_attention_heads"]) == (32, 100, HEADS)
    assert (config["layer_norm_eps"], config["layer_norm_type"], config["type_vocab_size"]) == (1e-5, "post", 0)
    found, expected = released.load(out).encoder.state_dict(), run.encoder.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_dict_txt_beside_has_fairseqs_ids(trained, tmp_path):
    from fairseq.data import Dictionary

    run = trained("amos")
    released.write(run, tmp_path / "out")
    dictionary = Dictionary.load(str(tmp_path / "out" / "dict.txt"))
    assert [*dictionary.symbols, "<mask>"] == run.tokenizer.symbols


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(rel_pos_bucketing="t5"), "rel_pos_bucketing t5"),
        (dict(rel_pos_buckets=0), "0 rel_pos_buckets"),
        (dict(token_embed_dim=4), "no place for encoder.embeddings.projection"),
        (dict(rtd_head_hidden_layer=True), "no place for rtd_head.dense"),
        (dict(separate_generators=True), r"no place for generators.1\."),
        (dict(token_table="gdes"), r"no place for encoder.token_embeddings.delta; the encoder alone may have"),
        (dict(mixture="uniform"), "no learned mixture"),
    ],
)
def test_what_the_layout_has_no_place_for_is_refused(trained, tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        released.write(trained("amos", **options), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_networks_that_the_layout_ties_are_refused_apart_and_leave_nothing(trained, tmp_path):
    run = trained("cocolm")
    run.method.generator.embeddings = type(run.encoder.embeddings)(POSITIONS, DIM, DIM)
    with pytest.raises(ValueError, match="a run does not fit Microsoft's layout: .*embed_positions.weight differ"):
        released.write(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    released.write(run, tmp_path / "out", encoder_only=True)
    assert len(torch.load(tmp_path / "out" / "model.pt", weights_only=True)) == 5 + 2 * 12


def test_what_differs_when_read_again_is_told_and_leaves_nothing(trained, tmp_path, monkeypatch):
    run, right = trained("amos"), released.load

    def load(folder):
        found = right(folder)
        with torch.no_grad():
            found.encoder.token_embeddings.weight[5, 0] += 1
        return found

    monkeypatch.setattr(released, "load", load)
    with pytest.raises(ValueError, match="a run differs when it is read again"):
        released.write(run, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_more_is_told_and_leaves_nothing(trained, tmp_path):
    """A limit of the size of files stands for the disk."""
    run, limits = trained("amos"), resource.getrlimit(resource.RLIMIT_FSIZE)
    released.write(run, tmp_path / "whole")
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "whole" / "model.pt").stat().st_size - 1, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            released.write(run, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("out, reason", [("there", "there exists: name another"), ("no/out", "no is no folder to")])
def test_a_folder_that_cannot_be_made_is_told(trained, tmp_path, out, reason):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=reason):
        released.write(trained("amos"), tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# The command

def test_the_command_converts_a_release_to_the_other_layout_and_back(folder, save, tmp_path, capsys):
    state = random_state(released_shapes(layers=2))
    save(state)
    there, back = tmp_path / "there", tmp_path / "back"
    convert = ["convert", str(folder), "--to", "huggingface", "--out", str(there)]
    assert main.main(convert) == os.EX_USAGE and "may be of AMOS or of COCO-LM" in capsys.readouterr().err
    assert main.main([*convert, "--method", "coco_lm"]) == 0
    assert main.main(["convert", str(there), "--to", "fairseq", "--out", str(back)]) == 0
    file = torch.load(back / "model.pt", weights_only=True)
    assert all(torch.equal(file[name], state[name]) for name in file) and len(file) == 5 + 2 * 12
    for name in ("sp.model", "dict.txt"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    assert isinstance(released.load(back).tokenizer, ReleasedTokenizer)
    assert main.main([*convert, "--method", "coco_lm"]) == os.EX_USAGE and "there exists" in capsys.readouterr().err


def test_the_command_converts_a_run(trained, tmp_path, capsys):
    run = trained("amos")
    options = {name: getattr(run.method.config, name) for name in vars(run.method.config)}
    state = {
        "cfg": {"task": {"_name": "amos_rtd"}, "model": options},
        "task_state": {VOCABULARY: torch.frombuffer(bytearray(run.tokenizer.model), dtype=torch.uint8)},
        "model": {f"method.{name}": tensor for name, tensor in run.method.state_dict().items()},
    }
    storage.write(tmp_path / "checkpoint_1_1", state, dict(number=1, score=None, purposes=[]))
    assert not released.is_released(tmp_path / "checkpoint_1_1") and not released.is_released(tmp_path)
    out = tmp_path / "out"
    assert main.main(["convert", str(tmp_path), "--to", "fairseq", "--out", str(out)]) == 0, capsys.readouterr().err
    assert released.is_released(out) and released.is_released(out / "model.pt")
    found, expected = released.load(out).method.state_dict(), from_pretrained(tmp_path).method.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "wrote" in capsys.readouterr().out


def test_a_release_that_names_its_mask_is_converted_exported_scored_and_fine_tuned(folder, save, tmp_path, capsys):
    dictionary = b"[MASK] 1\n" + (folder / "dict.txt").read_bytes()
    (folder / "dict.txt").write_bytes(dictionary)
    save(random_state(released_shapes("amos", layers=2), "amos"))
    loaded = from_pretrained(folder)
    assert (loaded.tokenizer.mask, len(loaded.tokenizer)) == (4, V)
    assert math.isfinite(loaded.score(["the cat"])[0].pll)
    assert all(filling.token != "<mask>" for filling in loaded.fill_mask("the <mask> sat", top=5)[0])

    out, exported, data = tmp_path / "out", tmp_path / "exported", tmp_path / "data.tsv"
    assert main.main(["convert", str(folder), "--to", "fairseq", "--out", str(out)]) == 0
    assert (out / "dict.txt").read_bytes() == dictionary and released.load(out).tokenizer.mask == 4
    export = ["export", str(folder), "--out", str(exported)]
    assert main.main(export) == os.EX_USAGE and "add --no-tokenizer" in capsys.readouterr().err
    assert main.main([*export, "--no-tokenizer"]) == 0
    again = from_pretrained(exported)
    assert again.tokenizer.model == loaded.tokenizer.model
    assert torch.equal(again.encoder.token_embeddings.weight, loaded.encoder.token_embeddings.weight)

    data.write_text("text\tlabel\n" + "the cat\ta\na mat\tb\n" * 4)
    options = ["--text", "text", "--label", "label", "--epochs", "1", "--seeds", "1", "--max-length", "16", "--cpu"]
    files = ["--train", str(data), "--valid", str(data), "--out", str(tmp_path / "tuned")]
    assert main.main(["finetune", "file", "--model", str(folder), *files, *options]) == 0, capsys.readouterr().err
