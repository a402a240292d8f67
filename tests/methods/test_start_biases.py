"""Biases that start where the data say."""

import math

import pytest
import torch

from amos_fairseq.methods import METHODS
from amos_fairseq.methods.base import log_frequencies

COUNTS = [7] * 4 + [21, 0] + [3] * 32 + [0, 0]  # of 40 tokens; those of the first four and last two are never drawn
TOTAL = 21 + 32 * 3 + 40
PRIOR = math.log(0.85 / 0.15)


def test_log_frequencies_are_smoothed_by_one():
    found = log_frequencies(torch.tensor([6, 0, 2]))
    torch.testing.assert_close(found, torch.tensor([7 / 11, 1 / 11, 3 / 11]).log())


@pytest.mark.parametrize("name", METHODS)
def test_by_default_nothing_changes(make_method, name):
    method, other = make_method(name), make_method(name)
    method.start_biases(COUNTS, 0.15)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", [name for name in METHODS if name != "script_selfcritic"])
def test_the_output_bias_starts_at_log_frequencies_of_words(make_method, name):
    method = make_method(name, output_bias_init="log_frequency")
    assert not method.mlm_head.bias.any()
    method.start_biases(COUNTS, 0.15)
    bias = method.mlm_head.bias.detach().exp() * TOTAL
    torch.testing.assert_close(bias, torch.tensor([1.0] * 4 + [22.0, 1.0] + [4.0] * 32 + [1.0, 1.0]))


@pytest.mark.parametrize("start, logit", [("paper", math.log(40)), ("neutral", 0.0)])
def test_script_s_critic_starts_where_critic_bias_init_says(make_method, start, logit):
    method = make_method("script_selfcritic", output_bias_init="log_frequency", critic_bias_init=start)
    method.start_biases(COUNTS, 0.15)
    assert method.mlm_head.bias.logsumexp(0).item() == pytest.approx(logit, abs=1e-5)
    assert (method.mlm_head.bias[4] - method.mlm_head.bias[6]).item() == pytest.approx(math.log(22 / 4), rel=1e-5)


@pytest.mark.parametrize("name", ["amos_rtd", "coco_lm", "electra_rtd", "teams_mws", "peer_tqr"])
def test_detection_starts_at_the_share_that_is_not_replaced(make_method, batch, name):
    method = make_method(name, detection_bias_init="prior", gain=0.0)  # logits are biases alone
    method.start_biases(COUNTS, 0.15)
    logits = method.judged_logits(method(batch))
    torch.testing.assert_close(logits, torch.full_like(logits, PRIOR))


@pytest.mark.parametrize("name, options, words", [
    ("electra_rtd", dict(detection_bias_init="high"), "unknown detection_bias_init 'high': choose zero, prior"),
    ("bert_mlm", dict(output_bias_init="frequency"), "unknown output_bias_init 'frequency': choose zero, log_f"),
    ("teams_mws", dict(detection_bias_init="prior", rtd_weight=0.0), "prior changes nothing with rtd_weight 0.0"),
    ("coco_lm", dict(output_bias_init="log_frequency", random_replacements=True), "of a generator, which random_repl"),
    ("coco_lm", dict(output_bias_init="log_frequency", generator_checkpoint="run"), "of a generator that is trained"),
])
def test_what_cannot_be_meant_is_refused(make_method, name, options, words):
    with pytest.raises(ValueError, match=words):
        make_method(name, **options)
