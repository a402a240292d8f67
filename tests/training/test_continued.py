"""Continued pre-training through fairseq-train: a run that starts from another method's checkpoint, on other text."""

import shutil

import pytest
import torch

from amos_fairseq.data.preparation import prepare

TRAIN = "fairseq_cli.train:cli_main"
EARLIER, NAME = "bert_mlm", "electra_rtd"


def encoder(path):
    model = torch.load(path, weights_only=False)["model"]
    return {key: value for key, value in model.items() if key.startswith("method.encoder.")}


@pytest.fixture(scope="module")
def own_text(text, corpus, tmp_path_factory):
    """own_text(vocabulary): other documents, prepared with that prepared folder's vocabulary or, for None, their own."""

    def own_text(vocabulary):
        folder = tmp_path_factory.mktemp("own")
        documents = text.read_text().replace("the ", "our ").split("\n\n")
        (folder / "text.txt").write_text("\n\n".join(documents[::-1]))
        options = dict(vocabulary=vocabulary) if vocabulary else dict(vocab_size=300)
        out = folder / "prepared"
        prepare(
            [str(folder / "text.txt")], str(out), tokens_per_sample=32, documents_whole=True, valid_fraction=0.2,
            workers=1, **options,
        )
        return out

    return own_text


@pytest.fixture
def earlier(training):
    return training(EARLIER).folder / "checkpoint_last.pt"


def test_new_run_starts_from_the_earlier_encoder_and_its_own_checkpoint_wins_later(
    earlier, own_text, corpus, launch, arguments, tmp_path
):
    """The same command three times: started, interrupted and gone on with, and again when it has finished."""
    initial = tmp_path / "initial.pt"
    shutil.copy(earlier, initial)
    options = dict(
        data=own_text(corpus), init_checkpoint=initial, save_dir=tmp_path / "run", save_interval_updates=1,
        disable_validation=True,
    )
    first = launch(TRAIN, arguments(NAME, max_update=1, lr=[0.0], warmup_updates=0, **options))
    took = f"init_checkpoint {initial}: took encoder; new: generator, mlm_head, rtd_head"
    assert first.out[0].count(took) == 1
    for key, value in encoder(tmp_path / "run" / "checkpoint_last.pt").items():  # one update at learning rate 0
        assert torch.equal(value, encoder(earlier)[key]), key

    initial.unlink()
    resumed = launch(TRAIN, arguments(NAME, max_update=2, **options))
    assert [row["num_updates"] for row in resumed.log.train] == [2]
    assert "Loaded checkpoint" in resumed.out[0] and "init_checkpoint" not in resumed.out[0].replace("cfg", "")
