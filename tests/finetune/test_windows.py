"""Windows of a long text, and where its tokens are answered: literal cases, and BERT's rule token by token."""

import numpy as np
import pytest

from amos_fairseq.finetune.windows import begins_of, of_most_context


@pytest.mark.parametrize("tokens, room, stride, begins", [
    (0, 4, 2, [0]), (4, 4, 2, [0]), (5, 4, 2, [0, 2]), (6, 4, 2, [0, 2]), (7, 4, 2, [0, 2, 4]), (10, 4, 4, [0, 4, 8]),
])
def test_windows_are_a_stride_apart_up_to_the_first_that_holds_the_last_token(tokens, room, stride, begins):
    assert begins_of(tokens, room, stride).tolist() == begins


def test_every_token_has_the_window_with_the_most_context_and_longer_windows_win_ties():
    begins = np.array([0, 2, 4])
    assert of_most_context(begins, begins + 4, 8).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    # 2 has (2, 1) tokens around it in the first window, and (0, 2) in the second; 3 has (3, 0) and (1, 1); the last
    # window is short: 4 has (2, 0) and (0, 0), and 0.03 of the longer window decides
    assert of_most_context(np.array([0, 2, 4]), np.array([4, 5, 5]), 5).tolist() == [0, 0, 0, 1, 1]


def test_windows_are_those_that_berts_code_chooses():
    draw = np.random.default_rng(0)
    for tokens, room in zip(draw.integers(1, 90, 40), draw.integers(4, 30, 40)):
        begins = begins_of(tokens, room, int(draw.integers(1, room + 1)))
        ends = np.minimum(begins + room, tokens)
        expected = []
        for token in range(tokens):
            best = None
            for window, (begin, end) in enumerate(zip(begins, ends)):
                if begin <= token < end:
                    score = min(token - begin, end - 1 - token) + 0.01 * (end - begin)
                    if best is None or score > best[0]:
                        best = (score, window)
            expected.append(best[1])
        assert of_most_context(begins, ends, tokens).tolist() == expected
