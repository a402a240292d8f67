import pytest
import torch

from amos_fairseq.ops import Noise, gumbel_noise, masked_lm, soft_embedding, straight_through_gumbel_softmax

B, T, M, V, E = 2, 5, 4, 13, 3
POSITIONS = torch.tensor([1, 3, 5, 9])
NOISE = Noise(5, torch.stack([torch.arange(M), POSITIONS], dim=1))


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    return dict(embeddings=randn(B, T, E), hidden=randn(M, E), table=randn(V, E), bias=randn(V))


def literal(hidden, table, bias, temperature, excluded=None, looked_up=None):
    """The hard one-hot of the argmax with the soft one's gradient, times the table that is looked up."""
    logits = hidden @ table.T + bias + gumbel_noise(NOISE, len(table), torch.double)
    if excluded is not None:
        logits = logits.masked_fill(excluded, -torch.inf)
    soft = (logits / temperature).softmax(-1)
    hard = torch.nn.functional.one_hot(logits.argmax(-1), len(table)).to(soft.dtype)
    return (hard - soft.detach() + soft) @ (table if looked_up is None else looked_up)


def gradients(case, temperature, excluded=None, candidates=None, looked_up=None):
    """Of hidden: by autograd on the literal estimator, and ours."""
    upstream = torch.randn(B, T, E, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    table, bias = case["table"], case["bias"]
    expected_hidden = case["hidden"].clone().requires_grad_()
    drawn = literal(expected_hidden, table, bias, temperature, excluded, looked_up)
    expected = case["embeddings"].flatten(0, 1).index_copy(0, POSITIONS, drawn)
    (expected.view(B, T, E) * upstream).sum().backward()

    hidden = case["hidden"].clone().requires_grad_()
    embeddings = straight_through_gumbel_softmax(
        expected.detach().view(B, T, E), hidden, table, bias, POSITIONS, NOISE, temperature, candidates, excluded,
        looked_up,
    )
    (embeddings * upstream).sum().backward()
    assert torch.equal(embeddings, expected.view(B, T, E))
    return expected_hidden.grad, hidden.grad


@pytest.mark.parametrize("rows", [1, 100])  # of a chunk
@pytest.mark.parametrize("temperature", [0.1, 0.3, 1.0])
def test_gradient_equals_autograd_on_the_literal_straight_through_estimator(case, temperature, rows, monkeypatch):
    monkeypatch.setattr("amos_fairseq.ops.chunks.WORKSPACE", rows * V * 8)
    expected, found = gradients(case, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_excluded_tokens_take_no_part(case):
    excluded = torch.zeros(V, dtype=torch.bool)
    excluded[[0, 4, 12]] = True
    expected, found = gradients(case, 1.0, excluded)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("candidates, tolerance", [(None, 1e-11), (torch.arange(V).int().expand(M, V), 1e-11)])
def test_the_embeddings_may_be_of_another_table_than_the_logits(case, candidates, tolerance):
    looked_up = torch.randn(V, E, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    expected, found = gradients(case, 0.4, candidates=candidates, looked_up=looked_up)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-12)
    of_one_table, _ = gradients(case, 0.4)
    assert (expected - of_one_table).abs().max() > 0.1


def test_candidates_give_the_gradient_but_for_their_tail(case):
    targets = torch.zeros(M, dtype=torch.long)
    reading = masked_lm(
        case["hidden"], case["table"], case["bias"], targets, noise=NOISE, temperature=0.3, candidates=True
    )
    expected, found = gradients(case, 0.3, candidates=reading.candidates)
    assert reading.tail.max() < 1e-5
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_a_row_without_candidates_gets_no_gradient(case):
    candidates = torch.full((M, 2), -1, dtype=torch.int32)
    candidates[1:] = torch.tensor([3, 4])
    _, found = gradients(case, 0.3, candidates=candidates)
    assert not found[0].any() and found[1:].abs().amin(dim=-1).gt(0).all()


def test_candidates_are_refused_where_they_would_leave_out_too_much(case):
    with pytest.raises(ValueError, match="too little of a soft sample of temperature 0.6, above 0.5: leave them out"):
        gradients(case, 0.6, candidates=torch.zeros(M, 2, dtype=torch.int32))


def test_embeddings_keep_their_own_gradient_and_the_table_gets_none(case):
    embeddings, table, hidden = (case[name].requires_grad_() for name in ("embeddings", "table", "hidden"))
    out = straight_through_gumbel_softmax(embeddings, hidden, table, case["bias"], POSITIONS, NOISE, 0.3)
    (2 * out).sum().backward()
    assert torch.equal(embeddings.grad, torch.full_like(embeddings, 2.0))
    assert table.grad is None and hidden.grad is not None


def test_without_selected_positions_the_gradient_is_empty(case):
    hidden = torch.empty(0, E, dtype=torch.double, requires_grad=True)
    noise = Noise(0, torch.empty(0, 2, dtype=torch.long))
    out = straight_through_gumbel_softmax(
        case["embeddings"], hidden, case["table"], case["bias"], torch.empty(0, dtype=torch.long), noise, 0.3
    )
    out.sum().backward()
    assert hidden.grad.shape == (0, E)


def test_soft_embedding_is_the_mean_of_the_table_under_the_soft_sample(case):
    logits = case["hidden"] @ case["table"].T + case["bias"] + gumbel_noise(NOISE, V, torch.double)
    expected = (logits / 0.7).softmax(-1) @ case["table"]
    found = soft_embedding(case["hidden"], case["table"], case["bias"], NOISE, 0.7)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
