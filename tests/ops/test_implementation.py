import pytest
import torch

from amos_fairseq.ops import Noise, attention, compiled, masked_lm, pytorch, straight_through_gumbel_softmax, use
from amos_fairseq.ops.implementation import attention_kernels, row_functions

FP32 = torch.empty(0)


@pytest.fixture
def built(monkeypatch):
    """built("cpu"): the kinds of device whose ops were compiled."""
    return lambda *kinds: monkeypatch.setattr(compiled, "available", lambda kind: kind in kinds)


def test_kernels_are_taken_where_they_were_built_and_read_the_type(built):
    built("cpu")
    assert row_functions(FP32) is compiled
    assert row_functions(FP32.double()) is pytorch
    built()
    assert row_functions(FP32) is pytorch


def test_pytorch_can_be_demanded(built):
    built("cpu")
    with use("pytorch"):
        assert row_functions(FP32) is pytorch
    assert row_functions(FP32) is compiled


def test_demanding_what_is_not_built_names_the_build_command(built):
    built()
    with use("compiled"), pytest.raises(ValueError, match=r"for cpu are not built: run `python -m .*csrc.build cpu`"):
        row_functions(FP32)


def test_demanding_what_no_kernel_reads_names_the_type(built):
    built("cpu")
    with use("compiled"), pytest.raises(ValueError, match="no compiled ops for torch.float64 on cpu"):
        row_functions(FP32.double())


def test_an_unknown_choice_is_named():
    with use("triton"), pytest.raises(ValueError, match="AMOS_FAIRSEQ_OPS is 'triton': choose auto, pytorch, compiled"):
        row_functions(FP32)


def test_a_gpu_without_kernels_is_warned_of(built, monkeypatch):
    class OnGPU:
        device, dtype = torch.device("cuda", 0), torch.bfloat16

    built()
    with pytest.warns(UserWarning, match="in PyTorch and are slow; `python -m amos_fairseq.csrc.build cuda` compiles"):
        assert row_functions(OnGPU()) is pytorch


def test_kernels_and_pytorch_draw_the_same_tokens_and_give_the_same_gradients():
    if not compiled.available("cpu"):
        pytest.skip("the ops are not compiled for the CPU")
    rows, heads, width, vocabulary = 200, 3, 16, 1001
    generator = torch.Generator().manual_seed(0)
    hidden, table = (torch.randn(*shape, generator=generator) for shape in ((rows, heads, width), (vocabulary, width)))
    weights, upstream = torch.rand(rows, heads, generator=generator), torch.randn(1, rows, width, generator=generator)
    targets, excluded = torch.arange(rows), torch.zeros(vocabulary, dtype=torch.bool)
    excluded[:4] = True
    noise = Noise(5, torch.stack([torch.arange(rows), torch.zeros(rows, dtype=torch.long)], dim=1))
    found = {}
    for choice in ("compiled", "pytorch"):
        leaves = [x.clone().requires_grad_() for x in (hidden, table, table[:, 0], hidden[:, 0])]
        with use(choice):
            reading = masked_lm(*leaves[:3], targets, weights, excluded, noise, 0.3, candidates=True)
            embeddings = straight_through_gumbel_softmax(
                torch.zeros(1, rows, width, requires_grad=True), leaves[3], *leaves[1:3], targets, noise, 0.3,
                reading.candidates,
            )
            (reading.loss + (embeddings * upstream).sum()).backward()
        found[choice] = reading, [leaf.grad for leaf in leaves]
    (ours, gradients), (theirs, expected) = found.values()
    for name in ("predicted", "ranks", "sampled", "likeliest"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-5, atol=1e-5)
    for x, y in zip(gradients, expected):
        assert (x - y).norm() < 1e-4 * y.norm()


@pytest.fixture
def with_attention(monkeypatch):
    """with_attention("cuda"): the kinds of device that run the attention kernels."""
    return lambda *kinds: monkeypatch.setattr(attention, "available", lambda kind: kind in kinds)


def test_attention_kernels_are_taken_if_asked_for_where_they_run(with_attention):
    with_attention("cuda")
    with use("compiled"):
        assert attention_kernels("cuda", torch.bfloat16, 64, 512)
        assert not attention_kernels("cpu", torch.float32, 64, 512)
    for choice in ("auto", "pytorch"):
        with use(choice):
            assert not attention_kernels("cuda", torch.bfloat16, 64, 512)


@pytest.mark.parametrize(
    "dtype, width, length",
    [(torch.float64, 64, 512), (torch.half, 12, 512), (torch.half, 136, 8), (torch.half, 64, 2**17)],
)
def test_attention_of_what_no_kernel_reads_is_refused_with_the_remedy(with_attention, dtype, width, length):
    with_attention("cuda")
    what = f"kernels for heads of {width} channels in {dtype}: they read 16 to 128 in steps"
    with use("compiled"), pytest.raises(ValueError, match=f"there are no attention {what}"):
        attention_kernels("cuda", dtype, width, length)


def test_attention_kernels_that_cannot_run_are_told_of_with_the_remedy(with_attention):
    with_attention()
    with use("compiled"), pytest.raises(ValueError, match="there are no attention kernels here: they need a GPU from"):
        attention_kernels("cuda", torch.bfloat16)
