"""What is predicted of a run's memory, beside what is measured: on a CPU here, and on a GPU once."""

import ctypes
import json
import re
from pathlib import Path

import pytest
import torch

from amos_fairseq.analysis.flops import Geometry, without_memory
from amos_fairseq.analysis.plan import Alive, Memory, batch_without_values, memory
from amos_fairseq.data.masking import padded_width
from amos_fairseq.methods import METHODS, build, size_options
from amos_fairseq.methods.batch import PretrainingBatch
from amos_fairseq.methods.config import Vocabulary
from amos_fairseq.ops import use

VOCABULARY, LENGTH, MASK_PROB = 1000, 64, 0.15
M_MMAP_THRESHOLD = -3  # of malloc.h
MEASURED = Path(__file__).parents[2] / "examples/gpu/h200.json"


def predicted(name: str, size: str, sequences: int, **changes) -> Memory:
    """In fp32 on a CPU."""
    method = without_memory(name, size, VOCABULARY, Geometry(sequences, LENGTH, 10), changes)
    return memory(method, batch_without_values(sequences, LENGTH, MASK_PROB, method.cropping), fused=False)


def real(name: str, size: str, sequences: int, **changes):
    """The same with values: a method with gradients of an earlier micro-batch, and a batch."""
    options = {**size_options(name, size), "max_positions": LENGTH, **changes}
    method = build(name, options, Vocabulary(VOCABULARY, 1, [0, 1, 2, 3]), total_updates=10)
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)  # zeros would be pages that are not there yet
    tokens, masked = torch.randint(4, VOCABULARY, (sequences, LENGTH)), round(MASK_PROB * (LENGTH - 2))
    positions = torch.zeros(sequences, LENGTH, dtype=torch.bool)
    positions[:, 5 : 5 + masked] = True
    cropped = tokens[:, : padded_width(round(method.cropping * LENGTH))].clone() if method.cropping else None
    index = positions.flatten().nonzero().squeeze(-1)
    ids = torch.arange(sequences)
    return method, PretrainingBatch(
        tokens, tokens.clone(), positions, index, [masked] * sequences, ids, cropped_tokens=cropped
    )


def step(method, batch) -> None:
    with use("pytorch"):
        output = method(batch)
        sum(term.weight * term.total for term in method.losses(output, batch).values()).backward()


@pytest.mark.parametrize("name", METHODS)
def test_an_update_is_predicted_to_take_what_its_operations_allocate_on_a_cpu(name):
    """Of size tiny, within 3 %."""
    expected = predicted(name, "tiny", 16)
    method, batch = real(name, "tiny", 16)
    parameters = [*method.parameters()]
    with Alive([*parameters, *method.buffers(), *(parameter.grad for parameter in parameters)]) as made:
        step(method, batch)
    assert expected.activations + expected.temporaries == pytest.approx(made.peak, rel=0.03)


@pytest.fixture
def without_holes():
    """What a tensor took goes back to the system at once, as on GPUs it does to PyTorch's own pool."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.malloc_trim(0)
    yield
    libc.mallopt(M_MMAP_THRESHOLD, 2**25)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
@pytest.mark.parametrize("name", ["amos_rtd", "bert_mlm"])
def test_an_update_is_predicted_to_take_what_the_process_grows_by(name, without_holes):
    """Of size small, within 5 %, as the system counts its pages."""
    def pages(field: str) -> int:
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    expected = predicted(name, "small", 16)
    method, batch = real(name, "small", 16)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before = pages("VmRSS")
    step(method, batch)
    assert expected.activations + expected.temporaries == pytest.approx(pages("VmHWM") - before, rel=0.05)


@pytest.mark.parametrize("name", ["teams_mws", "peer_tqr", "script_selfcritic"])
def test_an_update_is_predicted_to_take_what_it_took_on_a_gpu(name):
    """Of size base in bf16, 32 sequences, within 8 %; without an optimizer, and with an attention that was fused."""
    method = without_memory(name, "base", 32768, Geometry(32, 512, 10)).bfloat16()
    of_update = memory(method, batch_without_values(32, 512, MASK_PROB))
    measured = json.loads(MEASURED.read_text())["steps"][name]["peak_gib"]
    assert (of_update.total - of_update.optimizer) / 2**30 == pytest.approx(measured, rel=0.08)


def test_parameters_gradients_and_optimizer_by_precision():
    method = without_memory("bert_mlm", "tiny", VOCABULARY, Geometry(1, LENGTH, 10))
    batch = batch_without_values(1, LENGTH, MASK_PROB)
    size = sum(parameter.numel() for parameter in method.parameters())
    assert memory(method, batch)[:3] == (4 * size, 4 * size, 8 * size)
    half = memory(method.half(), batch, devices=2)
    assert half[:3] == (2 * size, 2 * 2 * size, 12 * size)  # gradients, and the buckets that are sent
    assert half.temporaries >= 4 * size - half.activations  # the step's fp32 gradients
    assert memory(method, batch, masters=False).optimizer == 8 * size


def test_attention_in_one_kernel_keeps_no_probabilities():
    """In their place, 4 bytes a head and query, and the result."""
    method = without_memory("bert_mlm", "base", VOCABULARY, Geometry(1, 512, 10)).bfloat16()
    batch = batch_without_values(8, 512, MASK_PROB)
    fused, apart = (memory(method, batch, fused=fused).activations for fused in (True, False))
    assert fused == pytest.approx(34 * 768 * 12 * 8 * 512, rel=0.05)
    assert apart - fused > 3 * 11 * 12 * 8 * 512 * 512  # in bf16, and a mask of what is dropped
