import math

import pytest
import torch

from amos_fairseq.ops import Noise, gumbel_noise, masked_lm

M, G, E, V = 9, 3, 5, 37
FP64 = 8
EXCLUDED = torch.zeros(V, dtype=torch.bool).index_fill(0, torch.tensor([0, 3, 36]), True)
NOISE = Noise(11, torch.stack([torch.arange(M) + 40, torch.arange(M)], dim=1))


@pytest.fixture(params=["one row at a time", "some rows", "all rows"], autouse=True)
def chunks(request, monkeypatch):
    rows = {"one row at a time": 1, "some rows": 4, "all rows": 1000}[request.param]
    monkeypatch.setattr("amos_fairseq.ops.chunks.WORKSPACE", rows * G * V * FP64)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    shapes = dict(hidden=(M, G, E), table=(V, E), bias=(V,))
    tensors = {name: torch.randn(shape, dtype=torch.double, generator=generator) for name, shape in shapes.items()}
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


TARGETS = torch.arange(M) * 4 % V
WEIGHTS = torch.randn(M, G, generator=torch.Generator().manual_seed(1)).softmax(dim=-1)


def test_a_worked_case_of_two_rows():
    # logits [0, log 3] and [0, 0]: losses log 4 of token 0, log 2 of token 1
    hidden, table = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [math.log(3)]])
    reading = masked_lm(hidden, table, torch.zeros(2), torch.tensor([0, 1]))
    assert reading.losses.tolist() == [[pytest.approx(1.386294)], [pytest.approx(0.693147)]]
    assert reading.loss.item() == pytest.approx(2.079442)
    assert reading.predicted.tolist() == [[1], [0]] and reading.ranks.tolist() == [[2], [1]]


def test_losses_predictions_ranks_and_gradients_are_those_of_all_logits(case):
    logits = case["hidden"] @ case["table"].T + case["bias"]
    expected = -logits.log_softmax(dim=-1)[torch.arange(M)[:, None], torch.arange(G), TARGETS[:, None]]
    expected_gradients = torch.autograd.grad(expected.sum() * 2.5, case.values())
    reading = masked_lm(*case.values(), TARGETS)
    torch.testing.assert_close(reading.losses, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reading.loss, expected.sum(), rtol=1e-12, atol=1e-12)
    assert torch.equal(reading.predicted, logits.argmax(dim=-1))
    order = logits.argsort(dim=-1, descending=True)
    assert torch.equal(reading.ranks, 1 + (order == TARGETS[:, None, None]).int().argmax(dim=-1))
    for found, wanted in zip(torch.autograd.grad(reading.loss * 2.5, case.values()), expected_gradients):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_draws_are_the_argmax_of_the_mixture_and_its_noise(case):
    with torch.no_grad():
        mixed = torch.einsum("mg,mgv->mv", WEIGHTS.double(), case["hidden"] @ case["table"].T + case["bias"])
    allowed = mixed.masked_fill(EXCLUDED, -torch.inf)
    reading = masked_lm(*case.values(), TARGETS, WEIGHTS, EXCLUDED, NOISE, 0.3, candidates=True)
    perturbed = allowed + gumbel_noise(NOISE, V, torch.double)
    assert torch.equal(reading.sampled, perturbed.argmax(dim=-1))
    assert torch.equal(reading.likeliest, allowed.argmax(dim=-1))

    soft = (perturbed / 0.3).softmax(dim=-1)
    for row in range(M):
        listed = sorted(token for token in reading.candidates[row].tolist() if token >= 0)
        assert listed == (soft[row] > 1e-6 * soft[row].max()).nonzero().flatten().tolist()
        assert reading.tail[row].item() == pytest.approx(1 - soft[row, listed].sum().item(), abs=1e-7)


@pytest.mark.parametrize("heads", [1, G])
def test_at_a_temperature_draws_are_the_argmax_of_cooler_logits_and_nothing_else_changes(case, heads):
    hidden, table, bias = case["hidden"][:, :heads], case["table"], case["bias"]
    weights = WEIGHTS if heads > 1 else None
    with torch.no_grad():
        logits = hidden @ table.T + bias
        mixed = torch.einsum("mg,mgv->mv", torch.ones(M, 1).double() if weights is None else weights.double(), logits)
    given = hidden, table, bias, TARGETS, weights, EXCLUDED, NOISE, 0.3
    plain, found = (masked_lm(*given, candidates=True, draw_temperature=t) for t in (1.0, 4.0))
    perturbed = mixed.masked_fill(EXCLUDED, -torch.inf) / 4 + gumbel_noise(NOISE, V, torch.double)
    assert torch.equal(found.sampled, perturbed.argmax(dim=-1)) and not torch.equal(found.sampled, plain.sampled)
    for name in ("loss", "losses", "predicted", "ranks", "likeliest"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    soft = (perturbed / 0.3).softmax(dim=-1)
    for row in range(M):
        listed = sorted(token for token in found.candidates[row].tolist() if token >= 0)
        assert listed == (soft[row] > 1e-6 * soft[row].max()).nonzero().flatten().tolist()


@pytest.mark.parametrize("temperature, shares", [(0.5, [1 / 10, 9 / 10]), (1.0, [1 / 4, 3 / 4]), (2.0, [0.366, 0.634])])
def test_draws_follow_the_softmax_at_their_temperature(temperature, shares):
    """Logits 0 and log 3, of fixed noise: chi-square with one degree of freedom, .1 % of which lie above 10.8."""
    rows = 4000
    hidden, table = torch.ones(rows, 1), torch.tensor([[0.0], [math.log(3)]])
    noise = Noise(3, torch.stack([torch.arange(rows), torch.arange(rows) % 7], dim=1))
    targets = torch.zeros(rows, dtype=torch.long)
    drawn = masked_lm(hidden, table, torch.zeros(2), targets, noise=noise, draw_temperature=temperature).sampled
    expected = torch.tensor(shares) * rows
    assert ((drawn.bincount(minlength=2) - expected).square() / expected).sum() < 10.8


def test_a_draw_without_temperature_is_refused(case):
    with pytest.raises(ValueError, match="temperature must be positive, got 0.0"):
        masked_lm(*case.values(), TARGETS, WEIGHTS, noise=NOISE, draw_temperature=0.0)


def test_without_noise_nothing_is_drawn(case):
    reading = masked_lm(*case.values(), TARGETS)
    assert all(len(field) == 0 for field in reading[4:-2])


def test_one_head_needs_no_head_dimension(case):
    hidden, table, bias = case.values()
    with_it = masked_lm(hidden[:, :1], table, bias, TARGETS, noise=NOISE)
    without = masked_lm(hidden[:, 0], table, bias, TARGETS, noise=NOISE)
    assert all(torch.equal(a, b) for a, b in zip(with_it[:-2], without[:-2]))  # the last two are of others


def test_draws_follow_the_mixture_and_never_the_excluded(case, monkeypatch):
    monkeypatch.setattr("amos_fairseq.ops.chunks.WORKSPACE", 2**27)
    hidden, table, bias = (x.detach() for x in case.values())
    draws = 40_000
    noise = Noise(7, torch.stack([torch.arange(draws), torch.zeros(draws, dtype=torch.long)], dim=1))
    targets, weights = TARGETS[:1].expand(draws), WEIGHTS[:1].expand(draws, G)
    sampled = masked_lm(hidden[:1].expand(draws, G, E), table, bias, targets, weights, EXCLUDED, noise).sampled
    counts = torch.bincount(sampled, minlength=V)
    assert counts[EXCLUDED].sum() == 0
    mixed = WEIGHTS[0].double() @ (hidden[0] @ table.T + bias)
    expected = mixed[~EXCLUDED].softmax(dim=0) * draws
    chi_square = ((counts[~EXCLUDED] - expected) ** 2 / expected).sum()
    assert chi_square < 63.9  # 99.9 %, 33 degrees of freedom


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_fp32(case, dtype):
    hidden, table, bias = (x.detach().to(dtype).requires_grad_() for x in case.values())
    logits = (hidden @ table.T).float() + bias.float()  # the product is rounded, nothing after it
    expected = -logits.log_softmax(dim=-1)[torch.arange(M)[:, None], torch.arange(G), TARGETS[:, None]]
    reading = masked_lm(hidden, table, bias, TARGETS)
    torch.testing.assert_close(reading.losses, expected, rtol=1e-6, atol=1e-6)
    reading.loss.backward()
    assert hidden.grad.dtype == table.grad.dtype == bias.grad.dtype == dtype


def test_small_gradients_survive_fp16():
    # each row's gradient of the table, 1e-6 / 4096, is below the smallest fp16 number; the sum of 512 rows is not
    hidden, table = torch.ones(512, 1).half(), torch.zeros(4096, 1).half().requires_grad_()
    (masked_lm(hidden, table, torch.zeros(4096), torch.zeros(512, dtype=torch.long)).loss * 1e-3).backward()
    torch.testing.assert_close(table.grad[1:].float(), torch.full((4095, 1), 512e-3 / 4096), rtol=0.01, atol=0)


def test_no_rows_have_no_loss_and_gradients_of_zero(case):
    hidden, table, bias = case.values()
    noise = NOISE[:0]
    reading = masked_lm(hidden[:0], table, bias, TARGETS[:0], WEIGHTS[:0], None, noise, 0.3, candidates=True)
    reading.loss.backward()
    assert reading.loss == 0 and reading.sampled.shape == (0,) and reading.losses.shape == (0, G)
    assert not table.grad.any() and not bias.grad.any()


def test_without_gradients_none_are_made(case, allocations):
    with allocations as made:
        learning = masked_lm(*case.values(), TARGETS)
    peak = made.peak_bytes
    with torch.no_grad(), allocations as made:
        reading = masked_lm(*case.values(), TARGETS)
    assert learning.loss.requires_grad and not reading.loss.requires_grad
    assert made.peak_bytes <= peak - FP64 * (M * G * E + V * E + V)


def test_every_chunk_of_logits_is_shown_before_it_is_gone_and_what_is_made_of_it_is_returned(case):
    reading = masked_lm(*case.values(), TARGETS, look=lambda rows, logits: logits.clone())
    torch.testing.assert_close(reading.looked, case["hidden"] @ case["table"].T)
    assert not reading.looked.requires_grad and masked_lm(*case.values(), TARGETS).looked is None


def test_autocast_gives_the_product_its_type_and_the_parameters_their_own(case):
    leaves = [x.detach().float().requires_grad_() for x in case.values()]
    exact = masked_lm(*leaves, TARGETS).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reading = masked_lm(*leaves, TARGETS)
    reading.loss.backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}
    assert not torch.equal(reading.losses, exact)
    torch.testing.assert_close(reading.losses, exact, rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(hidden=torch.zeros(M, G, 4)), r"hidden \(9, 3, 4\) must be .* table \(37, 5\) \(V, E\)"),
        (dict(bias=torch.zeros(3)), r"bias is \(3,\), hidden and table ask for \(37,\)"),
        (dict(targets=TARGETS[1:]), r"targets is \(8,\), hidden and table ask for \(9,\)"),
        (dict(targets=TARGETS + 5), r"targets must lie in 0..36, got 5..37"),
        (dict(targets=TARGETS - 1), r"targets must lie in 0..36, got -1..31"),
        (dict(weights=WEIGHTS[:, :2]), r"weights is \(9, 2\), hidden and table ask for \(9, 3\)"),
        (dict(weights=None), "weights are missing: to draw from 3 heads, say how they are mixed"),
        (dict(excluded=EXCLUDED[1:]), r"excluded is \(36,\)"),
        (dict(noise=NOISE[1:]), r"noise.rows is \(8, 2\), hidden and table ask for \(9, 2\)"),
        (dict(temperature=0.0), "temperature must be positive, got 0.0"),
        (dict(targets=torch.zeros(M, dtype=torch.long, device="meta")), "targets is on meta, hidden on cpu"),
    ],
)
def test_a_wrong_argument_is_named(case, change, message):
    arguments = dict(case, targets=TARGETS, weights=WEIGHTS, excluded=EXCLUDED, noise=NOISE, temperature=0.3)
    with pytest.raises(ValueError, match=message):
        masked_lm(**{**arguments, **change})
