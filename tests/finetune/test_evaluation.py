"""What a network answers for a whole split, in the order of the examples, and what is made of it."""

import numpy as np
import pytest
import torch

from amos_fairseq.finetune.evaluation import predict
from amos_fairseq.finetune.kinds import KINDS
from amos_fairseq.finetune.labelled import Examples, Problem, read_examples, read_problem
from amos_fairseq.finetune.model import Origin, new_network
from amos_fairseq.modules.encoder import EncoderConfig

MASK = 39
LENGTHS = np.array([5, 12, 3, 12, 8])


@pytest.fixture
def network():
    """network(kind): with random parameters and dropout."""

    def network(kind):
        torch.manual_seed(0)
        config = EncoderConfig(vocab_size=40, padding_idx=1, layers=2, dim=16, heads=2, ffn_dim=24, max_positions=16)
        problem = Problem("toy", kind, [], "", labels=["a", "b", "c"], label_tokens=[7, 8, 9])
        network = new_network(Origin("bert_mlm", config), problem, MASK)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(8.0 if parameter.dim() > 1 else 1.0)
        return network.train()

    return network


def examples(kind):
    draw = np.random.default_rng(0)
    sequences = [draw.integers(4, MASK, length) for length in LENGTHS]
    for sequence in sequences:
        sequence[0], sequence[-1] = 0, 2
        if kind == "prompt":
            sequence[1] = MASK
    return Examples(np.concatenate(sequences).astype(np.int32), LENGTHS), sequences


SHAPES = {"classification": (3,), "multi_label": (3,), "prompt": (3,), "regression": (), "span": (2,), "token": (3,)}
PER_TOKEN = ("span", "token")


@pytest.mark.parametrize("kind", SHAPES)
def test_outputs_are_those_of_each_sequence_alone_in_the_order_of_the_examples(network, kind):
    network, (split, sequences) = network(kind), examples(kind)
    outputs = {size: predict(network, split, batch_tokens=size) for size in (1, 24, 1000)}
    with torch.no_grad():
        alone = [network.eval()(torch.from_numpy(sequence)[None])[0].numpy() for sequence in sequences]
    expected = np.concatenate(alone) if kind in PER_TOKEN else np.stack(alone)
    assert expected.shape == (LENGTHS.sum() if kind in PER_TOKEN else 5, *SHAPES[kind])
    assert np.ptp(expected, axis=0).min() > 0.01
    for found in outputs.values():
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_scores_of_choices_are_those_of_each_sequence_alone(network):
    network, (split, sequences) = network("choice"), examples("choice")
    split, texts = Examples(np.tile(split.tokens, 3), np.tile(LENGTHS, 3).reshape(5, 3)), 3 * sequences
    assert split.longest.tolist() == [12, 12, 12, 12, 12] and split.sizes.tolist() == [36] * 5
    assert split.number_in_each(split.tokens == 0).tolist() == [3] * 5
    with torch.no_grad():
        alone = [network.eval()(torch.from_numpy(sequence)[None]).item() for sequence in texts]
    assert np.ptp(alone) > 0.01
    for size in (1, 80, 1000):
        found = predict(network, split, batch_tokens=size)
        np.testing.assert_allclose(found, np.reshape(alone, (5, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_answers_that_are_no_numbers_are_refused(network, kind):
    """argmax makes them the first class."""
    network = network(kind)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="answers nan or infinity to 5 of 5 sequences, first to number 0: it has dive"):
        predict(network, examples(kind)[0])


def test_no_pass_holds_more_positions_than_allowed_and_progress_is_told(network):
    network, seen, done = network("span"), [], []
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    predict(network, examples("span")[0], batch_tokens=24, progress=done.append)
    assert [tuple(shape) for shape in seen] == [(2, 12), (3, 8)] and done == [2, 3]


def test_metrics_of_literal_outputs(toy):
    folder = toy("classification", valid=4)
    targets = read_examples(folder, "valid").targets
    outputs = np.zeros((4, 2))
    outputs[np.arange(4), targets] = 1.0
    outputs[0] = outputs[0, ::-1]
    assert KINDS["classification"].evaluate(folder, read_problem(folder), "valid", outputs)["accuracy"] == 0.75
