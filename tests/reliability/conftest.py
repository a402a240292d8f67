import json
import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """In this process: that a power cut keeps what was synced is not what the tests are about, that it was synced is.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def disturbed(launch, arguments, tmp_path):
    """disturbed(processes=1, [(rank, place, number, what), ..]): a training of 8 updates to which that happens.

    It is in `disturbed.folder`, to be gone on with, unless options say otherwise; see tests/reliability/disturbed.py.
    """
    def disturbed(processes=1, events=(), fails=False, name="bert_mlm", **options):
        options = {
            "num_workers": 1, "max_update": 8, "save_dir": tmp_path / "run", "batch_size": 8 // processes, **options
        }
        command = [json.dumps(events), *arguments(name, **options)]
        return launch("tests.reliability.disturbed:main", command, processes, fails)

    disturbed.folder = tmp_path / "run"
    return disturbed
