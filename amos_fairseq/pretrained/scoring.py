"""How likely a model finds a text: SCRIPT's pseudo-log-likelihood in one pass, and the masked one it stands in for."""

from typing import Callable, List, NamedTuple, Sequence

import torch
from torch import Tensor

from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.modules.batching import BATCH_TOKENS, batches, padded
from amos_fairseq.objectives import pseudo_log_likelihood
from amos_fairseq.ops import full_precision


class Score(NamedTuple):
    pll: float  # pseudo-log-likelihood, natural logarithm
    tokens: int  # positions that it sums over


@torch.no_grad()
def one_pass_scores(
    method: PretrainingMethod, sequences: Sequence[Tensor], uncounted_tokens: Sequence[int] = (),
    batch_tokens: int = BATCH_TOKENS, progress: Callable[[int], object] = lambda sequences: None,
) -> List[Score]:
    """Of each sequence of ids (T,) sum_t log P(original_t), read unmasked, by a method that `scores_in_one_pass`.

    Sequences of near length share a forward pass over at most `batch_tokens` positions, padding included.
    `uncounted_tokens` are read, but not summed over. `progress` is told how many sequences each pass has finished.
    """
    scores = {}
    for rows in batches([len(sequence) for sequence in sequences], batch_tokens):
        tokens, padding_mask = padded([sequences[row] for row in rows], method.encoder)
        critic_logits = method.detection_logits(tokens, padding_mask)
        counted = ~torch.isin(tokens, tokens.new_tensor(uncounted_tokens))
        if padding_mask is not None:
            counted &= ~padding_mask
        plls = pseudo_log_likelihood(critic_logits, counted)
        scores.update(zip(rows, map(Score, plls.tolist(), counted.sum(dim=-1).tolist())))
        progress(len(rows))
    return [scores[row] for row in range(len(sequences))]


@torch.no_grad()
def masked_scores(
    method: PretrainingMethod, sequences: Sequence[Tensor], mask_token: int, uncounted_tokens: Sequence[int] = (),
    batch_tokens: int = BATCH_TOKENS, progress: Callable[[int], object] = lambda sequences: None,
) -> List[Score]:
    """The masked pseudo-log-likelihood of each sequence (T,): sum_t log P(token_t | all others), position t masked.

    As many readings as positions (Salazar et al., 2020), by the method's masked language model.
    """
    network = method.masked_lm_encoder
    device = network.token_embeddings.weight.device
    scores = []
    for tokens in sequences:
        tokens = tokens.to(device)
        positions = (~torch.isin(tokens, tokens.new_tensor(uncounted_tokens))).nonzero().squeeze(-1)
        pll = 0.0
        for part in positions.split(max(1, batch_tokens // len(tokens))):
            rows = torch.arange(len(part), device=device)
            masked_tokens = tokens.repeat(len(part), 1)
            masked_tokens[rows, part] = mask_token
            logits = method.mlm_head(network(masked_tokens)[rows, part])
            pll += full_precision(logits).log_softmax(dim=-1)[rows, tokens[part]].sum().item()
        scores.append(Score(pll, len(positions)))
        progress(1)
    return scores
