import pytest
import torch

from amos_fairseq.ops import gradient_reversal


def test_forward_is_the_identity_and_backward_the_negative():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = gradient_reversal(x)
    assert torch.equal(y, x)
    (y * torch.tensor([3.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [-3.0, -5.0]


def test_scale_multiplies_the_reversed_gradient():
    x = torch.ones(2, requires_grad=True)
    gradient_reversal(x, scale=0.1).sum().backward()
    assert x.grad.tolist() == pytest.approx([-0.1, -0.1])


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="positive"):
        gradient_reversal(torch.ones(1), scale)
