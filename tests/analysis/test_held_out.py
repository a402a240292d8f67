"""What is read from checkpoints, on random networks and a corpus of eight words."""

import random

import numpy as np
import pytest
import torch

from amos_fairseq.analysis import held_out, held_out_figures
from amos_fairseq.analysis.held_out import Probe, Scores
from amos_fairseq.analysis.similarity import Sts
from amos_fairseq.data.preparation import prepare
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.loading import from_pretrained
from amos_fairseq.run_log import Run, RunLog

WORDS = "alpha beta gamma delta epsilon zeta eta theta".split()


@pytest.fixture(scope="module")
def data(tokenizer, tmp_path_factory):
    """Prepared with the fixture's vocabulary."""
    folder, chance = tmp_path_factory.mktemp("text"), random.Random(1)
    sentences = (" ".join(chance.choices(WORDS, k=10)) + ".\n\n" for _ in range(300))
    (folder / "corpus.txt").write_text("".join(sentences))
    (folder / "sentencepiece.model").write_bytes(tokenizer.model)
    out = folder / "data"
    prepare(
        [str(folder / "corpus.txt")], str(out), vocabulary=str(folder / "sentencepiece.model"), tokens_per_sample=24,
        workers=1, valid_fraction=0.2,
    )
    return out


@pytest.fixture
def make_run(tmp_path, make_method, tokenizer, save_checkpoint, data):
    """make_run(method): a run of random parameters, its checkpoint and its data."""

    def make_run(name, gain=4.0, **options):
        vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
        folder = tmp_path / name
        method = make_method(name, vocabulary=vocabulary, gain=gain, **options)
        save_checkpoint(folder / "checkpoint_1_2", name, method, tokenizer)
        return Run(name, folder, RunLog([], []), {"data": str(data)})

    return make_run


def test_embeddings_are_those_at_the_first_token_and_pairs_are_sequences_and_their_crops(make_run):
    run = make_run("coco_lm")
    probe, model = held_out.probe(run), from_pretrained(run.folder)
    blocks = held_out.held_out_sequences(run, model)
    item = blocks[3]
    crop = torch.from_numpy(item["cropped_tokens"]).long()
    assert len(crop) == round(0.9 * len(item["block"].original_tokens))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(probe.second[3]).float(), model.encoder(crop[None])[0, 0])
    count = len(blocks)
    assert len(probe.first) == len(probe.similar_cosines) == count
    assert len(probe.random_cosines) == count * (count - 1)
    assert np.median(probe.similar_cosines) > np.median(probe.random_cosines)


def test_cosines_of_known_vectors():
    probe = Probe("", np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [4.0, 3.0]]), np.zeros(2), {}, None)
    assert probe.similar_cosines.tolist() == pytest.approx([1.0, 0.96])


def test_scored_pairs_take_the_place_of_crops(make_run):
    run = make_run("bert_mlm")
    pairs = Sts("pairs", ["alpha", "beta gamma", "eta"], ["alpha", "zeta", "eta"], np.array([5.0, 1.0, 5.0]))
    probe = held_out.probe(run, pairs)
    assert probe.similar_cosines.tolist() == pytest.approx([1.0, 1.0])
    assert len(probe.random_cosines) == 6 and probe.replaced_losses == {}


def test_a_pair_longer_than_the_model_reads_loses_its_end_which_is_told(make_run, caplog):
    long = " ".join(60 * ["beta"])
    pairs = Sts("pairs", ["alpha", long], ["alpha", f"{long} gamma"], np.array([1.0, 5.0]))
    probe = held_out.probe(make_run("bert_mlm"), pairs)
    assert probe.similar_cosines.tolist() == pytest.approx([1.0])
    assert "pairs: 2 texts lost their ends in bert_mlm" in caplog.text


def test_each_depth_of_amos_replaces_alone(make_run):
    run = make_run("amos_rtd", gain=20.0)  # at which the depths disagree
    model = from_pretrained(run.folder)
    blocks = held_out.held_out_sequences(run, model)
    batch = held_out.PretrainingBatch(**blocks.collater([blocks[index] for index in range(8)])["net_input"])
    with torch.no_grad():
        found = model.method.corruptions(batch)
        model.method.config.mixture, model.method.mixture_head = "fixed:[0,1,0]", None
        expected = model.method(batch).corruption
    assert list(found) == ["layer 1", "layer 2", "layer 4"]
    assert torch.equal(found["layer 2"].corrupted_tokens, expected.corrupted_tokens)
    assert not torch.equal(found["layer 1"].corrupted_tokens, expected.corrupted_tokens)


def test_without_detection_teams_replaces_for_nobody_and_its_other_figures_stay(make_run):
    found = held_out.probe(make_run("teams_mws", rtd_weight=0.0))
    assert found.replaced_losses == {} and len(found.similar_cosines) == len(found.first)


def test_loss_on_replaced_tokens_is_that_of_calling_them_replaced(make_run):
    run = make_run("electra_rtd")
    model = from_pretrained(run.folder)
    blocks = held_out.held_out_sequences(run, model)
    sample = blocks.collater([blocks[index] for index in range(8)])
    batch = held_out.PretrainingBatch(**sample["net_input"])
    with torch.no_grad():
        output = model.method(batch)
    logits = output.rtd_logits[output.corruption.replaced_positions].double()
    expected = -torch.log(1 - torch.sigmoid(logits))
    losses = held_out.replaced_losses(model.method, [sample])["generator"]
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_script_is_scored_in_one_pass_and_masked(make_run):
    run = make_run("script_selfcritic")
    scores, model = held_out.probe(run).scores, from_pretrained(run.folder)
    blocks = held_out.held_out_sequences(run, model)
    tokens = torch.from_numpy(blocks[0]["block"].original_tokens).long()
    with torch.no_grad():
        logits = model.method.detection_logits(tokens[None])[0]
    counted = ~torch.isin(tokens, torch.tensor([model.tokenizer.bos, model.tokenizer.eos]))
    assert scores.one_pass[0] == pytest.approx(logits.sigmoid().log()[counted].mean().item(), rel=1e-4)
    assert scores.one_pass.shape == scores.masked.shape == (2 * min(len(blocks), held_out.SCORED_SEQUENCES),)


def test_random_tokens_leave_the_ends():
    tokens = torch.arange(20)
    changed = held_out.with_random_tokens(tokens, np.array([99]), np.random.default_rng(0))
    assert (changed == 99).sum() == 3 and changed[0] == 0 and changed[-1] == 19


def test_data_of_another_vocabulary_are_refused(make_run, data, tmp_path):
    other = tmp_path / "other"
    (tmp_path / "text").write_text("".join(f"{word} {word}s of {word}ing\n\n" for word in WORDS * 30))
    prepare([str(tmp_path / "text")], str(other), vocab_size=48, tokens_per_sample=24, workers=1, valid_fraction=0.2)
    run = make_run("bert_mlm")
    with pytest.raises(ValueError, match="has another vocabulary than"):
        held_out.probe(run._replace(options={"data": str(other)}))
    with pytest.raises(ValueError, match="does not exist: run amos-fairseq prepare"):
        held_out.probe(run._replace(options={"data": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match="holds no data, and its log does not name them"):
        held_out.probe(run._replace(options={}))


def made_up(name, **fields):
    draw = np.random.default_rng(0)
    first = draw.normal(size=(30, 4))
    made = Probe(name, first, first + 0.1, draw.uniform(-1, 1, 60), {}, None)
    return made._replace(**fields)


def test_figures_have_a_panel_for_each_run_that_they_are_about():
    losses = {"layer 1": np.array([1.0, 3.0]), "layer 2": np.array([2.0, 2.5])}
    scores = Scores(np.array([-1.0, -2.0, -3.0, -4.0]), np.array([-2.0, -1.0, -4.0, -6.0]))
    of_runs = [made_up("a", replaced_losses=losses), made_up("b", scores=scores)]
    titles = {
        name: [axes.get_title(loc="left") for axes in draw(of_runs, "").figure.axes]
        for name, draw in held_out_figures.FIGURES.items()
    }
    assert titles["replaced_losses"] == ["a\nmean: layer 1 2.000, layer 2 2.250"]
    assert titles["pseudo_log_likelihoods"] == ["b: Spearman 0.80"]
    assert titles["sequence_map"] == ["a", "b"] and len(titles["sequence_cosines"]) == 2
    assert held_out_figures.replaced_losses([made_up("c")], "") is None


def test_distributions_are_in_percent():
    probe = made_up("a", replaced_losses={"layer 1": np.array([1.0, 1.0, 2.0, 4.0])})
    (polygon,) = held_out_figures.replaced_losses([probe], "").figure.axes[0].patches
    assert max(y for _, y in polygon.get_xy()) == pytest.approx(50)


def test_similar_pairs_of_the_map_are_joined():
    (axes,) = held_out_figures.sequence_map([made_up("a")], "").figure.axes
    assert len(axes.get_lines()) == held_out_figures.MARKED


def test_cosines_fill_the_axis_and_none_is_lost_to_rounding():
    above = np.full(4, 1 + 1e-15)
    (axes,) = held_out_figures.sequence_cosines([made_up("a", random_cosines=above)], "").figure.axes
    assert axes.get_xlim()[0] > 0.4
    assert max(y for _, y in axes.patches[0].get_xy()) == pytest.approx(100)


def test_a_run_that_diverged_is_refused(make_run):
    with pytest.raises(ValueError, match="holds nan or infinite numbers: name an earlier checkpoint"):
        held_out.probe(make_run("bert_mlm", gain=float("nan")))


def test_one_block_makes_no_pairs(make_run, monkeypatch):
    monkeypatch.setattr(held_out, "SEQUENCES", 1)
    with pytest.raises(ValueError, match="holds 1 of the blocks of validation data that pairs need: two or more"):
        held_out.probe(make_run("bert_mlm"))
