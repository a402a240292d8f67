"""How likely a model finds a text, in three ways, and how likely its words are by themselves.

    one_pass_scores     SCRIPT's pseudo-log-likelihood: what the critic says of the text as it stands (Eq. 7)
    masked_scores       that of masked language models (Salazar et al., 2020), or left to right within words (Kauf and
                        Ivanova, 2023)
    unigram_scores      by the frequencies of tokens, which knows nothing of context
"""

import math
from typing import Callable, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from amos_fairseq.methods.base import PretrainingMethod
from amos_fairseq.modules.batching import BATCH_TOKENS, batches, padded
from amos_fairseq.objectives import pseudo_log_likelihood
from amos_fairseq.ops import full_precision

SCORINGS = ONE_PASS, MASKED, WITHIN_WORD = "one-pass", "masked", "within-word"


class Score(NamedTuple):
    pll: float  # pseudo-log-likelihood, natural logarithm
    tokens: int  # positions that it sums over


class Sequences(NamedTuple):
    """N sequences of ids (T,), with what is to be scored of each.

    counted   (T,) bool: the positions that a score sums over; others are read
    words     (T,) number of the word that a position is of: for scores within words alone
    """

    tokens: List[Tensor]
    counted: List[Tensor]
    words: Sequence[Tensor] = ()


def scores_of(
    method: PretrainingMethod, sequences: Sequences, scoring: Optional[str], mask_token: int, **options
) -> List[Score]:
    """By one of SCORINGS; None: one-pass if the method is made for it, else masked. Raises ValueError for another."""
    if scoring not in (None, *SCORINGS):
        raise ValueError(f"scoring {scoring!r} is none of {', '.join(SCORINGS)}")
    if scoring == ONE_PASS or (scoring is None and method.scores_in_one_pass):
        return one_pass_scores(method, sequences, **options)
    return masked_scores(method, sequences, mask_token, scoring == WITHIN_WORD, **options)


@torch.no_grad()
def one_pass_scores(
    method: PretrainingMethod, sequences: Sequences, batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], object] = lambda sequences: None,
) -> List[Score]:
    """Of each sequence sum_t log P(original_t), read unmasked, by a method that detects replaced tokens.

    Sequences of near length share a forward pass over at most `batch_tokens` positions, padding included.
    `progress` is told how many sequences each pass has finished.
    """
    scores = [Score(0.0, 0)] * len(sequences.tokens)
    for rows in batches([len(tokens) for tokens in sequences.tokens], batch_tokens):
        tokens, padding_mask = padded([sequences.tokens[row] for row in rows], method.encoder)
        critic_logits = method.detection_logits(tokens, padding_mask)
        counted = torch.nn.utils.rnn.pad_sequence([sequences.counted[row] for row in rows], batch_first=True)
        plls = pseudo_log_likelihood(critic_logits, counted.to(tokens.device))
        for row, *score in zip(rows, plls.tolist(), counted.sum(dim=-1).tolist()):
            scores[row] = Score(*score)
        progress(len(rows))
    return scores


@torch.no_grad()
def masked_scores(
    method: PretrainingMethod, sequences: Sequences, mask_token: int, within_words: bool = False,
    batch_tokens: int = BATCH_TOKENS, progress: Callable[[int], object] = lambda sequences: None,
) -> List[Score]:
    """Of each sequence sum_t log P(token_t | the others), by the method's masked language model.

    within_words   False: position t alone is masked (Salazar et al., 2020). True: so are those after t of its word,
                   else the end of a word of many tokens gives its beginning away (PLL-word-l2r, Kauf and Ivanova, 2023)
    As many readings as counted positions, of at most `batch_tokens` positions at a time, padding included.
    """
    network = method.masked_lm_encoder
    readings = [(row, t) for row, counted in enumerate(sequences.counted) for t in counted.nonzero().flatten().tolist()]
    plls, done = [0.0] * len(sequences.tokens), [0] * len(sequences.tokens)
    totals = [int(counted.sum()) for counted in sequences.counted]
    progress(totals.count(0))
    for part in batches([len(sequences.tokens[row]) for row, _ in readings], batch_tokens):
        rows, positions = zip(*(readings[index] for index in part))
        masked = []
        for row, t in zip(rows, positions):
            masked.append(sequences.tokens[row].clone())
            masked[-1][t] = mask_token
            if within_words:
                words = sequences.words[row]
                masked[-1][t:][words[t:] == words[t]] = mask_token
        tokens, padding_mask = padded(masked, network)
        at = torch.arange(len(part), device=tokens.device), torch.tensor(positions, device=tokens.device)
        log_p = full_precision(method.mlm_head(network(tokens, padding_mask)[at])).log_softmax(dim=-1)
        targets = torch.stack([sequences.tokens[row][t] for row, t in zip(rows, positions)]).to(tokens.device)
        for row, log_probability in zip(rows, log_p.gather(1, targets[:, None]).flatten().tolist()):
            plls[row] += log_probability
            done[row] += 1
        progress(sum(done[row] == totals[row] for row in set(rows)))
    return list(map(Score, plls, totals))


def unigram_scores(log_frequencies: Tensor, sequences: Sequences) -> List[Score]:
    """Of each sequence sum_t log f(token_t), exact, so that the same tokens in another order are equal.

    log_frequencies: (V,)
    """
    return [
        Score(math.fsum(log_frequencies[tokens[counted]].tolist()), int(counted.sum()))
        for tokens, counted in zip(sequences.tokens, sequences.counted)
    ]
