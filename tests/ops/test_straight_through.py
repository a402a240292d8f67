import pytest
import torch

from amos_fairseq.ops import straight_through_gumbel_softmax

B, T, M, V, E = 2, 5, 4, 13, 3


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    positions = torch.tensor([1, 3, 5, 9])
    return dict(
        embeddings=randn(B, T, E), hidden=randn(M, E), table=randn(V, E), noise=randn(M, V), positions=positions
    )


def literal(hidden, table, noise, temperature):
    """The hard one-hot of the argmax with the soft one's gradient, times the table."""
    logits = hidden @ table.T + noise
    soft = (logits / temperature).softmax(-1)
    hard = torch.nn.functional.one_hot(logits.argmax(-1), len(table)).to(soft.dtype)
    return (hard - soft.detach() + soft) @ table


@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0])
def test_gradient_equals_autograd_on_the_literal_straight_through_estimator(case, temperature):
    upstream = torch.randn(B, T, E, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    table, noise, positions = case["table"], case["noise"], case["positions"]

    expected_hidden = case["hidden"].clone().requires_grad_()
    drawn = literal(expected_hidden, table, noise, temperature)
    expected = case["embeddings"].flatten(0, 1).index_copy(0, positions, drawn)
    (expected.view(B, T, E) * upstream).sum().backward()

    hidden = case["hidden"].clone().requires_grad_()
    probabilities = ((case["hidden"] @ table.T + noise) / temperature).softmax(-1)
    embeddings = straight_through_gumbel_softmax(
        expected.detach().view(B, T, E), hidden, probabilities, table, positions, temperature
    )
    (embeddings * upstream).sum().backward()
    assert torch.equal(embeddings, expected.view(B, T, E))
    torch.testing.assert_close(hidden.grad, expected_hidden.grad, rtol=1e-11, atol=1e-12)


def test_embeddings_keep_their_own_gradient_and_the_table_gets_none(case):
    embeddings = case["embeddings"].requires_grad_()
    table = case["table"].requires_grad_()
    hidden = case["hidden"].requires_grad_()
    probabilities = (hidden @ table.T + case["noise"]).softmax(-1)
    out = straight_through_gumbel_softmax(embeddings, hidden, probabilities, table, case["positions"], 0.3)
    (2 * out).sum().backward()
    assert torch.equal(embeddings.grad, torch.full_like(embeddings, 2.0))
    assert table.grad is None and hidden.grad is not None


def test_without_selected_positions_the_gradient_is_empty(case):
    hidden = torch.empty(0, E, dtype=torch.double, requires_grad=True)
    none = torch.empty(0, V, dtype=torch.double)
    out = straight_through_gumbel_softmax(
        case["embeddings"], hidden, none, case["table"], torch.empty(0, dtype=torch.long), 0.3
    )
    out.sum().backward()
    assert hidden.grad.shape == (0, E)
