"""Checkpoints with random parameters, and the command on them."""

import importlib.util

import pytest
import torch

from amos_fairseq.cli import main
from amos_fairseq.export.huggingface import import_transformers
from amos_fairseq.methods.config import Vocabulary

LENGTHS = (150, 37, 3)  # over all buckets of 32 or 64 up to distance 128


@pytest.fixture(scope="session")
def transformers(tmp_path_factory):
    """What it copies of folders with code of their own goes to a temporary folder."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    transformers = import_transformers()
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield transformers


@pytest.fixture
def checkpoint(make_method, save_checkpoint, tokenizer, tmp_path):
    """checkpoint(name, **options): path, and the method of 2 layers whose parameters are all random."""

    def checkpoint(name, **options):
        vocabulary = Vocabulary(len(tokenizer), tokenizer.pad, tokenizer.excluded)
        method = make_method(name, vocabulary=vocabulary, max_positions=max(LENGTHS), **options).eval()
        randomize(method)
        path = tmp_path / "run" / "checkpoint_1_7"
        save_checkpoint(path, name, method, tokenizer)
        return path.parent, method

    return checkpoint


def randomize(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(1.0 if name.endswith("layer_norm.weight") else 0.0, 0.15)


@pytest.fixture
def export(tmp_path, capsys, transformers):
    """export(run, *options): exit status, standard output, standard error, the folder."""

    def export(run, *options, out="exported"):
        status = main.main(["export", str(run), "--out", str(tmp_path / out), *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.replace(str(tmp_path), ""), tmp_path / out

    return export


@pytest.fixture
def tokens(tokenizer):
    """(B, T) random ids, right-padded, and the padding mask."""
    torch.manual_seed(2)
    tokens = torch.randint(4, len(tokenizer), (len(LENGTHS), max(LENGTHS)))
    padding_mask = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    return tokens.masked_fill(padding_mask, tokenizer.pad), padding_mask
