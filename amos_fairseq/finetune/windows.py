"""A text that is longer than a network reads: windows that overlap, and which of them a token is answered in."""

import numpy as np


def begins_of(tokens: int, room: int, stride: int) -> np.ndarray:
    """(W,) the first token of each window of `room` tokens, up to the first window that holds the last token."""
    return np.arange(0, max(tokens - room, 0) + stride, stride)


def of_most_context(begins: np.ndarray, ends: np.ndarray, tokens: int) -> np.ndarray:
    """(tokens,) of each token the window [begins[w], ends[w]) in which it has the most context, of equals the first:

        the smaller number of tokens before and behind it + 0.01 * the window's tokens

    Source: the released code of BERT (Devlin et al., 2019) and ELECTRA (Clark et al., 2020).
    """
    places, begins, ends = np.arange(tokens), begins[:, None], ends[:, None]
    context = np.minimum(places - begins, ends - 1 - places) + 0.01 * (ends - begins)
    return np.where((begins <= places) & (places < ends), context, -np.inf).argmax(axis=0)
