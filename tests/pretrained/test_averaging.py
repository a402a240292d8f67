"""A checkpoint that is the mean of several."""

import pytest
import torch

from amos_fairseq import from_pretrained
from amos_fairseq.checkpoints import storage
from amos_fairseq.cli import main
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.pretrained.averaging import average, weights_of


@pytest.fixture
def checkpoints(make_method, save_checkpoint, tokenizer, tmp_path):
    """Of one method, every parameter 1, 2 and 6."""
    paths = []
    for value in (1.0, 2.0, 6.0):
        method = make_method("teams_mws", vocabulary=Vocabulary.of(tokenizer))
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.fill_(value)
        paths.append(tmp_path / f"checkpoint_{value:g}")
        save_checkpoint(paths[-1], "teams_mws", method, tokenizer)
    return paths


@pytest.mark.parametrize("decay, expected", [(None, [1 / 3] * 3), (0.5, [1 / 7, 2 / 7, 4 / 7])])
def test_weights_are_alike_or_fall_towards_earlier_checkpoints(decay, expected):
    assert weights_of(3, decay) == pytest.approx(expected)


@pytest.mark.parametrize("decay, mean", [(None, 3.0), (0.5, 29 / 7)])
def test_parameters_are_the_mean_and_it_is_a_checkpoint(checkpoints, tmp_path, decay, mean):
    out = tmp_path / "new" / "mean"
    assert average(checkpoints, out, decay) == checkpoints
    model, last = storage.read(out)["model"], storage.read(checkpoints[-1])["model"]
    assert model.keys() == last.keys()
    for name, value in model.items():
        torch.testing.assert_close(value, torch.full_like(last[name], mean))
    table, tied = "method.encoder.token_embeddings.weight", "method.mlm_head.token_embeddings.weight"
    assert model[table].data_ptr() == model[tied].data_ptr()  # written once
    loaded = from_pretrained(out)
    assert loaded.name == "teams_mws" and loaded.encoder.token_embeddings.weight.unique().item() == pytest.approx(mean)


def test_what_cannot_be_averaged_is_refused_in_one_line(
    checkpoints, make_method, save_checkpoint, tokenizer, tmp_path, capsys
):
    vocabulary, out = Vocabulary.of(tokenizer), tmp_path / "out"
    others = {
        "two networks": ("teams_mws", dict(encoder_ffn_embed_dim=32)), "average those of one method": ("peer_tqr", {}),
        "differ in encoder_attention_heads, 4 and 2": ("teams_mws", dict(encoder_attention_heads=4)),
        "two vocabularies": ("teams_mws", {}),
    }
    cases = [
        ([checkpoints[0]], "two or more, each named once"), ([checkpoints[0]] * 2, "two or more, each named once"),
        ([*checkpoints[:2], "--decay", "1"], "decay 1.0 is out of range: it must be above 0 and below 1"),
        ([checkpoints[0], tmp_path / "gone"], "does not exist"),
    ]
    for number, (words, (name, options)) in enumerate(others.items()):
        path = tmp_path / f"other{number}"
        without = None if words == "two vocabularies" else tokenizer
        save_checkpoint(path, name, make_method(name, vocabulary=vocabulary, **options), without)
        cases.append(([path, checkpoints[0]], words))
    for given, words in cases:
        assert main.main(["average", *map(str, given), "--out", str(out)]) in (64, 65)
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1, told
        assert not out.exists()
    assert main.main(["average", *map(str, checkpoints), "--out", str(checkpoints[0])]) == 64
    assert "exists: name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("precision", [{}, dict(bf16=True)])
def test_training_goes_on_from_a_mean(launch, arguments, tmp_path, precision):
    options = dict(max_update=4, save_interval_updates=2, disable_validation=True, **precision)
    train = "fairseq_cli.train:cli_main"
    launch(train, arguments("electra_rtd", **options, save_dir=tmp_path / "run"))
    paths = [next((tmp_path / "run").glob(f"checkpoint_*_{updates}")) for updates in (2, 4)]
    out = tmp_path / "mean"
    average(paths, out)
    options.update(max_update=6, lr=[1e-9])  # an update leaves the parameters where they were
    resumed = launch(train, arguments("electra_rtd", **options, restore_file=out, save_dir=tmp_path / "resumed"))
    assert [row["num_updates"] for row in resumed.log.train] == [5, 6]
    mean, last = (storage.read(path)["model"] for path in (out, next((tmp_path / "resumed").glob("checkpoint_*_6"))))
    for name, value in mean.items():
        if value.is_floating_point():  # else counts
            torch.testing.assert_close(last[name].float(), value.float(), rtol=0, atol=1e-6, msg=name)
    started = launch(train, arguments("electra_rtd", **options, init_checkpoint=out, save_dir=tmp_path / "started"))
    assert "took" in started.out[0] and len(started.log.train) == 6
