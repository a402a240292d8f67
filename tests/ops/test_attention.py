"""Attention with a relative bias: its meaning, and its kernels on a GPU or, without one, in Triton's interpreter."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amos_fairseq.modules.encoder import Encoder, EncoderConfig, PassKey, compile_layers
from amos_fairseq.modules.queries import Queries
from amos_fairseq.modules.relative_position import BUCKETINGS
from amos_fairseq.ops import AttentionDropout, attention, implementation, relative_attention
from amos_fairseq.ops.attention import dropout_mask, reference_attention, relative_bias
from amos_fairseq.ops.noise import philox

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 0x123456789ABCDEF
KEPT_LITERALLY = {40: (8, 1), 63: (15, 3), 5: (5, 0)}  # key: its counter's first word, which of the four it has


def seeded(share, sample_ids=None, seed=SEED, device="cpu"):
    ids = None if sample_ids is None else torch.tensor(sample_ids, device=device)
    return AttentionDropout(share, torch.tensor([seed], device=device), ids)


def test_reference_on_literal_numbers():
    packed = torch.tensor([[[1.0], [1.0], [4.0]], [[0.0], [0.0], [8.0]]]).view(1, 2, 3, 1, 1)
    table = torch.tensor([[0.0], [1 + math.log(3.0)]])  # keys after the query have bucket 1
    bias = relative_bias(table, torch.tensor([0, 0, 1]))
    # weights softmax(1, 1 + log 3) = 1/4, 3/4, and softmax(0, 0)
    torch.testing.assert_close(reference_attention(packed, bias).flatten(), torch.tensor([7.0, 6.0]))
    hidden = relative_bias(table, torch.tensor([0, 0, 1]), torch.tensor([[False, True]]))
    torch.testing.assert_close(reference_attention(packed, hidden).flatten(), torch.tensor([4.0, 4.0]))
    nothing = relative_bias(table, torch.tensor([0, 0, 1]), torch.tensor([[True, True]]))
    assert not reference_attention(packed, nothing).any()


def test_dropout_mask_is_that_of_the_words_it_names():
    mask = dropout_mask(seeded(0.3, [2**33 + 5]), 2, torch.tensor([[7]]), 64)
    assert mask.shape == (1, 2, 1, 64)
    for key, (column, which) in KEPT_LITERALLY.items():
        counter = [torch.tensor(x) for x in (column, 7 + (1 << 16), 5, 2)]
        assert mask[0, 1, 0, key] == (philox(SEED, counter, rounds=7)[which] >= 0.3 * 2**32)


def test_dropout_has_its_rate_and_depends_on_sample_head_positions_and_seed_alone():
    positions = torch.arange(100).expand(3, -1)
    mask = dropout_mask(seeded(0.1, [4, 9, 2]), 4, positions, 100)
    assert mask.double().mean() == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / mask.numel()))
    assert torch.equal(dropout_mask(seeded(0.1, [2, 4]), 4, positions[:2], 80), mask[[2, 0], ..., :80])
    chosen = torch.tensor([[3, 50, 99]])
    assert torch.equal(dropout_mask(seeded(0.1, [9]), 4, chosen, 100)[0], mask[1][:, chosen[0]])
    other = dropout_mask(seeded(0.1, [4, 9, 2], seed=SEED + 1), 4, positions, 100)
    pairs = [(mask[0], mask[1]), (mask[:, 0], mask[:, 1]), (mask[:, :, :-1], mask[:, :, 1:])]
    for one, another in [*pairs, (mask, other), (mask[..., :64], mask[..., 32:96]), (mask[..., 8:], mask[..., :-8])]:
        correlation = torch.corrcoef(torch.stack([one.flatten(), another.flatten()]).double())[0, 1]
        assert abs(correlation) < 4 / math.sqrt(one.numel())


# ---- The kernels ----------------------------------------------------------------------------------------------------


@pytest.fixture
def large_kernels(monkeypatch):
    """The kernels as they are."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if DEVICE == "cpu":
        if not triton.knobs.runtime.interpret:
            pytest.skip("without a GPU the kernels need TRITON_INTERPRET=1 from the start")
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
            pytest.skip(f"the interpreter of triton {triton.__version__} does not run with this numpy: 3.7 does")
        let_the_interpreter_multiply_bf16(monkeypatch)
    from amos_fairseq.ops import attention_triton

    monkeypatch.setattr(attention, "available", lambda device: device == DEVICE)
    monkeypatch.setattr(implementation, "_choice", "compiled")
    return attention_triton


@pytest.fixture
def kernels(large_kernels, monkeypatch):
    """In small tiles, so that few positions make several of them."""
    monkeypatch.setattr(large_kernels, "tile_of", lambda *_: large_kernels.Tile(16, 32, 4, 2))
    return large_kernels


def let_the_interpreter_multiply_bf16(monkeypatch):
    """It keeps bf16 as integers of 16 bits and multiplies those."""
    from triton.runtime import interpreter

    multiply = interpreter.InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype.scalar != interpreter.tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype("uint32") << 16).view("float32"), interpreter.tl.float32)

    monkeypatch.setattr(
        interpreter.InterpreterBuilder, "create_dot",
        lambda self, a, b, *rest: multiply(self, widened(a), widened(b), *rest),
    )


class Case:
    """Random inputs of `relative_attention`."""

    def __init__(self, B=2, T=40, H=2, D=16, L=None, dtype=torch.float32, bucketing="t5", buckets=8, padded=False):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        self.packed = normal(B, T, 3 if L is None else 2, H, D).to(dtype)
        self.query = self.positions = self.hidden = None
        if L is not None:
            self.query = normal(B, L, H, D).to(dtype)
            self.positions = torch.stack([torch.randperm(T, generator=generator)[:L].sort()[0] for _ in range(B)])
        self.table, self.buckets = normal(buckets, H), BUCKETINGS[bucketing](torch.arange(1 - T, T), buckets, 12)
        if padded:
            self.hidden = torch.zeros(B, T, dtype=torch.bool)
            self.hidden[0, T - 7 :] = self.hidden[1, :3] = True
            self.hidden[2:] = True
        self.upstream = normal(B, T if L is None else L, H, D).to(dtype)

    def run(self, function, dropout=None, dtype=None, device=DEVICE):
        """Result, and gradients of packed, query, table."""

        def on(x, dtype=None):
            return None if x is None else x.to(device, dtype)

        leaves = [on(self.packed, dtype), on(self.query, dtype), on(self.table, dtype)]
        packed, query, table = [None if x is None else x.clone().requires_grad_() for x in leaves]
        bias = relative_bias(table, on(self.buckets), on(self.hidden))
        result = function(packed, bias, query, on(self.positions), dropout)
        wanted = [x for x in (packed, query, table) if x is not None]
        return [result, *torch.autograd.grad(result, wanted, on(self.upstream, dtype))]


CASES = {
    "t5": (dict(), 0.0),
    "released, dropout, one token more than a tile": (dict(T=33, bucketing="released", B=1), 0.3),
    "padding, rows of -inf, dropout": (dict(B=3, padded=True, H=1), 0.1),
    "queries, odd width": (dict(L=5, D=24), 0.0),
    "queries, padding, dropout": (dict(L=17, padded=True, H=1), 0.2),
    "bf16": (dict(dtype=torch.bfloat16, H=1), 0.1),
    "fp16": (dict(dtype=torch.float16, H=1, D=40), 0.1),
    "one token": (dict(T=1, B=1), 0.0),
}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.5e-2}  # the interpreter cuts bf16's last bits


@pytest.mark.parametrize("options, share", CASES.values(), ids=CASES)
def test_kernels_and_their_gradients_are_the_references_in_float64(kernels, options, share):
    case = Case(**options)
    ids = [2**40 + 3, 1, 7][: len(case.packed)]
    found = case.run(relative_attention, seeded(share, ids, device=DEVICE) if share else None)
    expected = case.run(reference_attention, seeded(share, ids) if share else None, torch.double, "cpu")
    least = 0.5 if options.get("T") == 1 else 0.1  # gradients of a softmax over one token are 0: differences of equals
    for one, exact in zip(found, expected):
        assert one.shape == exact.shape and one.isfinite().all()
        assert (one.cpu().double() - exact).norm() <= TOLERANCE[case.packed.dtype] * (exact.norm() + least)
    if options.get("padded") and len(case.packed) > 2:
        assert not found[0][2].any() and not found[1][2].any()  # all keys hidden


def test_strides_do_not_matter(kernels):
    case, strided = Case(B=2, H=1, L=5, padded=True), Case(B=2, H=1, L=5, padded=True)
    ids = torch.tensor([5, 0, 8, 0], device=DEVICE)
    for name in ("packed", "query", "positions", "upstream", "hidden"):
        tensor = getattr(case, name)
        setattr(strided, name, tensor.transpose(0, 1).contiguous().transpose(0, 1))
        assert not getattr(strided, name).is_contiguous()
    dropout = AttentionDropout(0.2, torch.tensor([1], device=DEVICE), ids[::2])
    for one, other in zip(strided.run(relative_attention, dropout), case.run(relative_attention, dropout)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("of", ["batch", "queries"])
def test_nothing_gives_nothing(kernels, of):
    case = Case(B=0, H=1, T=8) if of == "batch" else Case(B=2, H=1, T=8, L=0)
    result, *gradients = case.run(relative_attention, seeded(0.1, device=DEVICE))
    assert not result.numel() and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("selected", [None, 70], ids=["all positions", "queries"])
def test_the_tiles_of_each_architecture_give_the_same(large_kernels, monkeypatch, arch, selected):
    tile_of = large_kernels.tile_of
    monkeypatch.setattr(large_kernels, "tile_of", lambda *arguments: tile_of(*arguments[:-1], arch))
    case = Case(B=1, T=150, H=1, D=64, L=selected, dtype=torch.half, buckets=32)
    found = case.run(relative_attention, seeded(0.1, device=DEVICE))
    for one, exact in zip(found, case.run(reference_attention, seeded(0.1), torch.double, "cpu")):
        assert (one.cpu().double() - exact).norm() <= 1e-3 * exact.norm()


def test_each_weight_is_dropped_as_the_mask_says(kernels):
    case = Case(B=1, T=40, D=40, H=1)
    case.packed[:, :, 2, 0] = torch.eye(40)  # the values: the result is the weights
    weights = case.run(relative_attention, seeded(0.4, device=DEVICE))[0][0, :, 0].cpu()
    whole = case.run(relative_attention)[0][0, :, 0].cpu()
    mask = dropout_mask(seeded(0.4), 1, torch.arange(40)[None], 40)[0, 0]
    assert torch.equal(weights != 0, mask)
    torch.testing.assert_close(weights[mask], whole[mask] / 0.6)


def test_a_sequence_gets_the_same_bits_again_and_in_another_batch(large_kernels):
    case, alone = Case(B=2, H=1), Case(B=2, H=1)
    first = case.run(relative_attention, seeded(0.2, [5, 8], device=DEVICE))
    for one, another in zip(first, case.run(relative_attention, seeded(0.2, [5, 8], device=DEVICE))):
        assert torch.equal(one, another)
    alone.packed, alone.upstream = case.packed[1:], case.upstream[1:]
    result, d_packed, _ = alone.run(relative_attention, seeded(0.2, [8], device=DEVICE))
    assert torch.equal(result, first[0][1:]) and torch.equal(d_packed, first[1][1:])


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("queries", [False, True], ids=["all positions", "queries"])
def test_an_encoder_with_kernels_is_the_encoder_without(large_kernels, monkeypatch, queries, compiled):
    torch.manual_seed(0)
    config = EncoderConfig(1, 50, layers=2, dim=32, heads=2, ffn_dim=16, max_positions=24, rel_pos_max_distance=20)
    encoder, tokens = Encoder(config).to(DEVICE).eval(), torch.randint(2, 50, (2, 20), device=DEVICE)
    padding_mask = torch.arange(20, device=DEVICE) >= torch.tensor([[15], [0]], device=DEVICE)  # the second: all of it
    at = Queries.of(torch.tensor([1, 4, 13, 22], device=DEVICE), [3, 1], 20) if queries else None
    results, upstream = [], torch.randn(32, device=DEVICE)  # the sum of squares behind a LayerNorm has no gradient
    for taken in (False, True):
        monkeypatch.setattr(implementation, "_choice", "compiled" if taken else "auto")
        assert isinstance(encoder.attention_bias(padding_mask, 20), attention.RelativeBias) == taken
        if compiled and taken:
            compile_layers(encoder, backend="aot_eager", fullgraph=True)
        hidden = encoder(tokens, padding_mask, at)
        loss = (hidden.square() * upstream).sum()
        gradients = torch.autograd.grad(loss, list(encoder.parameters()), allow_unused=True)
        results.append([hidden, *gradients])
    for one, another in zip(*results):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-4)


def training_encoder():
    torch.manual_seed(0)
    config = EncoderConfig(1, 50, layers=2, dim=16, heads=1, ffn_dim=8, max_positions=8, dropout=0.0)
    return Encoder(config).to(DEVICE), torch.randint(2, 50, (2, 8), device=DEVICE)


def test_a_training_encoder_drops_the_same_of_a_sequence_in_another_batch_and_compiled(large_kernels):
    encoder, tokens = training_encoder()
    ids = torch.tensor([5, 2**40], device=DEVICE)
    whole = encoder(tokens, key=PassKey(7, ids))
    assert torch.equal(encoder(tokens[1:], key=PassKey(7, ids[1:])), whole[1:])
    assert not torch.equal(encoder(tokens, key=PassKey(70, ids)), whole)
    at = Queries.of(torch.tensor([1, 3, 12], device=DEVICE), [2, 1], 8)
    selected = encoder(tokens, at=at, key=PassKey(7, ids))
    torch.testing.assert_close(selected, at.rows(whole), rtol=1e-5, atol=1e-5)
    compile_layers(encoder, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(encoder(tokens, key=PassKey(7, ids)), whole, rtol=1e-5, atol=1e-5)


def test_each_layer_and_one_beside_them_draws_a_mask_of_its_own(kernels, monkeypatch):
    (encoder, tokens), seeds, run = training_encoder(), [], kernels.run_draw

    def spy(seed, *arguments):
        assert seed.data_ptr() % 16 == 0
        seeds.append(int(seed))
        return run(seed, *arguments)

    monkeypatch.setattr(kernels, "run_draw", spy)
    for key in (PassKey(2**62 - 1, torch.arange(2, device=DEVICE)), None, None):
        torch.manual_seed(0)
        hidden, layers = encoder.begin(encoder.token_embeddings(tokens), key=key)
        layers.beside(encoder.layers[0], layers.run(hidden))
    assert seeds[:3] == [2**62 - 1, 2**62 + 1, 2**62 + 3]
    assert len(set(seeds)) == 6 and seeds[3:6] == seeds[6:]  # without a key, what torch's generator says


def test_operators_are_what_torch_compile_and_autograd_need(large_kernels):
    case = Case(B=1, T=4, H=1, L=2)
    bias = relative_bias(case.table, case.buckets)
    arguments = [x if x is None else x.to(DEVICE) for x in (case.packed, case.query, *bias, case.positions)]
    for index in range(3):
        arguments[index].requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    drawn = seeded(0.1, [7], device=DEVICE)
    of_mask = drawn.seed, drawn.sample_ids, arguments[-1], 1, 1, 2, 4, 0.1
    operators = torch.ops.amos_fairseq
    kept = operators.attention_dropout(*of_mask)
    torch.library.opcheck(operators.attention_dropout.default, of_mask, test_utils=checks)
    torch.library.opcheck(operators.attention.default, (*arguments, 0.1, kept), test_utils=checks)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(packed=torch.zeros(2, 40, 2, 2, 16)), r"packed is of shape .*: it must be \(2, 40, 3, 2, 16\)"),
        (dict(packed=torch.zeros(2, 40, 3, 2, 12)), "no kernel reads heads of 12 channels in torch.float32"),
        (dict(packed=torch.zeros(2, 40, 3, 2, 16).double()), "no kernel reads heads of 16 channels in torch.float64"),
        (dict(packed=torch.zeros(2, 41, 3, 2, 16)), r"bias.row is of shape \(2, 591\): it must be \(2, 593\)"),
        (dict(hidden=torch.zeros(2, 39, dtype=torch.bool)), r"hidden_keys is of shape \(2, 39\): it must be \(2, 40\)"),
        (dict(positions=torch.zeros(2, 3)), "query and positions go together"),
        (dict(dropout=seeded(1.0)), "dropout of 1.0: it must be at least 0 and below 1"),
        (dict(dropout=seeded(0.1, [1])), r"sample_ids is of shape \(1,\): it must be \(2,\)"),
        (dict(dropout=AttentionDropout(0.1, torch.tensor(1))), r"dropout.seed is of shape \(\): it must be \(1,\)"),
        (
            dict(dropout=AttentionDropout(0.1, torch.tensor([1]), torch.tensor([4, 9]).int())),
            "sample_ids is torch.int32 on cpu: it must be torch.int64 on cpu",
        ),
        (dict(hidden=torch.zeros(2, 40)), "hidden_keys is torch.float32 on cpu: it must be torch.bool on cpu"),
        (dict(packed=torch.zeros(2, 40, 3, 2, 16, device="meta")), "bias.table is .* on cpu: .* torch.float32 on meta"),
    ],
)
def test_what_the_kernels_would_misread_is_refused(change, message):
    case = Case()
    given = {**dict(packed=case.packed, hidden=None, positions=None, dropout=None), **change}
    bias = relative_bias(case.table, case.buckets, given["hidden"])
    with pytest.raises(ValueError, match=message):
        relative_attention(given["packed"], bias, None, given["positions"], given["dropout"])


COMPILED = {  # sm_80 and sm_90 in the recipes' type and width; the rest takes a minute
    "bf16-64": (),
    **{f"{name}-{width}": pytest.mark.soak for name in ("bf16", "fp16", "fp32") for width in (32, 48, 128)},
    "bf16-64-selected": pytest.mark.soak, "fp32-64": pytest.mark.soak,
}


@pytest.mark.parametrize("what", [pytest.param(what, marks=marks) for what, marks in COMPILED.items()])
def test_kernels_compile_for_a100_and_h100_without_spills_and_fit_every_gpus_shared_memory(what):
    if importlib.util.find_spec("triton") is None or sys.platform != "linux":
        pytest.skip("triton, which brings its compiler and ptxas, is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parents[2] / "examples/benchmarks/attention_resources.py"
    done = subprocess.run([sys.executable, script, what], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["kernel"], row["arch"]) for row in rows} == {
        (kernel, arch) for kernel in ("draw", "forward", "d_queries", "d_keys", "d_bias") for arch in (80, 90)
    }
    for row in rows:
        assert row["spilled_bytes"] == 0 and row["registers"] <= 255 and row["shared_bytes"] <= 99 * 1024, row
