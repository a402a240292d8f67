import pytest
import torch

from amos_fairseq.objectives import critic_logits
from amos_fairseq.pretrained.scoring import masked_scores, one_pass_scores

MASK, SPECIAL = 39, [0, 2]


def sentences(*lengths):
    generator = torch.Generator().manual_seed(2)
    middles = (torch.randint(4, 38, (length,), generator=generator) for length in lengths)
    return [torch.cat([torch.tensor([0]), middle, torch.tensor([2])]) for middle in middles]


@pytest.fixture
def method(make_method):
    return make_method("script_selfcritic", dtype=torch.double, gain=8.0).eval()


def test_one_pass_score_is_the_sum_of_the_critics_log_probabilities(method):
    sequence = sentences(7)[0]
    logits = method.mlm_head(method.encoder(sequence[None]))[0]
    log_p = torch.nn.functional.logsigmoid(critic_logits(logits))
    assert one_pass_scores(method, [sequence], SPECIAL)[0] == pytest.approx((log_p[1:-1].sum().item(), 7), rel=1e-12)
    assert one_pass_scores(method, [sequence])[0] == pytest.approx((log_p.sum().item(), 9), rel=1e-12)


def test_scores_depend_neither_on_order_nor_on_batches(method):
    sequences = sentences(3, 11, 0, 7, 11, 1)
    alone = [one_pass_scores(method, [sequence], SPECIAL)[0] for sequence in sequences]
    for batch_tokens in (1, 20, 1000):
        together = one_pass_scores(method, sequences, SPECIAL, batch_tokens)
        assert [score.tokens for score in together] == [3, 11, 0, 7, 11, 1]
        assert [score.pll for score in together] == pytest.approx([score.pll for score in alone], rel=1e-12)
    assert alone[2].pll == 0.0


def test_one_forward_pass_scores_a_batch_of_near_lengths(method):
    shapes, done = [], []
    method.encoder.layers[0].register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape[:2])))
    one_pass_scores(method, sentences(3, 10, 3, 10, 3), SPECIAL, batch_tokens=24, progress=done.append)
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
    sequence = sentences(7)[0]
    expected = 0.0
    for position in range(1, 8):
        masked = sequence.clone()
        masked[position] = MASK
        distribution = method.mlm_head(network(masked[None]))[0, position].softmax(-1)
        expected += distribution[sequence[position]].log().item()
    for batch_tokens in (1, 30, 1000):
        (score,) = masked_scores(method, [sequence], MASK, SPECIAL, batch_tokens)
        assert score == pytest.approx((expected, 7), rel=1e-12)


def test_masked_score_needs_a_masked_language_model(make_method):
    with pytest.raises(ValueError, match="random_replacements"):
        masked_scores(make_method("coco_lm", random_replacements=True), sentences(3), MASK)
