"""The memory of a training step: logits of the selected positions only, and few tensors of that size at a time."""

import importlib

import pytest
import torch

from amos_fairseq.methods import METHODS
from amos_fairseq.methods.base import Vocabulary

SEQUENCES, LENGTH, SELECTED, WIDTH = 16, 32, 4, 16  # SELECTED of each sequence; WIDTH of the token table
MASKED = SEQUENCES * SELECTED
VOCABULARIES = 4099, 8209  # prime, so that (M, V) and (B * T, V) are known by their numbers of elements
FP32 = 4

# How many (M, V) tensors a step may hold at a time. One head: its logits, the noise and their sum while sampling; or
# its log-softmax and two gradients of the cross-entropy. Several heads: logits and log-softmax of each.
CASES = [
    ("amos_rtd", {}, 3 + 3 + 1),  # three depths; one soft sample of their mixture
    ("amos_rtd", dict(adversarial_mlm_scale=0.1), 3 + 3 + 1),
    ("amos_rtd", dict(separate_generators=True), 3 + 3 + 1),
    ("coco_lm", {}, 2 + 2),  # generator's and encoder's
    ("coco_lm", dict(generator_dropout=0.1), 4),  # sampled from anew: those logits are gone before the encoder's
    ("teams_mws", {}, 3),
    ("peer_tqr", {}, 3),
    ("script_selfcritic", {}, 3),
    ("script_selfcritic", dict(sample_gradient="soft"), 4),  # the soft sample is kept
    ("electra_rtd", {}, 3),
    ("electra_rtd", dict(generator_dropout=0.1), 4),  # those to learn from wait for those to sample from
    ("bert_mlm", {}, 3),
]


@pytest.fixture
def step(make_method, make_batch, allocations, monkeypatch):
    """step(name, vocabulary_size, **options): what a training step allocates, in the criterion's order."""
    chunk = importlib.import_module("amos_fairseq.ops.linear_logsumexp")
    monkeypatch.setattr(chunk, "MAX_LOGITS", MASKED * min(VOCABULARIES) // 4)

    def step(name, vocabulary_size, **options):
        vocabulary = Vocabulary(vocabulary_size, padding=1, excluded=[0, 1, 2, 3])
        method = make_method(name, vocabulary=vocabulary, encoder_embed_dim=WIDTH, **options)
        batch = make_batch(lengths=(LENGTH,) * SEQUENCES, num_masked=SELECTED)
        with allocations as made:
            output = method(batch)
            terms = method.losses(output, batch)
            with torch.no_grad():
                method.statistics(output, batch)
            loss = sum(term.weight * term.total for term in terms.values())
            del output, terms
            loss.backward()
        return made.elements, made.peak_bytes

    return step


def test_every_method_is_measured():
    assert {name for name, _, _ in CASES} == set(METHODS)


@pytest.mark.parametrize("name, options, held", CASES)
def test_memory_grows_with_the_vocabulary_by_the_logits_of_selected_positions(step, name, options, held):
    """All that does not depend on the vocabulary cancels: peak(V') - peak(V) <= 4 (V' - V) (held M + 2 (E + 1)).

    The last term is the token table with the output bias, and their gradient.
    """
    peaks = []
    for vocabulary in VOCABULARIES:
        elements, peak = step(name, vocabulary, **options)
        assert max(elements) == MASKED * vocabulary  # no (B * T, V), no (M, V, G), nothing stacked
        peaks.append(peak)
    small, large = VOCABULARIES
    assert (peaks[1] - peaks[0]) / (large - small) / FP32 <= held * MASKED + 2 * (WIDTH + 1)


def test_logits_of_all_positions_would_be_seen(step):
    """The one option that asks for them."""
    elements, _ = step("coco_lm", VOCABULARIES[0], clm_all_tokens=True)
    assert max(elements) == SEQUENCES * LENGTH * VOCABULARIES[0]
