"""When and where the encoder's verdicts on tokens count."""

import pytest
import torch

from amos_fairseq.methods import METHODS

WEIGHTS = {  # of the paper's defaults, by loss term
    "amos_rtd": {"rtd": 50.0}, "coco_lm": {"rtd": 50.0}, "electra_rtd": {"rtd": 50.0}, "peer_tqr": {"tqr": 50.0},
    "script_selfcritic": {"critic": 50.0}, "teams_mws": {"rtd": 5.0, "mws": 2.0},
}


def terms(method, batch):
    torch.manual_seed(0)
    return method.losses(method(batch), batch)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("update, share", [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (50, 1.0)])
def test_weights_rise_in_a_line_over_the_first_updates_of_training(make_method, batch, name, update, share):
    method = make_method(name, rtd_warmup_updates=4)
    method.set_num_updates(update)
    found, of_validation = terms(method, batch), terms(method.eval(), batch)
    for term, weight in WEIGHTS[name].items():
        assert found[term].weight == share * weight and of_validation[term].weight == weight
    others = found.keys() - WEIGHTS[name].keys()
    assert others and all(found[term].weight == of_validation[term].weight for term in others)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_nothing_still_trains_every_parameter(make_method, batch, name):
    """Or DDP waits."""
    method = make_method(name, rtd_warmup_updates=4)
    sum(term.weight * term.mean for term in terms(method, batch).values()).backward()
    assert [n for n, parameter in method.named_parameters() if parameter.grad is None] == []


def test_a_warm_up_longer_than_the_run_is_refused(make_method):
    make_method("electra_rtd", rtd_warmup_updates=90, total_updates=90)
    with pytest.raises(ValueError, match="rtd_warmup_updates 91 exceeds max_update 90: lower it"):
        make_method("electra_rtd", rtd_warmup_updates=91, total_updates=90)
    with pytest.raises(ValueError, match="rtd_warmup_updates -1 is out of range: it must be at least 0"):
        make_method("electra_rtd", rtd_warmup_updates=-1)


@pytest.mark.parametrize("name", WEIGHTS)
def test_on_words_the_mean_leaves_out_the_first_and_the_last_token_of_each_sequence(make_method, batch, name):
    term = next(iter(WEIGHTS[name]))
    whole, words = (terms(make_method(name, detection_on_words=on), batch)[term] for on in (False, True))
    assert (int(whole.count), whole.over) == (33, "valid") and (int(words.count), words.over) == (27, "words")
    specials = (batch.original_tokens == 0) | (batch.original_tokens == 2)
    method = make_method(name)
    logits = method.judged_logits(method(batch))
    left_out = torch.nn.functional.softplus(-logits)[specials].sum()  # never replaced
    if name != "peer_tqr":  # whose other levels count them, too
        assert (whole.total - words.total).item() == pytest.approx(left_out.item(), rel=1e-4)
    assert words.total < whole.total


def test_only_bert_judges_nothing():
    assert METHODS.keys() - WEIGHTS.keys() == {"bert_mlm"}
