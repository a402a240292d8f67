import math

import pytest
import torch

from amos_fairseq.ops import Noise, gumbel_noise, gumbel_softmax
from amos_fairseq.ops.noise import gumbel, philox

SAMPLES, POSITIONS = 50, 8


def rows(samples=SAMPLES, positions=POSITIONS):
    grid = torch.cartesian_prod(torch.arange(samples), torch.arange(positions))
    return grid.view(-1, 2)


@pytest.mark.parametrize(
    "seed, counter, words",
    [
        (0, [0] * 4, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (2**64 - 1, [2**32 - 1] * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            0xA4093822 | 0x299F31D0 << 32,
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_its_known_answers(seed, counter, words):
    assert [int(word) for word in philox(seed, list(map(torch.tensor, counter)))] == words


def test_philox_of_seven_rounds_gives_its_known_answer():
    words = philox(0, [torch.tensor(0)] * 4, rounds=7)
    assert [int(word) for word in words] == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


def test_the_extreme_words_give_finite_noise_of_the_right_size():
    found = gumbel(torch.tensor([0, 1, 2**31, 2**32 - 1])).tolist()
    expected = [22.873857, 21.775245, 0.366513, -3.129995]
    assert found == pytest.approx(expected, abs=2e-6)


def test_noise_of_half_a_million_draws_is_gumbel():
    noise = gumbel_noise(Noise(3, rows()), 1237).double().flatten()
    uniform = (-(-noise).exp()).exp().sort().values
    steps = torch.arange(1, len(noise) + 1) / len(noise)
    kolmogorov_smirnov = (uniform - steps).abs().max() * math.sqrt(len(noise))
    assert kolmogorov_smirnov < 1.95  # 99.9 %
    assert noise.mean().item() == pytest.approx(0.577216, abs=0.006)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.015)
    # 1 - exp(-exp(-8)) of them are above 8: 165.9 expected, 4 standard deviations
    assert 114 < (noise > 8).sum() < 218


def test_noise_is_a_function_of_seed_sample_position_and_token_alone():
    noise = gumbel_noise(Noise(3, rows()), 30)
    order = torch.randperm(len(noise), generator=torch.Generator().manual_seed(0))
    assert torch.equal(gumbel_noise(Noise(3, rows()[order]), 30), noise[order])
    assert torch.equal(gumbel_noise(Noise(3, rows())[5:7], 7), noise[5:7, :7])


@pytest.mark.parametrize("other", ["seed", "sample", "position", "token", "large sample id"])
def test_noise_of_another_key_is_uncorrelated(other):
    seed, keys, tokens = 3, rows(), slice(0, 500)
    if other == "seed":
        seed = 4
    if other == "token":
        tokens = slice(500, 1000)
    steps = {"sample": [SAMPLES, 0], "position": [0, POSITIONS], "large sample id": [2**32, 0]}
    keys = keys + torch.tensor(steps.get(other, [0, 0]))
    first = gumbel_noise(Noise(3, rows()), 500).flatten()
    second = gumbel_noise(Noise(seed, keys), 1000)[:, tokens].flatten()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(correlation) < 3.3 / math.sqrt(len(first))  # 99.9 %


def test_no_rows_have_no_noise():
    assert gumbel_noise(Noise(3, torch.empty(0, 2, dtype=torch.long)), 30).shape == (0, 30)


def test_gumbel_softmax_of_given_noise_is_the_softmax_of_the_sum():
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.double)
    noise = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.double)
    assert gumbel_softmax(logits, 0.5, noise).tolist() == [pytest.approx([1 / 3] * 3)]
    # exp(2 * [0, 1, 2]) / sum
    assert gumbel_softmax(logits, 0.5, noise * 0).tolist() == [pytest.approx([0.015876, 0.117310, 0.866814], abs=1e-6)]


@pytest.mark.parametrize("hard", [False, True])
def test_gumbel_softmax_has_the_soft_samples_gradient(hard):
    generator = torch.Generator().manual_seed(0)
    logits, upstream = torch.randn(2, 6, 9, dtype=torch.double, generator=generator)
    noise = Noise(2, rows()[:6])
    soft_logits = logits.clone().requires_grad_()
    soft = ((soft_logits + gumbel_noise(noise, 9, torch.double)) / 0.4).softmax(dim=-1)
    (soft * upstream).sum().backward()
    logits.requires_grad_()
    drawn = gumbel_softmax(logits, 0.4, noise, hard)
    (drawn * upstream).sum().backward()
    one_hot = torch.nn.functional.one_hot(soft.argmax(dim=-1), 9).double()
    torch.testing.assert_close(drawn, one_hot if hard else soft)
    torch.testing.assert_close(logits.grad, soft_logits.grad, rtol=1e-11, atol=1e-13)


def test_gumbel_softmax_without_noise_draws_from_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0]).expand(50_000, 4)
    torch.manual_seed(0)
    counts = gumbel_softmax(logits, hard=True).sum(dim=0).double()
    expected = logits[0].double().softmax(0) * 50_000
    assert ((counts - expected) ** 2 / expected).sum() < 16.27  # 99.9 %, 3 degrees of freedom


def test_half_precision_logits_are_perturbed_in_fp32_and_come_back_in_their_type():
    # in bf16 the noise's largest values would be few and shared: the mean of the winning ids would fall below 1,000
    soft = gumbel_softmax(torch.zeros(400, 32768, dtype=torch.bfloat16), 0.3, Noise(1, rows()))
    assert soft.dtype == torch.bfloat16
    assert 14_500 < soft.argmax(dim=-1).double().mean() < 18_300


def test_wrong_arguments_are_named():
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        gumbel_softmax(logits, 0)
    with pytest.raises(ValueError, match=r"noise is for \(1, 3\), logits are \(2, 3\): they must be alike"):
        gumbel_softmax(logits, 1.0, Noise(0, rows()[:1]))
    with pytest.raises(ValueError, match=r"logits are \(3,\): they must be \(M, V\)"):
        gumbel_softmax(logits[0])
