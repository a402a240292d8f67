"""A run whose encoder has collapsed says so, once."""

import logging
from types import SimpleNamespace

import torch

from amos_fairseq import pooled
from amos_fairseq.tasks.pretraining import PretrainingTask


def test_a_collapse_is_told_once_and_names_what_can_help(caplog):
    def validated(hidden):
        logs = {"pooled hidden_cosine cosine": pooled.similarity(hidden).sums}
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            PretrainingTask.tell_of_collapse(task, [logs])
        return caplog.messages

    task = SimpleNamespace(has_collapsed=False)
    apart, alike = torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.tensor([[1.0, 0.0], [0.96, 0.28]])
    assert validated(apart) == [] and not task.has_collapsed
    (told,) = validated(alike)
    assert task.has_collapsed and "cosine of 0.960" in told and "--lr" in told and "--rel-pos-lr-factor" in told


def test_training_says_nothing_of_a_collapse():
    task = SimpleNamespace(has_collapsed=False)
    PretrainingTask.tell_of_collapse(task, [{"tokens": torch.zeros(2, 3)}])
    assert not task.has_collapsed
