"""The temperature that replacements are drawn at, and how it falls."""

import pytest
import torch

from amos_fairseq.methods import METHODS

DRAWING = [name for name in METHODS if name != "bert_mlm"]


@pytest.mark.parametrize("options, temperatures", [
    ({}, [1.0, 1.0, 1.0]),
    (dict(sampling_temperature=3.0), [3.0, 3.0, 3.0]),
    (dict(sampling_temperature=3.0, sampling_temperature_decay=0.1), [3.0, 1.735759, 1.000091]),  # 1 + 2 / e at 10
    (dict(sampling_temperature=0.5, sampling_temperature_decay=1.0), [0.5, 0.547581, 0.816060]),
])
def test_it_falls_to_1_over_the_run(make_method, options, temperatures):
    method = make_method("electra_rtd", total_updates=100, **options)
    for update, temperature in zip((0, 10, 100), temperatures):
        method.set_num_updates(update)
        assert method.draw_temperature == pytest.approx(temperature, abs=1e-6)
        assert method.eval().draw_temperature == 1.0
        method.train()


@pytest.mark.parametrize("name", DRAWING)
def test_hot_draws_are_rarely_the_likeliest_and_cold_ones_always(make_method, make_batch, name):
    batch = make_batch(lengths=(30,) * 8, num_masked=20)
    hits = {}
    for temperature in (1e-6, 1.0, 1e6):
        output = make_method(name, gain=10.0, sampling_temperature=temperature)(batch)
        hits[temperature] = (output.sampled_tokens == output.masked_lm.likeliest).float().mean().item()
    assert hits[1e-6] == 1.0 > hits[1.0] > hits[1e6] and hits[1e6] < 0.1  # even draws hit one of 34


@pytest.mark.parametrize("name", DRAWING)
def test_losses_of_the_masked_lm_and_validation_are_without_it(make_method, batch, name):
    plain, hot = (make_method(name, gain=5.0, sampling_temperature=t) for t in (1.0, 9.0))
    of_both = [method.losses(method(batch), batch)["mlm"].total for method in (plain, hot)]
    assert torch.equal(*of_both)
    assert torch.equal(plain.eval()(batch).sampled_tokens, hot.eval()(batch).sampled_tokens)


def test_candidates_to_select_from_are_drawn_without_it(make_method, batch):
    outputs = [make_method("teams_mws", gain=5.0, sampling_temperature=t)(batch) for t in (1.0, 9.0)]
    assert torch.equal(outputs[0].candidate_tokens, outputs[1].candidate_tokens)
    assert not torch.equal(outputs[0].sampled_tokens, outputs[1].sampled_tokens)


def test_qualities_of_draws_are_judged_without_it(make_method, batch):
    """By the difference of logits, whatever temperature they were drawn at."""
    method = make_method("peer_tqr", gain=5.0, sampling_temperature=9.0, dtype=torch.double)
    reading = method(batch).masked_lm
    logits = method.mlm_head(method.generator(batch.masked_tokens, batch.padding_mask, batch.queries))
    rows = torch.arange(len(logits))
    expected = logits[rows, reading.sampled] - logits[rows, batch.mlm_targets]
    torch.testing.assert_close(reading.margins.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", ["straight_through", "soft"])
def test_scripts_soft_draw_has_the_temperature_of_the_hard_one(make_method, batch, gradient):
    """A soft draw of nearly no temperature of its own is the hard one."""
    options = dict(sample_gradient=gradient, gumbel_temperature=1e-3, gain=5.0, dtype=torch.double)
    method = make_method("script_selfcritic", sampling_temperature=3.0, **options)
    projected, noise = method.generate(batch), method.sampling_noise(batch)
    corruption = method(batch).corruption
    found = method.corrupted_embeddings(corruption, projected, noise, batch)
    expected = method.encoder.token_embeddings(corruption.corrupted_tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("options, words", [
    (dict(sampling_temperature=0.0), "sampling_temperature 0.0 is out of range: it must be above 0"),
    (dict(sampling_temperature=-1.0), "sampling_temperature -1.0 is out of range: it must be above 0"),
    (dict(sampling_temperature_decay=-0.1), "sampling_temperature_decay -0.1 is out of range: it must be at least 0"),
    (dict(sampling_temperature_decay=0.1), "sampling_temperature_decay 0.1 changes nothing with sampling_temper"),
    (dict(sampling_temperature=2.0, sampling_temperature_decay=0.1, total_updates=0), "give its length with --max-up"),
])
def test_what_cannot_be_meant_is_refused(make_method, options, words):
    with pytest.raises(ValueError, match=words):
        make_method("electra_rtd", **options)
    if "sampling_temperature" in options and "total_updates" not in options:
        with pytest.raises(ValueError, match="sampling_temperature 2.0 is of a generator, which random_replacements"):
            make_method("coco_lm", random_replacements=True, sampling_temperature=2.0)
