import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from amos_fairseq.ops import Noise, compiled, pytorch

SPECIFICATION = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(reference)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise_of(rows, seed=0x1234_5678_9ABC_DEF0):
    """Sample ids beyond 32 bits, so that both halves count."""
    samples = torch.arange(rows) * 3 + 2**33
    return Noise(seed, torch.stack([samples, torch.arange(rows) % 512], dim=1))


def case(rows, heads, vocabulary, seed=0):
    """logits, bias, targets, weights, excluded"""
    g = generator(seed)
    logits = 3 * torch.randn(rows, heads, vocabulary, generator=g)
    weights = torch.rand(rows, heads, generator=g).softmax(-1) if heads > 1 else None
    excluded = torch.zeros(vocabulary, dtype=torch.bool)
    excluded[[0, 1, vocabulary - 1]] = True
    targets = torch.randint(0, vocabulary, (rows,), generator=g)
    return logits, torch.randn(vocabulary, generator=g), targets, weights, excluded


def read(kernels, logits, bias, targets, weights=None, excluded=None, noise=None, temperature=0.3, **flags):
    """The reading, and the logits afterwards."""
    written = logits.clone()
    flags = {"candidates": noise is not None, "write_gradient": True, **flags}
    return kernels.read_rows(written, bias, targets, weights, excluded, noise, temperature, **flags), written


def lists(candidates):
    return [row[row >= 0].tolist() for row in candidates]


def close(found, expected, atol, rtol=0.0):
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=atol, rtol=rtol)


# ---- noise


@pytest.mark.parametrize(
    "key, counter, words",
    [
        (0, [0] * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, [2**32 - 1] * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
)
def test_philox_gives_its_known_answers(cpu_kernels, key, counter, words):
    found = (ctypes.c_uint32 * 4)()
    cpu_kernels._library("cpu").amos_philox(ctypes.c_uint64(key), (ctypes.c_uint32 * 4)(*counter), found)
    assert " ".join(f"{word:08x}" for word in found) == words


def gumbel(kernels, words):
    words = np.ascontiguousarray(words, np.uint32)
    found = np.full(len(words), np.nan, np.float32)
    pointers = words.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(ctypes.c_void_p)
    kernels._library("cpu").amos_gumbel(*pointers, ctypes.c_int64(len(words)))
    return found


def test_the_extreme_words_give_the_extreme_noise(cpu_kernels):
    found = gumbel(cpu_kernels, [0, 2**31, 2**32 - 1])
    close(found, [22.87385696, 0.36651292, -3.12999464], atol=1.2e-6)


def test_noise_is_exact_to_two_units_in_the_last_place(cpu_kernels):
    random = np.random.default_rng(0).integers(0, 2**32, 10**6)
    small = np.unique(np.concatenate([2**k + np.arange(-2, 3) for k in range(2, 33)]) % 2**32)
    words = np.concatenate([random, small, 2**32 - 1 - small, np.arange(4096)])
    exact = reference.gumbel(words)
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    assert (np.abs(gumbel(cpu_kernels, words) - exact) <= np.maximum(2 * unit, 2e-7)).all()


@pytest.mark.parametrize("vocabulary", [1, 5, 40, 1000])
def test_noise_is_that_of_seed_sample_position_and_token(cpu_kernels, vocabulary):
    found = cpu_kernels.gumbel_noise(noise_of(3), vocabulary)
    assert found.shape == (3, vocabulary)
    close(found, reference.gumbel_noise(noise_of(3), vocabulary), atol=2e-7, rtol=2.4e-7)


def test_noise_follows_the_gumbel_distribution(cpu_kernels):
    noise = cpu_kernels.gumbel_noise(noise_of(8), 25_000).double().flatten().sort().values
    expected, steps = torch.exp(-torch.exp(-noise)), torch.arange(len(noise) + 1) / len(noise)
    distance = torch.maximum(expected - steps[:-1], steps[1:] - expected).max()
    assert distance * len(noise) ** 0.5 < 2.225  # Kolmogorov-Smirnov, p > 1e-4


# ---- draws


@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("heads", [1, 3])
def test_draws_follow_the_softmax_of_the_mixture_whatever_the_temperature(cpu_kernels, heads, temperature):
    rows, vocabulary = 200_000, 24
    logits, bias, _, weights, excluded = case(1, heads, vocabulary)
    weights = None if weights is None else weights.expand(rows, -1).contiguous()
    targets = torch.zeros(rows, dtype=torch.long)
    reading, _ = read(
        cpu_kernels, logits.expand(rows, -1, -1), bias, targets, weights, excluded, noise_of(rows, seed=7), temperature,
        candidates=False, write_gradient=False,
    )
    z = logits[0].double() + bias.double()
    mixed = z[0] if weights is None else (weights[0].double()[:, None] * z).sum(0)
    expected = rows * mixed.masked_fill(excluded, float("-inf")).softmax(-1)
    counts = torch.bincount(reading.sampled, minlength=vocabulary)
    assert not counts[excluded].any()
    counts, expected = counts[expected > 5], expected[expected > 5]
    distance = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor(len(expected) - 1.0, dtype=torch.double)
    assert torch.special.gammaincc(freedom / 2, distance / 2) > 1e-4  # chi-square


def test_a_rows_draw_does_not_depend_on_the_other_rows(cpu_kernels):
    logits, bias, targets, weights, excluded = case(7, 3, 400)
    noise, order = noise_of(7), torch.tensor([4, 0, 6])
    whole, gradient = read(cpu_kernels, logits, bias, targets, weights, excluded, noise)
    some, part = read(cpu_kernels, logits[order], bias, targets[order], weights[order], excluded, noise[order])
    assert torch.equal(gradient[order], part)
    for all_rows, chosen in zip(whole, some):
        assert torch.equal(all_rows[order], chosen)


# ---- read_rows


def test_a_row_of_three_tokens_by_hand(cpu_kernels):
    logits = torch.tensor([[[1.0, 2.0, 4.0]]]).log()
    reading, gradient = read(cpu_kernels, logits, torch.zeros(3), torch.tensor([1]))
    close(reading.losses, [[np.log(3.5)]], atol=1e-6)
    close(gradient, [[[1 / 7, 2 / 7 - 1, 4 / 7]]], atol=1e-7)
    assert reading.predicted.tolist() == [[2]] and reading.ranks.tolist() == [[2]]
    assert [len(x) for x in reading[3:]] == [0] * 4


@pytest.mark.parametrize("rows, heads, vocabulary", [(1, 1, 40), (7, 1, 37), (7, 2, 40), (5, 3, 8192), (2, 5, 1001)])
@pytest.mark.parametrize("with_excluded", [True, False])
def test_reading_equals_the_float64_reference(cpu_kernels, rows, heads, vocabulary, with_excluded):
    logits, bias, targets, weights, excluded = case(rows, heads, vocabulary)
    excluded, noise = excluded if with_excluded else None, noise_of(rows)
    expected = reference.read_rows(logits, bias, targets, weights, excluded, noise, 0.3)
    found, gradient = read(cpu_kernels, logits, bias, targets, weights, excluded, noise)
    for name, index in (("predicted", 1), ("ranks", 2), ("sampled", 3), ("likeliest", 4)):
        assert getattr(found, name).tolist() == expected[index].tolist(), name
    close(found.losses, expected[0], atol=3e-6)
    assert lists(found.candidates) == [x.tolist() for x in expected[5]]
    close(found.tail, expected[6], atol=1e-6)
    close(gradient, expected[7], atol=1e-6)


def test_candidates_are_listed_in_order_and_filled_up_with_minus_one(cpu_kernels):
    logits, bias, targets, _, _ = case(3, 1, 700)
    reading, _ = read(cpu_kernels, logits, bias, targets, noise=noise_of(3))
    assert reading.candidates.shape == (3, 1024)
    for row, sampled in zip(reading.candidates.tolist(), reading.sampled.tolist()):
        listed = [token for token in row if token >= 0]
        assert sampled in listed and listed == sorted(set(listed))
        assert row[len(listed) :] == [-1] * (1024 - len(listed))


def test_a_list_that_overflows_keeps_the_first_and_says_what_it_lacks(cpu_kernels):
    vocabulary, noise = 5000, noise_of(1)
    logits, bias, targets = torch.zeros(1, 1, vocabulary), torch.zeros(vocabulary), torch.tensor([0])
    reading, _ = read(cpu_kernels, logits, bias, targets, noise=noise, temperature=2.0)
    assert reading.candidates[0].tolist() == list(range(1024))
    p = np.exp(reference.gumbel_noise(noise, vocabulary)[0] / 2)
    close(reading.tail, [1 - p[:1024].sum() / p.sum()], atol=1e-5)


def test_the_draw_is_a_candidate_at_the_lowest_temperature(cpu_kernels):
    logits, bias, targets, _, _ = case(4, 1, 300)
    reading, _ = read(cpu_kernels, logits, bias, targets, noise=noise_of(4), temperature=1e-12)
    assert lists(reading.candidates) == [[token] for token in reading.sampled.tolist()]
    close(reading.tail, np.zeros(4), atol=0)


@pytest.mark.parametrize("height", [3e4, -3e4])
def test_large_logits_lose_nothing(cpu_kernels, height):
    logits, bias, targets, _, excluded = case(4, 1, 128)
    logits = (logits.round() + height).to(torch.float32)  # exact sums
    bias, noise = torch.zeros(128), noise_of(4)
    expected = reference.read_rows(logits, bias, targets, None, excluded, noise, 0.3)
    found, gradient = read(cpu_kernels, logits, bias, targets, None, excluded, noise)
    close(found.losses, expected[0], atol=3e-6)
    close(gradient, expected[7], atol=1e-6)
    spread = torch.where(torch.arange(128) % 2 == 0, 3e4, -3e4).expand(1, 1, -1).contiguous()
    found, gradient = read(cpu_kernels, spread, bias, torch.tensor([1]))
    assert found.losses.item() == pytest.approx(60004.158883, abs=4e-3) and gradient.isfinite().all()
    assert found.predicted.item() == 0 and found.ranks.item() == 65


def test_minus_infinity_is_a_token_that_never_comes(cpu_kernels):
    logits, bias, targets, weights, _ = case(5, 2, 40)
    logits[:, :, 10:20] = float("-inf")
    targets = targets.clamp(max=9)
    noise = noise_of(5)
    expected = reference.read_rows(logits, bias, targets, weights, None, noise, 0.3)
    found, gradient = read(cpu_kernels, logits, bias, targets, weights, None, noise)
    close(found.losses, expected[0], atol=3e-6)
    close(gradient, expected[7], atol=1e-6)
    assert not gradient[:, :, 10:20].any()
    assert found.sampled.tolist() == expected[3].tolist()


def test_a_head_of_weight_zero_takes_no_part_in_the_draw_even_with_infinite_logits(cpu_kernels):
    logits, bias, targets, _, _ = case(3, 2, 40)
    logits[:, 1, 5:] = float("-inf")
    weights = torch.tensor([[1.0, 0.0]]).expand(3, -1).contiguous()
    found, _ = read(cpu_kernels, logits, bias, targets, weights, None, noise_of(3))
    alone, _ = read(cpu_kernels, logits[:, :1], bias, targets, None, None, noise_of(3))
    assert torch.equal(found.sampled, alone.sampled) and torch.equal(found.candidates, alone.candidates)


def test_a_row_of_nan_alone_draws_a_token_that_can_be_looked_up_and_its_losses_are_nan(cpu_kernels):
    logits, bias, targets, weights, excluded = case(4, 2, 40)
    whole, _ = read(cpu_kernels, logits, bias, targets, weights, excluded, noise_of(4))
    logits[1] = float("nan")
    found, _ = read(cpu_kernels, logits, bias, targets, weights, excluded, noise_of(4))
    assert found.losses[1].isnan().all() and found.sampled[1] == found.likeliest[1] == 0
    assert torch.equal(found.sampled[::3], whole.sampled[::3])


def test_a_target_outside_the_vocabulary_gives_nan_and_spares_the_other_rows(cpu_kernels):
    logits, bias, targets, weights, excluded = case(4, 2, 40)
    whole, gradient = read(cpu_kernels, logits, bias, targets, weights, excluded, noise_of(4))
    wrong = targets.clone()
    wrong[1], wrong[2] = -1, 40
    found, written = read(cpu_kernels, logits, bias, wrong, weights, excluded, noise_of(4))
    assert found.losses[1:3].isnan().all() and written[1:3].isnan().all()
    assert found.ranks[1:3].tolist() == [[0, 0], [0, 0]]
    assert torch.equal(found.sampled, whole.sampled) and torch.equal(found.candidates, whole.candidates)
    assert torch.equal(found.losses[::3], whole.losses[::3]) and torch.equal(written[::3], gradient[::3])


def test_a_row_without_a_token_to_draw_draws_the_first(cpu_kernels):
    logits, bias, targets, _, _ = case(2, 1, 40)
    found, gradient = read(cpu_kernels, logits, bias, targets, None, torch.ones(40, dtype=torch.bool), noise_of(2))
    assert found.sampled.tolist() == [0, 0] == found.likeliest.tolist()
    assert lists(found.candidates) == [[], []]
    assert found.losses.isfinite().all() and gradient.isfinite().all()


def test_ties_go_to_the_lowest_id(cpu_kernels):
    logits = torch.zeros(1, 1, 1000)
    logits[0, 0, [333, 444, 999]] = 1.0
    found, _ = read(cpu_kernels, logits, torch.zeros(1000), torch.tensor([444]), noise=noise_of(1))
    assert (found.predicted.item(), found.likeliest.item(), found.ranks.item()) == (333, 333, 1)


def test_no_rows_give_empty_readings(cpu_kernels):
    logits, bias, targets, weights, excluded = case(0, 3, 40)
    found, _ = read(cpu_kernels, logits, bias, targets, weights, excluded, noise_of(0))
    shapes = [(0, 3)] * 3 + [(0,)] * 2 + [(0, 1024), (0,)]
    assert [tuple(x.shape) for x in found] == shapes


def test_logits_are_left_alone_unless_the_gradient_is_asked_for(cpu_kernels):
    logits, bias, targets, weights, excluded = case(3, 2, 40)
    _, after = read(cpu_kernels, logits, bias, targets, weights, excluded, noise_of(3), write_gradient=False)
    assert torch.equal(after, logits)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_threads(cpu_kernels, threads):
    logits, bias, targets, weights, excluded = case(7, 3, 1001)
    usual = torch.get_num_threads()
    expected = read(cpu_kernels, logits, bias, targets, weights, excluded, noise_of(7))
    try:
        torch.set_num_threads(threads)
        found = read(cpu_kernels, logits, bias, targets, weights, excluded, noise_of(7))
    finally:
        torch.set_num_threads(usual)
    assert torch.equal(found[1], expected[1])
    assert all(torch.equal(x, y) for x, y in zip(found[0], expected[0]))


def test_every_element_of_the_results_is_written(cpu_kernels, monkeypatch):
    def poisoned(self, *size, dtype=None, **_):
        return torch.full(size, -77, dtype=dtype or self.dtype)

    logits, bias, targets, weights, excluded = case(7, 3, 1001)
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, -77))
    reading, _ = read(cpu_kernels, logits, bias, targets, weights, excluded, noise_of(7))
    table, rows = torch.randn(1001, 9, generator=generator()), torch.randn(7, 9, generator=generator(1))
    results = [
        *reading,
        *cpu_kernels.logsumexp_rows(logits[:, 0].contiguous(), bias),
        cpu_kernels.gumbel_noise(noise_of(7), 1001),
        cpu_kernels.gumbel_softmax(logits[:, 0].contiguous(), noise_of(7), 0.3),
        cpu_kernels.soft_sample_gradient(rows, rows, table, bias, reading.candidates, noise_of(7), 0.3),
    ]
    assert not any((x == -77).any() for x in results)


# ---- the other functions


@pytest.mark.parametrize("vocabulary", [1, 37, 40, 1001])
def test_logsumexp_and_softmax_of_rows(cpu_kernels, vocabulary):
    g = generator()
    logits, bias = torch.randn(5, vocabulary, generator=g) * 3, torch.randn(vocabulary, generator=g)
    z = (logits.double() + bias.double()).numpy()
    logsumexp, largest, likeliest = cpu_kernels.logsumexp_rows(logits, bias)
    expected = np.log(np.exp(z).sum(-1))
    close(logsumexp, expected, atol=2e-6)
    close(largest, z.max(-1), atol=1e-6)
    assert likeliest.tolist() == z.argmax(-1).tolist()
    assert cpu_kernels.softmax_rows_(logits, bias, logsumexp) is None
    close(logits, np.exp(z - expected[:, None]), atol=2e-6)


def test_logsumexp_of_nothing_but_minus_infinity_is_minus_infinity(cpu_kernels):
    found = cpu_kernels.logsumexp_rows(torch.full((1, 5), float("-inf")), torch.zeros(5))
    assert [x.item() for x in found] == [float("-inf"), float("-inf"), 0]


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("vocabulary", [5, 40, 1001])
def test_gumbel_softmax_equals_the_float64_formula(cpu_kernels, vocabulary, temperature):
    logits = torch.randn(3, vocabulary, generator=generator())
    found = cpu_kernels.gumbel_softmax(logits, noise_of(3), temperature)
    phi = (logits.double().numpy() + reference.gumbel_noise(noise_of(3), vocabulary)) / temperature
    expected = np.exp(phi - phi.max(-1, keepdims=True))
    close(found, expected / expected.sum(-1, keepdims=True), atol=3e-6)


def dense_gradient(gradient, hidden, table, bias, candidates, noise, temperature):
    """By float64 autograd of gradient . (p @ table) over the listed tokens."""
    hidden, table = hidden.double().requires_grad_(), table.double()
    vocabulary = len(table)
    phi = (hidden @ table.T + bias + torch.from_numpy(reference.gumbel_noise(noise, vocabulary))) / temperature
    listed = torch.zeros(len(hidden), vocabulary + 1, dtype=torch.bool)
    inside = (candidates >= 0) & (candidates < vocabulary)
    listed.scatter_(1, candidates.long().where(inside, torch.tensor(vocabulary)), True)
    p = phi.masked_fill(~listed[:, :-1], -1e300).softmax(-1)
    (gradient.double() * (p @ table)).sum().backward()
    return hidden.grad


@pytest.mark.parametrize("rows, width, vocabulary", [(1, 1, 5), (5, 24, 300), (3, 77, 1001)])
def test_soft_sample_gradient_equals_float64_autograd_of_the_dense_formula(cpu_kernels, rows, width, vocabulary):
    g = generator()
    gradient, hidden = torch.randn(rows, width, generator=g), torch.randn(rows, width, generator=g)
    table, bias = torch.randn(vocabulary, width, generator=g) / width**0.5, torch.randn(vocabulary, generator=g)
    logits = (hidden @ table.T).unsqueeze(1)
    targets = torch.zeros(rows, dtype=torch.long)
    listed = read(cpu_kernels, logits, bias, targets, noise=noise_of(rows))[0].candidates
    found = cpu_kernels.soft_sample_gradient(gradient, hidden, table, bias, listed, noise_of(rows), 0.3)
    expected = dense_gradient(gradient, hidden, table, bias, listed, noise_of(rows), 0.3)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_soft_sample_gradient_skips_what_is_no_token(cpu_kernels):
    g = generator()
    gradient, hidden, table = (torch.randn(3, 6, generator=g) for _ in range(3))
    candidates = torch.tensor([[-1, 2, 3, 0, -7], [-1] * 5, [1, -1, -1, 2**31 - 1, 2]], dtype=torch.int32)
    bias = torch.randn(3, generator=g)
    found = cpu_kernels.soft_sample_gradient(gradient, hidden, table, bias, candidates, noise_of(3), 0.5)
    expected = dense_gradient(gradient, hidden, table, bias, candidates, noise_of(3), 0.5)
    close(found[[0, 2]], expected[[0, 2]], atol=1e-5)
    assert not found[1].any()


def test_soft_sample_gradient_does_not_cancel_where_all_scores_are_large_and_alike(cpu_kernels):
    table = torch.tensor([[100.0, 0.0], [100.0, 1e-3], [100.0, -1e-3]])
    gradient, hidden = torch.tensor([[100.0, 1.0]]), torch.zeros(1, 2)
    candidates = torch.arange(3, dtype=torch.int32)[None]
    found = cpu_kernels.soft_sample_gradient(gradient, hidden, table, torch.zeros(3), candidates, noise_of(1), 2.0)
    expected = dense_gradient(gradient, hidden, table, torch.zeros(3), candidates, noise_of(1), 2.0)
    close(found, expected, atol=2e-2)  # s is 1e4: fp32 holds it to 1e-3, times 100 / temperature


@pytest.mark.parametrize("vocabulary, count", [(37, 1), (40, 30), (1001, 5), (5000, 64)])
@pytest.mark.parametrize("with_noise", [True, False])
def test_top_tokens_are_pytorchs(cpu_kernels, vocabulary, count, with_noise):
    logits, bias, left_out, _, excluded = case(6, 1, vocabulary)
    noise = noise_of(6) if with_noise else None
    found = cpu_kernels.top_tokens(logits[:, 0], bias, left_out, excluded, noise, count)
    assert torch.equal(found, pytorch.top_tokens(logits[:, 0], bias, left_out, excluded, noise, count))
    others = torch.arange(vocabulary) % 2 == 1  # not excluded, of which one is left out
    found = cpu_kernels.top_tokens(logits[:, 0], bias, left_out, others, noise, 1)
    assert not others[found].any() and not (found == left_out[:, None]).any()


def test_of_equal_tokens_the_lower_come_first_and_nan_is_none_of_them(cpu_kernels):
    logits, bias, left_out = torch.zeros(2, 300), torch.zeros(300), torch.tensor([1, 0])
    logits[1] = float("nan")
    found = cpu_kernels.top_tokens(logits, bias, left_out, None, None, 4)
    assert found.tolist() == [[0, 2, 3, 4], [0] * 4]


# ---- as PyTorch operators


def operator_calls():
    logits, bias, targets, weights, excluded = case(3, 2, 40)
    seed, rows = noise_of(3).seed, noise_of(3).rows
    flat, table = logits[:, 0].contiguous(), torch.randn(40, 6, generator=generator())
    hidden, candidates = torch.randn(3, 6, generator=generator(1)), torch.arange(12, dtype=torch.int32).view(3, 4)
    return {
        "gumbel_noise": (seed, rows, 40),
        "read_rows": (logits, bias, targets, weights, excluded, seed, rows, 0.3, True, True),
        "logsumexp_rows": (flat, bias),
        "softmax_rows_": (flat, bias, torch.zeros(3)),
        "gumbel_softmax": (flat, seed, rows, 0.3),
        "top_tokens": (flat, bias, targets, excluded, seed, rows, 5),
        "soft_sample_gradient": (hidden, hidden, table, bias, candidates, seed, rows, 0.3),
    }


@pytest.mark.parametrize("name", operator_calls())
def test_operators_keep_pytorchs_contract(cpu_kernels, name):
    torch.library.opcheck(getattr(torch.ops.amos_fairseq, name).default, operator_calls()[name])


def test_readings_without_draws_or_lists_keep_pytorchs_contract(cpu_kernels):
    logits, bias, targets, weights, excluded, seed, rows, *_ = operator_calls()["read_rows"]
    for arguments in ((seed, rows, 0.3, False, False), (0, None, 1.0, True, True)):
        torch.library.opcheck(
            torch.ops.amos_fairseq.read_rows.default, (logits, bias, targets, weights, excluded, *arguments)
        )


def test_compiled_graphs_keep_the_operators_whole(cpu_kernels):
    def step(logits, bias, targets, noise_rows):
        noise = Noise(11, noise_rows)
        reading = cpu_kernels.read_rows(logits, bias, targets, None, None, noise, 0.3, True, True)
        logsumexp = cpu_kernels.logsumexp_rows(logits.flatten(0, 1), bias)[0]
        soft = cpu_kernels.gumbel_softmax(logits.flatten(0, 1), noise, 0.3)
        cpu_kernels.softmax_rows_(soft, bias, logsumexp)
        return reading.losses, reading.sampled, logits * 2, soft

    logits, bias, targets, _, _ = case(3, 1, 40)
    arguments = bias, targets, noise_of(3).rows
    expected = step(logits.clone(), *arguments)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(logits.clone(), *arguments)
    for x, y in zip(found, expected):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


# ---- wrong arguments


def change(position, wrong):
    """The arguments of read_rows with one of them wrong."""
    logits, bias, targets, weights, excluded = case(3, 2, 40)
    arguments = [logits, bias, targets, weights, excluded, noise_of(3), 0.3, True, True]
    arguments[position] = wrong(arguments[position])
    return arguments


@pytest.mark.parametrize(
    "position, wrong, message",
    [
        (0, lambda x: x[0], r"logits is \(2, 40\): it must be \(M, G, V\)"),
        (0, lambda x: x.double(), "logits is torch.float64 on cpu, which no kernel reads"),
        (0, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), "logits is not contiguous"),
        (1, lambda x: x[:39], r"bias is \(39,\): it must be \(40,\)"),
        (1, lambda x: x.bfloat16(), "bias is torch.bfloat16: it must be torch.float32"),
        (2, lambda x: x.int(), "targets is torch.int32: it must be torch.int64"),
        (2, lambda x: x.to("meta"), "targets is on meta, the rows on cpu"),
        (3, lambda x: x[:, :1], r"weights is \(3, 1\): it must be \(3, 2\)"),
        (3, lambda x: None, "weights are missing: to draw from 2 heads"),
        (4, lambda x: x.float(), "excluded is torch.float32: it must be torch.bool"),
        (5, lambda x: x[:2], r"noise_rows is \(2, 2\): it must be \(3, 2\)"),
        (6, lambda x: 0.0, "temperature must be positive, got 0.0"),
    ],
)
def test_a_wrong_argument_is_named(cpu_kernels, position, wrong, message):
    with pytest.raises(ValueError, match=message):
        cpu_kernels.read_rows(*change(position, wrong))


def test_wrong_arguments_of_the_other_functions_are_named(cpu_kernels):
    logits, bias = torch.zeros(3, 40), torch.zeros(40)
    for message, call in (
        (r"noise_rows is \(6,\): it must be \(M, 2\)", lambda: cpu_kernels.gumbel_noise(Noise(0, torch.arange(6)), 5)),
        (r"logsumexp is \(2,\)", lambda: cpu_kernels.softmax_rows_(logits, bias, torch.zeros(2))),
        (r"bias is \(3,\)", lambda: cpu_kernels.logsumexp_rows(logits, torch.zeros(3))),
        ("temperature must be positive", lambda: cpu_kernels.gumbel_softmax(logits, noise_of(3), -1.0)),
        (
            r"hidden is \(2, 5\): it must be \(2, 6\)",
            lambda: cpu_kernels.soft_sample_gradient(
                torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(40, 6), bias, torch.zeros(2, 3).int(), noise_of(2), 1
            ),
        ),
        (
            "candidates is torch.int64: it must be torch.int32",
            lambda: cpu_kernels.soft_sample_gradient(
                torch.zeros(2, 6), torch.zeros(2, 6), torch.zeros(40, 6), bias, torch.zeros(2, 3).long(), noise_of(2), 1
            ),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_what_the_library_cannot_do_is_an_error_with_its_text(cpu_kernels, monkeypatch):
    monkeypatch.setitem(cpu_kernels.SCALARS["cpu"], torch.float32, 2)
    with pytest.raises(RuntimeError, match="amos_logsumexp_rows failed: the CPU kernels take float32 alone"):
        cpu_kernels.logsumexp_rows(torch.zeros(1, 3), torch.zeros(3))


def test_kernels_exist_for_single_and_on_gpus_for_half_precision(cpu_kernels):
    assert cpu_kernels.supports("cpu", torch.float32) and cpu_kernels.available("cpu")
    assert not cpu_kernels.supports("cpu", torch.bfloat16) and not cpu_kernels.supports("cuda", torch.float64)
    assert all(cpu_kernels.supports("cuda", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert not cpu_kernels.supports("mps", torch.float32) and not cpu_kernels.available("mps")


def test_a_library_that_cannot_be_loaded_is_told_with_the_remedy(cpu_kernels, monkeypatch, tmp_path):
    broken = tmp_path / "libamos_cpu.so"
    broken.write_text("no library")
    monkeypatch.setattr(cpu_kernels, "_path", lambda device_type: broken)
    cpu_kernels.available.cache_clear()
    cpu_kernels._library.cache_clear()
    with pytest.warns(UserWarning, match="cannot be loaded .* anew, `python -m amos_fairseq.csrc.build cpu`"):
        assert not cpu_kernels.available("cpu")


# ---- on a GPU, where the kernels were built for it


@pytest.fixture
def cuda_kernels():
    compiled.available.cache_clear()
    if not compiled.available("cuda"):
        pytest.skip(f"no GPU, or its kernels are not built: {compiled.BUILD_COMMAND['cuda']}")
    return compiled


def test_the_gpus_noise_has_the_cpus_bits(cpu_kernels, cuda_kernels):
    noise = noise_of(50)
    found = cuda_kernels.gumbel_noise(Noise(noise.seed, noise.rows.cuda()), 5003)
    assert torch.equal(found.cpu(), cpu_kernels.gumbel_noise(noise, 5003))


@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 3e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
@pytest.mark.parametrize("heads, vocabulary", [(1, 37), (3, 32_768), (3, 64_001), (5, 1000)])
def test_reading_on_a_gpu_equals_the_float64_reference(cuda_kernels, heads, vocabulary, dtype, rounding):
    rows, noise = 6, noise_of(6)
    logits, bias, targets, weights, excluded = case(rows, heads, vocabulary)
    logits = logits.to(dtype)
    expected = reference.read_rows(logits, bias, targets, weights, excluded, noise, 0.3)
    moved = [None if x is None else x.cuda() for x in (logits, bias, targets, weights, excluded)]
    found, gradient = read(cuda_kernels, *moved, Noise(noise.seed, noise.rows.cuda()))
    for name, index in (("predicted", 1), ("ranks", 2), ("sampled", 3), ("likeliest", 4)):
        assert getattr(found, name).tolist() == expected[index].tolist(), name
    close(found.losses.cpu(), expected[0], atol=1e-5)
    assert lists(found.candidates) == [x.tolist() for x in expected[5]]
    close(found.tail.cpu(), expected[6], atol=5e-6)
    close(gradient.double().cpu(), expected[7], atol=1e-6, rtol=rounding)
    again, second = read(cuda_kernels, *moved, Noise(noise.seed, noise.rows.cuda()))
    assert torch.equal(second, gradient) and all(torch.equal(x, y) for x, y in zip(again, found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_other_functions_on_a_gpu_equal_the_cpus(cpu_kernels, cuda_kernels, dtype):
    g, noise = generator(), noise_of(5)
    logits, bias = (3 * torch.randn(5, 1003, generator=g)).to(dtype), torch.randn(1003, generator=g)
    table, hidden = torch.randn(1003, 77, generator=g).to(dtype), torch.randn(2, 5, 77, generator=g)
    candidates = torch.randint(-1, 1003, (5, 200), generator=g, dtype=torch.int32)

    def results(device, dtype):
        flat, of_rows = logits.to(device, dtype), Noise(noise.seed, noise.rows.to(device))
        logsumexp, largest, likeliest = compiled.logsumexp_rows(flat, bias.to(device))
        soft = compiled.gumbel_softmax(flat, of_rows, 0.3)
        top = compiled.top_tokens(flat, bias.to(device), likeliest, None, of_rows, 40)
        compiled.softmax_rows_(flat, bias.to(device), logsumexp)
        moved = [x.to(device) for x in (*hidden, table.to(dtype), bias, candidates)]
        gradient = compiled.soft_sample_gradient(*moved, of_rows, 0.3)
        return [x.double().cpu() for x in (logsumexp, largest, likeliest, soft, top, flat, gradient)]

    for found, expected in zip(results("cuda", dtype), results("cpu", torch.float32)):
        rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
        torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=rounding)
