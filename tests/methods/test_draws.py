"""Draws are a function of seed, update, sample id and position, never of who shares the batch."""

import itertools

import pytest
import torch

from amos_fairseq.methods import METHODS
from amos_fairseq.modules.encoder import Encoder
from amos_fairseq.ops import Noise, chunks, gumbel_noise
from amos_fairseq.random import mixed_seed

CASES = {name: (name, {}) for name in METHODS if name != "bert_mlm"}  # which draws nothing
CASES["amos_rtd, random layer"] = "amos_rtd", dict(mixture="random_layer")
CASES.update({
    f"{name}, generator dropout": (name, dict(generator_dropout=0.3)) for name in ("coco_lm", "teams_mws", "peer_tqr")
})
CASES["coco_lm, random replacements"] = "coco_lm", dict(random_replacements=True)


@pytest.fixture(params=CASES)
def method(request, make_method):
    name, options = CASES[request.param]
    return make_method(name, gain=5.0, **options)


def drawn(method, batch):
    """{sample id: tokens drawn for it, TEAMS's candidates among them}"""
    output = method(batch)
    tokens = output.sampled_tokens.unsqueeze(-1)
    if hasattr(output, "candidate_tokens"):
        tokens = torch.cat([tokens, output.candidate_tokens], dim=-1)
    return dict(zip(batch.sample_ids.tolist(), (rows.tolist() for rows in tokens.split(batch.num_masked))))


def test_draws_of_a_sequence_do_not_depend_on_the_others_of_its_batch_nor_on_their_order(method, make_batch, rows_of):
    batch = make_batch(lengths=(12, 9, 7, 12), first_id=2**33)
    whole = drawn(method, batch)
    assert len(set(map(str, whole.values()))) == 4
    for parts in ([[3, 1, 0, 2]], [[0], [1], [2], [3]], [[2, 0], [3, 1]]):
        found = {}
        for rows in parts:
            found.update(drawn(method, rows_of(batch, rows)))
        assert found == whole


def test_draws_of_a_sequence_do_not_depend_on_its_padding(method, make_batch, rows_of):
    assert drawn(method, make_batch(lengths=(12, 9))) == drawn(method, rows_of(make_batch(lengths=(12, 9, 20)), [0, 1]))


@pytest.mark.parametrize("workspace", [1, 4 * 40 * 4])  # a row at a time, and four of one head
def test_draws_do_not_depend_on_the_chunks(method, batch, monkeypatch, workspace):
    whole = drawn(method, batch)
    monkeypatch.setattr(chunks, "WORKSPACE", workspace)
    assert drawn(method, batch) == whole


def test_draws_repeat_for_an_update_and_change_with_it_and_with_the_seed(method, batch):
    first = drawn(method, batch)
    assert drawn(method, batch) == first
    method.set_num_updates(1)
    assert drawn(method, batch) != first
    method.set_num_updates(0)
    method.noise_seed = 8
    assert drawn(method, batch) != first


def test_validation_draws_do_not_depend_on_the_update(method, batch):
    method.eval()
    first = drawn(method, batch)
    method.set_num_updates(12)
    assert drawn(method, batch) == first


def test_excluded_tokens_are_never_drawn(method, batch):
    if hasattr(method, "mlm_head"):
        method.mlm_head.bias.data[method.excluded_tokens] = 50.0
    for update in range(20):
        method.set_num_updates(update)
        output = method(batch)
        assert not method.excluded_tokens[output.sampled_tokens].any()
        if hasattr(output, "candidate_tokens"):
            assert not method.excluded_tokens[output.candidate_tokens].any()


def test_noise_is_named_by_sample_id_and_position_and_by_seed_update_and_stream(make_method, make_batch):
    method = make_method("electra_rtd")
    batch = make_batch(lengths=(12, 9), num_masked=2, first_id=40)._replace(masked_index=torch.tensor([3, 11, 13, 18]))
    method.set_num_updates(5)
    noise = method.sampling_noise(batch, stream=2)
    assert noise.rows.tolist() == [[40, 3], [40, 11], [41, 1], [41, 6]]
    assert noise.seed == mixed_seed(7, 5, 2)  # make_method's seed is 7
    assert method.eval().sampling_noise(batch).seed == mixed_seed(7, 0, 0)


def test_noise_of_other_streams_updates_seeds_samples_and_positions_is_uncorrelated(make_method, make_batch):
    method, other_seed = make_method("electra_rtd"), make_method("electra_rtd")
    other_seed.noise_seed += 1
    batch = make_batch(lengths=(12,) * 20, num_masked=8, first_id=100)
    first = method.sampling_noise(batch)
    others = {
        "itself": first,
        "stream": method.sampling_noise(batch, stream=1),
        "seed": other_seed.sampling_noise(batch),
        "sample": method.sampling_noise(batch._replace(sample_ids=batch.sample_ids + 20)),
        "next sample": Noise(first.seed, first.rows + torch.tensor([1, 0])),
        "next position": Noise(first.seed, first.rows + torch.tensor([0, 1])),
        "sample and position exchanged": Noise(first.seed, first.rows.flip(1)),
    }
    method.set_num_updates(1)
    others["update"] = method.sampling_noise(batch)
    variables = {name: gumbel_noise(noise, 1000).double().flatten() for name, noise in others.items()}
    bound = 4.5 / 160_000**0.5  # standard errors: one of 29 pairs is beyond it by chance once in 5000 times
    for (one, x), (other, y) in itertools.combinations(variables.items(), 2):
        assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1].item()) < bound, (one, other)
    rows = variables["itself"].view(160, 1000)
    tokens_and_next = torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()])
    assert abs(torch.corrcoef(tokens_and_next)[0, 1].item()) < bound


@pytest.mark.parametrize("name, passes", [("teams_mws", 1), ("peer_tqr", 1), ("electra_rtd", 1), ("coco_lm", 2)])
def test_only_a_generator_with_dropout_is_read_a_second_time_to_draw(make_method, batch, name, passes):
    method, read = make_method(name, dropout=0.1).train(), []
    method.generator.layers[-1].register_forward_hook(lambda *_: read.append(1))
    method(batch)
    assert len(read) == passes


@pytest.mark.parametrize("name", METHODS)
def test_attention_dropout_of_a_pass_is_keyed_by_update_pass_and_sample(make_method, make_batch, monkeypatch, name):
    keys, begin = [], Encoder.begin

    def watched(encoder, embeddings, padding_mask=None, key=None):
        if encoder.training:
            keys.append((key.seed, key.sample_ids.tolist()))
        return begin(encoder, embeddings, padding_mask, key)

    monkeypatch.setattr(Encoder, "begin", watched)
    method = make_method(name, dropout=0.1)
    passes = []
    for update, batch in ((3, make_batch()), (3, make_batch(first_id=40)), (4, make_batch())):
        method.set_num_updates(update)
        method(batch)
        passes.append(dict(keys))
        assert len(passes[-1]) == len(keys) >= 1 and keys[0][1] == batch.sample_ids.tolist()
        keys.clear()
    assert passes[0].keys() == passes[1].keys() and not passes[0].keys() & passes[2].keys()
