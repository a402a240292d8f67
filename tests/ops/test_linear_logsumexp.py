import pytest
import torch
from torch.nn import functional as F

from amos_fairseq.ops import linear_cross_entropy, linear_logits, linear_logsumexp, read_linear

FP64 = 8


def make(rows, width, vocabulary, dtype=torch.double, seed=0):
    """hidden, table, bias, and the gradient that comes in."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, width), (vocabulary, width), (vocabulary,), (rows,)
    return [torch.randn(shape, generator=generator, dtype=torch.double).to(dtype) for shape in shapes]


def direct(hidden, table, bias):
    return (hidden @ table.T + bias).logsumexp(dim=-1)


def outcome(function, hidden, table, bias, upstream):
    """The result and the gradients of the three arguments."""
    leaves = [x.clone().requires_grad_() for x in (hidden, table, bias)]
    result = function(*leaves)
    result.backward(upstream.to(result.dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("workspace", [1, 100 * FP64, 2**27])  # one row at a time, some rows, all rows
@pytest.mark.parametrize("rows, width, vocabulary", [(1, 1, 1), (31, 5, 7), (64, 16, 33), (3, 4, 257)])
def test_result_and_gradients_equal_the_direct_formula(monkeypatch, rows, width, vocabulary, workspace):
    monkeypatch.setattr("amos_fairseq.ops.chunks.WORKSPACE", workspace)
    case = make(rows, width, vocabulary)
    for found, expected in zip(outcome(linear_logsumexp, *case), outcome(direct, *case)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errors_are_at_most_those_of_the_direct_formula_in_the_same_type(monkeypatch, dtype):
    monkeypatch.setattr("amos_fairseq.ops.chunks.WORKSPACE", 5000 * dtype.itemsize)
    case = make(45, 16, 1031, dtype)
    exact = outcome(direct, *(x.double() for x in case))
    for found, usual, expected in zip(outcome(linear_logsumexp, *case), outcome(direct, *case), exact):
        error, usual_error = ((x.double() - expected).abs().max() for x in (found, usual))
        assert error <= 1.5 * usual_error + 1e-12
    assert found.dtype == dtype and linear_logsumexp(*case[:3]).dtype == torch.float32


def test_small_gradients_survive_fp16():
    # softmax 1/4096 times 1e-5 is below the smallest fp16 number; the sum over 512 rows is not
    hidden, table = torch.ones(512, 1).half().requires_grad_(), torch.zeros(4096, 1).half().requires_grad_()
    (linear_logsumexp(hidden, table, torch.zeros(4096)) * 1e-5).sum().backward()
    torch.testing.assert_close(table.grad.float(), torch.full((4096, 1), 512e-5 / 4096), rtol=0.05, atol=0)


def test_leading_dimensions_are_kept():
    hidden, table, bias, _ = make(6, 4, 9)
    expected = direct(hidden, table, bias)
    torch.testing.assert_close(linear_logsumexp(hidden.view(2, 3, 4), table, bias), expected.view(2, 3))
    torch.testing.assert_close(linear_logsumexp(hidden.view(3, 2, 4).transpose(0, 1), table, bias)[1, 2], expected[5])
    assert linear_logsumexp(hidden[0], table, bias).shape == ()


def test_without_rows_the_gradients_are_zero():
    result, *gradients = outcome(linear_logsumexp, *make(0, 4, 9))
    assert result.shape == (0,)
    assert [tuple(x.shape) for x in gradients] == [(0, 4), (9, 4), (9,)]
    assert not any(x.any() for x in gradients)


def test_a_second_backward_pass_with_another_gradient_adds_up():
    hidden, table, bias, upstream = make(5, 4, 9)
    hidden.requires_grad_()
    result = linear_logsumexp(hidden, table, bias)
    result.backward(upstream, retain_graph=True)
    first = hidden.grad.clone()
    result.backward(-3 * upstream)
    torch.testing.assert_close(hidden.grad, -2 * first)


def test_large_logits_do_not_overflow():
    result = linear_logsumexp(torch.full((1, 1), 200.0), torch.tensor([[1.0], [1.0]]), torch.zeros(2))
    assert result.item() == pytest.approx(200.693147, abs=1e-4)


def test_autocast_gives_the_product_its_type_and_the_parameters_their_own():
    case = make(33, 16, 257, torch.float32)
    expected = outcome(linear_logsumexp, *case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(linear_logsumexp, *case)
    assert {x.dtype for x in found} == {torch.float32}
    assert not torch.equal(found[0], expected[0])
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y, rtol=0.02, atol=0.05)


def test_no_tensor_of_rows_by_vocabulary_is_made(monkeypatch, allocations):
    monkeypatch.setattr("amos_fairseq.ops.chunks.WORKSPACE", 1000 * FP64)
    rows, width, vocabulary = 300, 4, 101
    with allocations as made:
        outcome(linear_logsumexp, *make(rows, width, vocabulary))
    assert max(made.elements) == max(9 * vocabulary, rows * width)
    with allocations as made:
        outcome(direct, *make(rows, width, vocabulary))
    assert max(made.elements) == rows * vocabulary


def test_maximum_and_its_token_are_those_of_the_logits():
    hidden, table, bias, _ = make(31, 5, 7)
    reading = read_linear(hidden, table, bias)
    largest, likeliest = (hidden @ table.T + bias).max(dim=-1)
    torch.testing.assert_close(reading.largest, largest, rtol=1e-12, atol=0)
    assert torch.equal(reading.likeliest, likeliest)


def test_logits_of_chosen_tokens_are_those_of_the_product():
    hidden, table, bias, _ = make(31, 5, 7)
    tokens = torch.arange(31) % 7
    expected = (hidden @ table.T + bias).gather(-1, tokens[:, None]).squeeze(-1)
    torch.testing.assert_close(linear_logits(hidden, table, bias, tokens), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_cross_entropy_and_its_gradients_are_torchs(reduction):
    hidden, table, bias, upstream = make(31, 5, 7)
    targets = torch.arange(31) % 7
    upstream = upstream if reduction == "none" else upstream[0]

    def torchs(hidden, table, bias):
        return F.cross_entropy(hidden @ table.T + bias, targets, reduction=reduction)

    def ours(hidden, table, bias):
        return linear_cross_entropy(hidden, table, bias, targets, reduction)

    case = hidden, table, bias, upstream
    for found, expected in zip(outcome(ours, *case), outcome(torchs, *case)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_wrong_shape_or_reduction_is_named():
    hidden, table, bias, _ = make(3, 5, 7)
    with pytest.raises(ValueError, match=r"hidden \(3, 4\), table \(7, 5\) and bias \(7,\) must be"):
        linear_logsumexp(hidden[:, :4], table, bias)
    with pytest.raises(ValueError, match="unknown reduction 'average': choose sum, mean, none"):
        linear_cross_entropy(hidden, table, bias, torch.zeros(3, dtype=torch.long), "average")
