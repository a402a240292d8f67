"""How many rows are held at a time."""

import pytest
import torch

from amos_fairseq.ops import chunks

GIB = 2**30


@pytest.mark.parametrize("device, mib", [("cpu", 128), ("cuda", 320)])
def test_workspace_is_128_mib_on_cpus_and_a_256th_of_a_gpus_memory(device, mib, monkeypatch):
    monkeypatch.setattr(chunks, "_memory", lambda device: 80 * GIB)
    assert chunks.workspace(torch.device(device)) == mib * 2**20
    assert [part.stop for part in chunks.row_chunks(3 * mib, 2**20, torch.device(device))] == [mib, 2 * mib, 3 * mib]


def test_workspace_of_a_small_gpu_is_that_of_a_cpu(monkeypatch):
    monkeypatch.setattr(chunks, "_memory", lambda device: 16 * GIB)
    assert chunks.workspace(torch.device("cuda")) == 2**27


def test_a_row_that_is_too_long_is_a_chunk_and_no_rows_are_an_empty_one():
    cpu = torch.device("cpu")
    assert list(chunks.row_chunks(2, 2**28, cpu)) == [slice(0, 1), slice(1, 2)]
    assert list(chunks.row_chunks(0, 1, cpu)) == [slice(0, 0)]
