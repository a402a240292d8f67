"""The straight-through Gumbel-Softmax: a hard draw forward, the soft sample's gradient backward."""

import torch
from torch import Tensor


class _StraightThroughGumbelSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, hidden, probabilities, table, positions, temperature):
        ctx.save_for_backward(probabilities, table, positions)
        ctx.temperature = temperature
        ctx.hidden_dtype = hidden.dtype
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx, gradient):
        probabilities, table, positions = ctx.saved_tensors
        table = table.to(probabilities.dtype)
        # s_t = x_t . g is the gradient with respect to the soft one-hot; through softmax((table . h + ...) / tau) it
        # becomes p_t (s_t - sum_u p_u s_u) / tau at the logits, and one more product with the table at h.
        scores = gradient.flatten(0, 1)[positions].to(probabilities.dtype) @ table.T
        scores -= (probabilities * scores).sum(dim=-1, keepdim=True)
        hidden_gradient = (probabilities * scores) @ table / ctx.temperature
        return gradient, hidden_gradient.to(ctx.hidden_dtype), None, None, None, None


def straight_through_gumbel_softmax(
    embeddings: Tensor, hidden: Tensor, probabilities: Tensor, table: Tensor, positions: Tensor, temperature: float
) -> Tensor:
    """Return `embeddings`, whose gradient at `positions` also flows into `hidden` as if the draw had been soft.

    Forward: the identity. Backward: besides the identity, `hidden` receives the gradient of
    `softmax((hidden @ table.T + bias + noise) / temperature) @ table` with table, bias and noise held constant:

        dL/dhidden = sum_t p_t (s_t - sum_u p_u s_u) x_t / temperature,   s_t = x_t . g,   g = dL/dembeddings

    for x_t the rows of `table` and p = `probabilities`, so that neither a one-hot nor the product p @ table is made.
    The table gets no gradient from here: it gets the ordinary one of the lookup that made `embeddings`.

    embeddings: (B, T, E)   hidden: (M, E)   probabilities: (M, V) softmax((logits + noise) / temperature), fp32
    table: (V, E)           positions: (M,) flat indices into B * T
    """
    return _StraightThroughGumbelSoftmax.apply(
        embeddings, hidden, probabilities.detach(), table.detach(), positions, temperature
    )
