"""AdamW that decays matrices alone, against arithmetic by hand. In the trainer: tests/training/test_optimizer.py."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

pytest.importorskip("fairseq")
import amos_fairseq.tasks  # noqa: E402, F401
from amos_fairseq.optim.fused_adamw import AdamW, FusedAdamW, betas, decay_groups  # noqa: E402

CONFIG = dict(lr=[0.1], adam_betas="(0.9, 0.98)", adam_eps=1e-6, weight_decay=0.01)


def optimizer_of(parameters, **options):
    return FusedAdamW(OmegaConf.create({**CONFIG, **options}), parameters)


def adamw_by_hand(values, gradients, lr, beta1, beta2, eps, decay):
    """Decoupled weight decay (Loshchilov and Hutter, 2019, Algorithm 2), in float64."""
    value, first, second = values.double(), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        gradient = gradient.double()
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        root = (second / (1 - beta2**step)).sqrt()
        value = value * (1 - lr * decay) - lr * first / (1 - beta1**step) / (root + eps)
    return value


def test_first_step_on_literal_numbers():
    matrix, vector = nn.Parameter(torch.tensor([[2.0, -1.0]])), nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = optimizer_of([vector, matrix])
    matrix.grad, vector.grad = torch.tensor([[5.0, -3.0]]), torch.tensor([5.0, -3.0])
    optimizer.step()
    # the first step has the length of lr in the direction of the sign; a matrix also shrinks by lr * decay = 0.001
    torch.testing.assert_close(vector.data, torch.tensor([1.9, -0.9]))
    torch.testing.assert_close(matrix.data, torch.tensor([[1.898, -0.899]]))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_several_steps_equal_adamw_by_hand(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in ((4, 3), (3,), (2, 1, 2))]
    before = [parameter.detach().clone() for parameter in parameters]
    gradients = [[torch.randn(p.shape, generator=generator).to(dtype) for p in parameters] for _ in range(3)]
    optimizer = optimizer_of(parameters)
    for step in gradients:
        for parameter, gradient in zip(parameters, step):
            parameter.grad = gradient.clone()
        optimizer.step()
    for index, decay in enumerate((0.01, 0.0, 0.01)):
        expected = adamw_by_hand(before[index], [step[index] for step in gradients], 0.1, 0.9, 0.98, 1e-6, decay)
        torch.testing.assert_close(parameters[index].data.double(), expected, rtol=tolerance, atol=tolerance)


def test_half_precision_has_moments_in_fp32_that_survive_saving():
    """The second moment of a gradient of 1e-4 is 1e-8 * 0.02: zero in fp16."""
    def step(optimizer, parameter):
        parameter.grad = torch.full_like(parameter, 1e-4)
        optimizer.step()

    parameter = nn.Parameter(torch.ones(2, 2, dtype=torch.float16))
    optimizer = AdamW(decay_groups([parameter], 0.0), lr=0.125, betas=(0.9, 0.98), eps=1e-8)
    gradient = parameter.data.new_tensor(1e-4).float()
    step(optimizer, parameter)
    assert parameter.dtype == torch.float16 and optimizer.param_groups[0]["params"][0] is parameter
    torch.testing.assert_close(parameter.data, torch.full_like(parameter, 0.875), rtol=0, atol=1e-3)
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], (0.02 * gradient**2).expand(2, 2))

    resumed = nn.Parameter(parameter.detach().clone())
    other = AdamW(decay_groups([resumed], 0.0), lr=0.125, betas=(0.9, 0.98), eps=1e-8)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(resumed, parameter) and len(other.state) == 1
    for key, value in optimizer.state[parameter].items():
        assert other.state[resumed][key].dtype == torch.float32 and torch.equal(other.state[resumed][key], value)
    step(optimizer, parameter)
    step(other, resumed)
    assert torch.equal(resumed, parameter)


def test_biases_and_layer_norms_of_an_encoder_do_not_decay(make_method):
    method = make_method("amos_rtd")
    matrices, vectors = (group["params"] for group in decay_groups(list(method.parameters()), 0.01))
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    assert len(matrices) + len(vectors) == len(names)
    for parameter in vectors:
        assert names[id(parameter)].endswith("bias") or "norm" in names[id(parameter)]
    for parameter in matrices:
        assert names[id(parameter)].endswith("weight") and "norm" not in names[id(parameter)]


def test_overriding_the_decay_at_a_resume_leaves_vectors_without():
    parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
    optimizer = optimizer_of(parameters)
    optimizer.load_state_dict(optimizer.state_dict(), dict(weight_decay=0.5, eps=1e-4))
    assert [(group["weight_decay"], group["eps"]) for group in optimizer.param_groups] == [(0.5, 1e-4), (0.0, 1e-4)]


def parameters_of_two_rates(factor=0.5):
    """Matrix, vector, and the same with their learning rate multiplied."""
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,), (3, 3), (3,))]
    for parameter in parameters[2:]:
        parameter.optim_overrides = {"lr_factor": factor}
    return parameters


def test_parameters_of_other_rates_are_groups_of_their_own_the_highest_first():
    parameters = parameters_of_two_rates()
    groups = decay_groups(parameters[::-1], 0.1)
    assert [group["params"][0] is parameter for group, parameter in zip(groups, parameters)] == [True] * 4
    assert [(group["weight_decay"], group["lr_factor"]) for group in groups] == [(0.1, 1), (0, 1), (0.1, 0.5), (0, 0.5)]


def test_the_schedulers_rate_is_multiplied_for_each_group_and_read_back_as_it_was():
    optimizer = optimizer_of(parameters_of_two_rates(0.3))
    for rate in (0.7, 1e-3):
        optimizer.set_lr(rate)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate, 0.3 * rate, 0.3 * rate]
        assert optimizer.get_lr() == rate


def test_factors_are_those_of_the_command_not_of_the_checkpoint():
    """Nor does one from before there were any lack them."""
    optimizer, earlier = optimizer_of(parameters_of_two_rates(0.5)), optimizer_of(parameters_of_two_rates(0.25))
    optimizer.load_state_dict(earlier.state_dict(), dict(weight_decay=0.5))
    optimizer.set_lr(1.0)
    groups = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [(1.0, 0.5), (1.0, 0.0), (0.5, 0.5), (0.5, 0.0)]


def test_moments_belong_to_their_parameters_whatever_the_factors_of_the_run_that_goes_on():
    def trained(factor):
        parameters = [nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,), (2, 2), (2,))]
        for parameter in parameters[2:]:
            parameter.optim_overrides = {"lr_factor": factor}
        return parameters, optimizer_of(parameters)

    parameters, optimizer = trained(4.0)
    for number, parameter in enumerate(parameters, 1):
        parameter.grad = torch.full_like(parameter, float(number))
    optimizer.step()
    state = optimizer.state_dict()
    assert [group["places"] for group in state["param_groups"]] == [[1], [3], [0], [2]]  # the highest factor first
    for factor in (4.0, 1.0, 0.5):
        others, other = trained(factor)
        other.load_state_dict(state)
        for number, parameter in enumerate(others, 1):
            moment = other.optimizer.state[parameter]["exp_avg"]
            torch.testing.assert_close(moment, torch.full_like(parameter, 0.1 * number))


def test_state_of_more_or_fewer_parameters_is_refused():
    more, fewer = (optimizer_of([nn.Parameter(torch.ones(2, 2)) for _ in range(count)]) for count in (3, 2))
    with pytest.raises(ValueError, match="the checkpoint's optimizer has 3 parameters, not 2: --reset-optimizer"):
        fewer.load_state_dict(more.state_dict())


def test_state_of_several_factors_that_does_not_say_whose_it_is_is_refused():
    optimizer = optimizer_of(parameters_of_two_rates())
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["places"]
    with pytest.raises(ValueError, match="the checkpoint's 4 groups do not say of which parameters: --reset-optimizer"):
        optimizer.load_state_dict(state)
    alike = optimizer_of([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))])
    state = alike.state_dict()
    for group in state["param_groups"]:
        del group["places"]
    alike.load_state_dict(state)  # of one factor: as torch numbers them


def test_a_parameter_with_half_the_rate_goes_half_as_far():
    parameters = parameters_of_two_rates(0.5)
    optimizer = optimizer_of(parameters, weight_decay=0.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, value in zip(parameters, (0.9, 0.9, 0.95, 0.95)):
        torch.testing.assert_close(parameter.data, torch.full_like(parameter, value))


@pytest.mark.parametrize("value", ["(0.9, 0.98)", "0.9,0.98", (0.9, 0.98), OmegaConf.create([0.9, 0.98])])
def test_betas_are_a_pair_in_any_spelling(value):
    assert betas(value) == (0.9, 0.98)


@pytest.mark.parametrize("value", ["0.9", "(0.9, 0.98, 0.99)", "high", "(0.9, 'x')"])
def test_betas_that_are_no_pair_are_refused(value):
    with pytest.raises(ValueError, match=r"adam_betas .* is no pair of numbers: write it as '\(0.9, 0.98\)'"):
        betas(value)
