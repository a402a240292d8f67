"""The memory of a training step: a chunk of logits at a time, and else what a token table and its gradient take."""

import pytest
import torch

from amos_fairseq.methods import METHODS
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.ops import chunks, pytorch, use

SEQUENCES, LENGTH, SELECTED, WIDTH = 16, 32, 8, 64  # SELECTED of each sequence; WIDTH of the token table
MASKED = SEQUENCES * SELECTED
VOCABULARIES = 4096, 8192
FP32 = 4
# Three rows of one head over the larger vocabulary, one of three heads: as many bytes in either vocabulary, and less
# than the table, so that it is the table that decides.
WORKSPACE = 3 * max(VOCABULARIES) * FP32

# How many tensors as large as the token table a step holds at a time, all of them gradients of it: the one kept from
# the forward pass, the same scaled, their sum so far, and those of uses of the table that are not yet added to it.
CASES = [
    ("amos_rtd", {}, 3),
    ("amos_rtd", dict(gumbel_temperature=1.0), 3),  # the mixture's gradient is over all tokens
    ("amos_rtd", dict(adversarial_mlm_scale=0.1), 3),
    ("amos_rtd", dict(separate_generators=True), 3),
    ("coco_lm", {}, 5),
    ("coco_lm", dict(generator_dropout=0.1), 5),
    ("coco_lm", dict(random_replacements=True), 4),
    ("coco_lm", dict(clm_all_tokens=True), 5),
    ("teams_mws", {}, 4),
    ("peer_tqr", {}, 4),
    ("script_selfcritic", {}, 4),
    ("script_selfcritic", dict(sample_gradient="soft"), 4),
    ("electra_rtd", {}, 4),
    ("electra_rtd", dict(generator_dropout=0.1), 4),
    ("bert_mlm", {}, 3),
]


@pytest.fixture
def step(make_method, make_batch, allocations):
    """step(name, vocabulary_size, **options): what a training step allocates, in the criterion's order.

    In PyTorch, whose row functions hold more than the kernels do.
    """

    def step(name, vocabulary_size, **options):
        vocabulary = Vocabulary(vocabulary_size, padding=1, excluded=[0, 1, 2, 3])
        method = make_method(name, vocabulary=vocabulary, encoder_embed_dim=WIDTH, **options)
        batch = make_batch(lengths=(LENGTH,) * SEQUENCES, num_masked=SELECTED)
        with use("pytorch"), allocations as made:
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
def test_logits_take_a_chunk_and_memory_grows_with_the_vocabulary_by_its_table(step, name, options, held, monkeypatch):
    """No tensor is larger than a chunk of logits or the table: neither (M, V), nor (M, G, V), nor (B * T, V).

    All else that does not depend on the vocabulary cancels: peak(V') - peak(V) <= 4 (V' - V) (held (E + 1) + 4). The
    one is the output bias, the four are vectors over the vocabulary.
    """
    monkeypatch.setattr(chunks, "WORKSPACE", WORKSPACE)
    monkeypatch.setattr(pytorch, "GATHERED", WORKSPACE // FP32)
    peaks = []
    for vocabulary in VOCABULARIES:
        elements, peak = step(name, vocabulary, **options)
        assert max(elements) <= max(WORKSPACE // FP32, vocabulary * WIDTH) < MASKED * vocabulary
        peaks.append(peak)
    small, large = VOCABULARIES
    assert (peaks[1] - peaks[0]) / (large - small) / FP32 <= held * (WIDTH + 1) + 4


@pytest.mark.parametrize(
    "name, options, rows",
    [
        ("bert_mlm", {}, MASKED),
        ("amos_rtd", {}, 3 * MASKED),
        ("coco_lm", dict(clm_all_tokens=True), SEQUENCES * LENGTH),
    ],
)
def test_logits_that_fit_into_the_workspace_are_made_at_once_and_seen(step, name, options, rows):
    elements, _ = step(name, VOCABULARIES[0], **options)
    assert max(elements) == rows * VOCABULARIES[0] and 4 * max(elements) < chunks.WORKSPACE
