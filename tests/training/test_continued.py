"""Continued pre-training through fairseq-train: a run that starts from another method's checkpoint, on other text."""

import shutil

import pytest
import torch

from amos_fairseq import checkpoints
from amos_fairseq.checkpoints import storage
from amos_fairseq.data.preparation import prepare

TRAIN = "fairseq_cli.train:cli_main"
EARLIER, NAME, HEADS = "bert_mlm", "electra_rtd", "generator, mlm_head, rtd_head"
RATE = 0.002  # of learning; Adam's first update moves no parameter further


@pytest.fixture
def earlier(training):
    return training(EARLIER).folder / "checkpoint_last"


@pytest.fixture(scope="module")
def own_text(text, tmp_path_factory):
    """own_text(**vocabulary): a folder of other documents prepared with it."""

    def own_text(**vocabulary):
        path = tmp_path_factory.mktemp("own") / "text.txt"
        path.write_text(text.read_text().replace("the ", "our "))
        options = dict(tokens_per_sample=32, documents_whole=True, valid_fraction=0.2, workers=1, **vocabulary)
        prepare([str(path)], str(path.with_name("prepared")), **options)
        return path.with_name("prepared")

    return own_text


def parameters(path):
    return checkpoints.read(path)["model"]


def test_run_starts_from_the_earlier_encoder_and_when_taken_up_again_from_its_own_checkpoint(
    earlier, own_text, corpus, launch, arguments, tmp_path
):
    def train():
        return launch(TRAIN, arguments(NAME, **options)).out[0]

    initial, run = tmp_path / "initial", tmp_path / "run"
    shutil.copytree(earlier, initial)
    options = dict(data=own_text(vocabulary=corpus), init_checkpoint=initial, save_dir=run, lr=[RATE], max_update=3)
    options.update(save_interval_updates=1, disable_validation=True)
    assert train().count(f"| init_checkpoint {initial}: took encoder; new: {HEADS}\n") == 1
    first, learned, last = map(parameters, (run / "checkpoint_1_1", earlier, run / "checkpoint_last"))
    for key, value in learned.items():
        if key.startswith("method.encoder."):
            torch.testing.assert_close(first[key], value, rtol=0, atol=1.01 * RATE)

    for later in run.glob("checkpoint_1_[23]"):  # as if interrupted after the first update
        shutil.rmtree(later)
    shutil.rmtree(initial)
    resumed = train()
    assert "Loaded checkpoint" in resumed and "took encoder" not in resumed
    assert all(torch.equal(value, last[key]) for key, value in parameters(run / "checkpoint_last").items())


@pytest.fixture
def files(earlier, text, own_text, tmp_path):
    """By name: what is no checkpoint of pre-training, and data with words of their own."""
    checkpoint = checkpoints.read(earlier)
    torch.save(checkpoint, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-9999])
    checkpoint["cfg"]["task"]["_name"] = "masked_lm"
    torch.save(checkpoint, tmp_path / "fairseq.pt")
    shutil.copytree(earlier, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty.pt").touch()
    torch.save(checkpoint["model"], tmp_path / "parameters.pt")
    (tmp_path / "nothing").mkdir()
    paths = [*tmp_path.glob("*.pt"), tmp_path / "damaged", tmp_path / "nothing"]
    return dict(text=text, own=own_text(vocab_size=300), **{path.stem: path for path in paths})


MISTAKES = {  # what: (options, what the line must say)
    "missing file": (dict(init_checkpoint="nowhere.pt"), "init_checkpoint nowhere.pt does not exist"),
    "text": (dict(init_checkpoint="text"), "is no checkpoint that training wrote: "),
    "empty file": (dict(init_checkpoint="empty"), "is no checkpoint that training wrote: "),
    "truncated file": (dict(init_checkpoint="cut"), "is no checkpoint that training wrote: "),
    "damaged checkpoint": (dict(init_checkpoint="damaged"), "model.safetensors is damaged: "),
    "folder without checkpoints": (dict(init_checkpoint="nothing"), "nothing holds no checkpoint"),
    "parameters only": (dict(init_checkpoint="parameters"), "is no checkpoint that training wrote: "),
    "another task of fairseq": (dict(init_checkpoint="fairseq"), "is of a run of masked_lm, none of amos_rtd, "),
    "another encoder": (dict(encoder_layers=2), "encoder.layers.1.self_attn.in_proj.weight is absent, not (48, 16)"),
    "other heads": (dict(encoder_attention_heads=4), "with encoder_attention_heads 2, not 4: set it as in that run"),
    "another vocabulary of the same size": (dict(data="own"), "was trained with another vocabulary than "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_the_run_with_one_line(earlier, files, launch, arguments, tmp_path, mistake):
    options, told = MISTAKES[mistake]
    options = {key: files.get(value, value) for key, value in options.items()}
    options = dict(dict(init_checkpoint=earlier, save_dir=tmp_path / "run"), **options)
    outcome = launch(TRAIN, arguments(NAME, **options), fails=True)
    message = outcome.err[0].splitlines()[-1]
    assert message.startswith("amos_fairseq: error: init_checkpoint ") and told in message, message
    assert "Traceback" not in outcome.out[0] + outcome.err[0] and not list(tmp_path.glob("run/*"))


def test_a_checkpoint_of_before_tokens_were_counted_goes_on(training, launch, arguments, tmp_path):
    state = checkpoints.read(training(NAME).folder / "checkpoint_last")
    assert state["model"].pop("token_counts").sum() > 0
    storage.write(tmp_path / "older", state, dict(number=1, score=None, purposes=[]))
    options = dict(restore_file=tmp_path / "older", save_dir=tmp_path / "run", max_update=10)
    assert [row["num_updates"] for row in launch(TRAIN, arguments(NAME, **options)).log.train] == [9, 10]
    assert parameters(tmp_path / "run/checkpoint_last")["token_counts"].sum() > 0
