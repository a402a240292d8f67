"""Probes on known states, the states of each layer, and the files that are read."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from amos_fairseq.analysis import linear_probes
from amos_fairseq.analysis.linear_probes import Encoded, Result, Word
from amos_fairseq.analysis.sentence_probes import untrained
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.model import Pretrained

FILE = "alpha\tgreek\nBeta,\t_\n\ngamma  delta\tlatin\r\n\n\n"


@pytest.fixture
def model(make_method, tokenizer):
    """model(name): a method with random parameters, as it is loaded."""

    def model(name, **options):
        vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
        method = make_method(name, vocabulary=vocabulary, gain=4.0, **options).eval()
        return Pretrained("here", name, method.encoder, tokenizer, method)

    return model


def test_lines_are_words_with_labels_and_blank_lines_end_sentences(tmp_path):
    (tmp_path / "a").write_bytes(FILE.encode())
    assert linear_probes.read_labelled(tmp_path / "a") == [
        [Word("alpha", "greek", 1), Word("Beta,", "_", 2)], [Word("gamma  delta", "latin", 4)]
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "a holds no labelled word"),
        (b"alpha\t_\n", "a holds no labelled word"),
        (b"alpha\tx\nbeta\n", "a, line 2: must be a word, a tab and a label, got 'beta'"),
        (b"alpha\tx\ty\n", "a, line 1: must be a word, a tab and a label"),
        (b"alpha\t \n", "a, line 1: must be a word, a tab and a label"),
        (b"alpha\t\xff\n", "a, line 1: is no UTF-8"),
    ],
)
def test_other_files_are_refused_with_the_line(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        linear_probes.read_labelled(tmp_path / "a")


def test_labels_that_cannot_be_learnt_are_refused():
    train, test = [[Word("a", "x", 1), Word("b", "y", 2)]], [[Word("a", "_", 1), Word("b", "z", 2)]]
    with pytest.raises(ValueError, match="TEST, line 2: label z is not in TRAIN"):
        linear_probes.check_labels(train, test, "TRAIN", "TEST")
    with pytest.raises(ValueError, match="TRAIN has one label, x: a probe needs two to tell apart"):
        linear_probes.check_labels([[Word("a", "x", 1)]], test, "TRAIN", "TEST")


def test_a_word_stands_where_its_first_piece_does(tokenizer):
    sentence = [Word(text, "x", 1) for text in ("alphabeta", "Gamma", "delta,", "eta")]
    ids, places = linear_probes.first_pieces(tokenizer, sentence, "")
    assert ids == tokenizer.encode("alphabeta Gamma delta, eta")
    pieces = [len(tokenizer.encode(text)) for text in ("alphabeta", "gamma", "delta,")]
    assert pieces[0] > 1 and pieces[2] > 1
    assert places == [0, pieces[0], pieces[0] + pieces[1], sum(pieces)]


def test_a_bare_space_is_no_first_piece(tokenizer):
    sentence = [Word("alpha", "x", 1), Word(",", "x", 2)]
    ids, places = linear_probes.first_pieces(tokenizer, sentence, "")
    assert tokenizer.symbols[ids[places[1]]] == "," and len(ids) == 3


def test_a_word_that_the_vocabulary_drops_is_named(tokenizer):
    with pytest.raises(ValueError, match="FILE, line 7: the vocabulary has nothing for"):
        words = [Word("alpha", "x", 6), Word("\u200b", "x", 7), Word("eta", "x", 8)]
        linear_probes.first_pieces(tokenizer, words, "FILE")


def test_unlabelled_words_are_read_but_not_probed(tokenizer):
    sentences = [[Word("alpha", "_", 1), Word("beta", "x", 2)], [Word("gamma", "y", 4)]]
    encoded = linear_probes.encode(sentences, tokenizer, 32, "")
    assert [sequence.tolist() for sequence in encoded.sequences] == [
        tokenizer.sequence(tokenizer.encode("alpha beta")), tokenizer.sequence(tokenizer.encode("gamma"))
    ]
    assert encoded.places == [[2], [1]] and encoded.labels.tolist() == ["x", "y"]


def test_a_sentence_that_is_too_long_is_named(tokenizer):
    with pytest.raises(ValueError, match="FILE, line 3: the sentence from here has 12 tokens, but the model reads 8"):
        linear_probes.encode([[Word("alpha", "x", 3)] * 10], tokenizer, 8, "FILE")


@pytest.mark.parametrize("name", ["amos_rtd", "electra_rtd", "teams_mws"])
@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_states_are_those_of_each_layer_at_the_labelled_words(model, tokenizer, name, batch_tokens):
    sequences = [tokenizer.sequence(tokenizer.encode(text)) for text in ("alpha beta", "gamma delta eta theta")]
    encoded = Encoded([torch.tensor(sequence) for sequence in sequences], [[2], [1, 4]], np.array(["x", "y", "x"]))
    for network in model(name).method.networks().values():
        states = linear_probes.layer_states(network, encoded, batch_tokens)
        assert len(states) == 1 + len(network.layers) and states[0].shape == (3, network.config.dim)
        with torch.no_grad():
            last = [network(sequence[None])[0, places] for sequence, places in zip(*encoded[:2])]
            first = [network.begin(network.token_embeddings(s[None]))[0][0, p] for s, p in zip(*encoded[:2])]
        np.testing.assert_allclose(states[-1], torch.cat(last), atol=1e-5)
        np.testing.assert_allclose(states[0], torch.cat(first), atol=1e-5)


def test_states_at_amoss_depths_are_what_its_heads_read(model, tokenizer, make_batch):
    method = model("amos_rtd").method
    batch = make_batch(lengths=(12,))
    with torch.no_grad():
        read = method.generate(batch)
    places = batch.masked_index.tolist()
    encoded = Encoded([batch.masked_tokens[0]], [places], np.array(["x"] * len(places)))
    states = linear_probes.layer_states(method.networks()["generator"], encoded)
    depths = method.marked_layers("generator")
    assert depths == [1, 2, 4] and method.marked_layers("encoder") == []
    for depth, hidden in zip(depths, read):
        np.testing.assert_allclose(states[depth], hidden, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_each_network_that_reads_text_can_be_probed(model, name):
    alone = name in ("bert_mlm", "script_selfcritic")
    assert list(model(name).method.networks()) == (["encoder"] if alone else ["encoder", "generator"])


def test_generators_of_their_own_are_probed_one_by_one_and_random_replacements_have_none(model):
    separate = model("amos_rtd", separate_generators=True, generator_depths=[1, 2]).method
    assert list(separate.networks()) == ["encoder", "generator 1", "generator 2"]
    assert list(model("coco_lm", random_replacements=True).method.networks()) == ["encoder"]


@pytest.mark.parametrize("name", METHODS)
def test_a_twin_has_the_same_shapes_and_new_weights_that_are_always_the_same(model, name):
    made = model(name)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for network in made.method.networks().values():
        first, second = (untrained(network).state_dict() for _ in range(2))
        for key, tensor in network.state_dict().items():
            assert torch.equal(first[key], second[key]) and tensor.shape == first[key].shape
        assert len(first) == len(network.state_dict())
        assert not torch.equal(first["layers.0.fc1.weight"], network.state_dict()["layers.0.fc1.weight"])
    assert torch.rand(1) == expected  # nobody else's random numbers are used up


def clusters(draw, labels):
    """(N, 8) states of three labels that hyperplanes part."""
    centers = np.eye(8)[:3] * 10
    return centers[labels] + draw.normal(size=(len(labels), 8))


def test_labels_that_a_hyperplane_parts_are_all_found_and_shuffled_ones_by_chance_only():
    draw = np.random.default_rng(0)
    train, test = draw.integers(3, size=600), draw.integers(3, size=600)
    states = clusters(draw, train), clusters(draw, test)
    assert linear_probes.probe(states[0], train, states[1], test) == (1.0, 1.0)
    accuracy, macro_f1 = linear_probes.probe(states[0], draw.permutation(train), states[1], draw.permutation(test))
    assert abs(accuracy - 1 / 3) < 0.06 and macro_f1 < 0.4  # three standard deviations


def test_scale_and_offset_of_the_states_do_not_matter():
    draw = np.random.default_rng(1)
    train, test = draw.integers(3, size=90), draw.integers(3, size=90)
    a, b = draw.normal(size=(90, 8)) + np.eye(8)[train], draw.normal(size=(90, 8)) + np.eye(8)[test]
    scaled = [1e3 * states * np.arange(1, 9) - 50 for states in (a, b)]
    expected = linear_probes.probe(scaled[0], train, scaled[1], test)
    assert linear_probes.probe(a, train, b, test) == pytest.approx(expected, abs=0.02)


def test_a_probe_is_fitted_by_one_thread_and_leaves_the_others_as_they_were(monkeypatch):
    """Threads that wait for each other made it six times as long, and its result one of the number of cores."""
    threads = []
    fit = linear_probes.LogisticRegression.fit

    def recorded(self, *given):
        threads.append(blas_threads())
        return fit(self, *given)

    monkeypatch.setattr(linear_probes.LogisticRegression, "fit", recorded)
    with threadpool_limits(2, user_api="blas"):
        linear_probes.predict(np.eye(4), np.array(["a", "b", "a", "b"]), np.eye(4))
        assert threads == [{1}] and blas_threads() != {1}


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_the_commonest_label_is_that_of_training():
    assert linear_probes.majority(np.array(["b", "a", "b"]), np.array(["b", "a", "a", "a"])) == ("b", 0.25)
    assert linear_probes.majority(np.array(["b", "a"]), np.array(["a"])) == ("a", 1.0)


def test_words_of_two_kinds_are_told_apart_from_the_embeddings_on(model, tokenizer):
    made = model("electra_rtd")
    sentences = [[Word(text, text[0], 1) for text in ("alpha", "beta", "alpha", "gamma")]] * 5
    encoded = linear_probes.encode(sentences, tokenizer, 32, "")
    network = made.method.networks()["encoder"]
    twin = untrained(network)
    results = linear_probes.probe_network("encoder", network, twin, encoded, encoded, [0, 2])
    assert [(r.network, r.layer, r.accuracy, r.untrained_macro_f1) for r in results] == [
        ("encoder", 0, 1.0, 1.0), ("encoder", 2, 1.0, 1.0)
    ]
    with pytest.raises(ValueError, match="layer 3 is none of the encoder's: choose from 0, the embeddings, to 2"):
        linear_probes.probe_network("encoder", network, twin, encoded, encoded, [3])


def test_curves_are_in_percent_with_the_depths_marked():
    results = [Result("generator", layer, 0.5 + 0.1 * layer, 0, 0.4, 0) for layer in range(4)]
    (axes,) = linear_probes.curves(results, 0.25, {"generator": [1, 3]}).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["generator"][2] == pytest.approx([2, 70])
    assert [y for _, y in lines["generator, untrained"]] == [40] * 4
    assert lines["generator, with MLM head"] == [pytest.approx([1, 60]), pytest.approx([3, 80])]
    assert lines["commonest label"][0][1] == 25


def test_every_network_has_a_line():
    results = [Result(f"network {index}", layer, 0.5, 0.5, 0.4, 0.4) for index in range(6) for layer in (0, 1)]
    figure = linear_probes.curves(results, 0.3, {})
    assert "network 5" in [text.get_text() for text in figure.legends[0].get_texts()]
