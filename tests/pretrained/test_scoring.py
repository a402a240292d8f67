import math
from types import SimpleNamespace

import pytest
import torch

from amos_fairseq.objectives import critic_logits
from amos_fairseq.pretrained.scoring import Sequences, masked_scores, one_pass_scores, unigram_scores

MASK = 39


def sentences(*lengths, special=False):
    """<s> .. </s> of so many random tokens between, which count; the others do if `special`."""
    generator = torch.Generator().manual_seed(2)
    middles = (torch.randint(4, 38, (length,), generator=generator) for length in lengths)
    tokens = [torch.cat([torch.tensor([0]), middle, torch.tensor([2])]) for middle in middles]
    return Sequences(tokens, [(ids > 2) | special for ids in tokens])


@pytest.fixture
def method(make_method):
    return make_method("script_selfcritic", dtype=torch.double, gain=8.0).eval()


def test_one_pass_score_is_the_sum_of_the_critics_log_probabilities(method):
    logits = method.mlm_head(method.encoder(sentences(7).tokens[0][None]))[0]
    log_p = torch.nn.functional.logsigmoid(critic_logits(logits))
    assert one_pass_scores(method, sentences(7))[0] == pytest.approx((log_p[1:-1].sum().item(), 7), rel=1e-12)
    with_special = one_pass_scores(method, sentences(7, special=True))[0]
    assert with_special == pytest.approx((log_p.sum().item(), 9), rel=1e-12)


def test_scores_depend_neither_on_order_nor_on_batches(method):
    sequences = sentences(3, 11, 0, 7, 11, 1)
    alone = [one_pass_scores(method, Sequences([tokens], [counted]))[0] for tokens, counted in zip(*sequences[:2])]
    for batch_tokens in (1, 20, 1000):
        together = one_pass_scores(method, sequences, batch_tokens)
        assert [score.tokens for score in together] == [3, 11, 0, 7, 11, 1]
        assert [score.pll for score in together] == pytest.approx([score.pll for score in alone], rel=1e-12)
    assert alone[2].pll == 0.0


def test_one_forward_pass_scores_a_batch_of_near_lengths(method):
    shapes, done = [], []
    method.encoder.layers[0].register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape[:2])))
    one_pass_scores(method, sentences(3, 10, 3, 10, 3), batch_tokens=24, progress=done.append)
    assert shapes == [(2, 12), (3, 5)] and done == [2, 3]  # 24 and 15 positions


NETWORKS = {  # under the masked language model
    "script_selfcritic": lambda method: method.encoder,
    "bert_mlm": lambda method: method.encoder,
    "electra_rtd": lambda method: method.generator,
    "amos_rtd": lambda method: method.generators[0],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_score_equals_a_literal_loop_over_positions(make_method, name):
    method = make_method(name, dtype=torch.double, gain=8.0).eval()
    network = NETWORKS[name](method)
    sequences = sentences(7, 0, 3)
    expected = [0.0, 0.0, 0.0]
    for row, sequence in enumerate(sequences.tokens):
        for position in range(1, len(sequence) - 1):
            masked = sequence.clone()
            masked[position] = MASK
            distribution = method.mlm_head(network(masked[None]))[0, position].softmax(-1)
            expected[row] += distribution[sequence[position]].log().item()
    for batch_tokens in (1, 30, 1000):
        done = []
        scores = masked_scores(method, sequences, MASK, batch_tokens=batch_tokens, progress=done.append)
        assert [score.tokens for score in scores] == [7, 0, 3] and sum(done) == 3
        assert [score.pll for score in scores] == pytest.approx(expected, rel=1e-12)


def test_masked_score_needs_a_masked_language_model(make_method):
    with pytest.raises(ValueError, match="random_replacements"):
        masked_scores(make_method("coco_lm", random_replacements=True), sentences(3), MASK)


# P of the right token by its position and the number of masks in the sequence: <s> un happi ness day </s>
PROBABILITIES = {1: {1: 0.5, 3: 0.1}, 2: {1: 0.9, 2: 0.4}, 3: {1: 0.8}, 4: {1: 0.25}}
UNHAPPINESS = Sequences(
    [torch.tensor([0, 4, 5, 6, 7, 2])], [torch.tensor([0, 1, 1, 1, 1, 0]).bool()], [torch.tensor([-1, 1, 1, 1, 2, -1])]
)


def read_from_table(tokens, padding_mask):
    """(B, T, 8): "hidden states" that are log-probabilities, what the right token leaves being of token 3."""
    logits = torch.full((*tokens.shape, 8), -math.inf, dtype=torch.double)
    for row, masked in enumerate(tokens == MASK):
        for position, table in PROBABILITIES.items():
            p = table.get(int(masked.sum()), 0.0)
            logits[row, position, 3 + position], logits[row, position, 3] = math.log(p or 1e-9), math.log(1 - p)
    return logits


class FromTable:
    masked_lm_encoder = staticmethod(read_from_table)
    mlm_head = staticmethod(lambda hidden: hidden)


FromTable.masked_lm_encoder.token_embeddings = SimpleNamespace(weight=torch.zeros(0))
FromTable.masked_lm_encoder.config = SimpleNamespace(padding_idx=1)


@pytest.mark.parametrize(
    "within_words, product",
    [(False, 0.5 * 0.9 * 0.8 * 0.25), (True, 0.1 * 0.4 * 0.8 * 0.25)],  # 0.09, 0.008
)
def test_masked_scores_of_a_table_of_probabilities_are_those_worked_by_hand(within_words, product):
    """Masked one by one (Salazar et al., 2020, Eq. 1), and with the rest of the word (Kauf and Ivanova, 2023)."""
    (score,) = masked_scores(FromTable, UNHAPPINESS, MASK, within_words)
    assert score == pytest.approx((math.log(product), 4), rel=1e-9)


def test_unigram_scores_are_sums_of_log_frequencies_in_any_order():
    log_frequencies = torch.tensor([0.1] * 4 + [0.2, 0.3, 0.15, 0.35], dtype=torch.double).log()
    assert unigram_scores(log_frequencies, UNHAPPINESS)[0] == pytest.approx((math.log(0.2 * 0.3 * 0.15 * 0.35), 4))
    turned = UNHAPPINESS._replace(tokens=[torch.tensor([0, 7, 5, 4, 6, 2])])
    assert unigram_scores(log_frequencies, turned) == unigram_scores(log_frequencies, UNHAPPINESS)
